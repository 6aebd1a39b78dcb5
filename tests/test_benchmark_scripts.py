"""The script that judges a GPU, with a GPU and a Python that pretend; and two revisions side by side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastpose import _library
from fastpose.benchmarking import compare
from fastpose.benchmarking.compare import compare_revisions
from fastpose.benchmarking.machine import ROOT, commit, git
from fastpose.benchmarking.results import read_results
from fastpose.benchmarking.settings import Settings

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STAGES = ["build", "tests", "memcheck", "racecheck", "matrix", "ceilings", "tune", "ops", "blocks", "networks"]

# Notes how it was called, and ends as the files beside it tell: FAIL holds "<part of the call> <exit code>" a line.
_PYTHON = """#!/usr/bin/env bash
here=$(dirname "$0")
call="$*"
echo "${call//$'\\n'/ }" >> "$here/calls"
[[ $call == *get_device_capability* ]] && echo 90
while IFS='|' read -r part code; do
  [[ $call == *"$part"* ]] && { echo "ends with $code"; [ "$code" = sleep ] && exec sleep 30; exit "$code"; }
done < "$here/FAIL"
echo "did $call" | tail -c 60
"""


class Ran(NamedTuple):
    code: int
    output: str
    calls: list[str]
    summary: dict[str, str]
    """What is said of each stage, without its time."""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of commands that pretend to be a machine with a GPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "python": _PYTHON,
        "nvidia-smi": "#!/bin/sh\necho 'NVIDIA H200, 580.1, 1980 MHz, 700 W'\n",
        "compute-sanitizer": '#!/bin/sh\nshift 4; exec "$@"\n',
    }
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "FAIL").touch()
    return folder


def judge(machine: Path, *arguments: str, path: str = "{machine}:/usr/bin:/bin", **environment: str) -> Ran:
    (machine / "calls").write_text("")
    out = machine.parent / "results"
    ran = subprocess.run(
        [str(SCRIPT), *arguments, str(out)],
        env={"PATH": path.format(machine=machine), "PYTHON": str(machine / "python"), "LIMIT": "20", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    file = out / "gpu-summary.txt"
    lines = file.read_text().splitlines()[1:] if file.exists() else []
    summary = {line.partition(": ")[0]: line.partition(": ")[2].partition(", ")[0] for line in lines}
    return Ran(ran.returncode, ran.stdout, (machine / "calls").read_text().splitlines(), summary)


def fail(machine: Path, ends: dict[str, object]) -> None:
    """From now on calls of Python with this in them end like that."""
    (machine / "FAIL").write_text("".join(f"{part}|{code}\n" for part, code in ends.items()))


def test_all_stages_in_order(machine: Path) -> None:
    ran = judge(machine)
    assert ran.code == 0, ran.output
    assert ran.summary == dict.fromkeys(STAGES, "passed")
    assert list(ran.summary) == STAGES
    calls = [call for call in ran.calls if not call.startswith("-c ")]
    assert calls[0] == "setup.py build_ext --inplace"
    tests, memcheck, racecheck, matrix, ceilings, tune, *measured = calls[1:]
    for call in (tests, memcheck, racecheck, matrix):
        assert call.startswith("-m pytest -q -p no:cacheprovider tests/")
        assert "tests/test_ops.py" in call
        assert "tests/test_cli.py" not in call  # which needs libraries that may not be there
    assert tests.endswith("-m cuda and not gpu_matrix")
    assert memcheck == racecheck
    assert memcheck.endswith("-m cuda and sanitize -x -k not float16 or bfloat16")
    assert matrix.endswith("-m gpu_matrix")
    assert tune == "-m fastpose.benchmarking.tune"
    results = machine.parent / "results"
    for suite, call in zip(("ceilings", "ops", "blocks", "networks"), [ceilings, *measured], strict=True):
        assert call == f"-m benchmarks {suite} --out {results} --resume --minutes 7.5 --device cuda"
        assert (results / f"gpu-{suite}.log").exists()


def test_a_stage_that_fails_stops_no_other(machine: Path) -> None:
    fail(machine, {"build_ext": 1, "cuda and not gpu_matrix": 2, "benchmarks ops": 1})
    ran = judge(machine)
    assert ran.code == 1
    failed = {"build": "failed with exit code 1", "tests": "failed with exit code 2", "ops": "failed with exit code 1"}
    assert ran.summary == {**dict.fromkeys(STAGES, "passed"), **failed}
    assert "ends with 2" in (machine.parent / "results" / "gpu-tests.log").read_text()


def test_nothing_uses_kernels_that_have_failed_the_matrix(machine: Path) -> None:
    fail(machine, {"-m gpu_matrix": 1})
    ran = judge(machine, STAGES="matrix ceilings tune ops blocks networks")
    assert ran.code == 1
    assert ran.summary["matrix"] == "failed with exit code 1"
    assert {ran.summary[name] for name in ("tune", "blocks", "networks")} == {"not run"}
    assert {ran.summary[name] for name in ("ceilings", "ops")} == {"passed"}
    fail(machine, {})
    assert judge(machine, STAGES="blocks").summary == {"blocks": "not run"}  # nor in a later run
    assert judge(machine, STAGES="matrix blocks").summary == {"matrix": "passed", "blocks": "passed"}
    assert judge(machine, STAGES="blocks").code == 0


def test_what_is_not_there_is_skipped_aloud(machine: Path) -> None:
    fail(machine, {"-m gpu_matrix": 5, "tune": 5})  # pytest has found no test, and Python nothing to tune
    (machine / "compute-sanitizer").unlink()
    ran = judge(machine, STAGES="memcheck matrix tune blocks")
    assert ran.code == 0
    assert ran.summary == {"memcheck": "skipped", "matrix": "skipped", "tune": "skipped", "blocks": "passed"}
    assert "no compute-sanitizer on the PATH" in ran.output


def test_a_stage_that_hangs_is_stopped(machine: Path) -> None:
    fail(machine, {"benchmarks ops": "sleep"})
    ran = judge(machine, STAGES="ops blocks", LIMIT="1")
    assert ran.code == 1
    assert ran.summary == {"ops": "stopped after 1 s", "blocks": "passed"}


def test_wrong_stages_and_machines_are_refused(machine: Path) -> None:
    ran = judge(machine, STAGES="ops bench")
    assert (ran.code, ran.calls) == (2, [])
    assert "STAGES: got 'bench', allowed are build tests memcheck" in ran.output
    (machine / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    ran = judge(machine)
    assert (ran.code, ran.calls) == (2, [])
    assert "no NVIDIA GPU found" in ran.output


def test_a_dry_run_needs_no_gpu(machine: Path) -> None:
    for name in ("nvidia-smi", "compute-sanitizer"):
        (machine / name).unlink()
    ran = judge(machine, "--dry-run")
    assert ran.code == 0, ran.output
    assert ran.summary == dict.fromkeys(STAGES, "passed")
    assert sum("--collect-only" in call for call in ran.calls) == 4
    assert sum("--device cpu --quick --threads 1" in call for call in ran.calls) == 4


# Imported when Python starts, before anything else.
_BARE = """
import importlib.machinery as machinery
hidden = {"cv2", "dsntnn", "hypothesis", "kornia", "lightning", "matplotlib", "pytest", "rich", "typer"}
find = machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def test_ops_are_measured_without_any_extra(tmp_path: Path) -> None:
    """A dry run with the real Python, which lacks every library but torch and NumPy."""
    (tmp_path / "sitecustomize.py").write_text(_BARE)
    out = tmp_path / "results"
    environment = {**os.environ, "PYTHON": sys.executable, "STAGES": "ops", "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([str(SCRIPT), "--dry-run", str(out)], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    result = read_results(out / "fastpose-bench-cpu-quick.json")
    assert [row["workload"] for row in result["rows"]] == ["decode quarter"]
    assert result["run"]["kept_memory"] is (sys.platform == "linux")
    log = (out / "gpu-ops.log").read_text()
    assert "| decode quarter | 4×16×64×64 float32 | 1 |" in log
    assert "[1/1, " in log
    assert "no pictures were drawn: pip install matplotlib" in log
    assert {file.name for file in out.iterdir()} == {"fastpose-bench-cpu-quick.json", "gpu-ops.log", "gpu-summary.txt"}
    assert (out / "gpu-summary.txt").read_text().splitlines()[1].startswith("ops: passed, ")


# ---- two revisions ----------------------------------------------------------------------------------------------------

needs_git = pytest.mark.skipif(commit(ROOT) is None, reason="not in a git checkout")
QUICK = Settings(suites=("ops",), threads=(1,), batches=(1,), only=("decode quarter",), quick=True, device="cpu")


class Silent:
    def start(self, total: int) -> None:
        pass

    def doing(self, what: str) -> None:
        pass

    def done(self, result: str) -> None:
        pass


@needs_git
def test_two_revisions_are_timed_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one and its commit, which takes the extension that is here."""

    def take_ours(folder: Path, sha: str, device: str) -> None:
        shutil.copy(_library._C.__file__, folder / "fastpose")

    monkeypatch.setattr(compare, "_build", take_ours)
    before = git(ROOT, "worktree", "list")
    result = compare_revisions(QUICK, "HEAD", tmp_path / "a.json", Silent(), facts={"kept_memory": True})
    assert git(ROOT, "worktree", "list") == before
    head = git(ROOT, "rev-parse", "HEAD")
    assert head is not None
    other = f"fastpose at {head[:12]}"
    assert result == read_results(tmp_path / "a.json")
    assert result["run"] == {"quick": True, "kept_memory": True, "compared_with": head[:12]}
    (row,) = result["rows"]
    assert {name: provider["role"] for name, provider in row["providers"].items()} == {"fastpose": "ours", other: "baseline"}
    assert row["fastest_baseline"] == other
    assert all(provider["peak_bytes"] for provider in row["providers"].values())
    assert 0.02 < row["speedup_quartiles"][1] < 50


def test_there_must_be_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="which is not the root of a git checkout"):
        compare_revisions(QUICK, "HEAD", tmp_path / "a.json", Silent())


@needs_git
def test_a_revision_that_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compare: 'no-such-branch' names no commit of "):
        compare_revisions(QUICK, "no-such-branch", tmp_path / "a.json", Silent())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a source file; what would be run is written to a file instead."""
    folder = tmp_path / "repository"
    (folder / "csrc").mkdir(parents=True)
    (folder / "fastpose").mkdir()
    (folder / "csrc" / "a.cpp").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    monkeypatch.setattr(compare, "ROOT", folder)

    def note(*command: str, **options: Any) -> None:
        (folder / "ran").write_text(json.dumps([command[1:], {name: str(value) for name, value in options.items()}]))

    monkeypatch.setattr(compare, "_run", note)
    return folder


def test_the_extension_is_built_where_its_sources_differ(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = checkout / "target"
    (target / "fastpose").mkdir(parents=True)
    compare._build(target, "HEAD", "cpu")
    assert [file.name for file in (target / "fastpose").iterdir()] == [Path(_library._C.__file__).name]
    assert not (checkout / "ran").exists()
    build = ["setup.py", "-q", "build_ext", "--inplace"]
    (checkout / "csrc" / "b.cpp").write_text("new")
    compare._build(target, "HEAD", "cpu")
    assert json.loads((checkout / "ran").read_text()) == [build, {"cwd": str(target), "FASTPOSE_CUDA": "0"}]
    (checkout / "csrc" / "b.cpp").unlink()
    (checkout / "csrc" / "a.cpp").write_text("2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    compare._build(target, "HEAD", "cuda")
    assert json.loads((checkout / "ran").read_text()) == [build, {"cwd": str(target), "FASTPOSE_CUDA_ARCHS": "90"}]


def test_a_revision_that_does_not_build_or_import_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)compare: .* failed:\n.*it is broken"):
        compare._run(sys.executable, "-c", "print('it is broken'); exit(3)")
    package = tmp_path / "fastpose" / "benchmarking"
    package.mkdir(parents=True)
    (tmp_path / "fastpose" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "worker.py").write_text("raise SystemExit('this revision is broken')")
    with (
        pytest.raises(ValueError, match=r"(?s)compare: fastpose of .* fails:\n.*this revision is broken"),
        compare._Process(tmp_path, QUICK),
    ):
        pass
