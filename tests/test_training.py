"""Recipes and training: what a run learns, leaves behind and repeats."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastpose.checkpoints import load_model, read_metadata
from fastpose.codec import HeatmapCodec
from fastpose.metrics import pck
from fastpose.prediction import Predictor
from fastpose.recipes import Recipe, get_recipe
from fastpose.skeletons import LSP, MPII
from fastpose.training import (
    PoseDataModule,
    PoseTraining,
    TrainingData,
    TrainingResult,
    build,
    figures_data,
    published_data,
    train,
)
from fastpose.training.run import _crops

TINY = get_recipe(
    "hourglass-demo",
    model_options={"stacks": 2, "features": 8, "depth": 2},
    input_size=(32, 32),
    batch_size=4,
    steps=9,
    epoch_steps=3,
    precision="fp32",
)
PLATEAU = replace(
    TINY,
    optimizer="RMSprop",
    optimizer_options={"lr": 2.5e-3},
    schedule="ReduceLROnPlateau",
    schedule_options={"factor": 0.1, "patience": 0, "threshold": 1e9},  # no gain is ever enough
    augmentation="pytorch_pose",
    clip_norm=1.0,
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(out: Path, recipe: Recipe = TINY, data: TrainingData | None = None, **options: Any) -> TrainingResult:
    data = data or figures_data(recipe, options.get("seed", 0), validation=8)
    return train(recipe, data, out, **{"workers": 0, "progress": False, **options})


def batches(data: TrainingData, recipe: Recipe, seed: int = 0) -> PoseDataModule:
    model, codec = build(recipe, data.skeleton)
    return PoseDataModule(data.train, data.validation, data.skeleton, _crops(recipe, model, codec, data), recipe, seed=seed)


def same_weights(one: TrainingResult, other: TrainingResult) -> bool:
    first, second = load_file(one.weights), load_file(other.weights)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("finished"))


# ---- what a run does -------------------------------------------------------------------------------------------------


def test_zero_heads_start_from_empty_maps() -> None:
    model, _ = build(TINY, MPII)
    assert all(not heatmaps.any() for heatmaps in model(torch.rand(2, 3, 32, 32)))
    model, _ = build(replace(TINY, zero_heads=False), MPII)
    assert all(heatmaps.any() for heatmaps in model(torch.rand(2, 3, 32, 32)))


def test_loss_falls_below_that_of_empty_maps(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=40, epoch_steps=10)
    data = figures_data(recipe, validation=8)
    loss = run(tmp_path, recipe, data).history["loss"]
    samples = batches(data, recipe).train
    keypoints = torch.stack([samples[index]["keypoints"] for index in range(64)])
    codec = recipe.make_codec()
    assert codec is not None
    empty = 2 * codec.loss(torch.zeros(64, 16, 8, 8), keypoints)  # of both stacks
    assert loss == sorted(loss, reverse=True)
    assert loss[-1] < 0.97 * empty


def test_every_pass_sees_everyone_once_and_changed_anew() -> None:
    people = figures_data(TINY, validation=5).validation
    recipe = replace(PLATEAU, batch_size=5)
    samples = batches(TrainingData("five", people, people, MPII), recipe, seed=3).train
    passes = [[samples[5 * number + index] for index in range(5)] for number in range(recipe.steps)]
    assert len(samples) == 5 * recipe.steps
    orders = [tuple(int(sample["image_id"]) for sample in one) for one in passes]
    assert all(Counter(order) == Counter(range(5)) for order in orders)
    assert len(set(orders)) > 1
    crops = [sample["crop_to_image"] for one in passes for sample in one if sample["image_id"] == 2]
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == len(crops)


def test_scores_are_those_of_the_saved_weights(finished: TrainingResult) -> None:
    people = figures_data(TINY, validation=8).validation
    predictor = Predictor.load(finished.weights, device="cpu")
    labels = torch.from_numpy(np.stack([person.keypoints for person in people]))
    lengths = torch.tensor([person.head_size for person in people])
    for stage, scores in ((0, finished.initial), (-1, finished.final)):
        poses = predictor.predict(people, flip_test=False, stage=stage)
        points = torch.from_numpy(np.stack([pose.keypoints for pose in poses]))
        expected = pck(points, labels, lengths, "mpii_official")
        assert scores == pytest.approx({name: float(expected[name]) for name in scores})
    groups = ["head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "total"]
    assert list(finished.initial) == list(finished.final) == groups


def test_run_leaves_weights_checkpoints_and_logs(finished: TrainingResult) -> None:
    metadata = read_metadata(finished.weights)
    assert HeatmapCodec.from_dict(json.loads(metadata["fastpose.codec"])) == TINY.make_codec()
    assert Recipe.from_dict(json.loads(metadata["fastpose.recipe"])) == TINY
    assert metadata["fastpose.skeleton"] == "mpii"
    assert load_model(finished.weights).options["stacks"] == 2
    out = finished.weights.parent
    assert {file.name for file in (out / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    with open(out / "logs" / "version_0" / "metrics.csv", newline="") as file:
        logged = [float(row["PCKh"]) for row in csv.DictReader(file) if row["PCKh"]]
    assert logged == pytest.approx(finished.history["PCKh@0.5 stack 2"])
    assert list((out / "logs" / "version_0").glob("events.out.tfevents.*"))
    assert {len(values) for values in finished.history.values()} == {3}
    assert finished.history["PCKh@0.5 stack 2"][-1] == finished.final["total"]


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(
    tmp_path: Path, finished: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = set()
    loss = HeatmapCodec.loss

    def spy(codec: HeatmapCodec, predictions: list[torch.Tensor], *args: Any) -> torch.Tensor:
        dtypes.update(heatmaps.dtype for heatmaps in predictions)
        return loss(codec, predictions, *args)

    monkeypatch.setattr(HeatmapCodec, "loss", spy)
    result = run(tmp_path, precision="bf16")
    assert dtypes == {torch.bfloat16}
    assert {t.dtype for t in load_file(result.weights).values() if t.is_floating_point()} == {torch.float32}
    assert result.history["loss"] == pytest.approx(finished.history["loss"], rel=0.02)
    assert not same_weights(result, finished)


# ---- what a run repeats ----------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_weights_whoever_loads(tmp_path: Path, finished: TrainingResult) -> None:
    torch.manual_seed(1234)  # of no account
    again = run(tmp_path / "again", workers=2)
    assert same_weights(again, finished)
    assert (again.history, again.final) == (finished.history, finished.final)
    assert not same_weights(run(tmp_path / "other", seed=1), finished)


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("recipe", [TINY, PLATEAU], ids=["OneCycleLR", "ReduceLROnPlateau"])
def test_resumed_run_ends_as_an_uninterrupted_one(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(module: PoseTraining, *_: Any) -> None:
        if module.global_step == 5:
            raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(PoseTraining, "on_train_batch_start", interrupt)
        with pytest.raises(InterruptionError):
            run(tmp_path / "parts", recipe)
    parts = run(tmp_path / "parts", recipe, resume=True)
    whole = run(tmp_path / "whole", recipe)
    assert same_weights(parts, whole)
    assert (parts.history, parts.initial, parts.final) == (whole.history, whole.initial, whole.final)
    last = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == recipe.steps
    if recipe is PLATEAU:  # the second and the third epoch were no better
        assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(2.5e-5)


def test_finished_run_can_be_resumed_to_its_result(finished: TrainingResult, tmp_path: Path) -> None:
    shutil.copytree(finished.weights.parent, tmp_path / "again")
    again = run(tmp_path / "again", resume=True)
    assert (again.history, again.scores) == (finished.history, finished.scores)
    again.weights.unlink()  # as if it had been killed just before they were written
    again = run(tmp_path / "again", resume=True)
    assert same_weights(again, finished)
    assert (again.history, again.scores) == (finished.history, finished.scores)


def test_infinite_loss_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, finished: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = PoseTraining.training_step

    def diverge(module: PoseTraining, *args: Any) -> torch.Tensor:
        return step(module, *args) * (torch.nan if module.global_step == 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(PoseTraining, "training_step", diverge)
        with pytest.raises(FloatingPointError, match=r"step 6 of 9.*lr"):
            run(tmp_path)
    for name in ("last", "best"):
        kept = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert kept["global_step"] == 3
        assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert not (tmp_path / "weights.safetensors").exists()
    assert same_weights(run(tmp_path, resume=True), finished)


# ---- what a run refuses ----------------------------------------------------------------------------------------------


def test_existing_run_is_not_overwritten(finished: TrainingResult) -> None:
    before = finished.weights.read_bytes()
    with pytest.raises(FileExistsError, match="resume"):
        run(finished.weights.parent, seed=1)
    assert finished.weights.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"resume": True}, FileNotFoundError, "last.ckpt"),
        ({"precision": "fp16"}, ValueError, "precision"),
        ({"workers": -1}, ValueError, "workers"),
        ({"seed": -1, "data": figures_data(TINY, validation=1)}, ValueError, "seed"),
    ],
)
def test_train_refuses(options: dict[str, Any], error: type[Exception], word: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=word):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_run_is_refused(finished: TrainingResult, tmp_path: Path) -> None:
    shutil.copytree(finished.weights.parent / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="batch_size is 2, was 4"):
        run(tmp_path, replace(TINY, batch_size=2), resume=True)
    with pytest.raises(ValueError, match="seed is 1, was 0"):
        run(tmp_path, seed=1, resume=True)


def test_data_that_does_not_fit_is_refused() -> None:
    people = figures_data(TINY, validation=1).validation
    with pytest.raises(ValueError, match="validation"):
        TrainingData("none", people, [], MPII)
    with pytest.raises(ValueError, match="score must be of the joints of lsp, got mpii's"):
        TrainingData("lsp", people, people, LSP)
    with pytest.raises(ValueError, match="crop: got 'hrnet', allowed are 'mpii'"):
        TrainingData("mpii", people, people, MPII, crop="hrnet")


# ---- MPII ------------------------------------------------------------------------------------------------------------


def _entry(is_validation: int) -> dict[str, Any]:
    return {
        "img_paths": "a.jpg",
        "objpos": [50.0, 50.0],
        "scale_provided": 0.5,
        "joint_self": [[10.0, 20.0, 1.0]] * 16,
        "isValidation": is_validation,
    }


def test_mpii_file_with_splits_is_split(tmp_path: Path) -> None:
    file = tmp_path / "mpii.json"
    file.write_text(json.dumps([_entry(0), _entry(1), _entry(0)]))
    data = published_data("mpii", file)
    assert (len(data.train), len(data.validation)) == (2, 1)
    data = published_data("mpii", file, validation=file)
    assert (len(data.train), len(data.validation)) == (3, 3)
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        run(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()
