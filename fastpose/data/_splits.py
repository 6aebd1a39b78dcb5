"""Splits: their names, and their people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from fastpose.data.records import Person


def check_split(split: str | None, splits: Collection[str]) -> None:
    """Refuse the name of a split that a data set does not have."""
    if split is not None and split not in splits:
        raise ValueError(f"split must be {', '.join(map(repr, splits))} or None, got {split!r}")


def of_split(people: Sequence[Person], split: str | None, path: Path) -> list[Person]:
    """Keep the people of a split; None: all.

    Raises:
        ValueError: nobody in the file is of this split.
    """
    if split is None:
        return list(people)
    chosen = [person for person in people if person.split == split]
    if chosen:
        return chosen
    known = sorted({person.split for person in people} - {""})
    if known:
        raise ValueError(f"split must be None or one of {', '.join(map(repr, known))}, as nobody in {path} is of {split!r}")
    raise ValueError(f"split must be None, as {path} does not say who belongs to {split!r}")
