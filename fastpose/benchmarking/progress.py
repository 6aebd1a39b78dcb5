"""How a run says what it is doing."""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """What a run tells about itself."""

    def start(self, total: int) -> None:
        """So many rows are to be measured."""

    def doing(self, what: str) -> None:
        """This is going on now."""

    def done(self, result: str) -> None:
        """One more row is there, or was left out."""


class Lines:
    """A line on stderr for every finished row: for logs, and where there is no rich."""

    def __init__(self) -> None:
        self._total = self._done = 0
        self._begun = time.perf_counter()

    def start(self, total: int) -> None:
        self._total = total

    def doing(self, what: str) -> None:
        pass

    def done(self, result: str) -> None:
        self._done += 1
        seconds = time.perf_counter() - self._begun
        print(f"[{self._done}/{self._total}, {seconds:.0f} s] {result}", file=sys.stderr, flush=True)
