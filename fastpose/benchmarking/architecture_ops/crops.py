"""Windows around joints: from uint8 images (DeepPose), shrunk with antialiasing, and from feature maps (Tompson's fine model)."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

import fastpose
from fastpose import ops
from fastpose.benchmarking.architecture_ops.job import Job, Wrap, and_gradient, forward, uniform, wide
from fastpose.benchmarking.workload import Function, Inputs, Provider, compiled

JOINTS = 14
IMAGE, SIZE, SMALL = (3, 480, 640), 220, 96
FEATURES, WINDOW = (128, 60, 90), 36
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_EDGE = 2  # cells at a window's edge, where `interpolate` sees nothing beyond it
_ROI_SLACK = 1e-4  # roi_align takes positions in float32, which at pixel 640 is within 3e-5 of a pixel

Tensor = torch.Tensor


def _fused(source: Tensor, centers: Tensor, sides: Tensor, size: int) -> Tensor:
    return ops.crop_windows(source, centers, sides, size).flatten(0, 1)


def _fused_image(images: Tensor, centers: Tensor, sides: Tensor, size: int, dtype: torch.dtype, statistics: Tensor) -> Tensor:
    return ops.crop_windows(images, centers, sides, size, fill=MEAN, mean=MEAN, std=STD, dtype=dtype).flatten(0, 1)


# ---- plain forms ------------------------------------------------------------------------------------------------------


def _normalised(images: Tensor, statistics: Tensor, dtype: torch.dtype) -> Tensor:
    mean, std = statistics.view(2, 3, 1, 1)
    return (images.to(wide(dtype)) / 255 - mean) / std


def sample(source: Tensor, centers: Tensor, sides: Tensor, size: int) -> Tensor:
    """By grid_sample, bilinear without antialiasing, all windows of a sample side by side.

    It wants the grid in the maps' dtype; in a half type positions would be lost.
    """
    height, width = source.shape[2:]
    cells = (torch.arange(size, device=source.device) - (size - 1) / 2) / size
    x = (2 * (centers[..., :1] + cells * sides[..., None]) + 1) / width - 1
    y = (2 * (centers[..., 1:] + cells * sides[..., None]) + 1) / height - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[..., None]), -1).to(wide(source.dtype))
    windows = functional.grid_sample(source.to(grid.dtype), grid.flatten(1, 2), align_corners=False)
    return windows.unflatten(2, (sides.shape[1], size)).transpose(1, 2).flatten(0, 1).to(source.dtype)


def sample_image(images: Tensor, centers: Tensor, sides: Tensor, size: int, dtype: torch.dtype, statistics: Tensor) -> Tensor:
    return sample(_normalised(images, statistics, dtype), centers, sides, size).to(dtype)


def align(source: Tensor, centers: Tensor, sides: Tensor, size: int) -> Tensor:
    """By torchvision's roi_align, one sample a bin. It clamps to the border of the maps; a border of zeros makes that zero."""
    from torchvision.ops import roi_align

    half = sides.unsqueeze(-1) / 2
    corners = torch.cat((centers - half + 1.5, centers + half + 1.5), -1).flatten(0, 1)
    sample = torch.arange(len(sides), device=source.device, dtype=corners.dtype).repeat_interleave(sides.shape[1])
    boxes = torch.cat((sample.unsqueeze(1), corners), 1)
    padded = functional.pad(source.to(wide(source.dtype)), (1, 1, 1, 1))
    return roi_align(padded, boxes.to(padded.dtype), size, sampling_ratio=1, aligned=True).to(source.dtype)


def align_image(images: Tensor, centers: Tensor, sides: Tensor, size: int, dtype: torch.dtype, statistics: Tensor) -> Tensor:
    return align(_normalised(images, statistics, dtype), centers, sides, size).to(dtype)


def resize(images: Tensor, centers: Tensor, sides: Tensor, size: int, dtype: torch.dtype, statistics: Tensor) -> Tensor:
    """By interpolate, one window after the other; their edges are whole pixels, and nothing beyond them is seen."""
    normalised = _normalised(images, statistics, dtype)
    windows = []
    for b in range(centers.shape[0]):
        for (x, y), side in zip(centers[b].tolist(), sides[b].tolist(), strict=True):
            left, top = round(x - (side - 1) / 2), round(y - (side - 1) / 2)
            window = normalised[b : b + 1, :, top : top + round(side), left : left + round(side)]
            windows.append(functional.interpolate(window, (size, size), mode="bilinear", antialias=True))
    return torch.cat(windows).to(dtype)


