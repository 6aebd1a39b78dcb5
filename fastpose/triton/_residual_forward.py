"""Forward kernels of the residual block in training. Bytes are those of the paper's block, 256 channels in bfloat16, a pixel."""

from __future__ import annotations

import triton
import triton.language as tl

from fastpose.triton._channels import load_matrix, load_tile, normal, per_channel, relu, store_tile


@triton.jit(do_not_specialize=["P"])
def column_moments(
    z, partial, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN: tl.constexpr
):
    """Mean and sum of squared deviations of each channel over ROWS pixels; grid (parts, channel blocks). Reads 512 bytes of x.

    Sums are of differences from the first tile's mean, so that nothing cancels: partial[part] = (mean, squares), each (C,).
    """
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    z += part.to(tl.int64) * (ROWS * C)
    left = tl.minimum(P - part * ROWS, ROWS)
    rows = tl.arange(0, BLOCK_M)
    pivot = tl.sum(load_tile(z, rows, c, left, C, EVEN).to(tl.float32), 0) / tl.minimum(left, BLOCK_M)
    sums = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in tl.range(0, ROWS, BLOCK_M):
        deviation = load_tile(z, start + rows, c, left, C, EVEN).to(tl.float32) - pivot[None, :]
        deviation = tl.where((start + rows < left)[:, None], deviation, 0.0)
        sums += deviation
        squares += deviation * deviation
    shift = tl.sum(sums, 0) / left
    in_c = c < C
    tl.store(partial + part * (2 * C) + c, pivot + shift, mask=in_c)
    tl.store(partial + part * (2 * C) + C + c, relu(tl.sum(squares, 0) - left * shift * shift), mask=in_c)


@triton.jit(do_not_specialize=["parts", "P"])
def finish_moments(
    partial,
    weight,
    mean,
    rstd,
    scale,
    running_mean,
    running_variance,
    batches,
    offset,
    parts,
    P,
    momentum,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOCAL: tl.constexpr,
):
    """Merges the parts in a fixed order; grid (channel blocks). ``mean``, ``rstd`` and ``scale`` of the batch.

    Running statistics are moved on. With LOCAL these are not all the pixels that count, and ``rstd`` receives the sum of squared
    deviations. ``batches`` is given if the running statistics are averages of all batches.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    t = tl.arange(0, BLOCK_T)
    pivot = tl.load(partial + c, mask=in_c, other=0.0)
    sums = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in tl.range(0, parts, BLOCK_T):
        part = start + t
        there = (part < parts)[:, None] & in_c[None, :]
        at = partial + part[:, None] * (2 * C) + c[None, :]
        count = tl.minimum(P - part * ROWS, ROWS).to(tl.float32)[:, None]
        deviation = tl.where(there, tl.load(at, mask=there, other=0.0) - pivot[None, :], 0.0)
        sums += count * deviation
        squares += tl.load(at + C, mask=there, other=0.0) + count * deviation * deviation
    shift = tl.sum(sums, 0) / P
    of_batch = pivot + shift
    square = relu(tl.sum(squares, 0) - P * shift * shift)
    tl.store(mean + c, of_batch, mask=in_c)
    if LOCAL:
        tl.store(rstd + c, square, mask=in_c)
    else:
        of_batch_rstd = 1.0 / tl.sqrt_rn(square / P + eps)
        tl.store(rstd + c, of_batch_rstd, mask=in_c)
        tl.store(scale + c, of_batch_rstd * tl.load(weight + c, mask=in_c, other=0.0).to(tl.float32), mask=in_c)
        if running_mean is not None:
            factor = momentum
            if batches is not None:
                factor = 1.0 / tl.load(batches).to(tl.float32)
            if offset is not None:
                of_batch += tl.load(offset + c, mask=in_c, other=0.0).to(tl.float32)
            before = tl.load(running_mean + c, mask=in_c, other=0.0).to(tl.float32)
            tl.store(running_mean + c, factor * of_batch + (1.0 - factor) * before, mask=in_c)
            before = tl.load(running_variance + c, mask=in_c, other=0.0).to(tl.float32)
            tl.store(running_variance + c, factor * (square / (P - 1)) + (1.0 - factor) * before, mask=in_c)


@triton.jit
def frozen_statistics(
    running_mean, running_variance, offset, weight, mean, rstd, scale, eps, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """``mean``, ``rstd`` and ``scale`` from running statistics; one program."""
    c = tl.arange(0, BLOCK_C)
    in_c = c < C
    of_all = tl.load(running_mean + c, mask=in_c, other=0.0).to(tl.float32)
    if offset is not None:
        of_all -= tl.load(offset + c, mask=in_c, other=0.0).to(tl.float32)
    tl.store(mean + c, of_all, mask=in_c)
    variance = tl.load(running_variance + c, mask=in_c, other=1.0).to(tl.float32)
    of_all = 1.0 / tl.sqrt_rn(variance + eps)
    tl.store(rstd + c, of_all, mask=in_c)
    tl.store(scale + c, of_all * tl.load(weight + c, mask=in_c, other=0.0).to(tl.float32), mask=in_c)


@triton.jit(do_not_specialize=["P"])
def activation(z, mean, scale, bias, a, P, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN: tl.constexpr):
    """a = relu(n(z)); grid (pixel blocks, channel blocks). Reads 256 bytes, writes 256."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, BLOCK_M)
    left = tl.minimum(P - first_row, BLOCK_M).to(tl.int32)
    tile = load_tile(z + first_row * C, rows, c, left, C, EVEN)
    tile = relu(normal(tile, mean, scale, bias, c, C, EVEN))
    store_tile(a + first_row * C, rows, c, left, tile.to(a.dtype.element_ty), C, EVEN)


