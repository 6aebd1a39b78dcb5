"""The CUDA kernels, compiled for the CPU by tests/cuda_on_cpu: right, free of data races, and inside their memory.

ThreadSanitizer must be silent, and must speak up as soon as any one of the kernels' barriers is left out: then every barrier is
needed, and the check sees what it is there for.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastpose.cases import CASES

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "cuda_on_cpu"
OPS = [case.name for case in CASES]
BARRIERS = [
    f"{path.name}:{number}"
    for path in sorted((ROOT / "csrc").glob("*.cuh"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(r"__sync(threads|warp)\(\)", line.partition("//")[0])
]

each_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(scope="module", autouse=True)
def build() -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja may be pip's
    configure = ["cmake", "-S", ROOT / "tests" / "cuda_on_cpu", "-B", BUILD, "-G", "Ninja"]
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={BUILD}"]
    for command in ([*configure, *options], ["cmake", "--build", BUILD, "-j", str(os.cpu_count())]):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": tools})
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr


@functools.cache
def fixed_addresses() -> list[str]:
    """What keeps ThreadSanitizer from meeting memory mapped where it expects none, if the system allows it."""
    prefix = ["setarch", platform.machine(), "-R"]
    return prefix if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0 else []


@functools.cache
def run_driver(sanitizer: str, op: str, without_barrier: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "TSAN_OPTIONS": f"halt_on_error={int(bool(without_barrier))} atexit_sleep_ms=0",
        "ASAN_OPTIONS": "detect_leaks=0",  # which needs ptrace
    }
    if without_barrier:
        environment["CUDA_ON_CPU_WITHOUT_BARRIER"] = without_barrier
    command = [*fixed_addresses(), BUILD / f"driver_{sanitizer}", op]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def thread_sanitizer(build: None) -> None:
    done = run_driver("thread", "no op of this name")
    if done.returncode != 2:
        pytest.skip(f"ThreadSanitizer does not start here: {done.stderr.strip()[:200]}")


def barriers_of(op: str) -> set[str]:
    return {line.split()[1] for line in run_driver("address", op).stdout.splitlines()}


def has_race(op: str, barrier: str) -> bool:
    return "WARNING: ThreadSanitizer: data race" in run_driver("thread", op, barrier).stderr


@each_op
def test_stays_inside_its_memory(op: str) -> None:
    done = run_driver("address", op)
    assert done.returncode == 0, done.stderr[:5000]


@pytest.mark.usefixtures("thread_sanitizer")
@each_op
def test_has_no_data_race(op: str) -> None:
    done = run_driver("thread", op)
    assert done.returncode == 0, done.stderr[:5000]


@pytest.mark.usefixtures("thread_sanitizer")
@each_op
def test_planted_race_is_found(op: str) -> None:
    barriers = barriers_of(op)
    if not barriers:
        pytest.skip("its threads share nothing")
    own = [barrier for barrier in barriers if barrier.startswith(op)]
    assert any(has_race(op, barrier) for barrier in own or barriers)


@pytest.mark.usefixtures("thread_sanitizer")
@pytest.mark.parametrize("barrier", BARRIERS)
def test_barrier_is_needed(barrier: str) -> None:
    ops = [op for op in OPS if barrier in barriers_of(op)]
    assert ops, "no op comes by this barrier"
    assert any(has_race(op, barrier) for op in ops)


def test_values() -> None:
    """What the ops' own tests say of the CUDA kernels; their memory is AddressSanitizer's part, which is faster."""
    (extension,) = BUILD.glob("_C*.so")
    tests = [
        ROOT / "tests" / "test_ops.py",
        "-m",
        "kernel",
        "-k",
        "not beside",
        f"--cuda-on-cpu={extension}",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50 * len(OPS)
