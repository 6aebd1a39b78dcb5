"""The steps of :mod:`fastpose.ops._residual_order` in Triton kernels, for float16, bfloat16 and float32.

Tiles depend on nothing but the sizes: timing them at run time would pick other tiles, and other roundings, from run to run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastpose.ops import _residual_statistics
from fastpose.ops._residual_steps import Norm, Running, Sums, new_maps, pixels
from fastpose.triton import _residual_backward as backward
from fastpose.triton import _residual_forward as forward
from fastpose.triton._launch import launch

_ENOUGH_PROGRAMS = 132  # of the largest GPUs, one for each of their multiprocessors
_PARTS = 512  # at most, of a sum over pixels


class Tile(NamedTuple):
    """Of a matrix product."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Block(NamedTuple):
    """Pixels × channels of an element-wise kernel."""

    m: int
    c: int


def product_tile(rows: int, n: int, k: int, dtype: torch.dtype) -> Tile:
    """Of (rows, k) × (k, n), as large as leaves every multiprocessor something to do."""
    bits32 = dtype == torch.float32
    tile_m, tile_n = 128, min(128, _power(n))
    for smaller_m, smaller_n in ((64, tile_n), (64, min(64, tile_n))):
        if blocks(rows, tile_m) * blocks(n, tile_n) >= _ENOUGH_PROGRAMS:
            break
        tile_m, tile_n = smaller_m, smaller_n
    tile_k = min(32 if bits32 else 64, _power(k))
    return Tile(tile_m, tile_n, tile_k, 8 if tile_m * tile_n > 64 * 128 else 4, 3)


def weight_tile(n: int, k: int, dtype: torch.dtype) -> Tile:
    """Of dy^T a, (n, pixels) × (pixels, k); ``Tile.m`` is of the pixels."""
    tile_n, tile_k = min(128, _power(n)), min(128, _power(k))
    return Tile(32 if dtype == torch.float32 else 64, tile_n, tile_k, 8 if tile_n * tile_k > 64 * 128 else 4, 3)


