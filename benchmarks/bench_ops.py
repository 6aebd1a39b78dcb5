"""The fused ops against their baselines: `python -m benchmarks`, or pytest on this file with pytest-benchmark's own options.

The providers of one row are timed in turn, round after round, in one test: a machine that slows down slows them all, so the
ratios hold where absolute times do not. Correctness is checked before anything is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.workloads import JOINTS, SIZE, WORKLOADS, Workload

ROUNDS = 25
MIN_ROUND_SECONDS = 0.01


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def first_tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def check_same(workload: Workload, name: str, result: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    crop = (..., slice(workload.crop, -workload.crop), slice(workload.crop, -workload.crop)) if workload.crop else ...
    error = (result.float()[crop] - expected.float()[crop]).abs().max().item()
    allowed = workload.tolerance if dtype == torch.float32 else max(workload.tolerance, 1.0 if result.dim() == 3 else 0.01)
    assert error <= allowed, f"{workload.name}: {name} differs from the fused op by {error:.3g}, allowed is {allowed}"


def copy_of_same_size(batch: int, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    source = torch.ones(batch, JOINTS, SIZE, SIZE, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def interleaved(providers: dict[str, Callable[[], Any]], device: str) -> dict[str, list[float]]:
    """Seconds a call of each provider, ROUNDS times in turn; each round repeats the call for at least 10 ms."""
    repeats: dict[str, int] = {}
    for name, call in providers.items():
        for _ in range(3):
            call()
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        repeats[name] = max(1, int(MIN_ROUND_SECONDS / max(time.perf_counter() - start, 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(ROUNDS):
        for name, call in providers.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            synchronize(device)
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name.replace(" ", "-"))
def test_op(benchmark: Any, workload: Workload, batch: int, dtype: str, device: str, threads: int) -> None:
    precision = getattr(torch, dtype)
    torch.set_num_threads(threads)
    torch.compiler.reset()
    inputs = workload.make(batch, precision, device)
    expected = first_tensor(workload.fused(*inputs))
    providers: dict[str, Callable[[], Any]] = {"fastpose": partial(workload.fused, *inputs)}
    for name, function in workload.baselines(device).items():
        check_same(workload, name, first_tensor(function(*inputs)), expected, precision)
        providers[name] = partial(function, *inputs)
    providers["copy"] = copy_of_same_size(batch, precision, device)

    seconds = interleaved(providers, device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min((name for name in medians if name not in ("fastpose", "copy")), key=medians.__getitem__)
    benchmark.group = f"{workload.name} b{batch} {dtype} {threads}t"
    benchmark.extra_info.update(
        workload=workload.name,
        shape=[batch, JOINTS, SIZE, SIZE],
        dtype=dtype,
        device=device,
        threads=threads if device == "cpu" else None,
        milliseconds={name: 1e3 * s for name, s in medians.items()},
        quartiles={name: [1e3 * q for q in statistics.quantiles(v, n=4)] for name, v in seconds.items()},
        fastest_baseline=fastest,
        # Ratios of the same round first, then their median: what drifts with the machine cancels.
        speedup=statistics.median(b / f for b, f in zip(seconds[fastest], seconds["fastpose"], strict=True)),
        speedups={
            name: statistics.median(b / f for b, f in zip(values, seconds["fastpose"], strict=True))
            for name, values in seconds.items()
            if name not in ("fastpose", "copy")
        },
        times_copy=statistics.median(f / c for f, c in zip(seconds["fastpose"], seconds["copy"], strict=True)),
        gigabytes_per_second=workload.bytes_moved(batch, precision) / medians["fastpose"] / 1e9,
    )
    benchmark.pedantic(providers["fastpose"], rounds=5, iterations=3)
