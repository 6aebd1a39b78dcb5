"""The process in which one of two compared revisions is timed: it does what it is told, a JSON line at a time.

Run with the revision's checkout first on the module path; see compare.py, which gives the orders.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from fastpose.benchmarking.machine import ROOT
from fastpose.benchmarking.memory import keep_memory
from fastpose.benchmarking.preparing import prepare, release_memory
from fastpose.benchmarking.runner import planned, title_of
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.timing import Round
from fastpose.benchmarking.workload import OURS


def main() -> None:
    """Orders are ``settings``, then for each workload ``prepare`` and any number of ``round``; every one is answered."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    keep_memory()
    worker = Worker()
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(worker, order["do"])(**order["with"])), file=answers)


class Worker:
    """Carries out the orders."""

    def settings(self, **settings: Any) -> dict[str, Any]:
        given: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        self._plan = {title_of(*pair): pair for pair in planned(Settings(**given))}
        return {"root": str(ROOT)}

    def prepare(self, title: str) -> dict[str, Any]:
        """Builds and checks fastpose's provider of a workload."""
        workload, threads = self._plan[title]
        self._round: Round | None = None
        release_memory(workload.device)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            prepared = prepare(workload, [OURS], lambda what: None)
        except Exception as error:
            return {"error": str(error)}
        self._round = prepared.rounds.get(OURS)
        return {"error": prepared.errors.get(OURS), "peak": prepared.peaks.get(OURS), "sets": prepared.sets}

    def round(self) -> dict[str, Any]:
        assert self._round is not None, "nothing is prepared"
        return {"seconds": self._round()}


if __name__ == "__main__":
    main()
