"""Backward kernels of the residual block in training. Bytes are those of the paper's block, 256 channels in bfloat16, a pixel."""

from __future__ import annotations

import triton
import triton.language as tl

from fastpose.triton._channels import (
    gradient_before_norm,
    load_matrix,
    load_tile,
    normal,
    per_channel,
    relu,
    relu_gradient,
    store_tile,
)


@triton.jit(do_not_specialize=["P"])
def input_gradient(
    dy,
    matrix,
    z,
    mean,
    rstd,
    scale,
    bias,
    g,
    partial,
    P,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """g = dy matrix where relu(n(z)) is positive, and the sums of g and of g (z - mean) / std over each tile; grid (tiles).

    ``matrix`` is (K, N). The 1×1 at the end: 512 + 256 bytes read, 256 written; at the beginning 256 + 512 and 512.
    """
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    part = tl.program_id(0) // tiles_n
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first_row = part.to(tl.int64) * BLOCK_M
    left = tl.minimum(P - first_row, BLOCK_M).to(tl.int32)
    rows = tl.arange(0, BLOCK_M)
    dy += first_row * K
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = load_tile(dy, rows, k, left, K, EVEN_K)
        b = load_matrix(matrix, k[:, None], n[None, :], K, N, EVEN_K and EVEN_N)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    tile = load_tile(z + first_row * N, rows, n, left, N, EVEN_N).to(tl.float32)
    product = relu_gradient(product, normal(tile, mean, scale, bias, n, N, EVEN_N))
    stored = tl.where((rows < left)[:, None], product, 0.0).to(g.dtype.element_ty)
    store_tile(g + first_row * N, rows, n, left, stored, N, EVEN_N)
    stored = stored.to(tl.float32)
    deviation = tile - per_channel(mean, n, N, EVEN_N)[None, :]
    in_n = n < N
    tl.store(partial + part * (2 * N) + n, tl.sum(stored, 0), mask=in_n)
    of_products = tl.sum(stored * deviation, 0) * per_channel(rstd, n, N, EVEN_N)
    tl.store(partial + part * (2 * N) + N + n, of_products, mask=in_n)


@triton.jit(do_not_specialize=["P"])
def masked_sums(
    d,
    z,
    mean,
    rstd,
    scale,
    bias,
    partial,
    P,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Sums over ROWS pixels of g = d where relu(n(z)) is positive and of g (z - mean) / std; grid (parts, channel blocks)."""
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first_row = part.to(tl.int64) * ROWS
    d += first_row * C
    z += first_row * C
    left = tl.minimum(P - first_row, ROWS).to(tl.int32)
    rows = tl.arange(0, BLOCK_M)
    sums = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    products = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in tl.range(0, ROWS, BLOCK_M):
        tile = load_tile(z, start + rows, c, left, C, EVEN).to(tl.float32)
        gradient = load_tile(d, start + rows, c, left, C, EVEN).to(tl.float32)
        gradient = relu_gradient(gradient, normal(tile, mean, scale, bias, c, C, EVEN))
        sums += gradient
        products += gradient * (tile - per_channel(mean, c, C, EVEN)[None, :])
    in_c = c < C
    tl.store(partial + part * (2 * C) + c, tl.sum(sums, 0), mask=in_c)
    tl.store(partial + part * (2 * C) + C + c, tl.sum(products, 0) * per_channel(rstd, c, C, EVEN), mask=in_c)


@triton.jit(do_not_specialize=["parts"])
def finish_sums(partial, sums, products, parts, C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Adds the parts of two sums up in a fixed order; grid (channel blocks)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    t = tl.arange(0, BLOCK_T)
    first_sum = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    second_sum = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in tl.range(0, parts, BLOCK_T):
        there = (start + t < parts)[:, None] & in_c[None, :]
        at = partial + (start + t)[:, None] * (2 * C) + c[None, :]
        first_sum += tl.load(at, mask=there, other=0.0)
        second_sum += tl.load(at + C, mask=there, other=0.0)
    tl.store(sums + c, tl.sum(first_sum, 0), mask=in_c)
    tl.store(products + c, tl.sum(second_sum, 0), mask=in_c)


@triton.jit(do_not_specialize=["P"])
def norm_input_gradient(
    g,
    z,
    mean,
    rstd,
    scale,
    bias,
    mean_of_g,
    mean_of_products,
    dy,
    dz,
    P,
    scale_of_means,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MASKED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Gradient in z from g, which is masked here unless MASKED, plus dy if given; grid (pixel blocks, channel blocks)."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, BLOCK_M)
    left = tl.minimum(P - first_row, BLOCK_M).to(tl.int32)
    gradient = load_tile(g + first_row * C, rows, c, left, C, EVEN).to(tl.float32)
    tile = load_tile(z + first_row * C, rows, c, left, C, EVEN).to(tl.float32)
    if not MASKED:
        gradient = relu_gradient(gradient, normal(tile, mean, scale, bias, c, C, EVEN))
    gradient = gradient_before_norm(gradient, tile, mean, rstd, scale, mean_of_g, mean_of_products, scale_of_means, c, C, EVEN)
    if dy is not None:
        gradient += load_tile(dy + first_row * C, rows, c, left, C, EVEN).to(tl.float32)
    store_tile(dz + first_row * C, rows, c, left, gradient.to(dz.dtype.element_ty), C, EVEN)


@triton.jit(do_not_specialize=["P"])
def projected_input_gradient(
    g,
    x,
    mean,
    rstd,
    scale,
    mean_of_g,
    mean_of_products,
    dy,
    matrix,
    dx,
    P,
    scale_of_means,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same of the block's input, plus dy matrix from the projecting skip; ``matrix`` is (K, N); grid (tiles)."""
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first_row = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK_M
    left = tl.minimum(P - first_row, BLOCK_M).to(tl.int32)
    rows = tl.arange(0, BLOCK_M)
    dy += first_row * K
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = load_tile(dy, rows, k, left, K, EVEN_K)
        b = load_matrix(matrix, k[:, None], n[None, :], K, N, EVEN_K and EVEN_N)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    gradient = load_tile(g + first_row * N, rows, n, left, N, EVEN_N)
    tile = load_tile(x + first_row * N, rows, n, left, N, EVEN_N)
    product += gradient_before_norm(gradient, tile, mean, rstd, scale, mean_of_g, mean_of_products, scale_of_means, n, N, EVEN_N)
    store_tile(dx + first_row * N, rows, n, left, product.to(dx.dtype.element_ty), N, EVEN_N)


@triton.jit(do_not_specialize=["P", "of_part"])
def weight_gradient(
    dy,
    z,
    mean,
    scale,
    bias,
    partial,
    partial_bias,
    P,
    of_part,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dy^T relu(n(z)) over ``of_part`` pixels, or dy^T z without ``mean``; grid (tiles of K, tiles of N, parts). 512 + 256 read.

    partial[part] is (N, K), partial_bias[part] (N,), the sum of dy.
    """
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    part = tl.program_id(2)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_row = part.to(tl.int64) * of_part
    left = tl.minimum(P - first_row, of_part).to(tl.int32)
    dy += first_row * N
    z += first_row * K
    product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.range(0, left, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        gradient = load_tile(dy, rows, n, left, N, EVEN_N)
        a = load_tile(z, rows, k, left, K, EVEN_K)
        if mean is not None:
            a = relu(normal(a, mean, scale, bias, k, K, EVEN_K))
        product = tl.dot(tl.trans(gradient), a.to(dy.dtype.element_ty), product, input_precision=PRECISION)
        if partial_bias is not None:
            sums += tl.sum(gradient.to(tl.float32), 0)
    store_tile(partial + part.to(tl.int64) * (N * K), n, k, N, product, K, EVEN_K)
    if partial_bias is not None:  # noqa: SIM102, this is known when it is compiled, and what follows is not
        if tl.program_id(0) == 0:
            tl.store(partial_bias + part * N + n, sums, mask=n < N)


@triton.jit(do_not_specialize=["parts"])
def add_parts(partial, out, parts, SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of (parts, SIZE) over the parts, in a fixed order; grid (blocks)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros([BLOCK_T, BLOCK], tl.float32)
    for start in tl.range(0, parts, BLOCK_T):
        there = (start + t < parts)[:, None] & (i < SIZE)[None, :]
        total += tl.load(partial + (start + t)[:, None] * SIZE + i[None, :], mask=there, other=0.0)
    tl.store(out + i, tl.sum(total, 0).to(out.dtype.element_ty), mask=i < SIZE)
