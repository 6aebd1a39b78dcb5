"""What `fastpose bench`, `python -m fastpose.benchmarking` and `python -m benchmarks` have in common."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastpose.benchmarking.compare import compare_revisions
from fastpose.benchmarking.machine import describe, name_of
from fastpose.benchmarking.memory import keep_memory
from fastpose.benchmarking.progress import Progress
from fastpose.benchmarking.results import row_title
from fastpose.benchmarking.runner import run
from fastpose.benchmarking.settings import SUITES, Settings
from fastpose.benchmarking.workload import OURS


@dataclass(frozen=True)
class Outcome:
    """Of a run.

    Attributes:
        result: what the file holds.
        file: the JSON file.
        pictures: drawn beside it; None without matplotlib.
        failures: what went wrong with fastpose itself, by row.
    """

    result: dict[str, Any]
    file: Path
    pictures: list[Path] | None
    failures: dict[str, str]


def parse_settings(
    *,
    suites: Sequence[str],
    device: str | None,
    quick: bool,
    minutes: float | None,
    only: Sequence[str],
    providers: str,
    threads: str,
    batches: str,
    dtypes: str,
) -> Settings:
    """Settings from what stands on a command line; ValueError or TypeError where it makes no sense."""
    return Settings(
        suites=tuple(suites) or SUITES,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        quick=quick,
        minutes=minutes,
        only=tuple(only),
        providers=tuple(_parts(providers)),
        threads=_numbers("threads", threads),
        batches=_numbers("batches", batches),
        dtypes=tuple(_parts(dtypes)),
    )


def result_file(out: Path, settings: Settings, compare: str | None) -> Path:
    """``out`` itself, or in it, if it is a folder, ``fastpose-bench-cpu.json`` or, such as, ``fastpose-bench-nvidia-h200.json``.

    A quick look and a comparison say so in that name.
    """
    if not out.is_dir():
        return out
    kind = "-quick" * settings.quick + "-compare" * (compare is not None)
    return out / f"fastpose-bench-{name_of(describe(settings.device))}{kind}.json"


def bench(settings: Settings, file: Path, progress: Progress, *, compare: str | None = None, resume: bool = False) -> Outcome:
    """Measure, store and draw.

    Args:
        settings: what to measure.
        file: JSON file to write.
        progress: is told how it goes.
        compare: a git revision to measure against.
        resume: keep the rows that the file has.

    Raises:
        ValueError, FileNotFoundError: as of :func:`fastpose.benchmarking.runner.run` and
            :func:`fastpose.benchmarking.compare.compare_revisions`.
    """
    facts = {"kept_memory": keep_memory()}
    if compare is None:
        result = run(settings, file, progress, resume=resume, facts=facts)
    else:
        result = compare_revisions(settings, compare, file, progress, resume=resume, facts=facts)
    pictures = None
    if importlib.util.find_spec("matplotlib"):
        from fastpose.benchmarking.plots import draw_all

        pictures = draw_all(result, file)
    errors = {row_title(row): row["providers"].get(OURS, {}).get("error") for row in result["rows"]}
    return Outcome(result, file, pictures, {title: error for title, error in errors.items() if error})


def closing_lines(outcome: Outcome) -> Iterable[str]:
    """What is left to say when the tables are printed."""
    yield f"written: {', '.join(map(str, [outcome.file, *(outcome.pictures or [])]))}"
    if outcome.pictures is None:
        yield "no pictures were drawn: pip install matplotlib"
    if left_out := outcome.result["left_out"]:
        yield f"{len(left_out)} rows were left out for lack of time: run it again with --resume"
    for title, error in outcome.failures.items():
        yield f"failed: {title}: {error}"


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, _parts(text)))
    except ValueError:
        raise ValueError(f"{name}: got {text!r}, allowed are integers separated by commas") from None
