"""The suites by pytest-benchmark, whose options store and compare runs: a test for every provider, grouped by workload.

    pytest benchmarks/bench_suites.py --suites ops --quick
    pytest benchmarks/bench_suites.py --suites blocks -k 'training and not max-autotune' --benchmark-autosave

It reads the wall clock, one provider after the other; for ratios that hold on a machine that slows down, `fastpose bench`.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastpose.benchmarking.memory import keep_memory
from fastpose.benchmarking.preparing import cpu_threads, prepare
from fastpose.benchmarking.runner import title_of
from fastpose.benchmarking.workload import Workload


def test_provider(benchmark: Any, workload: Workload, threads: int | None, name: str) -> None:
    """Checked, then timed: a round is a call, or on a GPU one call with each set of inputs."""
    keep_memory()
    with cpu_threads(threads):
        prepared = prepare(workload, [name], lambda what: None)
        if name in prepared.errors:
            give_up = pytest.skip if workload.providers[name].role == "baseline" else pytest.fail
            give_up(prepared.errors[name])
        benchmark.group = title_of(workload, threads)
        benchmark.extra_info.update(
            bytes=workload.bytes_moved,
            flops=workload.flops(),
            peak_bytes=prepared.peaks.get(name),
            input_sets=prepared.sets,
        )
        benchmark(prepared.calls[name])
