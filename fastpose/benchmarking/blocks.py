"""Suite ``blocks``: the hourglass's residual block at the sizes of its five levels, inference and training step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from fastpose.benchmarking import modules
from fastpose.benchmarking.modules import Form
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.workload import Function, Inputs, Provider, Workload
from fastpose.nn import HourglassResidual

CHANNELS = 256
LEVELS, QUICK_LEVELS = (64, 32, 16, 8, 4), (64, 16)
BATCHES, QUICK_BATCHES = {"cpu": 4, "cuda": 32}, {"cpu": 1, "cuda": 32}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def workloads(settings: Settings) -> Iterator[Workload]:
    """Inference, then the training step, at every level."""
    device = settings.device
    batches = settings.batches or ((QUICK_BATCHES if settings.quick else BATCHES)[device],)
    levels = QUICK_LEVELS if settings.quick else LEVELS
    for dtype in settings.torch_dtypes((DTYPES[device],)):
        for batch in batches:
            for training in (False, True):
                for level in levels:
                    yield _workload((batch, CHANNELS, level, level), dtype, settings, training)


def _workload(shape: tuple[int, int, int, int], dtype: torch.dtype, settings: Settings, training: bool) -> Workload:
    device = settings.device
    torch.manual_seed(0)
    block = HourglassResidual(CHANNELS, CHANNELS).train(training)
    kept = torch.float32 if training else dtype  # of the weights

    def make(dtype: torch.dtype = kept) -> Form:
        return modules.form(modules.own_copy(block, dtype, device))

    def job(form: Form, dtype: torch.dtype = dtype) -> Function:
        return _training_step(form, dtype, device) if training else modules.inference(form)

    maps = shape[0] * shape[1] * shape[2] * shape[3] * dtype.itemsize
    weights = modules.parameter_bytes(block, kept)
    return Workload(
        suite="blocks",
        name="residual " + ("training step" if training else "inference"),
        shape=shape,
        dtype=dtype,
        device=device,
        make_inputs=partial(_inputs, shape, dtype, device, training),
        exact=lambda *inputs: job(make(torch.float64), torch.float64)(*inputs),
        eager="eager",
        providers=modules.providers(make, job, Provider(lambda: job(make()), role="ours")),
        # x and y; in a training step backward x, dy and dx too, and the gradients of the weights.
        bytes_moved=5 * maps + 3 * weights if training else 2 * maps + weights,
        flops=partial(modules.count_flops, block, shape, training=training),
        arithmetic=dtype,
        tunable=None if training else lambda: job(make()),
        terms=max(9 * CHANNELS // 2, shape[0] * shape[2] * shape[3] if training else 0),  # of a convolution, of a gradient
    )


def _training_step(form: Form, dtype: torch.dtype, device: str) -> Function:
    """Forward and backward of the block from a given gradient of its result."""

    def step(x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with modules.autocast(dtype, device):
            y = form.forward(x)
        return y.detach(), *torch.autograd.grad(y, [x, *form.parameters], gradient)

    return step


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, training: bool, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def draw() -> Any:
        maps = torch.randn(shape, generator=generator, device=device).to(dtype)
        return maps.contiguous(memory_format=torch.channels_last)

    return (draw().requires_grad_(), draw()) if training else (draw(),)
