"""Two revisions in one run: a git worktree of the other one, a process each, timed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fastpose import _library
from fastpose.benchmarking.machine import ROOT, commit, git
from fastpose.benchmarking.preparing import Prepared
from fastpose.benchmarking.progress import Lines, Progress
from fastpose.benchmarking.runner import Measured, run, take_turns, title_of
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.workload import OURS, Workload

_COMPILED_SOURCES = ("csrc", "CMakeLists.txt", "setup.py")
_SHOWN_LINES = 15  # of the output of what has failed


def compare_revisions(
    settings: Settings,
    revision: str,
    path: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure fastpose as it was imported against itself at another revision.

    Both are timed in processes of their own, in turns. The benchmarks are those of this revision, also for the other one.

    Args:
        settings: what to measure.
        revision: anything that names a commit.
        path: JSON file to write; in its rows the other revision is the baseline.
        progress: is told how it goes; lines on stderr by default.
        resume: leave out the rows that the file has already.
        facts: about the run, to be stored with it.

    Returns:
        What the file holds.

    Raises:
        ValueError: fastpose was not imported from a git checkout, the revision is unknown, or it does not build or import.
    """
    if commit(ROOT) is None:
        raise ValueError(f"compare: fastpose was imported from {ROOT}, which is not the root of a git checkout")
    found = git(ROOT, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found is None:
        raise ValueError(f"compare: {revision!r} names no commit of {ROOT}")
    progress = progress or Lines()
    other = f"{OURS} at {found[:12]}"
    progress.doing(f"building {revision}")
    with _checkout(found, settings.device) as folder, _Process(ROOT, settings) as ours, _Process(folder, settings) as theirs:

        def measure(workload: Workload, threads: int | None) -> Measured:
            title = title_of(workload, threads)
            prepared, rounds = Prepared(), {}
            for name, process in ((OURS, ours), (other, theirs)):
                progress.doing(f"{title}: {name}")
                answer = process.ask("prepare", title=title)
                if answer["error"]:
                    prepared.errors[name] = answer["error"]
                    continue
                prepared.sets = answer["sets"]
                if answer["peak"] is not None:
                    prepared.peaks[name] = answer["peak"]
                rounds[name] = process.round
            progress.doing(f"{title}: timing")
            return Measured(take_turns(rounds, settings), {OURS: "ours", other: "baseline"}, prepared)

        both = {**(facts or {}), "compared_with": found[:12]}
        return run(settings, path, progress, resume=resume, measure=measure, facts=both)


@contextlib.contextmanager
def _checkout(sha: str, device: str) -> Iterator[Path]:
    """A temporary worktree of a commit, built, with this revision's benchmarks."""
    with tempfile.TemporaryDirectory(prefix="fastpose-compare-") as temporary:
        folder = Path(temporary).resolve() / "checkout"
        _run("git", "-C", str(ROOT), "worktree", "add", "--detach", str(folder), sha)
        try:
            _build(folder, sha, device)
            here = Path(__file__).parent
            there = folder / here.relative_to(ROOT)
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__"))
            yield folder
        finally:
            git(ROOT, "worktree", "remove", "--force", str(folder))


def _build(folder: Path, sha: str, device: str) -> None:
    """Build the extension of a checkout, or take the one that is here if it comes from the same sources."""
    changed = git(ROOT, "diff", "--name-only", sha, "--", *_COMPILED_SOURCES)
    added = git(ROOT, "ls-files", "--others", "--exclude-standard", "--", *_COMPILED_SOURCES)
    extension = getattr(_library._C, "__file__", None)
    if extension and changed == added == "":
        shutil.copy(extension, folder / "fastpose")
        return
    if device == "cuda":
        environment = {"FASTPOSE_CUDA_ARCHS": "{}{}".format(*torch.cuda.get_device_capability())}
    else:
        environment = {"FASTPOSE_CUDA": "0"}
    _run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder, **environment)


def _run(*command: str, cwd: Path | None = None, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise ValueError(f"compare: {' '.join(command)} failed:\n{_end(done.stdout)}")


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-_SHOWN_LINES:])


class _Process:
    """A worker in which fastpose comes from a given checkout; a context."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self._root = root
        self._settings = settings

    def __enter__(self) -> _Process:
        path = os.pathsep.join(filter(None, [str(self._root), os.environ.get("PYTHONPATH")]))
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fastpose.benchmarking.worker"],
                cwd=self._root,
                env={**os.environ, "PYTHONPATH": path},
                text=True,
                bufsize=1,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
            stack.callback(self._end)
            answer = self.ask("settings", **dataclasses.asdict(self._settings))
            if answer["root"] != str(self._root):
                raise ValueError(f"compare: fastpose should come from {self._root}, but comes from {answer['root']}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]  # the end of its orders
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for the answer; ValueError, with what it wrote to stderr, if the process has ended."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": order, "with": arguments}) + "\n")
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise ValueError(f"compare: fastpose of {self._root} fails:\n{_end(self._errors.read())}")
        return json.loads(line)

    def round(self) -> float:
        return self.ask("round")["seconds"]
