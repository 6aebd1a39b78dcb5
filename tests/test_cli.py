"""The command: what it prints, what it writes, and how it complains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastpose
from fastpose import cli
from fastpose.cases import CASES
from fastpose.checkpoints import save_weights
from fastpose.codec import HeatmapCodec
from fastpose.models import create_model
from fastpose.plots import save_image
from fastpose.prediction import CODEC_KEY, SKELETON_KEY


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create_model("hourglass", stacks=1, features=8, depth=2)
    path = tmp_path / "weights.safetensors"
    codec = HeatmapCodec.preset("msra", 64)
    save_weights(model, path, metadata={CODEC_KEY: json.dumps(codec.to_dict()), SKELETON_KEY: "mpii"})
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        save_image(rng.integers(0, 256, (80, 120, 3), np.uint8), folder / name)
    return folder


# ---- start ----------------------------------------------------------------------------------------------------------


def test_help_waits_for_no_library_of_the_training_extra() -> None:
    ran = python(
        "import sys; from fastpose.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print('loaded:', {'cv2', 'lightning', 'matplotlib', 'safetensors', 'torchmetrics'} & set(sys.modules))"
    )
    assert "predict" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "loaded: set()"


def test_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "fastpose", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: fastpose" in ran.stdout


@pytest.mark.parametrize(("library", "command"), [("typer", "info"), ("cv2", "predict w.safetensors . --out o")])
def test_names_the_extra_that_is_missing(library: str, command: str) -> None:
    ran = python(
        f"import sys; sys.modules[{library!r}] = None; sys.argv = 'fastpose {command}'.split()\n"
        "from fastpose.cli import main\nmain()"
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert library in ran.stderr
    assert "pip install 'fastpose-kernels[train]'" in ran.stderr


# ---- info, models ---------------------------------------------------------------------------------------------------


def test_info_shows_build_devices_and_kernels() -> None:
    output = run("info").output
    rows = {cells[1].strip(): cells[2].strip() for line in output.splitlines() if len(cells := line.split("│")) > 3}
    assert rows["fastpose"] == fastpose.__version__
    assert rows["torch"] == torch.__version__
    assert rows["simd_level"] == fastpose.build_info()["simd_level"]
    assert {case.name: rows[case.name] for case in CASES} == dict.fromkeys([case.name for case in CASES], "fused")
    assert (rows["residual, inference"], rows["residual, training"]) == ("folded", "plain")
    assert "cpu: residual, training is plain: there are kernels for cuda, not for cpu" in output


def test_info_says_why_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpose._library._C", None)
    monkeypatch.setattr("fastpose._library._why_not_built", "no such module", raising=False)
    result = run("info")
    assert result.exit_code == 0
    assert "fused │" not in result.output
    (reason,) = (line for line in result.output.splitlines() if line.startswith("cpu: ") and "residual" not in line)
    assert "no such module" in reason
    assert "pip install --no-build-isolation" in reason


def test_models_shows_papers_and_sizes() -> None:
    result = run("models")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    (row,) = (line for line in lines if "25,434,112" in line)
    assert [cell.strip() for cell in row.split("│")][1:5] == ["paper", "25,434,112", "27.44", "256×256"]
    (row,) = (line for line in lines if "31,219,866" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "paper",
        "31,219,866",
        "175.44",
        "368×368",
        "14 joints, heatmaps 46×46",
        "stage 1 to stage 6",
    ]
    for paper in (
        "hourglass: Stacked Hourglass Networks",
        "ief: Human Pose Estimation with Iterative",
        "Toshev",
        "Tompson",
        "Wei",
    ):
        assert paper in result.output


# ---- predict --------------------------------------------------------------------------------------------------------


def persons(out: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((out / f"{name}.json").read_text())["persons"]


def test_predict_takes_the_whole_image_for_the_person(weights: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("predict", weights, pictures, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == ["a.json", "a.overlay.jpg", "b.json", "b.overlay.jpg"]
    for name in "ab":
        (person,) = persons(out, name)
        assert person["scale"] == 0.6
        # The middle of 120 x 80 pixels, less the 15 pixels a unit of scale by which crops are moved down.
        assert person["center"] == [59.5, 39.5 - 15 * 0.6]


def test_predict_takes_boxes_and_centres(weights: Path, pictures: Path, tmp_path: Path) -> None:
    image = pictures / "a.png"
    assert run("predict", weights, image, "--box", "10,20,30,40", "--out", tmp_path / "box").exit_code == 0
    assert persons(tmp_path / "box", "a")[0]["scale"] == 0.2
    assert persons(tmp_path / "box", "a")[0]["center"] == [24.5, 36.5]
    located = ("--center", "50,40", "--scale", 0.3)
    assert run("predict", weights, image, *located, "--out", tmp_path / "centre").exit_code == 0
    assert persons(tmp_path / "centre", "a")[0]["center"] == [50, 40]
    assert run("predict", weights, image, *located, "--no-flip-test", "--out", tmp_path / "plain").exit_code == 0
    assert persons(tmp_path / "centre", "a") != persons(tmp_path / "plain", "a")


def test_predict_goes_on_after_a_broken_image(weights: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").write_bytes(b"broken")
    result = run("predict", weights, pictures, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "a.png is not an image" in result.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["b.json", "b.overlay.jpg"]


# ---- train, demo ----------------------------------------------------------------------------------------------------


class Trained(Exception):  # noqa: N818
    """Instead of training: what was asked for."""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(recipe: Any, data: Any, out: Path, **options: Any) -> None:
        raise Trained(recipe, data, out, options)

    monkeypatch.setattr("fastpose.training.train", train)


@pytest.mark.usefixtures("no_training")
def test_train_does_as_it_is_told() -> None:
    result = run(
        "train", "--data", "figures", "--recipe", "hourglass", "--steps", 30, "--batch-size", 3, "--precision", "bf16",
        "--seed", 5, "--workers", 2, "--resume", "--out", "somewhere", "--set", "model_options.stacks=2",
        "--set", "model_options.features=64", "--set", "epoch_steps=10", "--set", "codec=msra",
    )  # fmt: skip
    assert isinstance(result.exception, Trained), result.output
    recipe, data, out, options = result.exception.args
    assert (recipe.steps, recipe.epoch_steps, recipe.batch_size, recipe.precision) == (30, 10, 3, "bf16")
    assert recipe.model_options == {"stacks": 2, "features": 64, "init": "torch7"}
    assert recipe.codec == "msra"
    assert (data.name, len(data.train)) == ("figures", 90)
    assert (out, options["seed"], options["workers"], options["resume"]) == (Path("somewhere"), 5, 2, True)
    printed = [[cell.strip() for cell in line.split("│")] for line in result.output.splitlines()]
    assert ["", "codec", "msra", ""] in printed


@pytest.mark.usefixtures("no_training")
def test_train_by_default() -> None:
    recipe, _, out, options = run("train", "--data", "figures", "--steps", 10).exception.args
    assert recipe.name == "hourglass-demo"
    assert out == Path("runs/hourglass-demo-figures")
    assert options["resume"] is False


def test_demo_passes_on_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("fastpose.demo.run_demo", lambda out, *, steps: calls.append((out, steps)))
    assert run("demo", "--out", tmp_path, "--steps", 7).exit_code == 0
    assert calls == [(tmp_path, 7)]


# ---- complaints -----------------------------------------------------------------------------------------------------

A, BOTH = "{pictures}/a.png", "{pictures}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("predict", "{weights}", "nowhere.jpg"), "no image file or folder nowhere.jpg"),
        (("predict", "nowhere.safetensors", A), "no weights file nowhere.safetensors"),
        (("predict", A, A), "not a complete safetensors file"),
        (("predict", "{weights}", A, "--box", "1,2,3"), "--box must be X,Y,W,H in numbers, got '1,2,3'"),
        (("predict", "{weights}", A, "--box", "1,2,nan,4"), "--box must be X,Y,W,H in numbers"),
        (("predict", "{weights}", A, "--box", "1,2,0,4"), "positive width, height"),
        (("predict", "{weights}", A, "--box", "120,2,5,4"), "outside of the image of 120 x 80"),
        (("predict", "{weights}", BOTH, "--box", "1,2,3,4"), "--box is of one image or video, got 2 of them"),
        (("predict", "{weights}", A, "--center", "1,2"), "--center and --scale need each other"),
        (("predict", "{weights}", A, "--center", "1,2", "--scale", "-1"), "scale must be positive"),
        (
            ("predict", "{weights}", A, "--box", "1,2,3,4", "--center", "1,2", "--scale", "1"),
            "--box and --center exclude each other",
        ),
        (("predict", "{weights}", A, "--annotations", "nowhere.json"), "nowhere.json"),
        (("predict", "{weights}", A, "--device", "gpu"), "device: got 'gpu'"),
        (("train", "--data", "figures", "--recipe", "hourglas"), "'hourglas'"),
        (("train", "--data", "figures", "--steps", "0"), "steps"),
        (("train", "--data", "figures", "--set", "codec"), "--set must be KEY=VALUE"),
        (("train", "--data", "figures", "--set", "codecs=udp"), "--set must be KEY=VALUE with a KEY of name, model"),
        (("train", "--data", "figures", "--set", "steps.x=3"), "steps has no entries"),
        (("train", "--data", "figures", "--annotations", "a.json"), "for published data sets, not for figures"),
        (("train", "--data", "mpii"), "needs --root FOLDER or --annotations FILE"),
        (("train", "--data", "mpii", "--annotations", "nowhere.json"), "nowhere.json"),
    ],
)
def test_complaints_are_one_line(weights: Path, pictures: Path, tmp_path: Path, command: tuple[str, ...], message: str) -> None:
    words = [word.format(weights=weights, pictures=pictures) for word in command]
    result = run(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("fastpose: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_complains_about_images_without_people(weights: Path, pictures: Path, tmp_path: Path) -> None:
    entry = {"image": "a.png", "center": [50, 40], "scale": 0.3, "joints": [[1, 1]] * 16, "joints_vis": [1] * 16}
    annotations = tmp_path / "people.json"
    annotations.write_text(json.dumps([entry]))
    result = run("predict", weights, pictures, "--annotations", annotations, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"fastpose: {annotations} knows nobody in b.png\n"


def test_debug_shows_where() -> None:
    result = run("--debug", "predict", "w.safetensors", "nowhere.jpg", "--out", "out")
    assert isinstance(result.exception, FileNotFoundError)


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("joint")

    monkeypatch.setattr("fastpose.models.list_models", broken)
    assert isinstance(run("models").exception, KeyError)