@triton.jit(do_not_specialize=["P"])
def first(
    x,
    mean,
    scale,
    bias,
    matrix,
    z,
    partial,
    P,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z = relu(n(x)) matrix^T and the mean and squared deviations of what is stored, by tile; grid (tiles).

    ``matrix`` is (N, K). Programs of one pixel block follow each other, so that x is read from memory once. Reads 512 bytes of x,
    writes 256.
    """
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    part = tl.program_id(0) // tiles_n
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first_row = part.to(tl.int64) * BLOCK_M
    left = tl.minimum(P - first_row, BLOCK_M).to(tl.int32)
    rows = tl.arange(0, BLOCK_M)
    x += first_row * K
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = load_tile(x, rows, k, left, K, EVEN_K)
        b = load_matrix(matrix, n[None, :], k[:, None], N, K, EVEN_K and EVEN_N)
        a = relu(normal(a, mean, scale, bias, k, K, EVEN_K)).to(matrix.dtype.element_ty)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    stored = product.to(z.dtype.element_ty)
    store_tile(z + first_row * N, rows, n, left, stored, N, EVEN_N)
    if partial is not None:
        there = (rows < left)[:, None]
        stored = tl.where(there, stored.to(tl.float32), 0.0)
        average = tl.sum(stored, 0) / left
        deviation = tl.where(there, stored - average[None, :], 0.0)
        in_n = n < N
        tl.store(partial + part * (2 * N) + n, average, mask=in_n)
        tl.store(partial + part * (2 * N) + N + n, tl.sum(deviation * deviation, 0), mask=in_n)


@triton.jit(do_not_specialize=["P"])
def last(
    z,
    mean,
    scale,
    bias,
    matrix,
    matrix_bias,
    x,
    skip_matrix,
    skip_bias,
    y,
    P,
    K: tl.constexpr,
    N: tl.constexpr,
    SKIP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = relu(n(z)) matrix^T + bias + x, or + x skip_matrix^T + skip_bias; grid (tiles). 256 + 512 read, 512 written."""
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    EVEN_SKIP: tl.constexpr = SKIP_K % BLOCK_K == 0
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first_row = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK_M
    left = tl.minimum(P - first_row, BLOCK_M).to(tl.int32)
    rows = tl.arange(0, BLOCK_M)
    z += first_row * K
    x += first_row * SKIP_K
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = load_tile(z, rows, k, left, K, EVEN_K)
        b = load_matrix(matrix, n[None, :], k[:, None], N, K, EVEN_K and EVEN_N)
        a = relu(normal(a, mean, scale, bias, k, K, EVEN_K)).to(matrix.dtype.element_ty)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    if skip_matrix is not None:
        for start in tl.range(0, SKIP_K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            a = load_tile(x, rows, k, left, SKIP_K, EVEN_SKIP).to(matrix.dtype.element_ty)
            b = load_matrix(skip_matrix, n[None, :], k[:, None], N, SKIP_K, EVEN_SKIP and EVEN_N)
            product = tl.dot(a, b, product, input_precision=PRECISION)
        if skip_bias is not None:
            product += per_channel(skip_bias, n, N, EVEN_N)[None, :]
    else:
        product += load_tile(x, rows, n, left, N, EVEN_N).to(tl.float32)
    if matrix_bias is not None:
        product += per_channel(matrix_bias, n, N, EVEN_N)[None, :]
    store_tile(y + first_row * N, rows, n, left, product.to(y.dtype.element_ty), N, EVEN_N)
