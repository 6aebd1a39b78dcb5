"""Local contrast normalisation of images: the whole op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from fastpose import _check
from fastpose._library import define, differentiated, fused

CONTRAST_BORDERS = ("torch7", "even")
_MAX_WINDOW = 31  # kMaxWindow of csrc/local_contrast_normalization.h


def local_contrast_normalization(
    images: torch.Tensor,
    window: int | Sequence[float] = 9,
    *,
    border: str = "torch7",
    threshold: float = 1e-4,
) -> torch.Tensor:
    r"""Subtracts the mean around each pixel, over all channels jointly, and divides by what deviation from it is left there.

    With w the window's weights, which sum to 1, over the pixels p + d of the image around p, and
    :math:`\kappa_p = \sum_d w_d` over those of them that lie in the image:

    .. math:: \mu_p &= \frac{1}{C \kappa_p} \sum_{c, d} w_d \, x_{c, p + d}, \qquad y_{cp} = x_{cp} - \mu_p \\
              v_p &= \frac{1}{C} \sum_{c, d} w_d \, y_{c, p + d}^2, \qquad s_p = \sqrt{v_p} / \kappa_p \\
              z_{cp} &= y_{cp} / s_p, \quad \text{or } y_{cp} / \text{threshold} \text{ where } s_p \le \text{threshold}

    In one pass over memory: every channel is read once and written once.

    Args:
        images: (B, C, H, W), any strides.
        window: an odd number of pixels, the side of a box; or the weights of a separable window along one axis, positive, an
            odd number of them, at most 31. Gaussian weights are those of Jarrett et al. 2009.
        border: ``"torch7"``: as above, the rule of torch's ``SpatialContrastiveNormalization``. It divides a square root by
            :math:`\kappa`, so that contrast fades toward the border, to 0.556 in the corners of a 9 x 9 box. ``"even"``:
            :math:`s_p = \sqrt{v_p / \kappa_p}`, which does not.
        threshold: smallest deviation that is divided by, positive, in the unit of the images.

    Returns:
        (B, C, H, W) in the images' dtype and memory format, differentiable once. Arithmetic is in float32, for float64 in
        float64.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for the images' device.

    Source: Jarrett et al. 2009, "What is the Best Multi-Stage Architecture for Object Recognition?", section 2; torch/nn,
    SpatialSubtractiveNormalization and SpatialDivisiveNormalization; Tompson et al. 2015, section 3.1.
    """
    _check_images(images)
    weights = _weights(window)
    _check.option("border", border, CONTRAST_BORDERS)
    save = torch.is_grad_enabled() and differentiated((images,))
    run = _op if fused(images) else local_contrast_normalization_reference
    result, _, _ = run(images, weights, border == "even", _check.number("threshold", threshold, positive=True), save)
    return result


def local_contrast_normalization_reference(
    images: torch.Tensor, weights: list[float], even: bool, threshold: float, save: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in plain PyTorch; arguments and results as the op's: z, and for the backward pass the means and what was divided
    by, (B, H, W) each, which PyTorch saves by itself and are left empty here."""
    x = images.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    w = x.new_tensor(weights)
    half = len(weights) // 2

    def around(maps: torch.Tensor) -> torch.Tensor:
        rows = functional.conv2d(maps, w.view(1, 1, 1, -1), padding=(0, half))
        return functional.conv2d(rows, w.view(1, 1, -1, 1), padding=(half, 0))

    share = around(x.new_ones(1, 1, *x.shape[2:]))
    y = x - around(x.mean(1, keepdim=True)) / share
    variance = around(y.square().mean(1, keepdim=True))
    square = variance / (share if even else share.square())
    large = square > threshold**2
    # The root of the other squares is not taken: its slope at 0 is infinite.
    deviation = torch.where(large, torch.where(large, square, 1).sqrt(), threshold)
    return (y / deviation).to(images.dtype), x.new_empty(0), x.new_empty(0)


def _check_images(images: torch.Tensor) -> None:
    _check.floating("images", images)
    if images.dim() != 4:
        raise ValueError(f"images: got shape {_check.shape(images)}, allowed is (B, C, H, W)")
    if images.shape[2] == 0 or images.shape[3] == 0:
        raise ValueError(f"images: got shape {_check.shape(images)}, height and width must be at least 1")


def _weights(window: int | Sequence[float]) -> list[float]:
    if not isinstance(window, (list, tuple)):
        weights = [1.0] * _check.positive_int("window", window)
    else:
        weights = [_check.number(f"window[{i}]", weight, positive=True) for i, weight in enumerate(window)]
    if len(weights) % 2 == 0 or len(weights) > _MAX_WINDOW:
        got = f"{len(weights)} weights" if isinstance(window, (list, tuple)) else window
        raise ValueError(f"window: got {got}, allowed are odd numbers up to {_MAX_WINDOW}")
    total = sum(weights)
    return [weight / total for weight in weights]


def _fake(
    images: torch.Tensor, weights: list[float], even: bool, threshold: float, save: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, _, height, width = images.shape
    precise = torch.float64 if images.dtype == torch.float64 else torch.float32
    saved = [images.new_empty((batch, height, width) if save else (0,), dtype=precise) for _ in range(2)]
    return torch.empty_like(images), saved[0], saved[1]


def _fake_backward(gradient: torch.Tensor, images: torch.Tensor, *args: Any) -> torch.Tensor:
    return torch.empty_like(images)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    images, *ctx.options, _ = inputs
    ctx.save_for_backward(images, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: torch.Tensor, *_: None) -> tuple[Any, ...]:
    return (_backward_op(gradient, *ctx.saved_tensors, *ctx.options), *[None] * 4)


_op = define(
    "local_contrast_normalization",
    "(Tensor images, float[] weights, bool even, float threshold, bool save) -> (Tensor result, Tensor mean, Tensor deviation)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = define(
    "local_contrast_normalization_backward",
    "(Tensor gradient, Tensor images, Tensor mean, Tensor deviation, float[] weights, bool even, float threshold) -> Tensor",
    fake=_fake_backward,
)
