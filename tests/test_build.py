"""The package builds as users build it: an sdist that holds all sources, and from it a wheel that imports and runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    tracked = run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    copy = folder / "source"  # a build writes beside setup.py: not into the tree under test
    for name in filter(None, tracked.split("\0")):
        source = ROOT / name
        if source.exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)], cwd=copy, check=True, capture_output=True
    )
    return next(folder.glob("*.tar.gz"))


def test_sdist_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "setup.py", "pyproject.toml"}
    needed |= {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
    needed |= {str(path.relative_to(ROOT)) for path in (ROOT / "fastpose").rglob("*.py")}
    assert needed <= held, f"missing from the sdist: {sorted(needed - held)}"


def test_wheel_from_the_sdist_imports_and_runs(sdist: Path, tmp_path: Path) -> None:
    """Without optimisation, CUDA and wide vectors, for speed: the other tests' build has them."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    build = ("wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(tmp_path), str(sdist))
    environment = {"FASTPOSE_CUDA": "0", "CMAKE_ARGS": "-DFASTPOSE_SIMD_LEVELS=baseline", "CXX": str(compiler)}
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *build, cwd=tmp_path, **environment)
    wheel = next(tmp_path.glob("fastpose_kernels-*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        f"import fastpose, torch; assert fastpose.__file__.startswith({str(site)!r}), fastpose.__file__; "
        "info = fastpose.build_info(); assert info['cuda'] is None and info['simd_levels'] == ['baseline'], info; "
        "print(fastpose.ops.gaussian_heatmap(torch.tensor([[[2.0, 1.0]]]), (3, 5), 1.0)[0, 0, 1, 2].item())"
    )
    # away from the checkout, whose fastpose would be imported instead
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip() == "1.0"
