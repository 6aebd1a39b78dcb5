"""The two matmul kernels of the inference path. Tensors are NHWC, weights [out, taps, in] (OIHW in channels_last memory).

Batch normalisation is not folded into weights: its four vectors are read where they are needed, some kilobytes for each tile, so
that a kernel always computes with the parameters as they are at that moment, in a replayed CUDA graph too.

Both kernels have a form that moves tiles with tensor descriptors (TMA, sm_90 and newer) and a form with pointers. Where a
parameter may be either, it is called ``*_at``. A descriptor fills with zeros what lies outside of its tensor, which makes the
padding of the 3x3 convolution, the edges of odd maps and channel counts that fill no tile; the other form masks the same.

``tl.range`` loops are pipelined by ``num_stages``. ``ALL`` makes maxima keep a NaN, as PyTorch's ReLU and pooling do.
"""

from __future__ import annotations

import triton
import triton.language as tl

ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _vector(at, n, size: tl.constexpr):
    """Elements n of a vector, in float32, and 0 beyond its end."""
    return tl.load(at + n, mask=n < size, other=0.0).to(tl.float32)


@triton.jit
def _batch_norm(gamma, beta, mean, variance, eps, n, size: tl.constexpr):
    """Scale and shift of the channels n; 0 and 0 beyond the last."""
    scale = _vector(gamma, n, size) * tl.rsqrt(_vector(variance, n, size) + eps)
    return scale, _vector(beta, n, size) - _vector(mean, n, size) * scale


@triton.jit
def _bias_and_batch_norm(bias, gamma, beta, mean, variance, eps, n0, size: tl.constexpr, BLOCK: tl.constexpr):
    """Scale and shift of BLOCK sums from channel n0 on, in which a bias is still to come before the normalisation.

    Computed several times over, by all threads: the loads of a tensor with fewer elements than threads Triton takes for cheap,
    and has every thread load all that it needs for its part of the tile, from five vectors.
    """
    copies: tl.constexpr = 256 // BLOCK if BLOCK < 256 else 1
    n = n0 + tl.arange(0, BLOCK)[None, :] + tl.zeros([copies, 1], tl.int32)
    scale, shift = _batch_norm(gamma, beta, mean, variance, eps, n, size)
    shift += _vector(bias, n, size) * scale
    return tl.max(scale, 0), tl.max(shift, 0)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=ALL)


@triton.jit
def _weights(
    at,
    n0,
    tap,
    k0,
    N: tl.constexpr,
    TAPS: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TMA: tl.constexpr,
):
    """The tile [BLOCK_K, BLOCK_N] of weights [N, TAPS, K], transposed: outputs from n0 on, inputs from k0 on."""
    if TMA:
        tile = tl.trans(at.load([n0, tap, k0]).reshape(BLOCK_N, BLOCK_K))
    else:
        n = n0 + tl.arange(0, BLOCK_N)
        k = k0 + tl.arange(0, BLOCK_K)
        mask = (n < N)[None, :] & (k < K)[:, None]
        tile = tl.load(at + (n[None, :] * TAPS + tap) * K + k[:, None], mask=mask, other=0.0)
    return tile


