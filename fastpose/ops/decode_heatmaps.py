"""Keypoints from heatmaps: the whole op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fastpose import _check
from fastpose._library import define, fused

METHODS = ("argmax", "quarter", "dark", "soft_window")
BORDERS = ("torch7", "msra", "clamped")
_MAX_BLUR_SIZE = 63  # kMaxBlurSize of csrc/decode_heatmaps.h
_FLOOR = 1e-10  # smallest value whose logarithm DARK takes
_SINGULAR = 1e-5  # a Hessian is singular if |determinant| is at most this share of its squared diagonal


class Decoded(NamedTuple):
    """Keypoints read from heatmaps."""

    coordinates: torch.Tensor  # (B, K, 2), (x, y)
    scores: torch.Tensor  # (B, K), value of the map at its maximum


def decode_heatmaps(
    heatmaps: torch.Tensor,
    method: str = "quarter",
    *,
    flipped: torch.Tensor | None = None,
    flip_permutation: Sequence[int] | torch.Tensor | None = None,
    flip_shift: int = 0,
    affine: torch.Tensor | None = None,
    border: str = "torch7",
    blur_sigma: float | None = None,
    blur_size: int = 11,
    radius: int = 2,
    temperature: float = 1.0,
) -> Decoded:
    """Finds the maximum of every map and refines it to a fraction of a pixel, in one read of the maps.

    Methods:

    - ``"argmax"``: the cell of the first maximum, by rows.
    - ``"quarter"``: from there a quarter of a pixel toward the larger neighbour, on each axis (Newell et al. 2016).
    - ``"dark"``: one Newton step on the logarithm of the blurred map (Zhang et al. 2020). The blur's kernel has
      ``blur_size`` cells a side, and zeros surround the map. Maxima less than two cells from the border stay, and so do
      those whose Hessian is singular. The published rescaling to the old maximum is left out: it would change nothing.
    - ``"soft_window"``: expectation of softmax(h / ``temperature``) over the cells at most ``radius`` rows and columns
      from the maximum, cut at the border. Differentiable, the window held in place.

    NaN counts as -infinity. A map without any value above -infinity gives NaN coordinates and a NaN score. A maximum
    stays where its refinement would not be finite, and in ``"dark"`` where any value under the blur is not.

    Args:
        heatmaps: (B, K, H, W), any strides.
        method: see above.
        flipped: (B, K, H, W) maps of the mirrored images, as the network gave them. Their joints are swapped, they are
            mirrored back, and the mean of both is decoded; it is never stored.
        flip_permutation: K joints: joint k is ``flipped[:, flip_permutation[k]]`` in the mirrored image. None: no joint
            has a partner. A tensor on a GPU is not read back; there a joint out of range decodes to NaN.
        flip_shift: columns by which the mirrored-back map is moved to the right; its first column fills the gap. 1 for
            networks whose targets were rounded to the nearest cell (SimpleBaseline, HRNet), else 0.
        affine: (B, 2, 3), maps heatmap pixels to image pixels, applied last. Not differentiable.
        border: of ``"quarter"``: which maxima stay near the border, and what equal neighbours do.

            - ``"torch7"``: moves if 1 <= x <= W-2 and 1 <= y <= H-2; not toward either of equal neighbours
              (pose-hg-train, pytorch-pose).
            - ``"msra"``: moves if 1 < x < W-1 and 1 < y < H-1; likewise (SimpleBaseline, HRNet).
            - ``"clamped"``: always moves, the maximum itself standing in for a neighbour outside; by -0.25 if
              neighbours are equal (pytorch_stacked_hourglass).

        blur_sigma: of ``"dark"``, in pixels. None: 0.3 ((blur_size - 1) / 2 - 1) + 0.8 as OpenCV has it for DarkPose,
            which gives 2 for 11 (up to size 9 OpenCV itself takes rounded weights instead).
        blur_size: of ``"dark"``, odd, at most 63.
        radius: of ``"soft_window"``, in pixels.
        temperature: of ``"soft_window"``, in units of the map.

    Returns:
        ``coordinates`` (B, K, 2), (x, y) in heatmap pixels, where cell i has its centre at i, or in image pixels with
        ``affine``; ``scores`` (B, K), the mean map's value at its maximum. Both are float32, for float64 maps float64.
        ``scores`` are differentiable in ``heatmaps`` and ``flipped``, ``coordinates`` only for ``"soft_window"``; else
        they do not require grad.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for the maps' device.

    Source: Newell et al. 2016, section 3.3, and the code named above; Zhang et al. 2020, "Distribution-Aware Coordinate
    Representation for Human Pose Estimation", section 3.2.
    """
    _check.maps("heatmaps", heatmaps)
    _check.option("method", method, METHODS)
    _check.option("border", border, BORDERS)
    args = (
        heatmaps,
        *_flip_args(heatmaps, flipped, flip_permutation, flip_shift),
        _affine(affine, heatmaps),
        METHODS.index(method),
        BORDERS.index(border),
        *_blur_args(blur_size, blur_sigma),
        _check.positive_int("radius", radius),
        _check.number("temperature", temperature, positive=True),
    )
    run = _op if fused(heatmaps) else decode_heatmaps_reference
    coordinates, scores, _ = run(*args)
    return Decoded(coordinates if method == "soft_window" else coordinates.detach(), scores)


def decode_heatmaps_reference(
    heatmaps: torch.Tensor,
    flipped: torch.Tensor | None,
    flip_permutation: torch.Tensor | None,
    flip_shift: int,
    affine: torch.Tensor | None,
    method: int,
    border: int,
    blur_size: int,
    blur_sigma: float,
    radius: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in plain PyTorch; arguments and results as the op's. The cells (B, K) are y W + x, or -1: none."""
    maps = _mean_maps(heatmaps, flipped, flip_permutation, flip_shift)
    width = maps.shape[-1]
    cells = maps.flatten(2).argmax(-1)  # the first one
    x, y = cells % width, cells // width
    scores = _values(maps, y, x)
    found = scores > -math.inf
    offset = torch.zeros_like(scores).unsqueeze(-1).expand(-1, -1, 2)
    if METHODS[method] == "quarter":
        offset = _quarter(maps, y, x, BORDERS[border])
    elif METHODS[method] == "dark":
        offset = _dark(maps, y, x, blur_size, blur_sigma)
    elif METHODS[method] == "soft_window":
        offset = _soft_window(maps, y, x, radius, temperature)
    coordinates = torch.where(found.unsqueeze(-1), torch.stack((x, y), -1) + offset, math.nan)
    if affine is not None:
        coordinates = (affine[:, None, :, :2] * coordinates.unsqueeze(-2)).sum(-1) + affine[:, None, :, 2]
    return coordinates, torch.where(found, scores, math.nan), torch.where(found, cells, -1)


