"""What the machine at hand can do at best, measured: bandwidth of its memory and cache, rate of its matrix units.

Shares in the table are of these, not of a data sheet. Bandwidth counts bytes read and bytes written.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from fastpose.benchmarking.preparing import cpu_threads, release_memory
from fastpose.benchmarking.timing import cpu_round, cuda_round
from fastpose.benchmarking.workload import dtype_name

ROUNDS = 9
_CPU_COPY, _QUICK_CPU_COPY = 2**28, 2**26  # bytes, beyond the caches
_GPU_COPY, _QUICK_GPU_COPY = 2**30, 2**28
_MATRIX = {"cpu": 2048, "cuda": 8192}
_QUICK_MATRIX = {"cpu": 1024, "cuda": 4096}
_CONVOLUTION = (32, 128, 64, 64)  # the input of the 3×3 convolution of the hourglass's first level
_PROGRAMS_A_MULTIPROCESSOR = 8  # of the kernel that only reads
_TIMES_THROUGH_THE_CACHE = 199  # a prime, so that its programs begin all over the cache

Ceilings = dict[str, Any]
"""``threads`` (None on a GPU), ``gigabytes_per_second`` and ``teraflops``, each by what was done."""


def measure_ceilings(
    device: str,
    dtypes: Sequence[torch.dtype],
    threads: Sequence[int | None],
    *,
    quick: bool = False,
    doing: Callable[[str], None] = lambda what: None,
) -> list[Ceilings]:
    """Measure the machine.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtypes: of matrix products.
        threads: thread counts of a CPU, each of which is measured; ``[None]`` on a GPU.
        quick: smaller sizes.
        doing: is told what is going on.

    Returns:
        One for each thread count.
    """
    return [_measure(device, dtypes, count, quick, doing) for count in threads]


def ceilings_of(ceilings: Iterable[Ceilings], threads: int | None) -> Ceilings | None:
    """Those for a thread count, None where they were not measured."""
    return next((found for found in ceilings if found["threads"] == threads), None)


def _measure(
    device: str, dtypes: Sequence[torch.dtype], threads: int | None, quick: bool, doing: Callable[[str], None]
) -> Ceilings:
    doing("ceilings" + (f", {threads} threads" if threads else ""))
    with cpu_threads(threads):
        bandwidths = (
            _cuda_bandwidths(quick) if device == "cuda" else {"copy": _copy(_QUICK_CPU_COPY if quick else _CPU_COPY, device)}
        )
        size = (_QUICK_MATRIX if quick else _MATRIX)[device]
        rates = {f"matmul {dtype_name(dtype)}": _matmul(size, dtype, device) for dtype in dtypes}
        if device == "cuda":
            rates.update(_convolutions())
    return {"threads": threads, "gigabytes_per_second": bandwidths, "teraflops": rates}


def _seconds(call: Callable[[], object], device: str) -> float:
    """Median time of a call; each round takes 20 ms or more."""
    run = cuda_round(call, 1, 0.02) if device == "cuda" else cpu_round(call, 0.02)
    return statistics.median(run() for _ in range(ROUNDS))


def _copy(size: int, device: str) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    return 2 * size / seconds / 1e9


def _matmul(size: int, dtype: torch.dtype, device: str) -> float:
    """Of random numbers: zeros would flatter a chip that saves power on them."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _seconds(lambda: torch.mm(a, b, out=out), device)
    release_memory(device)
    return 2 * size**3 / seconds / 1e12


# ---- GPU --------------------------------------------------------------------------------------------------------------


def _cuda_bandwidths(quick: bool) -> dict[str, float]:
    size = _QUICK_GPU_COPY if quick else _GPU_COPY
    target = torch.empty(size // 4, device="cuda")
    bandwidths = {"copy": _copy(size, "cuda"), "write": size / _seconds(partial(target.fill_, 1.0), "cuda") / 1e9}
    if importlib.util.find_spec("triton"):
        bandwidths["read"] = _read(size, 1)
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        bandwidths["L2 read"] = _read(cache // 4, _TIMES_THROUGH_THE_CACHE)
    release_memory("cuda")
    return bandwidths


def _read(size: int, times: int) -> float:
    from fastpose.benchmarking.read_kernel import BLOCK, read_repeatedly

    programs = _PROGRAMS_A_MULTIPROCESSOR * torch.cuda.get_device_properties(0).multi_processor_count
    blocks = max(1, size // (4 * BLOCK * programs)) * programs
    source = torch.ones(blocks * BLOCK, device="cuda")
    sums = torch.empty(programs, device="cuda")
    seconds = _seconds(lambda: read_repeatedly(source, sums, times), "cuda")
    expected = source.numel() * times
    if sums.double().sum().item() != expected:
        raise RuntimeError(f"the kernel that only reads has read {sums.double().sum().item():.0f} of {expected} numbers")
    return 4 * expected / seconds / 1e9


def _convolutions() -> dict[str, float]:
    """cuDNN's 3×3 convolution, its fastest algorithm: forward, and both gradients."""
    torch.backends.cudnn.benchmark = True
    batch, channels, height, width = _CONVOLUTION
    make = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    x, gradient = (make(_CONVOLUTION).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight = make(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    flops = 2 * 9 * batch * height * width * channels**2

    def backward(*wanted: bool) -> Any:
        mask = [*wanted, False]
        return torch.ops.aten.convolution_backward(gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.nn.functional.conv2d(x, weight, padding=1),
        "input gradient": lambda: backward(True, False),
        "weight gradient": lambda: backward(False, True),
    }
    return {f"3×3 convolution bfloat16, {name}": flops / _seconds(call, "cuda") / 1e12 for name, call in calls.items()}
