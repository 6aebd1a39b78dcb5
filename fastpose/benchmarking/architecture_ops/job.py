"""What the jobs of this folder have in common: how one becomes a workload, and the pass that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fastpose.benchmarking.baselines import runnable
from fastpose.benchmarking.workload import OURS, Function, Inputs, Provider, Workload

Wrap = Callable[[Function], Function]


@dataclass(frozen=True)
class Job:
    """A job of a fused op and what to compare it with.

    Attributes:
        name: of the row.
        shape: of what the job is about, without the batch.
        make_inputs: (batch, dtype, device, seed) -> inputs.
        fused: the job of those inputs by fastpose.
        exact: the job of inputs in float64.
        baselines: providers, the first being the measure of error.
        sample_bytes: (dtype) -> bytes of inputs and results of one sample, once each.
        not_on_gpu: names of baselines that read tensors back to the CPU.
        magnitude: of the numbers on the way to a result, where it is more than the result's own.
        compared: the part of a result that ``exact`` gives.
    """

    name: str
    shape: tuple[int, ...]
    make_inputs: Callable[[int, torch.dtype, str, int], Inputs]
    fused: Function
    exact: Function
    baselines: Mapping[str, Provider]
    sample_bytes: Callable[[torch.dtype], int]
    not_on_gpu: tuple[str, ...] = ()
    magnitude: float = 0.0
    compared: Callable[[Any], Any] = lambda result: result

    def workload(self, batch: int, dtype: torch.dtype, device: str) -> Workload:
        left_out = self.not_on_gpu if device == "cuda" else ()
        others = {name: provider for name, provider in self.baselines.items() if name not in left_out}
        bytes_moved = batch * self.sample_bytes(dtype)
        return Workload(
            suite="ops",
            name=self.name,
            shape=(batch, *self.shape),
            dtype=dtype,
            device=device,
            make_inputs=partial(self.make_inputs, batch, dtype, device),
            exact=self.exact,
            eager=next(iter(self.baselines)),
            providers={
                OURS: Provider(lambda: self.fused, role="ours"),
                **runnable(others, device),
                **_copies(bytes_moved, device),
            },
            bytes_moved=bytes_moved,
            magnitude=self.magnitude,
            compared=self.compared,
        )


def _copies(bytes_moved: int, device: str) -> dict[str, Provider]:
    """The floors of the suite: copies that read and write as many bytes together."""
    from fastpose.benchmarking.ops import copies  # which imports this folder

    return copies((bytes_moved // 2,), torch.uint8, device)


def forward(function: Function) -> Function:
    return torch.no_grad()(function)


def and_gradient(index: int = 0, result: Callable[[Any], torch.Tensor] = lambda result: result) -> Wrap:
    """The gradient of what ``result`` picks in input number ``index``, from a gradient of ones."""

    def wrap(function: Function) -> Function:
        def run(*inputs: Any) -> torch.Tensor:
            picked = result(function(*inputs))
            return torch.autograd.grad(picked, inputs[index], torch.ones_like(picked))[0]

        return run

    return wrap


def wide(dtype: torch.dtype) -> torch.dtype:
    """Of arithmetic: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def uniform(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """In [0, 1), on the CPU, so that every device gets the same."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
