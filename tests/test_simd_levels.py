"""Every instruction set that the extension is built for gives right values, not only the best one of this CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastpose

ROOT = Path(__file__).parents[1]
LEVELS = ["baseline", "avx2", "avx512"]  # in rising order


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_values(level: str) -> None:
    info = fastpose.build_info()
    if level not in info["simd_levels"] or LEVELS.index(level) >= LEVELS.index(info["simd_level"]):
        pytest.skip(f"the other tests run at {info['simd_level']}")
    environment = {**os.environ, "FASTPOSE_SIMD": level}
    code = "import fastpose; print(fastpose.build_info()['simd_level'])"
    asked = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert asked.stdout.strip() == level
    tests = ["tests/test_ops.py", "-m", "kernel", "-k", "cpu", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 200
