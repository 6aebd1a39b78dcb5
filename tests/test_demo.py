"""The demonstration, in a few steps: its files, its tables, its timings."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch

from fastpose.cases import CASES
from fastpose.data.figures import VALIDATION_SEED, Figures
from fastpose.demo import run_demo, time_ops
from fastpose.prediction import Predictor
from fastpose.recipes import Recipe, get_recipe
from fastpose.training import TrainingResult


class Demo(NamedTuple):
    out: Path
    result: TrainingResult
    printed: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo") / "new"
    with redirect_stdout(io.StringIO()) as printed:
        result = run_demo(out, steps=4, progress=False)
    return Demo(out, result, printed.getvalue())


def test_demo_writes_a_picture(demo: Demo) -> None:
    picture = cv2.imread(str(demo.out / "fastpose_demo.png"))
    assert min(picture.shape[:2]) > 1000
    assert len(np.unique(picture[::8, ::8].reshape(-1, 3), axis=0)) > 1000  # figures, not an empty page
    assert {file.name for file in demo.out.iterdir()} == {f"fastpose_demo.{kind}" for kind in ("png", "json", "safetensors")}


def test_demo_writes_its_numbers(demo: Demo) -> None:
    result = demo.result
    summary = json.loads((demo.out / "fastpose_demo.json").read_text())
    assert Recipe.from_dict(summary["recipe"]) == get_recipe("hourglass-demo", steps=4)
    assert (summary["pckh_initial"], summary["pckh_final"]) == (result.initial, result.final)
    assert summary["history"] == result.history
    assert summary["unseen_figures"] >= 500
    assert summary["machine"]["device"]
    assert 0 < summary["training_seconds"] < summary["seconds"]
    ops = summary["timings_ms"]["ops"]
    assert {timing["op"].split()[0] for timing in ops} <= {case.name for case in CASES}
    assert all(timing["ratio"] == pytest.approx(timing["reference"] / timing["fused"]) for timing in ops)


def test_demo_weights_predict(demo: Demo) -> None:
    (pose,) = Predictor.load(demo.result.weights, device="cpu").predict(Figures(1, seed=VALIDATION_SEED, size=(64, 64))[:])
    assert np.isfinite(pose.keypoints).all()


def test_demo_prints_tables(demo: Demo) -> None:
    words = ("PCKh@0.5", "500 unseen figures", "stack 1", "stack 2", "shoulder", "32 x 16 maps", "ratio")
    printed = " ".join(demo.printed.split())  # titles of narrow tables are wrapped
    assert [word for word in words if word not in printed] == []
    assert f"{demo.result.final['total']:.1f}" in demo.printed


def test_demo_refuses_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps"):
        run_demo(tmp_path / "out", steps=0)
    assert not (tmp_path / "out").exists()


def test_timings_leave_the_threads_alone() -> None:
    before = torch.get_num_threads()
    timings = time_ops((2, 4, 16, 16), rounds=2)
    assert torch.get_num_threads() == before
    assert all(timing.fused > 0 and timing.reference > 0 for timing in timings)
