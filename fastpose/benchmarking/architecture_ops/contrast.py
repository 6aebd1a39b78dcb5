"""Local contrast normalisation of a level of Tompson's pyramid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from fastpose import ops
from fastpose.benchmarking.architecture_ops.job import Job, Wrap, and_gradient, forward, uniform, wide
from fastpose.benchmarking.workload import Function, Inputs, Provider, compiled

IMAGE, WINDOW, THRESHOLD = (3, 240, 360), 9, 1e-4


def _fused(images: torch.Tensor) -> torch.Tensor:
    return ops.local_contrast_normalization(images, WINDOW, threshold=THRESHOLD)


# ---- plain forms ------------------------------------------------------------------------------------------------------


def _normalised(images: torch.Tensor, around: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``around`` is the mean of (B, C, H, W) over window and channels, zeros outside."""
    maps = images.to(wide(images.dtype))
    share = around(torch.ones_like(maps[:1]))
    subtracted = maps - around(maps) / share
    deviation = around(subtracted.square()).sqrt() / share
    return (subtracted / torch.where(deviation > THRESHOLD, deviation, THRESHOLD)).to(images.dtype)


def by_convolution(images: torch.Tensor) -> torch.Tensor:
    """As torch7 does it."""

    def around(maps: torch.Tensor) -> torch.Tensor:
        channels = maps.shape[1]
        kernel = maps.new_full((1, channels, WINDOW, WINDOW), 1 / (channels * WINDOW**2))
        return functional.conv2d(maps, kernel, padding=WINDOW // 2)

    return _normalised(images, around)


def by_separable_convolution(images: torch.Tensor) -> torch.Tensor:
    def around(maps: torch.Tensor) -> torch.Tensor:
        kernel = maps.new_full((1, 1, 1, WINDOW), 1 / WINDOW)
        rows = functional.conv2d(maps.mean(1, keepdim=True), kernel, padding=(0, WINDOW // 2))
        return functional.conv2d(rows, kernel.transpose(2, 3), padding=(WINDOW // 2, 0))

    return _normalised(images, around)


def by_pooling(images: torch.Tensor) -> torch.Tensor:
    def around(maps: torch.Tensor) -> torch.Tensor:
        rows = functional.avg_pool2d(maps.mean(1, keepdim=True), (1, WINDOW), 1, (0, WINDOW // 2))
        return functional.avg_pool2d(rows, (WINDOW, 1), 1, (WINDOW // 2, 0))

    return _normalised(images, around)


def _baselines(wrap: Wrap) -> dict[str, Provider]:
    forms = {"convolution": by_convolution, "separable": by_separable_convolution, "pooling": by_pooling}

    def provider(make: Callable[[], Function]) -> Provider:
        return Provider(lambda: wrap(make()))

    eager = {f"eager {name}": provider(lambda form=form: form) for name, form in forms.items()}  # type: ignore[misc]
    return eager | {f"compile {name}": provider(partial(compiled, form)) for name, form in forms.items()}


# ---- jobs -------------------------------------------------------------------------------------------------------------


def _images(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    return (uniform((batch, *IMAGE), seed).to(device, dtype).requires_grad_(),)


def _bytes(passes: int, dtype: torch.dtype) -> int:
    channels, height, width = IMAGE
    return passes * channels * height * width * dtype.itemsize


def _job(name: str, wrap: Wrap, passes: int, magnitude: float = 0.0) -> Job:
    return Job(
        name, IMAGE, _images, wrap(_fused), wrap(by_convolution), _baselines(wrap), partial(_bytes, passes), magnitude=magnitude
    )


JOBS = (
    _job("contrast forward", forward, 2),
    # The gradient is a small difference of numbers as large as 1 / deviation.
    _job("contrast forward+backward", and_gradient(), 5, magnitude=3.5),
)