def _mean_maps(
    heatmaps: torch.Tensor, flipped: torch.Tensor | None, flip_permutation: torch.Tensor | None, flip_shift: int
) -> torch.Tensor:
    maps = heatmaps.to(_precise(heatmaps))
    if flipped is not None:
        columns = maps.shape[-1] - 1 - (torch.arange(maps.shape[-1], device=maps.device) - flip_shift).clamp(min=0)
        mirrored = flipped if flip_permutation is None else flipped[:, flip_permutation]
        maps = (maps + mirrored[..., columns]) / 2
    return torch.where(maps.isnan(), -math.inf, maps)


def _values(maps: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """maps[b, k, y, x] for (B, K, ...) cells, the nearest cell standing in for those outside."""
    height, width = maps.shape[-2:]
    cells = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return maps.flatten(2).gather(-1, cells.unsqueeze(-1).flatten(2)).view(cells.shape)


def _quarter(maps: torch.Tensor, y: torch.Tensor, x: torch.Tensor, border: str) -> torch.Tensor:
    height, width = maps.shape[-2:]
    after = torch.stack((_values(maps, y, x + 1), _values(maps, y + 1, x)), -1)
    before = torch.stack((_values(maps, y, x - 1), _values(maps, y - 1, x)), -1)
    if border == "clamped":
        return torch.where(after > before, 0.25, -0.25).to(maps.dtype)
    margin = 2 if border == "msra" else 1
    moves = (x >= margin) & (x <= width - 2) & (y >= margin) & (y <= height - 2)
    return 0.25 * ((after > before).to(maps.dtype) - (after < before).to(maps.dtype)) * moves.unsqueeze(-1)


def _patch(
    maps: torch.Tensor, y: torch.Tensor, x: torch.Tensor, radius: int, outside: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K, n, n) cells around (y, x), n = 2 radius + 1, with ``outside`` around the map, and (n,) their distances."""
    height, width = maps.shape[-2:]
    distance = torch.arange(-radius, radius + 1, device=maps.device)
    rows, columns = y[..., None, None] + distance[:, None], x[..., None, None] + distance
    rows, columns = torch.broadcast_tensors(rows, columns)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, _values(maps, rows, columns), outside), distance.to(maps.dtype)


def _dark(maps: torch.Tensor, y: torch.Tensor, x: torch.Tensor, blur_size: int, blur_sigma: float) -> torch.Tensor:
    height, width = maps.shape[-2:]
    patch, _ = _patch(maps, y, x, blur_size // 2 + 2, 0.0)
    refined = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & patch.isfinite().all(-1).all(-1)
    distance = torch.arange(blur_size, dtype=maps.dtype, device=maps.device) - blur_size // 2
    weights = torch.exp(-0.5 * (distance / blur_sigma) ** 2)
    weights = weights / weights.sum()
    rows = (patch.unfold(-2, blur_size, 1) * weights).sum(-1)
    log = (rows.unfold(-1, blur_size, 1) * weights).sum(-1).clamp(min=_FLOOR).log()  # (B, K, 5, 5)
    gx, gy = (log[..., 2, 3] - log[..., 2, 1]) / 2, (log[..., 3, 2] - log[..., 1, 2]) / 2
    xx = (log[..., 2, 4] - 2 * log[..., 2, 2] + log[..., 2, 0]) / 4
    yy = (log[..., 4, 2] - 2 * log[..., 2, 2] + log[..., 0, 2]) / 4
    xy = (log[..., 3, 3] - log[..., 1, 3] - log[..., 3, 1] + log[..., 1, 1]) / 4
    determinant = xx * yy - xy**2
    refined &= determinant.abs() > _SINGULAR * (xx**2 + yy**2)
    step = torch.stack((xy * gy - yy * gx, xy * gx - xx * gy), -1) / torch.where(refined, determinant, 1).unsqueeze(-1)
    return torch.where(refined.unsqueeze(-1) & step.isfinite().all(-1, keepdim=True), step, 0)


def _soft_window(maps: torch.Tensor, y: torch.Tensor, x: torch.Tensor, radius: int, temperature: float) -> torch.Tensor:
    window, distance = _patch(maps, y, x, radius, -math.inf)
    finite = _values(maps, y, x).isfinite()[..., None, None]
    weights = torch.softmax((torch.where(finite, window, 0) / temperature).flatten(2), -1).view_as(window)
    mean = torch.stack(((weights * distance).sum((-2, -1)), (weights * distance[:, None]).sum((-2, -1))), -1)
    return torch.where(finite[..., 0], mean, 0)


def _precise(maps: torch.Tensor) -> torch.dtype:
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def _flip_args(
    heatmaps: torch.Tensor,
    flipped: torch.Tensor | None,
    permutation: Sequence[int] | torch.Tensor | None,
    shift: int,
) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    _check.non_negative_int("flip_shift", shift)
    if flipped is None:
        for name, given in (("flip_permutation", permutation is not None), ("flip_shift", shift != 0)):
            if given:
                raise ValueError(f"{name}: is given without flipped, the maps of the mirrored images")
        return None, None, 0
    _check.maps("flipped", flipped)
    if flipped.shape != heatmaps.shape:
        allowed = _check.shape(heatmaps)
        raise ValueError(f"flipped: got shape {_check.shape(flipped)}, allowed is that of heatmaps, {allowed}")
    if flipped.dtype != heatmaps.dtype:
        raise TypeError(f"flipped: got dtype {flipped.dtype}, allowed is that of heatmaps, {heatmaps.dtype}")
    _check.same_device("flipped", flipped, "heatmaps", heatmaps)
    return flipped, None if permutation is None else _permutation(permutation, heatmaps), shift


def _permutation(permutation: Sequence[int] | torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
    joints = heatmaps.shape[1]
    if isinstance(permutation, torch.Tensor):
        if permutation.is_floating_point() or permutation.is_complex() or permutation.dtype == torch.bool:
            raise TypeError(f"flip_permutation: got dtype {permutation.dtype}, allowed are integers")
        if permutation.shape != (joints,):
            got = _check.shape(permutation)
            raise ValueError(f"flip_permutation: got shape {got}, allowed is ({joints},), one for each joint")
        known = permutation.device.type == "cpu" and not torch.compiler.is_compiling()
        values = permutation.tolist() if known else None
    else:
        values = list(permutation)
        if any(isinstance(joint, bool) or not isinstance(joint, int) for joint in values):
            raise TypeError(f"flip_permutation: got {values}, allowed are integers")
    if values is not None and sorted(values) != list(range(joints)):
        raise ValueError(f"flip_permutation: got {values}, allowed is a permutation of the joints 0 to {joints - 1}")
    return torch.as_tensor(permutation, dtype=torch.int64, device=heatmaps.device).contiguous()


def _affine(affine: torch.Tensor | None, heatmaps: torch.Tensor) -> torch.Tensor | None:
    if affine is None:
        return None
    if not isinstance(affine, torch.Tensor):
        raise TypeError(f"affine: got {type(affine).__name__}, allowed is a torch.Tensor")
    if not affine.is_floating_point():
        raise TypeError(f"affine: got dtype {affine.dtype}, allowed are floating-point numbers")
    if affine.shape != (heatmaps.shape[0], 2, 3):
        allowed = f"({heatmaps.shape[0]}, 2, 3), one for each image"
        raise ValueError(f"affine: got shape {_check.shape(affine)}, allowed is {allowed}")
    _check.same_device("affine", affine, "heatmaps", heatmaps)
    if affine.requires_grad and torch.is_grad_enabled():
        raise ValueError("affine: requires grad, but is not differentiated; detach it or apply it to the coordinates")
    return affine.detach().to(_precise(heatmaps)).contiguous()


def _blur_args(size: int, sigma: float | None) -> tuple[int, float]:
    size = _check.positive_int("blur_size", size)
    if size % 2 == 0 or size > _MAX_BLUR_SIZE:
        raise ValueError(f"blur_size: got {size}, allowed are odd numbers up to {_MAX_BLUR_SIZE}")
    if sigma is None:
        return size, 0.3 * ((size - 1) / 2 - 1) + 0.8
    return size, _check.number("blur_sigma", sigma, positive=True)


def _fake(heatmaps: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, joints = heatmaps.shape[:2]
    scores = heatmaps.new_empty(batch, joints, dtype=_precise(heatmaps))
    return scores.new_empty(batch, joints, 2), scores, scores.new_empty(batch, joints, dtype=torch.int64)


def _fake_backward(
    to_coordinates: torch.Tensor,
    to_scores: torch.Tensor,
    cells: torch.Tensor,
    heatmaps: torch.Tensor,
    flipped: torch.Tensor | None,
    *args: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(heatmaps), heatmaps.new_empty(0) if flipped is None else torch.empty_like(flipped)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    heatmaps, flipped, permutation, shift, affine, *ctx.options = inputs
    ctx.shift = shift
    ctx.save_for_backward(output[2], heatmaps, flipped, permutation, affine)


def _backward(ctx: Any, to_coordinates: torch.Tensor, to_scores: torch.Tensor, to_cells: None) -> tuple[Any, ...]:
    cells, heatmaps, flipped, permutation, affine = ctx.saved_tensors
    to_heatmaps, to_flipped = _backward_op(
        to_coordinates.contiguous(),
        to_scores.contiguous(),
        cells,
        heatmaps,
        flipped,
        permutation,
        ctx.shift,
        affine,
        *ctx.options,
    )
    return (to_heatmaps, None if flipped is None else to_flipped, *[None] * 9)


_SCHEMA = (
    "Tensor heatmaps, Tensor? flipped, Tensor? flip_permutation, int flip_shift, Tensor? affine, int method, "
    "int border, int blur_size, float blur_sigma, int radius, float temperature"
)
_op = define(
    "decode_heatmaps",
    f"({_SCHEMA}) -> (Tensor coordinates, Tensor scores, Tensor cells)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = define(
    "decode_heatmaps_backward",
    f"(Tensor coordinate_gradient, Tensor score_gradient, Tensor cells, {_SCHEMA}) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
