"""A run: every workload of the chosen suites prepared, checked, timed and stored, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastpose.benchmarking import blocks, networks, ops
from fastpose.benchmarking.ceilings import Ceilings, ceilings_of, measure_ceilings
from fastpose.benchmarking.checking import WrongResultError
from fastpose.benchmarking.machine import describe
from fastpose.benchmarking.preparing import Prepared, cpu_threads, prepare, release_memory
from fastpose.benchmarking.progress import Lines, Progress
from fastpose.benchmarking.results import ResultFile, Row, row_title
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.timing import Round, interleave, quartiles, ratios
from fastpose.benchmarking.workload import OURS, Workload, dtype_name

_SUITES: Mapping[str, Callable[[Settings], Iterable[Workload]]] = {
    "ceilings": lambda settings: (),
    "ops": ops.workloads,
    "blocks": blocks.workloads,
    "networks": networks.workloads,
}
ROW_SECONDS, QUICK_ROW_SECONDS = 15.0, 1.0  # of timing
_QUICK_ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """What was found out about a workload: the seconds a call in every round, by provider, and the providers' roles."""

    seconds: Mapping[str, list[float]]
    roles: Mapping[str, str]
    prepared: Prepared


def planned(settings: Settings) -> Iterator[tuple[Workload, int | None]]:
    """The workloads and thread counts of a run, in order; no thread count on a GPU."""
    for suite in settings.suites:
        for workload in _SUITES[suite](settings):
            for threads in thread_counts(settings, suite):
                wanted = not settings.only or any(part in workload.title for part in settings.only)
                if wanted:
                    yield workload, threads


def thread_counts(settings: Settings, suite: str) -> tuple[int | None, ...]:
    if settings.device == "cuda":
        return (None,)
    every = torch.get_num_threads()
    if settings.threads:
        return settings.threads
    return tuple(sorted({1, every})) if suite == "ops" and not settings.quick else (every,)


