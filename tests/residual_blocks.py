"""Residual blocks to be trained, and what a training step of them gives; shared by the tests of their training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import fastpose
from fastpose.nn import HourglassResidual


class Step(NamedTuple):
    """What a step of training leaves behind. Gradients are None where they were not wanted."""

    y: torch.Tensor
    dx: torch.Tensor | None
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {"y": self.y, "dx": self.dx, **self.gradients, **{f"buffer {name}": b for name, b in self.buffers.items()}}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def make_block(in_channels: int, out_channels: int, seed: int = 0) -> HourglassResidual:
    """In float32, with normalisations and running statistics that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = HourglassResidual(in_channels, out_channels, recompute=True)
        for bn in (block.bn1, block.bn2, block.bn3):
            nn.init.normal_(bn.weight)
            nn.init.normal_(bn.bias, std=0.5)
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 2.0)
            bn.num_batches_tracked.fill_(3)
    return block


def make_maps(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Channels far apart in mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=generator)
    spread, mean = torch.rand(2, shape[1], 1, 1, generator=generator)
    return ((0.3 + spread) * maps + 4 * (mean - 0.5)).to(dtype)


def take_step(
    block: HourglassResidual,
    x: torch.Tensor,
    dy: torch.Tensor,
    *,
    run: Callable[[nn.Module, torch.Tensor], torch.Tensor] = lambda block, x: block(x),
    reference: bool = False,
    x_needs_gradient: bool = True,
) -> Step:
    """Forward and backward of a copy of ``block``; ``reference`` calls its layers in turn."""
    block = copy.deepcopy(block)
    x = x.detach().requires_grad_(x_needs_gradient)
    with fastpose.backend("reference" if reference else "fused"):
        y = run(block, x)
        if y.requires_grad:
            y.backward(dy)
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return Step(y.detach(), x.grad, gradients, {name: buffer.clone() for name, buffer in block.named_buffers()})


def relative_error(tensor: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the whole, in the 2-norm."""
    difference = (tensor.to(exact.device, torch.float64) - exact).norm()
    return (difference / exact.norm().clamp(min=1e-300)).item()


def check_not_finite_is_seen(value: float, *, frozen: bool) -> None:
    """That one ``value``, which is no finite number, spreads as far as with the layers in turn."""
    block = make_block(16, 16).train(not frozen)
    x, dy = make_maps(2, 16, 6, 6), make_maps(2, 16, 6, 6, seed=2)
    x[1, 3, 2, 2] = value
    ours, theirs = take_step(block, x, dy).tensors(), take_step(block, x, dy, reference=True).tensors()
    for name, tensor in theirs.items():
        if name not in ("conv1.bias", "conv2.bias"):
            assert torch.equal(ours[name].isfinite(), tensor.isfinite()), name
    assert not ours["y"].isfinite().all()