def matrices(images: Tensor, centers: Tensor, sides: Tensor, size: int, dtype: torch.dtype, statistics: Tensor) -> Tensor:
    """The definition: two products with the matrices of the filters."""
    with fastpose.backend("reference"):
        return _fused_image(images, centers, sides, size, dtype, statistics)


def _samplers(grid: Function, roi: Function, wrap: Wrap = forward) -> dict[str, Provider]:
    return {
        "eager grid_sample": Provider(lambda: wrap(grid)),
        "compile grid_sample": Provider(lambda: wrap(compiled(grid))),
        "torchvision roi_align": Provider(lambda: wrap(roi), slack=_ROI_SLACK),
    }


# ---- inputs -----------------------------------------------------------------------------------------------------------


def _images(batch: int, device: str, seed: int) -> Tensor:
    return (255 * uniform((batch, *IMAGE), seed)).byte().to(device)


def _statistics(device: str) -> Tensor:
    """Mean and standard deviation of the channels, (2, 3): made beforehand, as no CUDA graph copies from the CPU's memory."""
    return torch.tensor([MEAN, STD], device=device)


def _anywhere(batch: int, height: int, width: int, seed: int) -> Tensor:
    return uniform((batch, JOINTS, 2), seed + 1) * torch.tensor([width, height])


def _small_windows(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Of 80 to 200 pixels, which are fewer than the cells; some reach over the image's border."""
    centers = _anywhere(batch, *IMAGE[1:], seed)
    sides = 80 + 120 * uniform((batch, JOINTS), seed + 2)
    return _images(batch, device, seed), centers.to(device), sides.to(device), SIZE, dtype, _statistics(device)


def _large_windows(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Of 200 to 400 pixels, inside of the images and with whole pixels at their edges."""
    _, height, width = IMAGE
    sides = (200 + 200 * uniform((batch, JOINTS), seed + 2)).round()
    room = torch.tensor([width, height]) - sides.unsqueeze(-1)
    corner = (uniform((batch, JOINTS, 2), seed + 1) * room).floor()
    centers = corner + (sides.unsqueeze(-1) - 1) / 2
    return _images(batch, device, seed), centers.to(device), sides.to(device), SMALL, dtype, _statistics(device)


def _features(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Windows of as many cells as they have pixels, some over the border."""
    features = uniform((batch, *FEATURES), seed).to(device, dtype).requires_grad_()
    sides = torch.full((batch, JOINTS), float(WINDOW), device=device)
    return features, _anywhere(batch, *FEATURES[1:], seed).to(device), sides, WINDOW


# ---- jobs -------------------------------------------------------------------------------------------------------------


def _image_bytes(size: int, dtype: torch.dtype) -> int:
    channels, height, width = IMAGE
    return channels * (height * width + JOINTS * size**2 * dtype.itemsize)


def _feature_bytes(passes: int, dtype: torch.dtype) -> int:
    channels, height, width = FEATURES
    return passes * channels * (height * width + JOINTS * WINDOW**2) * dtype.itemsize


def _feature_job(name: str, wrap: Wrap, passes: int) -> Job:
    baselines = _samplers(sample, align, wrap)
    shape = (JOINTS, FEATURES[0], WINDOW, WINDOW)
    return Job(name, shape, _features, wrap(_fused), wrap(sample), baselines, partial(_feature_bytes, passes))


JOBS = (
    Job(
        "crop images",
        (JOINTS, IMAGE[0], SIZE, SIZE),
        _small_windows,
        _fused_image,
        sample_image,
        _samplers(sample_image, align_image),
        partial(_image_bytes, SIZE),
    ),
    Job(
        "crop images, shrinking",
        (JOINTS, IMAGE[0], SMALL, SMALL),
        _large_windows,
        _fused_image,
        matrices,
        {
            "eager matrices": Provider(lambda: matrices),
            "compile matrices": Provider(lambda: compiled(matrices)),
            "eager interpolate": Provider(lambda: resize, border=_EDGE),
        },
        partial(_image_bytes, SMALL),
        not_on_gpu=("eager interpolate",),
    ),
    _feature_job("crop features forward", forward, 1),
    _feature_job("crop features forward+backward", and_gradient(), 2),
)
