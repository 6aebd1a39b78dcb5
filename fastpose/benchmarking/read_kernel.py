"""A Triton kernel that only reads, for the bandwidth of a GPU's memory and of its L2 cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096
WARPS = 8


@triton.jit
def read_kernel(source, sums, blocks, reads, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Program p reads ``reads`` of the ``blocks`` blocks of float32, every one after the one before, from a place of its own.

    Lines are cached in L2 only, so that no read is served by the L1 cache.
    """
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    first = program.to(tl.int64) * reads
    for step in range(reads):
        block = (first + step) % blocks
        total += tl.load(source + block * BLOCK + offsets, cache_modifier=".cg")
    tl.store(sums + program, tl.sum(total))


def read_repeatedly(source: torch.Tensor, sums: torch.Tensor, times: int) -> None:
    """Read a whole tensor ``times`` times over.

    Args:
        source: float32 (N,), N a multiple of :data:`BLOCK`.
        sums: float32 (P,), one for each of P programs, which share the reading; P divides N / BLOCK · times.
        times: how often.
    """
    blocks = source.numel() // BLOCK
    read_kernel[(sums.numel(),)](source, sums, blocks, blocks * times // sums.numel(), BLOCK=BLOCK, num_warps=WARPS)
