"""Recipes: what they say, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fastpose.codec import HeatmapCodec
from fastpose.models import list_models
from fastpose.recipes import RECIPES, Recipe, get_recipe
from fastpose.skeletons import MPII
from fastpose.training import build, figures_data


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_json(name: str) -> None:
    recipe = get_recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_hourglass_recipe_is_that_of_the_paper() -> None:
    recipe = get_recipe("hourglass")
    assert (recipe.optimizer, recipe.optimizer_options["lr"], recipe.batch_size) == ("RMSprop", 2.5e-4, 6)
    assert recipe.epochs == 100
    assert recipe.make_codec() == HeatmapCodec.preset("torch7_hourglass", 256)
    with torch.device("meta"):
        model, _ = build(recipe, MPII)
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_434_112


@pytest.mark.parametrize(("steps", "expected"), [(1, (1, 1)), (200, (200, 200)), (499, (500, 250)), (1001, (1005, 201))])
def test_fewer_steps_keep_whole_epochs(steps: int, expected: tuple[int, int]) -> None:
    recipe = get_recipe("hourglass-demo", steps=steps)
    assert (recipe.steps, recipe.epoch_steps) == expected


@pytest.mark.parametrize(
    ("overrides", "error", "word"),
    [
        ({"lr": 1.0}, TypeError, "lr"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 10, "epoch_steps": 4}, ValueError, "epoch_steps"),
        ({"optimizer": "Lion"}, ValueError, "optimizer"),
        ({"optimizer_options": {}}, ValueError, "lr"),
        ({"codec": "coco"}, ValueError, "coco"),
        ({"precision": "fp8"}, ValueError, "precision"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm"),
        ({"ema": 1.0}, ValueError, "ema"),
        ({"early_stop": 0}, ValueError, "early_stop"),
        ({"phases": {"all": {"seed": 1}}}, ValueError, "'all' has seed"),
        ({"phases": {"all": {"steps": 3, "epoch_steps": 2}}}, ValueError, "epoch_steps"),
    ],
)
def test_recipe_refuses(overrides: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        get_recipe("hourglass", **overrides)


def test_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="hourglass-demo"):
        get_recipe("hourglas")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_fits_its_model(name: str) -> None:
    recipe = get_recipe(name)
    with torch.device("meta"):
        model, codec = build(recipe, MPII)
    assert recipe.phases.keys() <= set(model.phases)
    assert (codec is None) == (model.stride is None)
    if codec is not None:
        assert codec == recipe.make_codec()


def test_every_architecture_has_a_recipe_of_its_paper_a_modern_and_a_small_one() -> None:
    for name in list_models():
        assert {name, f"{name}-modern", f"{name}-small"} <= RECIPES.keys()


def test_phases_change_with_the_steps() -> None:
    whole, half = get_recipe("tompson-small"), get_recipe("tompson-small", steps=300)
    for phase in ("coarse", "fine", "joint"):
        assert half.of_phase(phase).steps == pytest.approx(whole.of_phase(phase).steps / 2, abs=1)
    assert get_recipe("tompson-small", steps=10, phases={}).of_phase("joint").steps == 10


def test_figures_are_drawn_as_many_as_asked_for() -> None:
    recipe = get_recipe("hourglass-small", figures=3)
    drawn = figures_data(recipe, validation=1).train
    assert isinstance(drawn, list)
    assert len(drawn) == 3
    endless = get_recipe("hourglass-small", figures=None)
    assert len(figures_data(endless, validation=1).train) == endless.people_seen
    with pytest.raises(ValueError, match="figures"):
        get_recipe("hourglass-small", figures=0)


def test_people_seen_are_those_of_all_phases() -> None:
    recipe = get_recipe("tompson-small")
    steps = [recipe.of_phase(phase).steps for phase in ("coarse", "fine", "joint")]
    assert recipe.people_seen == recipe.batch_size * sum(steps) + recipe.held_out
