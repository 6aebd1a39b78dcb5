"""The file of a run: JSON that is complete after every row, so that a run that is killed leaves what it has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastpose._files import write_atomically

SCHEMA = 1
_SAME_MACHINE = ("device", "cpu", "gpu", "torch", "triton", "commit", "build")

Row = dict[str, Any]
"""One workload at one thread count; see benchmarks/README.md for its entries."""


def row_title(row: Row) -> str:
    """Such as ``render 32×16×64×64 float32, 1 thread``."""
    title = f"{row['workload']} {'×'.join(map(str, row['shape']))} {row['dtype']}"
    if row["threads"] is None:
        return title
    return f"{title}, {row['threads']} thread{'s' * (row['threads'] != 1)}"


class ResultFile:
    """Results as they come in.

    Args:
        path: of the JSON file.
        machine: facts about the machine.
        facts: about the run.
        resume: go on with what the file holds, if it is there.

    Raises:
        ValueError: the file to go on with is of another machine, revision or kind of run, or no result file.
        FileNotFoundError: its folder does not exist.
    """

    def __init__(self, path: Path, machine: dict[str, Any], facts: dict[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self.data: dict[str, Any] = {"schema": SCHEMA, "machine": machine, "run": facts, "ceilings": [], "rows": []}
        self.data |= {"begun": [], "left_out": []}
        if resume and path.exists():
            before = read_results(path)
            for fact in (*_SAME_MACHINE, *facts):
                then, now = {**before["machine"], **before["run"]}.get(fact), {**machine, **facts}.get(fact)
                if then != now:
                    raise ValueError(f"{path}: cannot go on with it, its {fact} is {then!r}, now it is {now!r}")
            self.data = {**before, "left_out": []}
        self._store()

    @property
    def finished(self) -> set[str]:
        """Titles of the rows that are there."""
        return {row_title(row) for row in self.data["rows"]}

    def set_ceilings(self, ceilings: list[dict[str, Any]]) -> None:
        self.data["ceilings"] = ceilings
        self._store()

    def begin(self, title: str) -> None:
        """Note that a row is being measured: if this is the last that is heard of it, the next run leaves it to the end."""
        if title not in self.data["begun"]:
            self.data["begun"].append(title)
        self._store()

    def leave_out(self, title: str) -> None:
        """Note that there was no time for a row."""
        self.data["left_out"].append(title)
        self._store()

    def add(self, row: Row) -> None:
        self.data["begun"] = [title for title in self.data["begun"] if title != row_title(row)]
        self.data["rows"].append(row)
        self._store()

    def _store(self) -> None:
        write_atomically(self.path, (json.dumps(self.data, indent=1, ensure_ascii=False) + "\n").encode())


def read_results(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: it is not one, or of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a result file: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a result file of version {SCHEMA}")
    return data
