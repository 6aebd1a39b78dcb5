"""What is measured: each fused op on one shape, its inputs, the bytes it must move and its baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import baselines
from fastpose import ops
from fastpose.cases import CASES

JOINTS, SIZE, STACKS = 16, 64, 1


@dataclass(frozen=True)
class Workload:
    """One row group of the table.

    ``op`` names the case in fastpose.cases that knows the bytes to move; ``tolerance`` is how far, in the result's unit, a
    baseline may be from the fused op before it counts as computing something else.
    """

    name: str
    op: str
    make: Callable[[int, torch.dtype, str], tuple[Any, ...]]
    fused: Callable[..., Any]
    baselines: Callable[[str], baselines.Baselines]
    tolerance: float
    backward: bool = False
    crop: int = 0  # border not compared: kornia normalises the truncated mass

    def bytes_moved(self, batch: int, dtype: torch.dtype) -> int:
        case = next(case for case in CASES if case.name == self.op)
        forward, backward = case.bytes_moved((batch, JOINTS, SIZE, SIZE), dtype)
        return forward + backward * self.backward


def peaks(batch: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Heatmaps as a network gives them: a Gaussian a joint and noise; no ties."""
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(batch, JOINTS, 2, generator=generator) * (SIZE - 17) + 8
    noise = torch.rand(batch, JOINTS, SIZE, SIZE, generator=generator)
    maps = baselines.render_separable(keypoints, SIZE) + 0.03 * noise
    return maps.to(device, dtype)


def keypoints(batch: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(batch, JOINTS, 2, generator=generator) * (SIZE - 17) + 8).to(device)


def _render_inputs(batch: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    return keypoints(batch, dtype, device), SIZE


def _loss_inputs(batch: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    predictions = [peaks(batch, dtype, device).requires_grad_() for _ in range(STACKS)]
    return predictions, keypoints(batch, dtype, device)


def _maps(batch: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    return (peaks(batch, dtype, device),)


def _logits(batch: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    return ((peaks(batch, dtype, device) * 10).requires_grad_(),)


def _loss_and_gradients(predictions: list[torch.Tensor], points: torch.Tensor) -> tuple[torch.Tensor, ...]:
    losses = ops.heatmap_mse_loss(predictions, points, baselines.SIGMA)
    return torch.autograd.grad(losses.sum(), predictions)


def _forward_only(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.no_grad()(function)


def _with_backward(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def run(heatmaps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        coordinates = function(heatmaps)
        return torch.autograd.grad(coordinates, heatmaps, torch.ones_like(coordinates))

    return run


def _each(wrap: Callable[..., Any], make: Callable[[str], baselines.Baselines]) -> Callable[[str], baselines.Baselines]:
    return lambda device: {name: wrap(function) for name, function in make(device).items()}


def _soft_argmax(heatmaps: torch.Tensor) -> torch.Tensor:
    return ops.soft_argmax2d(heatmaps, baselines.TEMPERATURE).coordinates


WORKLOADS = [
    Workload(
        "render",
        "gaussian_heatmap",
        _render_inputs,
        lambda points, size: ops.gaussian_heatmap(points, size, baselines.SIGMA),
        baselines.render_baselines,
        tolerance=1e-3,
        crop=16,
    ),
    Workload(
        "loss forward+backward",
        "heatmap_mse_loss",
        _loss_inputs,
        _loss_and_gradients,
        baselines.loss_baselines,
        tolerance=1e-6,
        backward=True,
    ),
    Workload(
        "soft-argmax forward",
        "soft_argmax2d",
        _logits,
        _forward_only(_soft_argmax),
        _each(_forward_only, baselines.soft_argmax_baselines),
        tolerance=1e-2,
    ),
    Workload(
        "soft-argmax forward+backward",
        "soft_argmax2d",
        _logits,
        _with_backward(_soft_argmax),
        _each(_with_backward, baselines.soft_argmax_baselines),
        tolerance=1e-3,
        backward=True,
    ),
    Workload(
        "decode quarter",
        "decode_heatmaps",
        _maps,
        lambda maps: ops.decode_heatmaps(maps, "quarter").coordinates,
        baselines.quarter_baselines,
        tolerance=1e-4,
    ),
    Workload(
        "decode DARK",
        "decode_heatmaps",
        _maps,
        lambda maps: ops.decode_heatmaps(maps, "dark").coordinates,
        baselines.dark_baselines,
        tolerance=1e-3,
    ),
]
