"""`python -m benchmarks`: what `fastpose bench` does; results go to the folder from which the README's tables are made."""

from __future__ import annotations

import sys

from benchmarks.table import RESULTS
from fastpose.benchmarking.__main__ import main

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    sys.exit(main(prog="python -m benchmarks", out=RESULTS))
