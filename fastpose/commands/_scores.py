"""How commands print scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from fastpose.score_files import Score

_MOST_COLUMNS = 6


def score_table(scores: Sequence[Score], protocol: str) -> Table:
    """Scores of the same metric as a table.

    Of one method every joint or limb with its counts; of a few methods every joint or limb beside one another; of many, one
    to a row, what papers print: columns, totals and the area under the curve of the total.
    """
    first = scores[0]
    percent = first.metric != "OKS"
    title = f"{first.metric}{' (%)' if percent else ''}, {protocol}"
    rows = [{**score.values, **({"AUC total": score.auc["total"]} if "total" in score.auc else {})} for score in scores]
    texts = [{name: f"{value:.{2 if percent else 4}f}" for name, value in row.items()} for row in rows]
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    if len(scores) > _MOST_COLUMNS:
        names = [name for name in (*first.columns, "AUC total") if name in texts[0]]
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
        for score, text in zip(scores, texts, strict=True):
            table.add_row(score.name, *(text[name] for name in names))
        return table
    alone = len(scores) == 1 and bool(first.hits)
    for head in ("%", "hits", "of") if alone else [score.name for score in scores]:
        table.add_column(head, justify="right", overflow="fold")
    parts = list(first.hits)
    for name in texts[0]:
        counts = [str(first.hits[name]), str(first.counted[name])] if alone and name in first.hits else []
        table.add_row(name, *(text[name] for text in texts), *counts, end_section=bool(parts) and name == parts[-1])
    return table
