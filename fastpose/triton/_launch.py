"""Launching a kernel without asking anew what it is to be compiled for, which takes Triton longer than small kernels run."""

from __future__ import annotations

from typing import Any

import torch
import triton

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[torch.Tensor | None, ...],
    numbers: tuple[int | float, ...],
    constants: tuple[int | bool | str, ...],
    *,
    warps: int = 4,
    stages: int = 3,
) -> None:
    """Runs ``kernel`` on the current CUDA stream, or in Triton's interpreter.

    Args:
        kernel: its parameters are tensors, then numbers, of which it specialises on none, then constants.
        grid: number of programs in each direction.
        tensors: of which None is a constant.
        numbers: that may differ between calls without a new compilation.
        constants: the ``tl.constexpr`` parameters.
        warps, stages: of a program, of its pipeline.
    """
    dtypes = tuple(None if tensor is None else tensor.dtype for tensor in tensors)
    key = (kernel.__name__, _device(tensors), dtypes, constants, warps, stages)
    compiled = _compiled.get(key)
    # Compiled for pointers to whole packs of 16 bytes and for 32-bit integers; anything else Triton finds out each time.
    usual = all(number < 2**31 for number in numbers) and not any(t.data_ptr() % 16 for t in tensors if t is not None)
    if compiled is not None and usual:
        compiled[grid](*tensors, *numbers, *constants)
        return
    # Whether products and sums are contracted by default differs between versions of Triton.
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = kernel[grid](*tensors, *numbers, *constants, **options)
    if usual and isinstance(kernel, triton.JITFunction):
        _compiled[key] = compiled


def _device(tensors: tuple[torch.Tensor | None, ...]) -> int | None:
    return next(tensor.device.index for tensor in tensors if tensor is not None)
