"""What the suites of modules share: the plain, compiled and fused forms of one module, in inference and in a training step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastpose.benchmarking.workload import OURS, Function, Provider, compiled, plain

MODES: Mapping[str, str | None] = {"compile": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""Baselines that ``torch.compile`` makes, with its modes."""


class Form(NamedTuple):
    """What a provider runs: a function that can be compiled, and the parameters behind it."""

    forward: Function
    parameters: Sequence[nn.Parameter]


Job = Callable[[Form], Function]
"""Makes the function of the inputs that is timed."""


def own_copy(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """A copy that no other provider trains or folds; channels_last, which convolutions prefer."""
    return copy.deepcopy(module).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def form(module: nn.Module) -> Form:
    return Form(module, list(module.parameters()))


def inference(form: Form) -> Function:
    return torch.no_grad()(form.forward)


def autocast(dtype: torch.dtype, device: str) -> AbstractContextManager[object]:
    """Of a training step, whose weights stay in float32. Casts are not cached, which CUDA graphs do not allow."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(device, dtype, cache_enabled=False)
    return contextlib.nullcontext()


def providers(make: Callable[[], Form], job: Job, fused: Provider, modes: Iterable[str] = tuple(MODES)) -> dict[str, Provider]:
    """The fused form, the plain one, and what ``torch.compile`` makes of the plain one.

    Args:
        make: a new plain form.
        job: what is done with a form.
        fused: fastpose's provider.
        modes: of :data:`MODES`, those that are worth their compile time.
    """

    def by_compiler(mode: str | None) -> Provider:
        def prepare() -> Function:
            plain_form = make()
            return plain(job(plain_form._replace(forward=compiled(plain_form.forward, mode))))

        return Provider(prepare)

    baselines = {"eager": Provider(lambda: plain(job(make())))}
    baselines.update((name, by_compiler(MODES[name])) for name in modes)
    return {OURS: fused, **baselines}


def count_flops(module: nn.Module, shape: tuple[int, ...], *, training: bool) -> int:
    """Floating-point operations of a module's convolutions, forward or forward and backward; nothing is computed."""
    module = copy.deepcopy(module).to("meta").train(training)
    inputs = torch.empty(shape, device="meta", requires_grad=training)

    def run() -> None:
        results: Any = module(inputs)
        if training:
            maps = [results] if isinstance(results, torch.Tensor) else results
            torch.autograd.backward(maps, [torch.empty_like(tensor) for tensor in maps])

    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        plain(run)()
    return counter.get_total_flops()


def parameter_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize
