"""The convolution of Gaussian maps straight from keypoints: the whole op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from fastpose import _check
from fastpose._library import define, fused
from fastpose.ops import _gaussian
from fastpose.ops._gaussian import GaussianArgs


def gaussian_conv2d(
    base: torch.Tensor,
    keypoints: torch.Tensor,
    weight: torch.Tensor,
    size: int | tuple[int, int],
    sigma: float | Sequence[float] | torch.Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    visible: torch.Tensor | None = None,
    rounding: str = "none",
    amplitude: float = 1.0,
    offset: float = 0.0,
) -> torch.Tensor:
    r"""``base`` plus the convolution of the Gaussians at the keypoints, which are never drawn in memory.

    .. math:: \text{base} + \operatorname{conv2d}(M, \text{weight}, \text{stride}, \text{padding})

    with M the (B, K, H, W) maps that :func:`gaussian_heatmap` draws. A Gaussian is a product of one factor a row and one a
    column, so that a kernel of h rows costs K h multiplications an output instead of K h w.

    Iterative error feedback feeds a network the image and the rendered pose. Its first convolution is linear: the image's
    share, ``base``, is computed once and serves all steps, and each step adds the pose's share.

    Args:
        base: (B, O, h, w), the size that the convolution gives; any strides.
        keypoints: (B, K, 2), (x, y) in pixels of the maps, cell i has its centre at i. NaN: no label, the map is ``offset``.
            Not differentiable.
        weight: (O, K, kernel rows, kernel columns), none of them 0, in the dtype of ``base``.
        size: (height, width) of the maps, or one number for a square.
        sigma: as in :func:`gaussian_heatmap`, like ``visible``, ``rounding``, ``amplitude`` and ``offset``, but not
            differentiable.
        stride: of the convolution, on both axes.
        padding: zeros around the maps, on all sides.

    Returns:
        (B, O, h, w) in the dtype of ``base``, differentiable once in ``base`` and ``weight``. Arithmetic is in float32, for
        float64 in float64.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for the device of ``base``.

    Source: Carreira et al. 2016, "Human Pose Estimation with Iterative Error Feedback", section 2.
    """
    height, width = _check.size("size", size)
    _check.maps("base", base)
    args = _gaussian.gaussian_args(
        keypoints,
        sigma,
        visible=visible,
        rounding=rounding,
        radius=None,
        window="square",
        combine="max",
        amplitude=amplitude,
        offset=offset,
        dtype=base.dtype,
    )
    if keypoints.dim() != 3:
        raise ValueError(f"keypoints: got shape {_check.shape(keypoints)}, allowed is (B, K, 2): one person an image")
    _check.same_device("keypoints", keypoints, "base", base)
    for name, operand in (("keypoints", keypoints), ("sigma", sigma)):
        if isinstance(operand, torch.Tensor):
            _check.not_differentiated(name, operand)
    stride = _check.positive_int("stride", stride)
    padding = _check.non_negative_int("padding", padding)
    _check_weight(weight, base, keypoints)
    _check_base(base, keypoints, weight, (height, width), stride, padding)
    run = _op if fused(base) else gaussian_conv2d_reference
    return run(base, weight.contiguous(), *args, height, width, stride, padding)


def gaussian_conv2d_reference(base: torch.Tensor, weight: torch.Tensor, *args: Any) -> torch.Tensor:
    """The same in plain PyTorch; arguments and result as the op's."""
    *gaussian, height, width, stride, padding = args
    maps = _gaussian.draw(GaussianArgs(*gaussian), height, width)
    return (base.to(maps.dtype) + functional.conv2d(maps, weight.to(maps.dtype), None, stride, padding)).to(base.dtype)


def _check_weight(weight: torch.Tensor, base: torch.Tensor, keypoints: torch.Tensor) -> None:
    _check.floating("weight", weight)
    channels, joints = base.shape[1], keypoints.shape[1]
    if weight.dim() != 4 or weight.shape[:2] != (channels, joints) or 0 in weight.shape:
        allowed = (
            f"({channels}, {joints}, kernel rows, kernel columns), as base has O = {channels} and keypoints have K = {joints}"
        )
        raise ValueError(f"weight: got shape {_check.shape(weight)}, allowed is {allowed}")
    if weight.dtype != base.dtype:
        raise TypeError(f"weight: got dtype {weight.dtype}, allowed is that of base, {base.dtype}")
    _check.same_device("weight", weight, "base", base)


