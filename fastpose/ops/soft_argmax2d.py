"""Soft-argmax, the expected coordinates of heatmaps: the whole op."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastpose import _check
from fastpose._library import define, fused


class SoftArgmax(NamedTuple):
    """What :func:`soft_argmax2d` returns, in float32 (float64 for float64 heatmaps)."""

    coordinates: torch.Tensor
    """(B, K, 2) expected (x, y) in heatmap pixels."""
    confidence: torch.Tensor
    """(B, K) largest probability, in (0, 1]."""
    covariance: torch.Tensor | None
    """(B, K, 2, 2) covariance of (x, y) in square pixels, or None if not asked for."""


def soft_argmax2d(heatmaps: torch.Tensor, temperature: float = 1.0, *, covariance: bool = False) -> SoftArgmax:
    r"""Expected coordinates under the softmax of each heatmap: a differentiable argmax.

    .. math:: p = \operatorname{softmax}(h / T), \qquad
              \mu = \sum_{y,x} p_{yx} \binom{x}{y}, \qquad
              \Sigma = \sum_{y,x} p_{yx} \left(\binom{x}{y} - \mu\right) \left(\binom{x}{y} - \mu\right)^\top

    One pass over the heatmaps forward; backward reads them once more and writes the gradient. Arithmetic and results are in
    float32 whatever the heatmaps are (float64 for float64), so that half precision costs no accuracy beyond that of its
    own rounding.

    Args:
        heatmaps: (B, K, H, W) logits, any strides.
        temperature: T, positive: the smaller, the closer to the argmax. kornia multiplies by its ``temperature``, so this is
            the reciprocal of it. For a learnable one divide the heatmaps by it and leave this at 1.
        covariance: whether to compute the second moments too.

    Returns:
        ``coordinates`` (B, K, 2), (x, y) in heatmap pixels, cell i has its centre at i; ``confidence`` (B, K), the largest
        probability; ``covariance`` (B, K, 2, 2) in square pixels, or None. All are differentiable once; of equal maxima the
        first, row by row, receives the gradient of the confidence.
        A heatmap value of -inf has probability 0. A map with NaN or +inf in it, or with nothing but -inf, gives NaN.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for the heatmaps' device.

    Source: Sun et al. 2018, "Integral Human Pose Regression", section 2; Nibali et al. 2018, "Numerical Coordinate Regression
    with Convolutional Neural Networks" (DSNT), section 3.
    """
    _check.maps("heatmaps", heatmaps)
    temperature = _check.number("temperature", temperature, positive=True)
    # Beyond these, where the result is the plain argmax or the centre of the map, 1 / T or a gradient would leave float32.
    temperature = min(max(temperature, 1e-30), 1e30)
    run = _op if fused(heatmaps) else soft_argmax2d_reference
    coordinates, confidence, second, _ = run(heatmaps, temperature, covariance)
    return SoftArgmax(coordinates, confidence, second if covariance else None)


def soft_argmax2d_reference(
    heatmaps: torch.Tensor, temperature: float, covariance: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in plain PyTorch; arguments and results as the op's."""
    height, width = heatmaps.shape[2:]
    flat = heatmaps.to(_accumulator(heatmaps)).flatten(2)
    argmax = flat.argmax(-1)
    # Shifting before dividing keeps a small temperature from overflowing.
    p = torch.softmax((flat - flat.detach().amax(-1, keepdim=True)) / temperature, -1)
    confidence = p.gather(-1, argmax.unsqueeze(-1)).squeeze(-1)
    p = p.unflatten(-1, (height, width))
    x = torch.arange(width, dtype=p.dtype, device=p.device)
    y = torch.arange(height, dtype=p.dtype, device=p.device)
    px, py = p.sum(-2), p.sum(-1)
    mean_x, mean_y = (px * x).sum(-1), (py * y).sum(-1)
    if not covariance:
        second = p.new_empty(0)
    else:
        dx, dy = x - mean_x.unsqueeze(-1), y - mean_y.unsqueeze(-1)
        xy = (dy * (p * dx.unsqueeze(-2)).sum(-1)).sum(-1)
        second = torch.stack(((px * dx**2).sum(-1), xy, xy, (py * dy**2).sum(-1)), -1).unflatten(-1, (2, 2))
    return torch.stack((mean_x, mean_y), -1), confidence, second, argmax


def _accumulator(heatmaps: torch.Tensor) -> torch.dtype:
    return torch.float64 if heatmaps.dtype == torch.float64 else torch.float32


def _fake(heatmaps: torch.Tensor, temperature: float, covariance: bool) -> tuple[torch.Tensor, ...]:
    batch, joints = heatmaps.shape[:2]
    dtype = _accumulator(heatmaps)
    return (
        heatmaps.new_empty(batch, joints, 2, dtype=dtype),
        heatmaps.new_empty(batch, joints, dtype=dtype),
        heatmaps.new_empty((batch, joints, 2, 2) if covariance else (0,), dtype=dtype),
        heatmaps.new_empty(batch, joints, dtype=torch.int64),
    )


def _fake_backward(*args: Any) -> torch.Tensor:
    return torch.empty_like(args[3])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    heatmaps, ctx.temperature, _ = inputs
    ctx.save_for_backward(heatmaps, *output)
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor, None, None]:
    heatmaps, *results = ctx.saved_tensors
    upstream = [None if g is None else g.contiguous() for g in gradients[:3]]
    return _backward_op(*upstream, heatmaps, ctx.temperature, *results), None, None


_op = define(
    "soft_argmax2d",
    "(Tensor heatmaps, float temperature, bool covariance) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = define(
    "soft_argmax2d_backward",
    "(Tensor? to_coordinates, Tensor? to_confidence, Tensor? to_covariance, Tensor heatmaps, float temperature, "
    "Tensor coordinates, Tensor confidence, Tensor covariance, Tensor argmax) -> Tensor",
    fake=_fake_backward,
)
