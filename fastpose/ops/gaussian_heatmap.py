"""Gaussian heatmaps from keypoints: the whole op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastpose import _check
from fastpose._library import define, fused
from fastpose.ops import _gaussian
from fastpose.ops._gaussian import GaussianArgs


def gaussian_heatmap(
    keypoints: torch.Tensor,
    size: int | tuple[int, int],
    sigma: float | Sequence[float] | torch.Tensor,
    *,
    visible: torch.Tensor | None = None,
    rounding: str = "none",
    radius: float | None = None,
    window: str = "square",
    combine: str = "max",
    amplitude: float = 1.0,
    offset: float = 0.0,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Draws a Gaussian at every keypoint: the target of heatmap regression.

    .. math:: M_k(y, x) = \text{offset} + \text{amplitude} \cdot
              \operatorname{combine}_p \exp\left(-\frac{(x - x_{pk})^2 + (y - y_{pk})^2}{2 \sigma_k^2}\right)

    It is separable: H + W exponentials a map, not H * W. A keypoint that is not finite or not visible means "no label" and draws
    nothing: without other people its map is ``offset`` everywhere. Keypoints may lie outside the map.

    Args:
        keypoints: (B, K, 2), or (B, P, K, 2) for P people an image; (x, y) in heatmap pixels, cell i has its centre at i.
        size: (height, width) of the maps, or one number for a square.
        sigma: standard deviation in heatmap pixels: a number, K numbers, or a tensor () or (K,) that may require grad.
        visible: (B, K) or (B, P, K), bool or number; 0 means "no label".
        rounding: where the centre is put before drawing: ``"none"`` (sub-pixel), ``"nearest"`` (floor(x + 0.5)) or ``"floor"``.
        radius: nothing is drawn further than this from the centre, in pixels; None: full support. A patch of side 6σ+1 is 3σ.
        window: what ``radius`` cuts out: a ``"square"`` (the patches of hourglass and MSRA) or a ``"disc"`` (CPM).
        combine: several people: ``"max"``, or ``"sum"`` clamped to 1 (CPM).
        amplitude: peak above the offset. IEF draws 100 g - 50: amplitude 100, offset -50.
        offset: value where nothing is drawn.
        dtype: of the maps; default: that of the keypoints. Arithmetic is in float32, for float64 in float64.
        out: (B, K, H, W) tensor of any strides to write to; then no gradient is recorded.

    Returns:
        (B, K, H, W) maps. Differentiable in the keypoints where ``rounding="none"``, and in ``sigma`` where it is a tensor.
        Where people tie for the maximum, the gradient goes to the first.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then. A non-positive ``sigma`` in a GPU
            tensor is not read back, but treated as "no label".
        NotBuiltError: there is no kernel for the keypoints' device.

    Source: Tompson et al. 2014, section 3; Newell et al. 2016, section 3.1.
    """
    height, width = _check.size("size", size)
    _check.floating("keypoints", keypoints)
    if out is not None:
        _check.floating("out", out)
    dtype = dtype or (out.dtype if out is not None else keypoints.dtype)
    if dtype not in _check.FLOATING:
        raise TypeError(f"dtype: got {dtype}, allowed are float32, float16, bfloat16 and (on the CPU) float64")
    args = _gaussian.gaussian_args(
        keypoints,
        sigma,
        visible=visible,
        rounding=rounding,
        radius=radius,
        window=window,
        combine=combine,
        amplitude=amplitude,
        offset=offset,
        dtype=dtype,
    )
    if out is not None:
        _check_out(out, (keypoints.shape[0], keypoints.shape[-2], height, width), dtype, keypoints)
        with torch.no_grad():
            if fused(keypoints):
                _out_op(*args, out)
            else:
                out.copy_(gaussian_heatmap_reference(*args, height, width, dtype))
        return out
    run = _op if fused(keypoints) else gaussian_heatmap_reference
    return run(*args, height, width, dtype)


def gaussian_heatmap_reference(*args: Any) -> torch.Tensor:
    """The same in plain PyTorch; arguments as the op's."""
    *gaussian, height, width, dtype = args
    return _gaussian.draw(GaussianArgs(*gaussian), height, width).to(dtype)


def _check_out(out: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, keypoints: torch.Tensor) -> None:
    if out.shape != shape:
        raise ValueError(f"out: got shape {_check.shape(out)}, allowed is {shape}")
    if out.dtype != dtype:
        raise ValueError(f"out: got dtype {out.dtype}, but dtype is {dtype}")
    if 0 in out.stride() and out.numel() > 1 and any(s == 0 and n > 1 for s, n in zip(out.stride(), out.shape, strict=True)):
        raise ValueError("out: got an expanded tensor, whose elements share memory; allowed is one that can be written")
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError("out: requires grad; writing into it cannot be recorded")
    _check.same_device("out", out, "keypoints", keypoints)


def _fake(*args: Any) -> torch.Tensor:
    keypoints, (height, width, dtype) = args[0], args[-3:]
    return keypoints.new_empty(keypoints.shape[0], keypoints.shape[2], height, width, dtype=dtype)


def _fake_backward(gradient: torch.Tensor, keypoints: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(keypoints), keypoints.new_empty(keypoints.shape[:-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    keypoints, sigmas, *ctx.options = inputs[: len(GaussianArgs._fields)]
    ctx.save_for_backward(keypoints, sigmas)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    keypoints, sigmas = ctx.saved_tensors
    to_keypoints, to_sigma = _backward_op(gradient, keypoints, sigmas, *ctx.options)
    # The sum over people and batch is torch's: tiny, and in a fixed order.
    return (to_keypoints, None if sigmas is None else to_sigma.sum((0, 1)), *[None] * 10)


_op = define(
    "gaussian_heatmap",
    f"({_gaussian.SCHEMA}, SymInt height, SymInt width, ScalarType dtype) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_out_op = define("gaussian_heatmap_out", f"({_gaussian.SCHEMA}, Tensor(a!) out) -> ()", fake=lambda *args: None)
_backward_op = define(
    "gaussian_heatmap_backward", f"(Tensor gradient, {_gaussian.SCHEMA}) -> (Tensor, Tensor)", fake=_fake_backward
)
