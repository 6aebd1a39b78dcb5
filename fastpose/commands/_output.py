"""How commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from rich.table import Table


def complain(error: Exception | str) -> None:
    """Say on one line of stderr what is wrong."""
    message = " ".join(str(error).split()) or type(error).__name__
    typer.echo(f"fastpose: {message}", err=True)


def pairs(title: str, values: Mapping[str, Any]) -> Table:
    """Values by name, as a table without a head."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, str(value))
    return table


def stages_table(title: str, scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores by joint group, a column for each stage of a model."""
    table = Table("joint", title=title, title_justify="left")
    for stage in scores:
        table.add_column(stage, justify="right")
    groups = list(next(iter(scores.values())))
    for group in groups:
        table.add_row(group, *(f"{values[group]:.1f}" for values in scores.values()), end_section=group == groups[-2])
    return table
