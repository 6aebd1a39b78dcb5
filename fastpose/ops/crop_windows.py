"""Windows cut out of images or feature maps: the whole op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastpose import _check
from fastpose._library import define, fused

_MAX_CHANNELS = 4  # kMaxChannels of csrc/crop_windows.h: that may differ in fill, mean and std

PerChannel = float | Sequence[float]


def crop_windows(
    source: torch.Tensor,
    centers: torch.Tensor,
    sides: float | torch.Tensor,
    size: int | tuple[int, int],
    *,
    antialias: bool = True,
    fill: PerChannel = 0.0,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    r"""Cuts K windows out of every sample and brings them to one size, in one pass from images or feature maps.

    Cell j of a window w cells wide, with centre c and side a, has its centre at :math:`x_j = c + (j - (w - 1) / 2) a / w` in
    the source, and takes

    .. math:: \frac{\sum_i k(i - x_j) \, s_i}{\sum_i k(i - x_j)}, \qquad k(d) = \max(0, 1 - |d| / r),

    on both axes, over all integers i, with r = 1 (bilinear) or, with ``antialias`` where the window shrinks, r = a / w: the
    filter of PIL and of ``torch.nn.functional.interpolate(antialias=True)``. Outside of the source lies ``fill``; it is never
    clamped.

    Args:
        source: (B, C, H, W), floating, or uint8 images, whose values count as v / 255. Any strides: images (B, H, W, C) are
            passed as ``images.permute(0, 3, 1, 2)`` and read where they lie.
        centers: (B, K, 2), (x, y) in source pixels, cell i has its centre at i. Not differentiable.
        sides: of the square windows in source pixels: a number, (B, K), or (B, K, 2) for (width, height). Not differentiable.
        size: (height, width) of the windows in cells, or one number for a square.
        antialias: whether to average all source pixels under a cell where the window shrinks.
        fill: value outside of the source, in the source's unit, for uint8 within [0, 1]: a number, or C of them for up to 4
            channels. ``fill=mean`` surrounds the source with what is normalised to 0.
        mean: is subtracted, after v / 255 for uint8: as ``fill``.
        std: divides then: as ``fill``, not 0.
        dtype: of the windows, for uint8 images: float32 by default. Floating windows have the source's.

    Returns:
        (B, K, C, h, w) windows, differentiable in a floating ``source``; the gradient is summed in a fixed order. Those of a
        floating source in channels_last have their channels innermost too. A centre or side that is not finite means "no
        window": zeros throughout, and no gradient. Arithmetic is in float32, for float64 in float64, that of positions in
        float64. A value that is not finite reaches the cells whose filter it is under.

    Raises:
        TypeError, ValueError: an argument is not as above. A side that is not positive in a GPU tensor is not read back, but
            treated as "no window".
        NotBuiltError: there is no kernel for the source's device.

    Source: Toshev and Szegedy 2014, section 3.2 (joint sub-images); Tompson et al. 2015, section 4.1 (crops of shared
        features).
    """
    height, width = _check.size("size", size)
    dtype = _check_source(source, dtype)
    boxes = _boxes(source, centers, sides, torch.float64 if dtype == torch.float64 else torch.float32)
    # Windows of maps in channels_last go where such maps are used; images become what most networks begin with.
    channels_last = source.is_floating_point() and _is_channels_last(source)
    run = _op if fused(source) else crop_windows_reference
    normalisation = _normalisation(source, fill, mean, std)
    result = run(source, boxes, height, width, bool(antialias), *normalisation, dtype, channels_last)
    return result.unflatten(0, boxes.shape[:2])


def crop_windows_reference(
    source: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    antialias: bool,
    factor: list[float],
    inside: list[float],
    outside: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    """The same in plain PyTorch; arguments and result (B K, C, h, w) as the op's: a value v of channel c is normalised to
    factor[c] v + inside[c], what lies outside of the source to outside[c]. A list of one number serves all channels."""
    exists = boxes.isfinite().all(-1) & (boxes[..., 2:] > 0).all(-1)
    x, y, side_x, side_y = torch.where(exists.unsqueeze(-1), boxes, 1).unbind(-1)
    columns = _weights(x, side_x, width, source.shape[3], antialias)
    rows = _weights(y, side_y, height, source.shape[2], antialias)
    sums = torch.einsum("bkiy,bcyx->bkcix", rows, source.to(boxes.dtype))
    sums = torch.einsum("bkcix,bkjx->bkcij", sums, columns)
    share = (rows.sum(-1).unsqueeze(-1) * columns.sum(-1).unsqueeze(-2)).unsqueeze(2)  # of the filter's weight in the source
    a, b, c = (boxes.new_tensor(values).view(-1, 1, 1) for values in (factor, inside, outside))
    windows = torch.where(exists[..., None, None, None], sums * a + share * b + (1 - share) * c, 0)
    windows = windows.to(dtype).flatten(0, 1)
    return windows.contiguous(memory_format=torch.channels_last) if channels_last else windows


def _weights(centre: torch.Tensor, side: torch.Tensor, cells: int, pixels: int, antialias: bool) -> torch.Tensor:
    """(B, K, cells, pixels): how much of a pixel is in a cell, along one axis."""
    along = torch.arange(cells, dtype=centre.dtype, device=centre.device) - (cells - 1) / 2
    step = (side / cells).unsqueeze(-1)
    position = (centre.unsqueeze(-1) + along * step).unsqueeze(-1)
    reach = step.clamp(min=1).unsqueeze(-1) if antialias else centre.new_ones(1)
    distance = torch.arange(pixels, dtype=centre.dtype, device=centre.device) - position
    total = _sum_of_filter(position - position.floor(), reach) + _sum_of_filter(1 - (position - position.floor()), reach)
    return (1 - distance.abs() / reach).clamp(min=0) / total


def _sum_of_filter(first: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """The sum of 1 - d / reach over the distances first, first + 1, ... up to reach."""
    count = (reach - first).floor() + 1
    return count * (1 - (first + (count - 1) / 2) / reach)


def _check_source(source: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The windows' dtype."""
    image = isinstance(source, torch.Tensor) and source.dtype == torch.uint8
    if not image:
        _check.floating("source", source)
    if source.dim() != 4:
        raise ValueError(f"source: got shape {_check.shape(source)}, allowed is (B, C, H, W)")
    if source.shape[2] == 0 or source.shape[3] == 0:
        raise ValueError(f"source: got shape {_check.shape(source)}, height and width must be at least 1")
    if dtype is None:
        return torch.float32 if image else source.dtype
    if dtype not in _check.FLOATING or (dtype == torch.float64 and source.device.type == "cuda"):
        raise TypeError(f"dtype: got {dtype}, allowed are float32, float16, bfloat16 and (on the CPU) float64")
    if not image and dtype != source.dtype:
        raise ValueError(f"dtype: got {dtype}, allowed is that of a floating source, {source.dtype}")
    return dtype