def run(
    settings: Settings,
    path: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    measure: Callable[[Workload, int | None], Measured] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure and store.

    Args:
        settings: what to measure.
        path: JSON file to write; it is complete after every row.
        progress: is told how it goes; lines on stderr by default.
        resume: leave out the rows that the file has already.
        measure: prepares and times a workload at a thread count, if not by its providers in this process.
        facts: about the run, to be stored with it.

    Returns:
        What the file holds.

    Raises:
        ValueError: no workload is wanted, or the file to go on with is of another machine or revision.
    """
    progress = progress or Lines()
    measure = measure or (lambda workload, threads: measure_here(workload, threads, settings, progress.doing))
    plan = {title_of(*pair): pair for pair in planned(settings)}
    if not plan and settings.only:
        raise ValueError(f"only: no workload has {' or '.join(map(repr, settings.only))} in its title")
    begun = time.monotonic()
    file = ResultFile(path, describe(settings.device), {"quick": settings.quick, **(facts or {})}, resume=resume)
    interrupted = set(file.data["begun"])
    todo = [title for title in plan if title not in file.finished]
    todo.sort(key=lambda title: title in interrupted)  # what the run before did not survive comes last
    progress.start(len(todo))
    _complete_ceilings(file, plan.values(), settings, progress)
    for title in todo:
        if settings.minutes is not None and time.monotonic() - begun > 60 * settings.minutes:
            file.leave_out(title)
            progress.done(f"{title}: left out, {settings.minutes:g} minutes are over")
            continue
        file.begin(title)
        workload, threads = plan[title]
        measured = measure(workload, threads)
        row = make_row(workload, threads, measured, ceilings_of(file.data["ceilings"], threads))
        file.add(row)
        progress.done(summary(row))
    return file.data


def title_of(workload: Workload, threads: int | None) -> str:
    shape = list(workload.shape)
    return row_title({"workload": workload.name, "shape": shape, "dtype": dtype_name(workload.dtype), "threads": threads})


def _complete_ceilings(
    file: ResultFile, plan: Iterable[tuple[Workload, int | None]], settings: Settings, progress: Progress
) -> None:
    """Measure the machine, unless the file has all that the workloads' shares are of."""
    dtypes = {torch.float32, *(workload.dtype for workload, _ in plan if workload.suite != "ops")}
    if settings.device == "cuda":
        dtypes.add(torch.bfloat16)
    counts = {threads for _, threads in plan} or set(thread_counts(settings, "ceilings"))
    found = [ceilings_of(file.data["ceilings"], count) for count in counts]
    names = {f"matmul {dtype_name(dtype)}" for dtype in dtypes}
    if not all(ceilings and names <= ceilings["teraflops"].keys() for ceilings in found):
        ordered = sorted(dtypes, key=str), sorted(counts, key=lambda count: count or 0)
        file.set_ceilings(measure_ceilings(settings.device, *ordered, quick=settings.quick, doing=progress.doing))


def measure_here(workload: Workload, threads: int | None, settings: Settings, doing: Callable[[str], None]) -> Measured:
    """Prepare, check and time a workload's providers in this process."""
    title = title_of(workload, threads)
    names = settings.choose(workload)
    with cpu_threads(threads):
        try:
            prepared = prepare(workload, names, lambda what: doing(f"{title}: {what}"))
        except (WrongResultError, torch.OutOfMemoryError) as error:
            prepared = Prepared(errors={name: str(error) for name in names})
        doing(f"{title}: timing")
        times = take_turns(prepared.rounds, settings)
    prepared.forget_functions()
    release_memory(workload.device)
    return Measured(times, {name: workload.providers[name].role for name in names}, prepared)


def take_turns(rounds: Mapping[str, Round], settings: Settings) -> dict[str, list[float]]:
    """The seconds of every round."""
    if not rounds:
        return {}
    return interleave(rounds, QUICK_ROW_SECONDS, _QUICK_ROUNDS) if settings.quick else interleave(rounds, ROW_SECONDS)


def make_row(workload: Workload, threads: int | None, measured: Measured, ceilings: Ceilings | None) -> Row:
    """What is stored of one workload."""
    providers: dict[str, Any] = {}
    for name, role in measured.roles.items():
        seconds = measured.seconds.get(name)
        if seconds is None:
            providers[name] = {"role": role, "error": measured.prepared.errors.get(name, "not timed")}
            continue
        spread = [1e3 * value for value in quartiles(seconds)]
        providers[name] = {"role": role, "ms": spread[1], "ms_quartiles": spread}
        if OURS in measured.seconds and name != OURS:
            providers[name]["ratio_quartiles"] = ratios(seconds, measured.seconds[OURS])
        if measured.prepared.peaks.get(name):
            providers[name]["peak_bytes"] = measured.prepared.peaks[name]
    row: Row = {
        "suite": workload.suite,
        "workload": workload.name,
        "shape": list(workload.shape),
        "dtype": dtype_name(workload.dtype),
        "device": workload.device,
        "threads": threads,
        "bytes": workload.bytes_moved,
        "flops": workload.flops(),
        "rounds": max(map(len, measured.seconds.values()), default=0),
        "input_sets": measured.prepared.sets,
        "providers": providers,
    }
    return row | _judged(row, ceilings)


def _judged(row: Row, ceilings: Ceilings | None) -> dict[str, Any]:
    """Speed-up over the fastest baseline, by the ratios within the rounds, and the share of the machine's ceiling."""
    ours = row["providers"].get(OURS, {})
    if "ms" not in ours:
        return {}
    judged: dict[str, Any] = {"gigabytes_per_second": row["bytes"] / ours["ms"] / 1e6}
    if row["flops"]:
        judged["teraflops"] = row["flops"] / ours["ms"] / 1e9
    if ceilings:
        floors = {"bandwidth": row["bytes"] / ceilings["gigabytes_per_second"]["copy"] / 1e6}
        rate = ceilings["teraflops"].get(f"matmul {row['dtype']}")
        if row["flops"] and rate:
            floors["arithmetic"] = row["flops"] / rate / 1e9
        bound = max(floors, key=floors.__getitem__)
        judged |= {"bound": bound, "floor_ms": floors[bound], "share_of_ceiling": floors[bound] / ours["ms"]}
    baselines = {name: timed for name, timed in row["providers"].items() if timed["role"] == "baseline" and "ms" in timed}
    if baselines:
        fastest = min(baselines, key=lambda name: baselines[name]["ratio_quartiles"][1])
        judged |= {"fastest_baseline": fastest, "speedup_quartiles": baselines[fastest]["ratio_quartiles"]}
    return judged


def summary(row: Row) -> str:
    """One line about a row."""
    ours = row["providers"].get(OURS, {})
    if "ms" not in ours:
        return f"{row_title(row)}: {ours.get('error', 'fastpose was not timed')}"
    text = f"{row_title(row)}: {ours['ms']:.3g} ms"
    if "fastest_baseline" in row:
        text += f", {row['speedup_quartiles'][1]:.2f}× {row['fastest_baseline']}"
    return text
