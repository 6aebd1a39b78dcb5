"""What the residual block's kernels share: tiles of pixels × channels, and a batch normalisation in front of a ReLU.

Maps are channels_last, so a tensor of P pixels and C channels is a matrix (P, C) in row order. C is a multiple of 16 and known
when a kernel is compiled; P is not. A kernel's programs begin at a pixel that may need 64 bits; inside of a tile 32 are enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def per_channel(pointer, c, C: tl.constexpr, EVEN: tl.constexpr):
    """Elements ``c`` of a vector (C,) in float32; EVEN says that all are below C."""
    if EVEN:
        return tl.load(pointer + c).to(tl.float32)
    else:
        return tl.load(pointer + c, mask=c < C, other=0.0).to(tl.float32)


@triton.jit
def inside(rows, c, left, C: tl.constexpr, EVEN: tl.constexpr):
    """Which of a tile's elements are there: pixels below ``left``, channels below C."""
    if EVEN:
        return (rows < left)[:, None] & (c >= 0)[None, :]
    else:
        return (rows < left)[:, None] & (c < C)[None, :]


@triton.jit
def load_tile(pointer, rows, c, left, C: tl.constexpr, EVEN: tl.constexpr):
    """Pixels ``rows`` × channels ``c`` of a map, and 0 where there are none."""
    return tl.load(pointer + rows[:, None] * C + c[None, :], mask=inside(rows, c, left, C, EVEN), other=0.0)


@triton.jit
def load_matrix(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """Of a matrix (ROWS, COLUMNS) of known size; one of ``rows`` and ``columns`` is (n, 1), the other (1, m)."""
    at = pointer + rows * COLUMNS + columns
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=(rows < ROWS) & (columns < COLUMNS), other=0.0)


@triton.jit
def store_tile(pointer, rows, c, left, tile, C: tl.constexpr, EVEN: tl.constexpr):
    tl.store(pointer + rows[:, None] * C + c[None, :], tile, mask=inside(rows, c, left, C, EVEN))


@triton.jit
def normal(z, mean, scale, bias, c, C: tl.constexpr, EVEN: tl.constexpr):
    """(z - mean) * scale + bias, in float32. The mean goes first: it may be large beside the deviation."""
    deviation = z.to(tl.float32) - per_channel(mean, c, C, EVEN)[None, :]
    return deviation * per_channel(scale, c, C, EVEN)[None, :] + per_channel(bias, c, C, EVEN)[None, :]


@triton.jit
def relu(x):
    """A NaN stays one, as in PyTorch."""
    return tl.maximum(x, 0.0, propagate_nan=ALL)


@triton.jit
def relu_gradient(gradient, x):
    """Of relu(x), in x."""
    return tl.where(x <= 0, 0.0, gradient)


@triton.jit
def gradient_before_norm(
    g, z, mean, rstd, scale, mean_of_g, mean_of_products, scale_of_means, c, C: tl.constexpr, EVEN: tl.constexpr
):
    """Gradient in z from g, that in n(z): weight / std (g - mean g - normal z mean(g normal z)), or without means; float32."""
    gradient = g.to(tl.float32)
    if mean_of_g is not None:
        deviation = z.to(tl.float32) - per_channel(mean, c, C, EVEN)[None, :]
        slope = per_channel(mean_of_products, c, C, EVEN) * (scale_of_means * per_channel(rstd, c, C, EVEN))
        gradient -= deviation * slope[None, :] + (per_channel(mean_of_g, c, C, EVEN) * scale_of_means)[None, :]
    return gradient * per_channel(scale, c, C, EVEN)[None, :]
