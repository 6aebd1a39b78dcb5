"""The way of a user with real pictures: train on MPII images, predict for the files, compare with the labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastpose.cli import app
from fastpose.data.crops import read_image
from fastpose.data.mpii import read_mpii
from fastpose.metrics import pck
from fastpose.skeletons import MPII

# A small hourglass can learn five people by heart; nothing is augmented, so that it sees them as it will be asked.
STEPS = 160
SETTINGS = {
    "input_size": [128, 128],
    "codec": "msra",
    "codec_options": {},
    "model_options": {"stacks": 1, "features": 32},
    "epoch_steps": STEPS,
}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def mpii(shared_data: Path) -> Path:
    return shared_data / "mpii"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits, for long where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(mpii: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    output = run(
        "train", "--data", "mpii", "--annotations", mpii / "test_mpii.json", "--recipe", "hourglass-demo",
        "--steps", STEPS, "--batch-size", 5, "--precision", "fp32", "--workers", 0, "--out", out, *settings,
    )  # fmt: skip
    assert "hourglass-demo" in output
    (total,) = (line for line in output.splitlines() if "total" in line)
    assert total.split()[-2] == "100.0"
    return out / "weights.safetensors"


def test_predicts_the_people_it_was_trained_on(mpii: Path, weights: Path, tmp_path: Path) -> None:
    annotations = mpii / "test_mpii.json"
    run("predict", weights, mpii / "images", "--annotations", annotations, "--out", tmp_path)
    people = read_mpii(annotations)
    predictions = []
    for person in people:
        image = read_image(person.image)
        result = json.loads((tmp_path / f"{person.image.stem}.json").read_text())
        assert result["image"] == person.image.name
        assert tuple(result["size"]) == image.shape[:2]
        keypoints = result["persons"][person.person_id]["keypoints"]
        predictions.append([[keypoints[joint]["x"], keypoints[joint]["y"]] for joint in MPII.joints])
        overlay = read_image(tmp_path / f"{person.image.stem}.overlay.jpg")
        assert overlay.shape == image.shape
        # A skeleton is bright lines; what JPEG changes is faint.
        assert (np.abs(overlay.astype(int) - image).max(axis=2) > 60).mean() > 0.002
    scores = pck(
        torch.tensor(predictions),
        torch.from_numpy(np.stack([person.keypoints for person in people])),
        torch.tensor([person.head_size for person in people]),
        "mpii_official",
    )
    assert scores["total"] == 100
    assert len(list(tmp_path.iterdir())) == 2 * len(people)
