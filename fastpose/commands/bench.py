"""``fastpose bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from fastpose.benchmarking.settings import HELP


def bench(
    suites: Annotated[list[str] | None, typer.Argument(help=HELP["suites"], metavar="SUITE...")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=HELP["quick"])] = False,
    device: Annotated[str | None, typer.Option(help=HELP["device"])] = None,
    compare: Annotated[str | None, typer.Option(metavar="REVISION", help=HELP["compare"])] = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help=HELP["out"])] = Path("."),
    resume: Annotated[bool, typer.Option("--resume", help=HELP["resume"])] = False,
    minutes: Annotated[float | None, typer.Option(help=HELP["minutes"])] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=HELP["only"])] = None,
    providers: Annotated[str, typer.Option(metavar="LIST", help=HELP["providers"])] = "",
    threads: Annotated[str, typer.Option(metavar="LIST", help=HELP["threads"])] = "",
    batches: Annotated[str, typer.Option(metavar="LIST", help=HELP["batches"])] = "",
    dtypes: Annotated[str, typer.Option(metavar="LIST", help=HELP["dtypes"])] = "",
) -> None:
    """Measure fastpose against its baselines on this machine; write JSON and pictures."""
    from fastpose.benchmarking import bench as benchmarks
    from fastpose.benchmarking.table import brief_cells, ceilings_line, machine_line, tables

    settings = benchmarks.parse_settings(
        suites=suites or [],
        device=device,
        quick=quick,
        minutes=minutes,
        only=only or [],
        providers=providers,
        threads=threads,
        batches=batches,
        dtypes=dtypes,
    )
    file = benchmarks.result_file(out, settings, compare)
    with _Bar() as progress:
        outcome = benchmarks.bench(settings, file, progress, compare=compare, resume=resume)
    console = Console()
    for line in (machine_line(outcome.result), ceilings_line(outcome.result)):
        console.print(line, highlight=False, markup=False)
    for title, heads, rows in tables(outcome.result, brief_cells):
        table = Table(Column(heads[0], no_wrap=True), *heads[1:], title=title, title_justify="left", box=SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in benchmarks.closing_lines(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if outcome.failures:
        raise typer.Exit(1)


class _Bar:
    """A progress bar on stderr, and above it a line for every finished row; without the bar where nobody looks."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def done(self, result: str) -> None:
        self._progress.console.print(result, highlight=False, markup=False)
        self._progress.advance(self._task)