def _check_base(
    base: torch.Tensor, keypoints: torch.Tensor, weight: torch.Tensor, size: tuple[int, int], stride: int, padding: int
) -> None:
    if base.shape[0] != keypoints.shape[0]:
        raise ValueError(
            f"keypoints: got shape {_check.shape(keypoints)}, but base has B = {base.shape[0]}; allowed is (B, K, 2)"
        )
    padded = tuple(n + 2 * padding for n in size)
    if weight.shape[2] > padded[0] or weight.shape[3] > padded[1]:
        raise ValueError(f"weight: got shape {_check.shape(weight)}, larger than the padded maps, {padded}")
    out = tuple((n - k) // stride + 1 for n, k in zip(padded, weight.shape[2:], strict=True))
    if base.shape[2:] != out:
        raise ValueError(f"base: got shape {_check.shape(base)}, but the convolution gives (B, O, {out[0]}, {out[1]})")


def _fake(base: torch.Tensor, *args: Any) -> torch.Tensor:
    return torch.empty_like(base)


def _fake_backward(gradient: torch.Tensor, keypoints: torch.Tensor, *args: Any) -> torch.Tensor:
    rows, columns, _, _ = args[-4:]
    return keypoints.new_empty(gradient.shape[1], keypoints.shape[2] + 1, rows, columns)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, weight, keypoints, sigmas, *ctx.options = inputs
    ctx.kernel, ctx.dtype = weight.shape[2:], weight.dtype
    ctx.save_for_backward(keypoints, sigmas)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    to_weight = None
    if ctx.needs_input_grad[1]:
        *options, stride, padding = ctx.options
        of_joints = _backward_op(gradient, *ctx.saved_tensors, *options, *ctx.kernel, stride, padding)
        # The maps' offset multiplies the sum of all joints' weights.
        to_weight = (of_joints[:, :-1] + of_joints[:, -1:]).to(ctx.dtype)
    return (gradient, to_weight, *[None] * (len(ctx.options) + 2))


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gradient, keypoints, sigmas, *options, _, _, stride, padding = inputs
    ctx.options = (*options, stride, padding)
    ctx.base = gradient.shape, gradient.dtype
    ctx.save_for_backward(keypoints, sigmas)


def _backward_of_backward(ctx: Any, to_joints: torch.Tensor) -> tuple[Any, ...]:
    """The transpose again: the convolution with the joints' part, and of the offset alone with the last one."""
    keypoints, sigmas = ctx.saved_tensors
    shape, dtype = ctx.base
    args = GaussianArgs(keypoints, sigmas, *ctx.options[: len(GaussianArgs._fields) - 2])
    rest = ctx.options[len(GaussianArgs._fields) - 2 :]
    kernels = to_joints.to(dtype)
    result = _op(kernels.new_zeros(shape), kernels[:, :-1].contiguous(), *args._replace(offset=0.0), *rest)
    nobody = args._replace(keypoints=torch.full_like(keypoints[:, :, :1], math.nan), sigmas=None)
    return (_op(result, kernels[:, -1:].contiguous(), *nobody, *rest), *[None] * (len(ctx.options) + 4))


_op = define(
    "gaussian_conv2d",
    f"(Tensor base, Tensor weight, {_gaussian.SCHEMA}, SymInt height, SymInt width, SymInt stride, SymInt padding) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
# Both are linear and each other's transpose: they are differentiable any number of times.
_backward_op = define(
    "gaussian_conv2d_backward",
    f"(Tensor gradient, {_gaussian.SCHEMA}, SymInt height, SymInt width, SymInt kernel_rows, SymInt kernel_columns, "
    "SymInt stride, SymInt padding) -> Tensor",
    fake=_fake_backward,
    setup_context=_setup_context_backward,
    backward=_backward_of_backward,
)
