"""`python -m fastpose.benchmarking.tune` finds, on a GPU, the fastest configurations of the fused layers that suites infer with.

What it finds is kept on disk as it goes; benchmarks, and everything else on this machine, use it from then on.
"""

from __future__ import annotations

import importlib
import sys

from fastpose.benchmarking.runner import planned
from fastpose.benchmarking.settings import Settings

NOTHING_TO_DO = 5  # exit code, as pytest's when it finds no test


def main() -> int:
    """Tune what the suites infer with; returns the exit code."""
    try:
        tuning = importlib.import_module("fastpose.triton.tuning")
        settings = Settings(suites=("blocks", "networks"), device="cuda")
    except (ModuleNotFoundError, ValueError) as error:
        print(f"nothing to tune: {error}")
        return NOTHING_TO_DO
    for workload, _ in planned(settings):
        if workload.tunable:
            print(workload.title, flush=True)
            tuning.tune(workload.tunable(), *workload.make_inputs(0), progress=lambda line: print(f"  {line}", flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
