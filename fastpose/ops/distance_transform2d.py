"""Generalised distance transforms of score maps, the messages of max-sum in a tree of springs: the whole op."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from fastpose import _check
from fastpose._library import define, fused


class DistanceTransform(NamedTuple):
    """What :func:`distance_transform2d` returns."""

    values: torch.Tensor
    """(B, K, H, W) the best sum for every cell, in the scores' dtype."""
    cells: torch.Tensor
    """(B, K, H, W) int32: the cell y W + x where it is reached."""


def distance_transform2d(scores: torch.Tensor, springs: torch.Tensor, anchors: torch.Tensor | None = None) -> DistanceTransform:
    r"""For every cell q the best that a part can score anywhere, less what its spring takes for being away from there.

    .. math:: D(q) = \max_u \, S(u) - \left(a_x d_x^2 + b_x d_x + a_y d_y^2 + b_y d_y\right), \qquad d = u - q - \text{anchor}

    Exact, whatever the signs of a and b: two max-plus passes, along the rows and down the columns, each over all pairs of
    cells.

    Args:
        scores: (B, K, H, W), any strides. NaN counts as -infinity.
        springs: (K, 4) or (B, K, 4): (a_x, b_x, a_y, b_y), the weights of (d_x^2, d_x, d_y^2, d_y). A spring pulls if its a are
            positive.
        anchors: (K, 2) or (B, K, 2), (x, y) in cells: where u - q is at rest. None: 0.

    Returns:
        ``values`` (B, K, H, W), differentiable once in all operands, and ``cells`` (B, K, H, W), int32, y W + x of the u that
        gives the value; of equal ones the first, row by row. The gradient goes to that cell. Arithmetic is in float32, for
        float64 in float64.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for the scores' device.

    Source: Felzenszwalb and Huttenlocher 2005, "Pictorial Structures for Object Recognition", section 4; 2012, "Distance
    Transforms of Sampled Functions"; Yang and Ramanan 2011, equation 5.
    """
    _check.maps("scores", scores)
    if scores.shape[2] * scores.shape[3] >= 2**31:
        raise ValueError(f"scores: got shape {_check.shape(scores)}, allowed are maps of fewer than 2^31 cells")
    of_map = [_operand("springs", springs, 4, scores)]
    of_map.append(torch.zeros_like(of_map[0][..., :2]) if anchors is None else _operand("anchors", anchors, 2, scores))
    run = _op if fused(scores) else distance_transform2d_reference
    return DistanceTransform(*run(scores, torch.cat(of_map, -1)))


def distance_transform2d_reference(scores: torch.Tensor, springs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain PyTorch; arguments and results as the op's, ``springs`` (B, K, 6) with the anchors at the end."""
    height, width = scores.shape[2:]
    maps = scores.to(springs.dtype)
    maps = torch.where(maps.isnan(), -math.inf, maps)
    ax, bx, ay, by, anchor_x, anchor_y = springs.unbind(-1)
    along = maps.unsqueeze(-2) - _cost(width, ax, bx, anchor_x).unsqueeze(2)  # (B, K, u_y, q_x, u_x)
    best, columns = along.max(-1)
    down = best.transpose(2, 3).unsqueeze(-2) - _cost(height, ay, by, anchor_y).unsqueeze(2)  # (B, K, q_x, q_y, u_y)
    values, rows = (result.transpose(2, 3) for result in down.max(-1))
    cells = rows * width + columns.gather(2, rows)
    return values.to(scores.dtype), cells.to(torch.int32)


def _cost(cells: int, a: torch.Tensor, b: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """(B, K, q, u): what the spring takes along one axis."""
    place = torch.arange(cells, dtype=a.dtype, device=a.device)
    d = place - place.unsqueeze(-1) - anchor[..., None, None]
    return d * (a[..., None, None] * d + b[..., None, None])


def _operand(name: str, operand: torch.Tensor, numbers: int, scores: torch.Tensor) -> torch.Tensor:
    """(B, K, numbers) in the dtype of the arithmetic."""
    batch, joints = scores.shape[:2]
    _check.floating(name, operand)
    if operand.shape not in ((joints, numbers), (batch, joints, numbers)):
        allowed = f"({joints}, {numbers}) or ({batch}, {joints}, {numbers})"
        raise ValueError(
            f"{name}: got shape {_check.shape(operand)}, allowed is {allowed}, as scores have B = {batch} and K = {joints}"
        )
    _check.same_device(name, operand, "scores", scores)
    return operand.to(torch.float64 if scores.dtype == torch.float64 else torch.float32).expand(batch, joints, numbers)


def _fake(scores: torch.Tensor, springs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(scores), scores.new_empty(scores.shape, dtype=torch.int32)


def _fake_backward(gradient: torch.Tensor, cells: torch.Tensor, springs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(gradient), torch.empty_like(springs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: torch.Tensor, _: None) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward_op(gradient, *ctx.saved_tensors)


_op = define(
    "distance_transform2d",
    "(Tensor scores, Tensor springs) -> (Tensor values, Tensor cells)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = define(
    "distance_transform2d_backward",
    "(Tensor gradient, Tensor cells, Tensor springs) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