def weight_rows(rows: int, tile: Tile, n: int, k: int) -> int:
    """Pixels of one part of a weight's gradient: as few parts as keep every multiprocessor at work, and of few pixels one."""
    if rows <= 512:
        return blocks(rows, tile.m) * tile.m
    parts = max(1, _ENOUGH_PROGRAMS // (blocks(n, tile.n) * blocks(k, tile.k)))
    return max(4, blocks(blocks(rows, parts), tile.m)) * tile.m


def map_block(c: int) -> Block:
    """4096 elements for 4 warps: four loads of 16 bytes by every thread in bfloat16."""
    width = min(128, _power(c))
    return Block(4096 // width, width)


def part_rows(rows: int, block: Block) -> int:
    """Pixels of one part of a sum over pixels."""
    return max(2 * block.m, _power(blocks(rows, _PARTS)))


def blocks(size: int, block: int) -> int:
    """How many cover the size. (Triton's own takes longer than a kernel.)"""
    return -(-size // block)


def _parts_at_once(parts: int) -> int:
    return 32 if parts <= 32 else 256


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: what PyTorch's convolutions use."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


# ---- forward --------------------------------------------------------------------------------------------------------


def batch_statistics(z: torch.Tensor, norm: Norm, running: Running) -> None:
    rows, channels = pixels(z), z.shape[1]
    block = map_block(channels)
    of_part = part_rows(rows, block)
    partial = _new_parts(z, blocks(rows, of_part), channels)
    grid = (len(partial), blocks(channels, block.c), 1)
    launch(forward.column_moments, grid, (z, partial), (rows,), (channels, of_part, *block, _even(channels, block)))
    _finish_moments(partial, rows, of_part, norm, running)


def _finish_moments(partial: torch.Tensor, rows: int, of_part: int, norm: Norm, running: Running) -> None:
    parts, _, channels = partial.shape
    mean, rstd = norm.mean, norm.rstd
    if norm.group:  # the mean and squared deviations of this rank
        mean, rstd = torch.empty_like(mean), torch.empty_like(rstd)
    batches = running.batches if running.cumulative else None
    momentum = 0.0 if running.cumulative else running.momentum
    launch(
        forward.finish_moments,
        (blocks(channels, 16), 1, 1),
        (partial, norm.weight, mean, rstd, norm.scale, running.mean, running.variance, batches, running.offset),
        (parts, rows, momentum, running.eps),
        (channels, of_part, _parts_at_once(parts), 16, bool(norm.group)),
        warps=8,
    )
    if norm.group:
        _residual_statistics.finish(mean, rstd, rows, norm, running)


def frozen_statistics(norm: Norm, running: Running) -> None:
    tensors = (running.mean, running.variance, running.offset, norm.weight, norm.mean, norm.rstd, norm.scale)
    channels = norm.mean.numel()
    launch(forward.frozen_statistics, (1, 1, 1), tensors, (running.eps,), (channels, _power(channels)))


def activation(z: torch.Tensor, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
    rows, channels = pixels(z), z.shape[1]
    block = map_block(channels)
    a = torch.empty_like(z, dtype=dtype)
    constants = (channels, *block, _even(channels, block))
    launch(forward.activation, _map_grid(rows, channels, block), (z, norm.mean, norm.scale, norm.bias, a), (rows,), constants)
    return a


def first(x: torch.Tensor, norm: Norm, weight: torch.Tensor, next_norm: Norm, running: Running) -> torch.Tensor:
    rows, (n, k) = pixels(x), weight.shape[:2]
    tile = product_tile(rows, n, k, weight.dtype)
    z = new_maps(x, n, weight.dtype)
    partial = _new_parts(x, blocks(rows, tile.m), n) if next_norm.batch else None
    _launch_product(
        forward.first, weight.dtype, (x, norm.mean, norm.scale, norm.bias, _matrix(weight), z, partial), rows, (), (k, n), tile
    )
    if partial is not None:
        _finish_moments(partial, rows, tile.m, next_norm, running)
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
    rows, (n, k) = pixels(z), weight.shape[:2]
    y = new_maps(z, n, torch.promote_types(x.dtype, z.dtype) if skip_weight is None else z.dtype)
    skip_matrix = None if skip_weight is None else _matrix(skip_weight)
    tensors = (z, norm.mean, norm.scale, norm.bias, _matrix(weight), bias, x, skip_matrix, skip_bias, y)
    tile = product_tile(rows, n, k, weight.dtype)
    _launch_product(forward.last, weight.dtype, tensors, rows, (), (k, n, x.shape[1]), tile)
    return y


# ---- backward -------------------------------------------------------------------------------------------------------


def pointwise_input_gradient(dy: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, Sums]:
    rows, (k, n) = pixels(dy), weight.shape[:2]
    tile = product_tile(rows, n, k, weight.dtype)
    g = new_maps(dy, n, dy.dtype)
    partial = _new_parts(dy, blocks(rows, tile.m), n)
    _launch_product(
        backward.input_gradient, weight.dtype, (dy, _matrix(weight), z, *norm[:4], g, partial), rows, (), (k, n), tile
    )
    return g, _finish_sums(partial)


def pointwise_weight_gradient(
    dy: torch.Tensor, z: torch.Tensor, norm: Norm | None, like: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows, n, k = pixels(dy), dy.shape[1], z.shape[1]
    tile = weight_tile(n, k, dy.dtype)
    of_part = weight_rows(rows, tile, n, k)
    parts = blocks(rows, of_part)
    of_weight = torch.empty((n, k, 1, 1), dtype=like.dtype, device=like.device)
    of_bias = None if bias is None else torch.empty_like(bias)
    partial, partial_bias = of_weight, of_bias  # what a single part computes
    if parts > 1:
        partial = torch.empty((parts, n, k), dtype=torch.float32, device=dy.device)
        partial_bias = None if bias is None else torch.empty((parts, n), dtype=torch.float32, device=dy.device)
    launch(
        backward.weight_gradient,
        (blocks(k, tile.k), blocks(n, tile.n), parts),
        (dy, z, *((None,) * 3 if norm is None else (norm.mean, norm.scale, norm.bias)), partial, partial_bias),
        (rows, of_part),
        (k, n, *tile[:3], precision(dy.dtype)),
        warps=tile.warps,
        stages=tile.stages,
    )
    if parts > 1:
        _add_parts(partial, of_weight)
        if partial_bias is not None and of_bias is not None:
            _add_parts(partial_bias, of_bias)
    return of_weight, of_bias


def masked_sums(d: torch.Tensor, z: torch.Tensor, norm: Norm) -> Sums:
    rows, channels = pixels(z), z.shape[1]
    block = map_block(channels)
    of_part = part_rows(rows, block)
    partial = _new_parts(z, blocks(rows, of_part), channels)
    grid = (len(partial), blocks(channels, block.c), 1)
    constants = (channels, of_part, *block, _even(channels, block))
    launch(backward.masked_sums, grid, (d, z, *norm[:4], partial), (rows,), constants)
    return _finish_sums(partial)


def norm_input_gradient(
    g: torch.Tensor, z: torch.Tensor, norm: Norm, means: Sums | None, count: int, masked: bool
) -> torch.Tensor:
    return _norm_input_gradient(g, z, norm, means, count, masked, None)


def block_input_gradient(
    g: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    means: Sums | None,
    count: int,
    dy: torch.Tensor,
    skip_weight: torch.Tensor | None,
) -> torch.Tensor:
    if skip_weight is None:
        return _norm_input_gradient(g, x, norm, means, count, True, dy)
    rows, (k, n) = pixels(x), skip_weight.shape[:2]
    dx = torch.empty_like(x)
    tensors = (g, x, *norm[:3], *(means or (None, None)), dy, _matrix(skip_weight), dx)
    tile = product_tile(rows, n, k, skip_weight.dtype)
    _launch_product(backward.projected_input_gradient, skip_weight.dtype, tensors, rows, (1.0 / count,), (k, n), tile)
    return dx


def _norm_input_gradient(
    g: torch.Tensor, z: torch.Tensor, norm: Norm, means: Sums | None, count: int, masked: bool, dy: torch.Tensor | None
) -> torch.Tensor:
    rows, channels = pixels(z), z.shape[1]
    block = map_block(channels)
    dz = torch.empty_like(z)
    tensors = (g, z, *norm[:4], *(means or (None, None)), dy, dz)
    constants = (channels, *block, masked, _even(channels, block))
    launch(backward.norm_input_gradient, _map_grid(rows, channels, block), tensors, (rows, 1.0 / count), constants)
    return dz


def _finish_sums(partial: torch.Tensor) -> Sums:
    parts, _, channels = partial.shape
    sums = partial.new_empty(channels), partial.new_empty(channels)
    grid = (blocks(channels, 16), 1, 1)
    launch(backward.finish_sums, grid, (partial, *sums), (parts,), (channels, _parts_at_once(parts), 16), warps=8)
    return sums


def _add_parts(partial: torch.Tensor, out: torch.Tensor) -> None:
    parts, size = len(partial), out.numel()
    launch(backward.add_parts, (blocks(size, 128), 1, 1), (partial, out), (parts,), (size, 32, 128))


def _launch_product(
    kernel: Any,
    dtype: torch.dtype,
    tensors: tuple[torch.Tensor | None, ...],
    rows: int,
    numbers: tuple[float, ...],
    sizes: tuple[int, ...],
    tile: Tile,
) -> None:
    """``dtype`` is of the factors, ``sizes`` begin with k and n."""
    grid = (blocks(rows, tile.m) * blocks(sizes[1], tile.n), 1, 1)
    constants: tuple[int | str, ...] = (*sizes, *tile[:3], precision(dtype))
    launch(kernel, grid, tensors, (rows, *numbers), constants, warps=tile.warps, stages=tile.stages)


def _new_parts(like: torch.Tensor, parts: int, channels: int) -> torch.Tensor:
    """Of two sums over pixels."""
    return torch.empty((parts, 2, channels), dtype=torch.float32, device=like.device)


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) of a 1×1 convolution, in row order."""
    return weight.contiguous()


def _even(channels: int, block: Block) -> bool:
    return channels % block.c == 0


def _map_grid(rows: int, channels: int, block: Block) -> tuple[int, int, int]:
    return blocks(rows, block.m), blocks(channels, block.c), 1