@triton.jit
def bn_relu_conv1x1(
    x_at,
    gamma1,
    beta1,
    mean1,
    variance1,
    eps1,
    w_at,
    bias,
    gamma2,
    beta2,
    mean2,
    variance2,
    eps2,
    y,
    pooled,
    M,
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POOL: tl.constexpr,
    TMA: tl.constexpr,
):
    """y[M, N] = relu(bn2(relu(bn1(x)) w^T + bias)), with x[M, C] the pixels of the input.

    With POOL they are those of its 2x2 max-pooling: x is [B, H, W, C], M = B (H // 2) (W // 2), and the pixels are written to
    pooled[M, C] too, for the skip connection. Batch normalisation comes after pooling; they do not commute where gamma < 0.

    Bytes for each pixel: 2 (C + N), with POOL 2 (4 C + C + N).
    """
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    m0 = (tl.program_id(0) // tiles_n) * BLOCK_M
    n0 = (tl.program_id(0) % tiles_n) * BLOCK_N
    m = m0 + tl.arange(0, BLOCK_M)
    inside = m < M
    if POOL:
        below = W * C
        row, column = m // (W // 2), m % (W // 2)
        image, row = row // (H // 2), row % (H // 2)
        pixel = ((image.to(tl.int64) * H + 2 * row) * W + 2 * column) * C
    else:
        pixel = m.to(tl.int64) * C
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in tl.range(0, C, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        mask = inside[:, None] & (k < C)[None, :]
        if POOL:
            corner = x_at + pixel[:, None] + k[None, :]
            top = tl.maximum(tl.load(corner, mask, other=0.0), tl.load(corner + C, mask, other=0.0), propagate_nan=ALL)
            corner += below
            bottom = tl.maximum(tl.load(corner, mask, other=0.0), tl.load(corner + C, mask, other=0.0), propagate_nan=ALL)
            x = tl.maximum(top, bottom, propagate_nan=ALL)
            if n0 == 0:
                tl.store(pooled + m.to(tl.int64)[:, None] * C + k[None, :], x.to(pooled.dtype.element_ty), mask)
        elif TMA:
            x = x_at.load([m0, k0])
        else:
            x = tl.load(x_at + pixel[:, None] + k[None, :], mask, other=0.0)
        scale, shift = _batch_norm(gamma1, beta1, mean1, variance1, eps1, k, C)
        a = _relu(x.to(tl.float32) * scale[None, :] + shift[None, :]).to(y.dtype.element_ty)
        acc = tl.dot(a, _weights(w_at, n0, 0, k0, N, 1, C, BLOCK_N, BLOCK_K, TMA), acc, input_precision="ieee")
    n = n0 + tl.arange(0, BLOCK_N)
    scale, shift = _bias_and_batch_norm(bias, gamma2, beta2, mean2, variance2, eps2, n0, N, BLOCK_N)
    out = _relu(acc * scale[None, :] + shift[None, :])
    tl.store(y + m.to(tl.int64)[:, None] * N + n[None, :], out.to(y.dtype.element_ty), inside[:, None] & (n < N)[None, :])


@triton.jit
def _pixels(
    at,
    b0,
    y0,
    x0,
    c0,
    B,
    H,
    W,
    C: tl.constexpr,
    TILE_B: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TMA: tl.constexpr,
):
    """The tile of an image tensor [B, H, W, C] that begins at (b0, y0, x0, c0), as a matrix; 0 where it is outside."""
    if TMA:
        tile = at.load([b0, y0, x0, c0]).reshape(TILE_B * TILE_H * TILE_W, BLOCK_C)
    else:
        p = tl.arange(0, TILE_B * TILE_H * TILE_W)
        b, y, x = b0 + p // (TILE_H * TILE_W), y0 + p // TILE_W % TILE_H, x0 + p % TILE_W
        c = c0 + tl.arange(0, BLOCK_C)
        inside = (b < B) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        offset = ((b.to(tl.int64) * H + y) * W + x) * C
        tile = tl.load(at + offset[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
    return tile


@triton.jit
def conv_relu_conv1x1(
    h_at,
    w1_at,
    bias1,
    gamma,
    beta,
    mean,
    variance,
    eps,
    w2_at,
    bias2,
    x_at,
    skip_w_at,
    skip_bias,
    low,
    y_at,
    head_w,
    head_bias,
    feedback_w,
    feedback_bias,
    heatmaps,
    B,
    H,
    W,
    TAPS: tl.constexpr,
    K: tl.constexpr,
    MID: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,
    JOINTS: tl.constexpr,
    TILE_B: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_MID: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NESTED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Two convolutions, the second on the tile that the first has left in registers, and all that is added to the result.

    a = relu(bn(conv(h, w1) + bias1)), with TAPS 9 (3x3, zero padding) or 1 weights for each pair of channels, or with TAPS 0,
    where h is a convolution's result already, a = relu(bn(h + bias1));
    y = a w2^T + bias2
      + x (SKIP = 0), or x[..., SKIP channels] skip_w^T + skip_bias
      + low[.., y // 2, x // 2, ..], if it is not None
      + heatmaps feedback_w^T + feedback_bias, with heatmaps = a head_w^T + head_bias (JOINTS > 0).
    N = 0 leaves out y. A tile is TILE_H x TILE_W pixels of TILE_B images; the loop over taps and channels is NESTED or flat.

    Bytes for each pixel: 2 (K + 2 N), with low 2 N / 4 more; 2 TAPS K MID + 2 MID N operations.
    """
    dtype: tl.constexpr = h_at.dtype if TMA else h_at.dtype.element_ty
    ROWS: tl.constexpr = TILE_B * TILE_H * TILE_W
    tiles_x = tl.cdiv(W, TILE_W)
    tiles_y = tl.cdiv(H, TILE_H)
    tile = tl.program_id(0)
    x0 = tile % tiles_x * TILE_W
    y0 = tile // tiles_x % tiles_y * TILE_H
    b0 = tile // (tiles_x * tiles_y) * TILE_B

    if TAPS == 0:
        acc = _pixels(h_at, b0, y0, x0, 0, B, H, W, K, TILE_B, TILE_H, TILE_W, BLOCK_MID, TMA).to(tl.float32)
    else:
        acc = tl.zeros([ROWS, BLOCK_MID], tl.float32)
        reach: tl.constexpr = TAPS // 9  # of the window, up and left of its pixel
        side: tl.constexpr = 1 + 2 * reach
        if NESTED:
            for tap in tl.range(0, TAPS):
                y, x = y0 + tap // side - reach, x0 + tap % side - reach
                for k0 in tl.range(0, K, BLOCK_K):
                    h = _pixels(h_at, b0, y, x, k0, B, H, W, K, TILE_B, TILE_H, TILE_W, BLOCK_K, TMA)
                    w = _weights(w1_at, 0, tap, k0, MID, TAPS, K, BLOCK_MID, BLOCK_K, TMA)
                    acc = tl.dot(h, w, acc, input_precision="ieee")
        else:
            blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
            for step in tl.range(0, TAPS * blocks):
                tap, k0 = step // blocks, step % blocks * BLOCK_K
                y, x = y0 + tap // side - reach, x0 + tap % side - reach
                h = _pixels(h_at, b0, y, x, k0, B, H, W, K, TILE_B, TILE_H, TILE_W, BLOCK_K, TMA)
                w = _weights(w1_at, 0, tap, k0, MID, TAPS, K, BLOCK_MID, BLOCK_K, TMA)
                acc = tl.dot(h, w, acc, input_precision="ieee")
    scale, shift = _bias_and_batch_norm(bias1, gamma, beta, mean, variance, eps, 0, MID, BLOCK_MID)
    a = _relu(acc * scale[None, :] + shift[None, :]).to(dtype)

    p = tl.arange(0, ROWS)
    b, y, x = b0 + p // (TILE_H * TILE_W), y0 + p // TILE_W % TILE_H, x0 + p % TILE_W
    inside = (b < B) & (y < H) & (x < W)
    pixel = (b.to(tl.int64) * H + y) * W + x

    if JOINTS > 0:
        j = tl.arange(0, BLOCK_J)
        maps = tl.dot(a, _weights(head_w, 0, 0, 0, JOINTS, 1, MID, BLOCK_J, BLOCK_MID, False), input_precision="ieee")
        maps = (maps + _vector(head_bias, j, JOINTS)[None, :]).to(dtype)
        if heatmaps is not None:
            tl.store(heatmaps + pixel[:, None] * JOINTS + j[None, :], maps, inside[:, None] & (j < JOINTS)[None, :])

    if N > 0:
        for n0 in tl.range(0, N, BLOCK_N):
            n = n0 + tl.arange(0, BLOCK_N)
            out = tl.dot(a, _weights(w2_at, n0, 0, 0, N, 1, MID, BLOCK_N, BLOCK_MID, TMA), input_precision="ieee")
            bias = _vector(bias2, n, N)
            if SKIP > 0:
                bias += _vector(skip_bias, n, N)
                for k0 in tl.range(0, SKIP, BLOCK_N):
                    raw = _pixels(x_at, b0, y0, x0, k0, B, H, W, SKIP, TILE_B, TILE_H, TILE_W, BLOCK_N, TMA)
                    out = tl.dot(
                        raw, _weights(skip_w_at, n0, 0, k0, N, 1, SKIP, BLOCK_N, BLOCK_N, TMA), out, input_precision="ieee"
                    )
            else:
                out += _pixels(x_at, b0, y0, x0, n0, B, H, W, N, TILE_B, TILE_H, TILE_W, BLOCK_N, TMA).to(tl.float32)
            if JOINTS > 0:
                bias += _vector(feedback_bias, n, N)
                out = tl.dot(
                    maps, _weights(feedback_w, n0, 0, 0, N, 1, JOINTS, BLOCK_N, BLOCK_J, False), out, input_precision="ieee"
                )
            out += bias[None, :]
            mask = inside[:, None] & (n < N)[None, :]
            if low is not None:
                small = (b.to(tl.int64) * (H // 2) + y // 2) * (W // 2) + x // 2
                out += tl.load(low + small[:, None] * N + n[None, :], mask, other=0.0).to(tl.float32)
            if TMA:
                y_at.store([b0, y0, x0, n0], out.to(dtype).reshape(TILE_B, TILE_H, TILE_W, BLOCK_N))
            else:
                tl.store(y_at + pixel[:, None] * N + n[None, :], out.to(dtype), mask)
