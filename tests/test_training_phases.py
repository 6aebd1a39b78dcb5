"""Training of all architectures, phase by phase: what learns, what is repeated after an interruption, what a run shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastpose.prediction import Predictor
from fastpose.recipes import Recipe, get_recipe
from fastpose.training import PoseTraining, TrainingResult, figures_data, train
from fastpose.training.report import write_report

SHORT: dict[str, Any] = {"batch_size": 4, "steps": 4, "epoch_steps": 2, "precision": "fp32", "phases": {}, "held_out": 8}
RECIPES = {
    "hourglass": get_recipe(
        "hourglass-small", input_size=(32, 32), model_options={"stacks": 2, "features": 8, "depth": 2}, **SHORT
    ),
    "cpm": get_recipe("cpm-small", input_size=(32, 32), model_options={"stages": 2, "width": 0.05, "norm": "bn"}, **SHORT),
    "deeppose": get_recipe(
        "deeppose-small",
        figure_size=(64, 64),
        model_options={"stages": 3, "width": 0.05, "fc_dims": [16], "input_size": 64, "norm": "bn"},
        **SHORT,
    ),
    "tompson": get_recipe(
        "tompson-small", model_options={"features": 4, "wide": 8, "head": 8, "fine_size": 8, "dropout": 0.2}, **SHORT
    ),
    "ief": get_recipe("ief-small", model_options={"steps": 3, "input_size": 64, "width": 0.05, "norm": "bn"}, **SHORT),
}


STANDSTILL: dict[str, Any] = {"optimizer_options": {"lr": 1e-12}, "schedule": "constant", "schedule_options": {}}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(out: Path, recipe: Recipe, **options: Any) -> TrainingResult:
    return train(recipe, figures_data(recipe, validation=6), out, **{"workers": 0, "progress": False, **options})


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_run_ends_as_an_uninterrupted_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[name]
    whole = run(tmp_path / "whole", recipe)
    phases = sorted(file.name for file in (tmp_path / "whole" / "checkpoints").iterdir() if file.is_dir())
    last = phases[-1] if phases else "."

    def interrupt(module: PoseTraining, *_: Any) -> None:  # in the second epoch of the last phase
        if module.phase == module.model.phases[-1] and module.global_step == 3:
            raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(PoseTraining, "on_train_batch_start", interrupt)
        with pytest.raises(InterruptionError):
            run(tmp_path / "parts", recipe)
    kept = torch.load(tmp_path / "parts" / "checkpoints" / last / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    parts = run(tmp_path / "parts", recipe, resume=True)
    first, second = load_file(parts.weights), load_file(whole.weights)
    assert all(torch.equal(first[key], second[key]) for key in second)
    assert parts.scores == whole.scores
    assert str(parts.history) == str(whole.history)  # NaN is equal to NaN as text
    assert len(whole.history["loss"]) == 2 * max(1, len(phases))


def test_phases_change_their_own_part_alone(tmp_path: Path) -> None:
    run(tmp_path, RECIPES["tompson"])
    coarse, fine, joint = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-coarse", "2-fine", "weights"))
    changed = [
        {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
        for before, after in ((coarse, fine), (fine, joint))
    ]
    assert changed == [{"fine"}, {"coarse", "fine"}]


def test_stages_not_yet_trained_have_no_score(tmp_path: Path) -> None:
    history = run(tmp_path, RECIPES["deeppose"]).history
    known = [[not math.isnan(value) for value in history[f"PCKh@0.5 stage {stage}"]] for stage in (1, 2, 3)]
    assert known == [[True] * 6, [False] * 2 + [True] * 4, [False] * 4 + [True] * 2]


def test_people_kept_apart_are_not_learnt_from() -> None:
    recipe = RECIPES["deeppose"]
    data = figures_data(recipe, validation=1)
    others, apart = data.hold_out(2)
    assert [person.image_id for person in apart] == [0, 20]
    assert len(others) == len(data.train) - 2
    assert {person.image_id for person in (others[0], others[18], others[19])} == {1, 19, 21}
    assert data.hold_out(10**6)[1][-1].image_id == 20 * (len(data.train) // 20 - 1)


@pytest.mark.parametrize("name", ["cpm", "deeppose"])
def test_report_shows_every_stage(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    data = figures_data(recipe, validation=6)
    result = train(recipe, data, tmp_path, workers=0, progress=False)
    assert [file.name for file in write_report(result, data.validation, tmp_path)] == ["curves.png", "stages.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("curves.png", "stages.png"))


def test_predictions_of_the_saved_weights_are_those_that_were_scored(tmp_path: Path) -> None:
    from fastpose.evaluation import evaluate

    recipe = RECIPES["deeppose"]
    result = run(tmp_path, recipe)
    people = figures_data(recipe, validation=6).validation
    evaluation = evaluate(Predictor.load(result.weights, "cpu"), people, flip_test=False)
    totals = [score.values["total"] for score in evaluation.scores]
    assert totals == pytest.approx([scores["total"] for scores in result.scores.values()])


def test_moving_average_is_what_is_kept(tmp_path: Path) -> None:
    def trained(name: str, **changes: Any) -> torch.Tensor:
        result = run(tmp_path / name, replace(RECIPES["hourglass"], **changes))
        return load_file(result.weights)["stacks.0.conv.weight"]

    start = trained("start", **STANDSTILL)
    plain, held = trained("plain"), trained("held", ema=0.999)
    assert (held - start).abs().max() < 0.1 * (plain - start).abs().max()


def test_phase_without_gain_ends_early(tmp_path: Path) -> None:
    # Without batch normalisation, whose statistics change even if no weight does.
    options = {"stages": 2, "width": 0.05}
    recipe = replace(RECIPES["cpm"], model_options=options, steps=20, epoch_steps=2, early_stop=1, **STANDSTILL)
    result = run(tmp_path, recipe)
    assert len(result.history["loss"]) == 2
    again = run(tmp_path, recipe, resume=True)
    assert str(again.history) == str(result.history)


def test_out_of_memory_names_the_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"
        )

    monkeypatch.setattr(PoseTraining, "training_step", fail)
    with pytest.raises(torch.OutOfMemoryError, match="batch_size 4"):
        run(tmp_path, RECIPES["hourglass"])
