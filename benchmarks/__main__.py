"""`python -m benchmarks`: runs the op suite on this machine, prints the table and writes results/<name>.json.

Options not listed by --help go to pytest (for example `-k soft-argmax`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.machine import describe
from benchmarks.table import markdown

HERE = Path(__file__).parent
# glibc hands the pages of a freed 8 MB result back to the system, and whoever allocates next pays for faulting them in again:
# a millisecond here or there that has nothing to do with the op. All providers are measured with memory that is kept.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def main() -> int:
    if not os.environ.keys() >= KEEP_MEMORY.keys():  # read by the C library when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**os.environ, **KEEP_MEMORY})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="JSON to write (default: benchmarks/results/<device>.json)")
    options, rest = parser.parse_known_args()
    output = options.output or HERE / "results" / f"{options.device}.json"
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        arguments = [
            str(HERE / "bench_ops.py"),
            "-q",
            "--benchmark-only",
            "--benchmark-disable-gc",
            f"--benchmark-json={raw}",
        ]
        code = pytest.main([*arguments, "--benchmark-columns=median", f"--bench-device={options.device}", *rest])
        if code != 0:
            return int(code)
        rows = [entry["extra_info"] for entry in json.loads(raw.read_text())["benchmarks"]]
    result = {"machine": describe(options.device), "rows": rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(output)
    print(markdown(result))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
