"""What becomes of result files: tables, pictures, the README; and the commands that make them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from typer.testing import CliRunner

import benchmarks.table
from fastpose import cli
from fastpose.benchmarking.__main__ import parser
from fastpose.benchmarking.bench import Outcome, closing_lines, result_file
from fastpose.benchmarking.machine import ROOT
from fastpose.benchmarking.plots import draw_all
from fastpose.benchmarking.settings import HELP, Settings
from fastpose.benchmarking.table import brief_cells, markdown, tables


def provider(ms: float, role: str = "baseline", ratio: float | None = None, peak: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"role": role, "ms": ms, "ms_quartiles": [0.9 * ms, ms, 1.1 * ms]}
    if ratio:
        found["ratio_quartiles"] = [0.9 * ratio, ratio, 1.2 * ratio]
    if peak:
        found["peak_bytes"] = peak
    return found


def row(suite: str, workload: str, shape: list[int], **changes: Any) -> dict[str, Any]:
    found = {
        "suite": suite,
        "workload": workload,
        "shape": shape,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "bytes": 8 * 2**20,
        "flops": 0,
        "rounds": 25,
        "input_sets": 1,
        "providers": {
            "fastpose": provider(0.5, "ours", peak=2**20),
            "eager separable": provider(2.0, ratio=4.0, peak=4 * 2**20),
            "compile separable": provider(1.0, ratio=2.0),
            "kornia": {"role": "baseline", "error": "no | here"},
            "copy": provider(0.25, "floor", ratio=0.5),
        },
        "gigabytes_per_second": 16.8,
        "bound": "bandwidth",
        "share_of_ceiling": 0.84,
        "fastest_baseline": "compile separable",
        "speedup_quartiles": [1.8, 2.0, 2.4],
    }
    return {**found, **changes}


def network(batch: int, threads: int | None = 2) -> dict[str, Any]:
    providers = {
        "fastpose": provider(1234.5 * batch, "ours", peak=batch * 2**20),
        "eager": provider(2469.0 * batch, ratio=2.0, peak=batch * 3 * 2**20),
    }
    changes = {
        "flops": 10**12 * batch,
        "teraflops": 0.81,
        "providers": providers,
        "fastest_baseline": "eager",
        "threads": threads,
    }
    return row("networks", "hourglass-8 inference", [batch, 3, 256, 256], bound="arithmetic", **changes)


@pytest.fixture
def result() -> dict[str, Any]:
    """Of two ops, of which one is wrong, and a network with two batch sizes."""
    wrong = row("ops", "decode", [32, 16, 64, 64], providers={"fastpose": {"role": "ours", "error": "it is wrong"}})
    for key in ("gigabytes_per_second", "bound", "share_of_ceiling", "fastest_baseline", "speedup_quartiles"):
        del wrong[key]
    wrong["providers"]["copy"] = provider(0.25, "floor")
    return {
        "schema": 1,
        "machine": {
            "device": "cpu",
            "cpu": "A CPU",
            "cores": 4,
            "load": 0.1,
            "torch": "2.13.0",
            "fastpose": "0.1.0",
            "commit": "abc",
            "build": {"simd_level": "avx2"},
        },
        "run": {"quick": False, "kept_memory": True},
        "ceilings": [{"threads": 2, "gigabytes_per_second": {"copy": 20.0}, "teraflops": {"matmul float32": 0.17}}],
        "rows": [row("ops", "render", [32, 16, 64, 64]), wrong, network(1), network(4)],
        "begun": [],
        "left_out": [],
    }


def on_gpu(result: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(result)
    changed["machine"].update(device="cuda", gpu="NVIDIA H200", driver_version="580.1", **{"power.limit": "700.00 W"})
    changed["ceilings"][0]["threads"] = None
    changed["ceilings"][0]["gigabytes_per_second"]["L2 read"] = 6000.0
    for found in changed["rows"]:
        found.update(device="cuda", threads=None)
    return changed


# ---- tables -----------------------------------------------------------------------------------------------------------


def test_the_table_says_all_of_a_row(result: dict[str, Any]) -> None:
    lines = markdown(result).splitlines()
    assert lines[0] == "Measured on A CPU, 4 cores, avx2; torch 2.13.0, fastpose abc."
    assert lines[2] == "Ceilings: copy 20 GB/s, matmul float32 0.17 TFLOP/s (2 threads)."
    table = lines[lines.index("**Ops**") + 2 :]
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == [
        *("job", "shape, dtype", "threads", "ms", "rate", "of ceiling", "× copy"),
        *("peak memory", "fastest baseline", "its ms", "speed-up", "all baselines"),
    ]
    assert table[2] == (
        "| render | 32×16×64×64 float32 | 2 | 0.5 (0.45–0.55) | 16.8 GB/s | 84% (bandwidth) | 2.00 | 1 MiB (0.25 × eager) "
        "| compile separable | 1 | **2.00×** (1.80–2.40) "
        "| compile separable 2.0×, eager separable 4.0×, kornia: no \\| here |"
    )
    assert table[3] == "| decode | 32×16×64×64 float32 | 2 | it is wrong | – | – | – | – | – | – | – | – |"
    networks = lines[lines.index("**Networks**") + 4 :]
    assert networks[0].startswith(
        "| hourglass-8 inference | 1×3×256×256 float32 | 2 | 1234 (1111–1358) | 810 GFLOP/s | 84% (arithmetic) | 1 MiB (0.33 × "
    )
    assert all(line.replace("\\|", "").count("|") == table[0].count("|") for line in table[:4])


def test_the_table_of_a_gpu(result: dict[str, Any]) -> None:
    text = markdown(on_gpu(result))
    assert text.startswith(
        "Measured on NVIDIA H200; torch 2.13.0, fastpose abc, driver 580.1, power limit 700.00 W.\n\n"
        "Ceilings: copy 20 GB/s, L2 read 6000 GB/s, matmul float32 0.17 TFLOP/s.\n"
    )
    assert "threads" not in text


def test_what_makes_figures_doubtful_is_said(result: dict[str, Any]) -> None:
    result["run"].update(quick=True, compared_with="0123")
    result["machine"]["load"] = 2.5
    line = markdown(result).splitlines()[0]
    assert line.endswith(
        "fastpose abc, against 0123. A quick look: small shapes, few rounds, no compiled baselines. "
        "The machine was busy with something else (load 2.5)."
    )
    result["ceilings"] = []
    assert "Ceilings: not measured." in markdown(result)


def test_the_terminal_gets_the_gist(result: dict[str, Any]) -> None:
    found = {title: (heads, rows) for title, heads, rows in tables(result, brief_cells)}
    heads, rows = found["Ops"]
    assert dict(zip(heads, rows[0], strict=True)) == {
        "job": "render\n32×16×64×64 float32, 2 threads",
        "ms": "0.5",
        "of ceiling": "84%",
        "memory": "1 MiB",
        "speed-up": "2.00× compile separable",
    }
    assert rows[1] == ["decode\n32×16×64×64 float32, 2 threads", "it is wrong", "–", "–", "–"]


# ---- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_of_what_there_is(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    everything = draw_all(result, path)
    assert [file.name for file in everything] == ["cpu.speedups.png", "cpu.roofline.png", "cpu.memory.png"]
    for file in everything:
        image = cv2.imread(str(file))
        assert image.shape[1] == 1100
        assert (image != 255).any()
    pictures = draw_all(on_gpu(result), path)
    assert pictures == everything
    result["rows"] = [result["rows"][0], network(1)]  # no memory against one batch size
    assert draw_all(result, path) == everything[:2]
    assert not everything[2].exists()
    result["rows"] = result["rows"][:0]
    assert draw_all(result, path) == []
    assert list(tmp_path.iterdir()) == []


def test_rows_without_ceilings_or_baselines_are_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    result["ceilings"] = []
    for found in result["rows"]:
        found["providers"] = {name: p for name, p in found["providers"].items() if p["role"] != "baseline"}
        found.pop("fastest_baseline", None)
    assert [file.name for file in draw_all(result, tmp_path / "a.json")] == ["a.roofline.png", "a.memory.png"]


# ---- the README -------------------------------------------------------------------------------------------------------


def test_the_readme_has_no_figure_without_a_file() -> None:
    text = benchmarks.table.README.read_text(encoding="utf-8")
    assert benchmarks.table.replace_section(text, benchmarks.table.section()) == text, "run python -m benchmarks.table"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert benchmarks.table.section(tmp_path) == "### CPU\n\nNot yet measured.\n\n### GPU\n\nNot yet measured."


def test_the_readme_shows_results_and_their_pictures(result: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "fastpose-bench-cpu.json").write_text(json.dumps(result))
    (folder / "fastpose-bench-nvidia-h200.json").write_text(json.dumps(on_gpu(result)))
    (folder / "fastpose-bench-nvidia-h200.speedups.png").write_bytes(b"")
    for kind in ({"quick": True}, {"quick": False, "compared_with": "0123"}):
        (folder / f"fastpose-bench-{len(kind)}.json").write_text(json.dumps({**result, "run": kind}))
    text = benchmarks.table.section(folder, tmp_path)
    assert [line for line in text.splitlines() if line.startswith("#")] == ["### CPU", "### NVIDIA H200"]
    assert text.count("![") == 1
    assert text.endswith("](results/fastpose-bench-nvidia-h200.speedups.png)")
    readme = f"before\n{benchmarks.table.BEGIN}\nold\n{benchmarks.table.END}\nafter"
    new = benchmarks.table.replace_section(readme, text)
    assert new.startswith(f"before\n{benchmarks.table.BEGIN}\n\n### CPU")
    assert new.endswith(f".png)\n\n{benchmarks.table.END}\nafter")
    with pytest.raises(ValueError, match="are missing"):
        benchmarks.table.replace_section("no marks", text)


# ---- commands ---------------------------------------------------------------------------------------------------------


def test_files_are_named_after_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result_file(tmp_path / "a.json", Settings(), None) == tmp_path / "a.json"
    assert result_file(tmp_path, Settings(), None) == tmp_path / "fastpose-bench-cpu.json"
    assert result_file(tmp_path, Settings(quick=True), "main") == tmp_path / "fastpose-bench-cpu-quick-compare.json"


def test_closing_lines(result: dict[str, Any]) -> None:
    result["left_out"] = ["a", "b"]
    lines = list(closing_lines(Outcome(result, Path("a.json"), None, {"decode": "it is wrong"})))
    assert lines == [
        "written: a.json",
        "no pictures were drawn: pip install matplotlib",
        "2 rows were left out for lack of time: run it again with --resume",
        "failed: decode: it is wrong",
    ]
    assert list(closing_lines(Outcome({**result, "left_out": []}, Path("a.json"), [Path("a.png")], {}))) == [
        "written: a.json, a.png"
    ]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And memory as it is: a change would last."""
    monkeypatch.setattr("fastpose.benchmarking.bench.keep_memory", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


@pytest.mark.usefixtures("one_thread")
def test_bench_measures_prints_and_writes(tmp_path: Path) -> None:
    ran = run("bench", "ops", "--quick", "--device", "cpu", "--only", "decode quarter", "--batches", "1", "--out", tmp_path)
    assert ran.exit_code == 0, ran.output
    assert "decode quarter 1×16×64×64 float32, 1 thread: " in ran.stderr  # as it goes
    assert "A quick look" in ran.stdout
    assert "Ceilings: copy " in ran.stdout
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("  decode quarter"))
    assert "%" in line
    name = "fastpose-bench-cpu-quick"
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.json", f"{name}.speedups.png", f"{name}.roofline.png"}
    (found,) = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert {"fastpose", "eager", "numpy loop", "copy", "clone"} == set(found["providers"])
    again = run(
        "bench", "ops", "--quick", "--device", "cpu", "--only", "quarter", "--batches", "1", "--out", tmp_path, "--resume"
    )
    assert again.exit_code == 0
    assert json.loads((tmp_path / f"{name}.json").read_text())["rows"] == [found]


