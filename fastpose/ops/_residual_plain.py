"""The steps of :mod:`fastpose.ops._residual_order` in plain PyTorch: the definition, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch.nn import functional

from fastpose.ops import _residual_statistics
from fastpose.ops._residual_steps import Norm, Running, Sums, pixels

_CHANNELS_LAST = torch.channels_last


def batch_statistics(z: torch.Tensor, norm: Norm, running: Running) -> None:
    channels, count = z.shape[1], pixels(z)
    mean, variance = (torch.zeros(channels, dtype=norm.mean.dtype, device=z.device) for _ in range(2))
    if count:  # a rank that shares its statistics may have none
        mean, variance = torch.batch_norm_update_stats(z, mean, variance, 0.0)
    _residual_statistics.finish(mean, variance * count, count, norm, running)


def frozen_statistics(norm: Norm, running: Running) -> None:
    assert running.mean is not None
    assert running.variance is not None
    norm.mean.copy_(running.mean if running.offset is None else running.mean - running.offset)
    norm.rstd.copy_(torch.rsqrt(running.variance.to(norm.rstd.dtype) + running.eps))
    torch.mul(norm.rstd, norm.weight, out=norm.scale)


def activation(z: torch.Tensor, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
    bias, one = norm.bias.to(norm.scale.dtype), torch.ones_like(norm.scale)
    normal = functional.batch_norm(z, norm.mean, one, norm.scale, bias, training=False, eps=0.0)
    return functional.relu_(normal).to(dtype)


def first(x: torch.Tensor, norm: Norm, weight: torch.Tensor, next_norm: Norm, running: Running) -> torch.Tensor:
    z = torch.conv2d(activation(x, norm, weight.dtype), weight).contiguous(memory_format=_CHANNELS_LAST)
    if next_norm.batch:
        batch_statistics(z, next_norm, running)
    return z


def last(
    z: torch.Tensor,
    norm: Norm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    skip_weight: torch.Tensor | None,
    skip_bias: torch.Tensor | None,
) -> torch.Tensor:
    dtype = weight.dtype
    y = torch.conv2d(activation(z, norm, dtype), weight, _to(bias, dtype))
    if skip_weight is None:
        return (y + x).contiguous(memory_format=_CHANNELS_LAST)
    return y.add_(torch.conv2d(x.to(dtype), skip_weight, _to(skip_bias, dtype))).contiguous(memory_format=_CHANNELS_LAST)


def pointwise_input_gradient(dy: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, Sums]:
    d = _input_gradient(dy, weight)
    g = _masked(d, z, norm)
    return g, _sums(g, z, norm)


def pointwise_weight_gradient(
    dy: torch.Tensor, z: torch.Tensor, norm: Norm | None, like: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    a = z.to(dy.dtype) if norm is None else activation(z, norm, dy.dtype)
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        dy, a, like.to(dy.dtype), dy.shape[1:2], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, bias is not None]
    )
    return of_weight.to(like.dtype), None if bias is None else of_bias.to(bias.dtype)


def masked_sums(d: torch.Tensor, z: torch.Tensor, norm: Norm) -> Sums:
    return _sums(_masked(d, z, norm), z, norm)


def norm_input_gradient(
    g: torch.Tensor, z: torch.Tensor, norm: Norm, means: Sums | None, count: int, masked: bool
) -> torch.Tensor:
    return _norm_input_gradient(g if masked else _masked(g, z, norm), z, norm, means, count).to(g.dtype)


def block_input_gradient(
    g: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    means: Sums | None,
    count: int,
    dy: torch.Tensor,
    skip_weight: torch.Tensor | None,
) -> torch.Tensor:
    dx = _norm_input_gradient(g, x, norm, means, count)
    return dx.add_(dy if skip_weight is None else _input_gradient(dy, skip_weight)).to(x.dtype)


def _to(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _masked(d: torch.Tensor, z: torch.Tensor, norm: Norm) -> torch.Tensor:
    return torch.ops.aten.threshold_backward(d, activation(z, norm, d.dtype), 0)


def _sums(g: torch.Tensor, z: torch.Tensor, norm: Norm) -> Sums:
    dtype = norm.mean.dtype
    deviation = z - norm.mean.view(1, -1, 1, 1)
    of_products = deviation.mul_(g).sum((0, 2, 3)).mul_(norm.rstd)
    return g.sum((0, 2, 3), dtype=dtype), of_products


def _norm_input_gradient(g: torch.Tensor, z: torch.Tensor, norm: Norm, means: Sums | None, count: int) -> torch.Tensor:
    """In the dtype of the statistics."""
    scale = norm.scale.view(1, -1, 1, 1)
    if means is None:
        return g * scale
    of_g, of_products = means
    slope = -norm.scale * norm.rstd * of_products / count
    gradient = (z - norm.mean.view(1, -1, 1, 1)).mul_(slope.view(1, -1, 1, 1))
    return gradient.addcmul_(g.to(gradient.dtype), scale).sub_(scale * (of_g / count).view(1, -1, 1, 1))


def _input_gradient(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of a 1×1 convolution."""
    return torch.conv2d(dy.to(weight.dtype), weight.transpose(0, 1))
