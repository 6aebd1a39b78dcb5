"""How commands print scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from fastpose.scoring import Score

_MOST_COLUMNS = 6


def score_table(scores: Sequence[Score], protocol: str) -> Table:
    """Scores of the same metric as a table.

    Of one method every joint or limb with its counts; of a few methods every joint or limb beside one another; of many, one
    to a row, what papers print: columns, totals and the area under the curve of the total.
    """
    title = f"{scores[0].metric} (%), {protocol}"
    parts = list(scores[0].hits)
    rows = {name: [score.values[name] for score in scores] for name in (*parts, *scores[0].columns)}
    if "total" in scores[0].auc:
        rows["AUC total"] = [score.auc["total"] for score in scores]
    if len(scores) > _MOST_COLUMNS:
        return _one_to_a_row(title, scores, {name: rows[name] for name in rows if name in scores[0].columns or name not in parts})
    table = Table("", title=title, title_justify="left")
    alone = scores[0] if len(scores) == 1 and parts else None
    for score in scores:
        table.add_column("%" if alone else score.name, justify="right", overflow="fold")
    for name in ("hits", "of") if alone else ():
        table.add_column(name, justify="right")
    for name, values in rows.items():
        cells = [f"{value:.2f}" for value in values]
        if alone and name in alone.hits:
            cells += [str(alone.hits[name]), str(alone.counted[name])]
        table.add_row(name, *cells, end_section=bool(parts) and name == parts[-1])
    return table


def _one_to_a_row(title: str, scores: Sequence[Score], columns: dict[str, list[float]]) -> Table:
    table = Table("", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for number, score in enumerate(scores):
        table.add_row(score.name, *(f"{values[number]:.2f}" for values in columns.values()))
    return table