@pytest.mark.usefixtures("one_thread")
def test_bench_fails_where_fastpose_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fastpose.benchmarking.ops.ops.decode_heatmaps", lambda maps, method: (_ for _ in ()).throw(RuntimeError("no"))
    )
    ran = run(
        "bench", "ops", "--quick", "--device", "cpu", "--only", "decode quarter", "--batches", "1", "--out", tmp_path / "a.json"
    )
    assert ran.exit_code == 1
    assert "failed: decode quarter 1×16×64×64 float32, 1 thread: RuntimeError: no" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["op"], "suites: got 'op', allowed are 'ceilings', 'ops', 'blocks', 'networks'"),
        (["--threads", "1,two"], "threads: got '1,two', allowed are integers separated by commas"),
        (["--device", "cpu", "--only", "hrnet", "--out", "missing/a.json"], "only: no workload has 'hrnet' in its title"),
        (["ceilings", "--device", "cpu", "--out", "missing/a.json"], "missing: no such folder to write a.json to"),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_bench_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("bench", *arguments)
    assert ran.exit_code == 2
    assert ran.stderr == f"fastpose: {message}\n"


def test_both_commands_have_the_same_options() -> None:
    shown = parser("python -m benchmarks", Path()).format_help()
    help_of_command = run("bench", "--help").stdout
    for name in HELP:
        if name != "suites":
            assert f"--{name} " in help_of_command, name
            assert f"--{name}" in shown, name
    assert shown.startswith("usage: python -m benchmarks ")


def test_the_suites_run_under_pytest_benchmark() -> None:
    command = [
        "--suites",
        "ops",
        "--quick",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--batches",
        "1",
        "-k",
        "quarter and (fastpose or copy)",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/bench_suites.py", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # It measures nothing where it takes itself for one of several processes.
        env={**{name: value for name, value in os.environ.items() if "XDIST" not in name}, "COLUMNS": "200"},
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "benchmark 'decode quarter 1×16×64×64 float32, 1 thread': 2 tests" in ran.stdout
    assert "2 passed" in ran.stdout