def _boxes(source: torch.Tensor, centers: torch.Tensor, sides: float | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, K, 4): x, y, width, height of every window."""
    batch = source.shape[0]
    _check.floating("centers", centers)
    if centers.dim() != 3 or centers.shape[0] != batch or centers.shape[2] != 2:
        raise ValueError(f"centers: got shape {_check.shape(centers)}, allowed is ({batch}, K, 2), as source has B = {batch}")
    _check.same_device("centers", centers, "source", source)
    _check.not_differentiated("centers", centers)
    centers = centers.detach().to(dtype)
    if not isinstance(sides, torch.Tensor):
        side = _check.number("sides", sides, positive=True)
        return torch.cat((centers, torch.full_like(centers, side)), -1)
    _check.floating("sides", sides)
    if sides.shape not in (centers.shape, centers.shape[:2]):
        allowed = f"a number, {_check.shape(centers[..., 0])} or {_check.shape(centers)}"
        raise ValueError(f"sides: got shape {_check.shape(sides)}, allowed is {allowed}, for each of centers")
    _check.same_device("sides", sides, "source", source)
    _check.not_differentiated("sides", sides)
    if sides.device.type == "cpu" and not torch.compiler.is_compiling() and bool((sides <= 0).any()):
        raise ValueError(f"sides: got {sides.min().item()}, allowed are positive numbers, or NaN for no window")
    sides = sides.detach().to(dtype)
    return torch.cat((centers, (sides if sides.dim() == 3 else sides.unsqueeze(-1)).expand_as(centers)), -1)


def _normalisation(
    source: torch.Tensor, fill: PerChannel, mean: PerChannel | None, std: PerChannel | None
) -> tuple[list[float], list[float], list[float]]:
    """What the reference calls factor, inside and outside."""
    channels = source.shape[1]
    of_fill = _per_channel("fill", fill, channels)
    of_mean = _per_channel("mean", 0.0 if mean is None else mean, channels)
    of_std = _per_channel("std", 1.0 if std is None else std, channels)
    if 0 in of_std:
        raise ValueError(f"std: got {std}, allowed are finite numbers other than 0")
    count = max(len(of_fill), len(of_mean), len(of_std))
    of_fill, of_mean, of_std = (values * (count // len(values)) for values in (of_fill, of_mean, of_std))
    unit = 255.0 if source.dtype == torch.uint8 else 1.0
    return (
        [1 / (unit * s) for s in of_std],
        [0.0 - m / s for m, s in zip(of_mean, of_std, strict=True)],
        [(f - m) / s for f, m, s in zip(of_fill, of_mean, of_std, strict=True)],
    )


def _is_channels_last(source: torch.Tensor) -> bool:
    return source.stride(1) == 1 and source.stride(3) == source.shape[1] and source.shape[1] > 1


def _per_channel(name: str, values: PerChannel, channels: int) -> list[float]:
    if not isinstance(values, (list, tuple)):
        return [_check.number(name, values)]
    if len(values) != channels or channels > _MAX_CHANNELS:
        allowed = "a number" + (f" or {channels} of them" if channels <= _MAX_CHANNELS else f" for {channels} channels")
        raise ValueError(f"{name}: got {len(values)} numbers, allowed is {allowed}")
    return [_check.number(f"{name}[{i}]", value) for i, value in enumerate(values)]


def _fake(
    source: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    antialias: bool,
    factor: list[float],
    inside: list[float],
    outside: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    shape = (boxes.shape[0] * boxes.shape[1], source.shape[1], height, width)
    return torch.empty(shape, dtype=dtype, device=source.device, memory_format=_format(channels_last))


def _fake_backward(
    gradient: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    antialias: bool,
    factor: list[float],
    channels_last: bool,
) -> torch.Tensor:
    shape = (boxes.shape[0], gradient.shape[1], height, width)
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=_format(channels_last))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    source, boxes, _, _, ctx.antialias, ctx.factor, _, _, _, ctx.channels_last = inputs
    ctx.size = source.shape[2:]  # the source itself is not needed
    ctx.save_for_backward(boxes)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    to_source = _backward_op(gradient, boxes, *ctx.size, ctx.antialias, ctx.factor, ctx.channels_last)
    return (to_source, *[None] * 9)


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gradient, boxes, _, _, ctx.antialias, ctx.factor, ctx.channels_last = inputs
    ctx.size, ctx.dtype = gradient.shape[2:], gradient.dtype
    ctx.save_for_backward(boxes)


def _backward_of_backward(ctx: Any, to_source: torch.Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    nothing = [0.0] * len(ctx.factor)
    windows = _op(to_source, boxes, *ctx.size, ctx.antialias, ctx.factor, nothing, nothing, ctx.dtype, ctx.channels_last)
    return (windows, *[None] * 6)


_op = define(
    "crop_windows",
    "(Tensor source, Tensor boxes, SymInt height, SymInt width, bool antialias, float[] factor, float[] inside, float[] outside, "
    "ScalarType dtype, bool channels_last) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
# Both are linear and each other's transpose: they are differentiable any number of times.
_backward_op = define(
    "crop_windows_backward",
    "(Tensor gradient, Tensor boxes, SymInt source_height, SymInt source_width, bool antialias, float[] factor, "
    "bool channels_last) -> Tensor",
    fake=_fake_backward,
    setup_context=_setup_context_backward,
    backward=_backward_of_backward,
)
