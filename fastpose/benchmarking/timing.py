"""How time is taken: in rounds, every provider once a round, so that a machine that slows down slows them all.

A ratio is the median of the ratios within the rounds, which holds where absolute times do not. Medians and quartiles are given,
never means.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fastpose.benchmarking.workload import Function, Inputs

Round = Callable[[], float]
"""Runs its provider for a while; returns seconds a call."""

MOST_ROUNDS, FEWEST_ROUNDS = 25, 5
ROUND_SECONDS = {"cpu": 0.01, "cuda": 0.005}
_WARM_UP_CALLS = 2  # before the one by which the length of a round is chosen


def cpu_round(call: Callable[[], object], seconds: float = ROUND_SECONDS["cpu"]) -> Round:
    """Repeats a call for at least about ``seconds``, by the wall clock."""

    def timed(repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    timed(_WARM_UP_CALLS)
    repeats = math.ceil(seconds / max(timed(1), 1e-6))
    return lambda: timed(repeats)


def cuda_round(replay: Callable[[], object], calls: int, seconds: float = ROUND_SECONDS["cuda"]) -> Round:
    """Repeats what makes ``calls`` calls on the current GPU for at least about ``seconds``, by CUDA events."""

    def timed(repeats: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats / calls

    timed(_WARM_UP_CALLS)
    repeats = math.ceil(seconds / max(timed(1) * calls, 1e-6))
    return lambda: timed(repeats)


def input_sets(traffic: int) -> int:
    """How many sets of inputs to go through on the current GPU, so that none finds its own in the L2 cache.

    Args:
        traffic: bytes that pass through the cache with each set.
    """
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(512, math.ceil(3 * cache / max(1, traffic)))


class Captured:
    """A CUDA graph of one call with each set of inputs; calling it replays the graph.

    Args:
        function: what is called, with the inputs of each of the ``sets``.
        pool: of memory, shared by graphs that are replayed one after the other and whose results nobody reads.
    """

    def __init__(self, function: Function, sets: Sequence[Inputs], pool: Any) -> None:
        self._kept = (function, sets)  # the graph reads and writes their memory
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what a first call sets up cannot be captured
                function(*sets[0])
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            # All results live until the end, so that each call writes memory of its own.
            results = [function(*inputs) for inputs in sets]
        del results

    def __call__(self) -> None:
        self._graph.replay()


def interleave(rounds: Mapping[str, Round], seconds: float, fewest: int = FEWEST_ROUNDS) -> dict[str, list[float]]:
    """Time providers in turns for about ``seconds``.

    Returns:
        For each the seconds a call in every round: an odd number of rounds, ``fewest`` to :data:`MOST_ROUNDS`. Each round
        begins with another provider than the one before.
    """
    names = list(rounds)
    taken: dict[str, list[float]] = {name: [] for name in names}
    start, count = time.perf_counter(), 0
    while count < fewest or count % 2 == 0 or (count < MOST_ROUNDS and time.perf_counter() - start < seconds):
        first = count % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(rounds[name]())
        count += 1
    return taken


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Quartiles of the ratios round by round."""
    return quartiles([a / b for a, b in zip(numerator, denominator, strict=True)])
