"""How each architecture is trained, as plain data: printed when a run starts and kept with its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from fastpose import _check
from fastpose.codec import PRESETS, HeatmapCodec
from fastpose.models import PoseModel, create_model

OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "RMSprop", "SGD")
SCHEDULES = ("constant", "CosineAnnealingLR", "MultiStepLR", "OneCycleLR", "ReduceLROnPlateau", "StepLR")
PRECISIONS = ("auto", "fp32", "bf16")
PHASE_FIELDS = (
    "optimizer",
    "optimizer_options",
    "schedule",
    "schedule_options",
    "steps",
    "epoch_steps",
    "batch_size",
    "augmentation",
    "clip_norm",
)
"""Fields that a phase may have of its own."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights of a run, but for its data and its seed.

    Args:
        name: of the recipe.
        model: name of the architecture, for :func:`fastpose.models.create_model`.
        config: one of its configurations.
        model_options: its options; the number of joints is that of the data.
        input_size: (height, width) of the network's input in pixels; None: the model's.
        codec: preset of :meth:`fastpose.codec.HeatmapCodec.preset`; None: the model's own. Models without heatmaps have no use
            for it.
        codec_options: fields of the preset to set otherwise.
        crop: how people are cut out, a name in :data:`fastpose.data.crop_settings.CROPS`; None: as is usual for the data.
        figure_size: (height, width) of drawn figures; None: that of the input. Models that look again, and closer, see more in
            larger ones.
        figures: how many drawn figures to learn from, pass after pass; None: as many as the run sees, none of them twice. To
            draw one takes longer than a small network takes to learn from it.
        optimizer: class of ``torch.optim``, one of :data:`OPTIMIZERS`.
        optimizer_options: its arguments, ``lr`` among them.
        schedule: of the learning rate: ``"constant"``, or a class of ``torch.optim.lr_scheduler``, one of :data:`SCHEDULES`.
            ``"ReduceLROnPlateau"`` looks at the score once an epoch, the others go on after every step.
        schedule_options: its arguments.
        steps: optimizer steps of each phase.
        epoch_steps: optimizer steps from one validation and checkpoint to the next; divides ``steps``.
        batch_size: people a step.
        augmentation: preset of :data:`fastpose.data.augmentation.AUGMENTATIONS`; None: none.
        clip_norm: largest norm of the gradient; None: any.
        ema: decay a step of an exponential moving average of the weights, which is what is validated and kept; None: none.
        early_stop: epochs without gain of the score after which a phase ends; None: it goes on.
        held_out: at most so many of the people to learn from are kept apart for phases that begin by looking at people whom
            the model was not trained on.
        precision: ``"fp32"``, ``"bf16"`` (autocast; weights stay fp32), or ``"auto"``: bf16 where the machine computes
            in it, else fp32.
        zero_heads: whether the prediction heads of a hourglass start at 0. Maps are nearly empty, so that starting there saves
            the steps that unlearn random predictions.
        phases: for phases of the model, by name, the fields of :data:`PHASE_FIELDS` that are otherwise.

    Raises:
        TypeError, ValueError: a value is not as above.
    """

    name: str
    model: str
    config: str = "paper"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    codec: str | None = None
    codec_options: Mapping[str, Any] = field(default_factory=dict)
    crop: str | None = None
    figure_size: tuple[int, int] | None = None
    figures: int | None = None
    optimizer: str
    optimizer_options: Mapping[str, Any]
    schedule: str = "constant"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int
    epoch_steps: int
    batch_size: int
    augmentation: str | None = None
    clip_norm: float | None = None
    ema: float | None = None
    early_stop: int | None = None
    held_out: int = 2000
    precision: str = "auto"
    zero_heads: bool = False
    phases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("input_size", "figure_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _check.size(name, getattr(self, name)))
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            _check.option(name, getattr(self, name), allowed)
        for name in ("steps", "epoch_steps", "batch_size", "held_out"):
            _check.positive_int(name, getattr(self, name))
        if self.steps % self.epoch_steps:
            raise ValueError(f"epoch_steps: got {self.epoch_steps}, allowed is a divisor of steps, {self.steps}")
        if "lr" not in self.optimizer_options:
            raise ValueError(f"optimizer_options: got {dict(self.optimizer_options)}, 'lr' must be among them")
        if self.clip_norm is not None:
            _check.number("clip_norm", self.clip_norm, positive=True)
        if self.ema is not None and not 0 <= _check.number("ema", self.ema) < 1:
            raise ValueError(f"ema: got {self.ema}, allowed is a number from 0 up to 1")
        for name in ("early_stop", "figures"):
            if getattr(self, name) is not None:
                _check.positive_int(name, getattr(self, name))
        if self.codec is not None:
            _check.option("codec", self.codec, PRESETS)
        for phase, changes in self.phases.items():
            unknown = sorted(changes.keys() - set(PHASE_FIELDS))
            if unknown:
                raise ValueError(f"phases: {phase!r} has {', '.join(unknown)}, allowed are {', '.join(PHASE_FIELDS)}")
            self.of_phase(phase)  # checks the values

    @property
    def epochs(self) -> int:
        """Number of validations and checkpoints of a phase."""
        return self.steps // self.epoch_steps

    @property
    def people_seen(self) -> int:
        """At least as many people as the run sees, those kept apart included."""
        phases = self._outline().phases
        plans = [self.of_phase(phase) for phase in phases]
        seen = sum(plan.steps * plan.batch_size for plan in plans)
        return seen + self.held_out if len(phases) > 1 else seen

    def of_phase(self, phase: str) -> Recipe:
        """The same for one phase of the model."""
        return replace(self, **self.phases.get(phase, {}), phases={})

    def make_codec(self, model: PoseModel | None = None) -> HeatmapCodec | None:
        """The convention of a model's heatmaps, for the recipe's input; None: the model has no heatmaps.

        Args:
            model: that of the recipe; None: it is built to be asked.

        Raises:
            TypeError, ValueError: ``codec_options`` does not fit.
        """
        model = model or self._outline()
        if model.codec_preset is None:
            return None
        return model.default_codec(self.input_size, preset=self.codec, **self.codec_options)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON has them."""
        sizes = {
            name: None if getattr(self, name) is None else list(getattr(self, name)) for name in ("input_size", "figure_size")
        }
        return {**asdict(self), **sizes}

    def _outline(self) -> PoseModel:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return create_model(self.model, config=self.config, **self.model_options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes the recipe that :meth:`to_dict` described.

        Raises:
            TypeError: a field is missing, or there is no field of a given name.
            ValueError: a value is not allowed.
        """
        _check_fields(values)
        return cls(**values)


def get_recipe(name: str, **overrides: Any) -> Recipe:
    """Looks a recipe up.

    Args:
        name: key of :data:`RECIPES`.
        **overrides: fields to set otherwise. Given ``steps`` alone, the epochs stay about as long as they were, and
            the steps are rounded up to whole epochs; phases with steps of their own change in proportion.

    Raises:
        TypeError: no field has the name of an override.
        ValueError: unknown name, or a value that is not allowed.
    """
    _check.option("name", name, RECIPES)
    _check_fields(overrides)
    recipe = RECIPES[name]
    if "steps" in overrides and "epoch_steps" not in overrides:
        steps = _check.positive_int("steps", overrides["steps"])
        overrides = {**overrides, **_whole_epochs(steps, recipe.epoch_steps)}
        if "phases" not in overrides:
            factor = steps / recipe.steps
            overrides["phases"] = {phase: _scaled(changes, recipe, factor) for phase, changes in recipe.phases.items()}
    return replace(recipe, **overrides)


def _whole_epochs(steps: int, epoch_steps: int) -> dict[str, int]:
    """At least so many steps, in epochs that are about as long."""
    epochs = max(1, round(steps / epoch_steps))
    epoch_steps = math.ceil(steps / epochs)
    return {"steps": epochs * epoch_steps, "epoch_steps": epoch_steps}


def _scaled(changes: Mapping[str, Any], recipe: Recipe, factor: float) -> dict[str, Any]:
    if "steps" not in changes:
        return dict(changes)
    steps = max(1, round(factor * changes["steps"]))
    return {**changes, **_whole_epochs(steps, changes.get("epoch_steps", recipe.epoch_steps))}


def _check_fields(values: Mapping[str, Any]) -> None:
    allowed = [entry.name for entry in fields(Recipe)]
    unknown = sorted(values.keys() - set(allowed))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: a recipe has no such field, allowed are {', '.join(allowed)}")


def _one_cycle(lr: float) -> dict[str, Any]:
    options = {"max_lr": lr, "pct_start": 0.15, "div_factor": 10, "final_div_factor": 100, "cycle_momentum": False}
    return {"schedule": "OneCycleLR", "schedule_options": options}


# Of the small recipes: what is seen several times is moved and mirrored, but not rotated, since DeepPose cuts windows.
_POOL: dict[str, Any] = {"figures": 2_000, "augmentation": "ief"}


def _small(name: str, model: str, lr: float, **fields: Any) -> Recipe:
    """A recipe that learns the drawn figures on a CPU in minutes."""
    defaults: dict[str, Any] = {
        "optimizer": "AdamW",
        "optimizer_options": {"lr": lr, "betas": [0.9, 0.99], "weight_decay": 0.0, "fused": True},
        **_one_cycle(lr),
        "batch_size": 16,
        "clip_norm": None,
    }
    return Recipe(name=name, model=model, **{**defaults, **fields})


_RECIPES = (
    # Newell, Yang and Deng, ECCV 2016, section 3.1, and the Torch7 code released with it. The code trains 100 epochs of
    # 8000 steps at one rate; the paper divides it by 5 when validation levels off, here after ten epochs without gain.
    Recipe(
        name="hourglass",
        model="hourglass",
        model_options={"stacks": 8, "init": "torch7"},
        optimizer="RMSprop",
        optimizer_options={"lr": 2.5e-4, "alpha": 0.99, "eps": 1e-8},
        schedule="ReduceLROnPlateau",
        schedule_options={"factor": 0.2, "patience": 10},
        steps=800_000,
        epoch_steps=8_000,
        batch_size=6,
        augmentation="torch7_hourglass",
        precision="fp32",
    ),
    # As MMPose trains its hourglass: 210 epochs of MPII's 22,246 people, the rate divided by 10 after 170 and 200. The
    # target is drawn at the very place of the joint.
    Recipe(
        name="hourglass-modern",
        model="hourglass",
        config="modern",
        codec="udp",
        optimizer="Adam",
        optimizer_options={"lr": 5e-4},
        schedule="MultiStepLR",
        schedule_options={"milestones": [118_150, 139_000], "gamma": 0.1},
        steps=145_950,
        epoch_steps=695,
        batch_size=32,
        augmentation="pytorch_pose",
        zero_heads=True,
    ),
    # Toshev and Szegedy, CVPR 2014, section 3: Adagrad, batches of 128, 40 simulated predictions a label. How long is not
    # said in steps; its re-implementations need some 300,000.
    Recipe(
        name="deeppose",
        model="deeppose",
        crop="deeppose",
        optimizer="Adagrad",
        optimizer_options={"lr": 5e-4},
        steps=300_000,
        epoch_steps=5_000,
        batch_size=128,
        augmentation="deeppose",
    ),
    # As MMPose trains its regression with ResNet-50.
    Recipe(
        name="deeppose-modern",
        model="deeppose",
        config="modern",
        optimizer="Adam",
        optimizer_options={"lr": 5e-4},
        schedule="MultiStepLR",
        schedule_options={"milestones": [59_160, 69_600], "gamma": 0.1},
        steps=73_080,
        epoch_steps=348,
        batch_size=64,
        augmentation="pytorch_pose",
    ),
    # Tompson et al., CVPR 2015, section 3: Nesterov's momentum, three phases. Its rates are not known; these are of a
    # re-implementation in Caffe.
    Recipe(
        name="tompson",
        model="tompson",
        optimizer="SGD",
        optimizer_options={"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        steps=80_000,
        epoch_steps=2_000,
        batch_size=16,
        augmentation="tompson",
        phases={"joint": {"steps": 40_000, "optimizer_options": {"lr": 1e-4, "momentum": 0.9, "nesterov": True}}},
    ),
    Recipe(
        name="tompson-modern",
        model="tompson",
        config="modern",
        optimizer="AdamW",
        optimizer_options={"lr": 5e-4},
        schedule="CosineAnnealingLR",
        schedule_options={"T_max": 70_000},
        steps=70_000,
        epoch_steps=700,
        batch_size=32,
        augmentation="pytorch_pose",
        phases={
            "fine": {"steps": 21_000, "schedule_options": {"T_max": 21_000}},
            "joint": {"steps": 21_000, "schedule_options": {"T_max": 21_000}, "optimizer_options": {"lr": 5e-5}},
        },
    ),
    # Wei et al., CVPR 2016, and the prototxt released with it.
    Recipe(
        name="cpm",
        model="cpm",
        crop="cpm",
        optimizer="SGD",
        optimizer_options={"lr": 8e-5, "momentum": 0.9, "weight_decay": 5e-4},
        schedule="StepLR",
        schedule_options={"step_size": 136_106, "gamma": 0.333},
        steps=600_000,
        epoch_steps=5_000,
        batch_size=16,
        augmentation="cpm",
    ),
    # As MMPose trains it.
    Recipe(
        name="cpm-modern",
        model="cpm",
        config="modern",
        optimizer="Adam",
        optimizer_options={"lr": 5e-4},
        schedule="MultiStepLR",
        schedule_options={"milestones": [118_150, 139_000], "gamma": 0.1},
        steps=145_950,
        epoch_steps=695,
        batch_size=32,
        augmentation="pytorch_pose",
    ),
    # Carreira et al., CVPR 2016, section 2.2: three epochs for each step, on the pairs of all steps so far. The rate is not
    # known; GoogLeNet's own in Caffe is 0.01.
    Recipe(
        name="ief",
        model="ief",
        crop="ief",
        optimizer="SGD",
        optimizer_options={"lr": 1e-3, "momentum": 0.9, "weight_decay": 2e-4},
        steps=2_088,
        epoch_steps=174,
        batch_size=32,
        augmentation="ief",
    ),
    Recipe(
        name="ief-modern",
        model="ief",
        config="modern",
        crop="ief",
        optimizer="AdamW",
        optimizer_options={"lr": 5e-4},
        schedule="CosineAnnealingLR",
        schedule_options={"T_max": 13_920},
        steps=13_920,
        epoch_steps=696,
        batch_size=32,
        augmentation="ief",
    ),
    # The demonstration's. On 16 by 16 cells a narrow target keeps neighbouring joints apart; a fourth level would be one cell.
    _small(
        "hourglass-demo",
        "hourglass",
        7e-3,
        model_options={"stacks": 2, "features": 64, "depth": 3},
        input_size=(64, 64),
        codec="tompson",
        codec_options={"sigma": 0.8, "reduction": "mean", "method": "dark"},
        steps=1_200,
        epoch_steps=200,
        batch_size=32,
        zero_heads=True,
    ),
    _small(
        "hourglass-small",
        "hourglass",
        3e-3,
        model_options={"stacks": 2, "features": 32},
        input_size=(64, 64),
        codec="tompson",
        codec_options={"sigma": 0.8, "reduction": "mean", "method": "dark"},
        steps=600,
        epoch_steps=600,
        zero_heads=True,
        **_POOL,
    ),
    _small(
        "deeppose-small",
        "deeppose",
        1e-3,
        model_options={
            "stages": 2,
            "width": 0.25,
            "fc_dims": [256, 256],
            "input_size": 64,
            "dropout": 0.0,
            "norm": "bn",
            "init": "he",
            "sigma": 1.5,
        },
        figure_size=(128, 128),
        steps=1_000,
        epoch_steps=1_000,
        phases={"stage 2": {"steps": 900, "epoch_steps": 900, "batch_size": 8}},
        **_POOL,
    ),
    _small(
        "tompson-small",
        "tompson",
        2e-3,
        model_options={
            "banks": 2,
            "features": 16,
            "wide": 32,
            "head": 32,
            "dropout": 0.1,
            "fine_size": 12,
            "fine_convs": 2,
        },
        input_size=(64, 64),
        steps=600,
        epoch_steps=600,
        phases={"fine": {"steps": 300, "epoch_steps": 300}, "joint": {"steps": 100, "epoch_steps": 100}},
        **_POOL,
    ),
    _small(
        "cpm-small",
        "cpm",
        1e-3,
        model_options={"stages": 3, "trunk": "vgg", "width": 0.125, "norm": "bn", "init": "he", "center_sigma": 6.0},
        input_size=(64, 64),
        codec_options={"sigma": 1.0},
        steps=500,
        epoch_steps=500,
        **_POOL,
    ),
    # Drawn people are closer to their median pose than MPII's: with half of the paper's longest step few joints arrive at once.
    _small(
        "ief-small",
        "ief",
        2e-3,
        model_options={
            "input_size": 96,
            "width": 0.25,
            "norm": "bn",
            "dropout": 0.0,
            "max_step": 4.5,
            "sigma": 7.5,
            "render_init": None,
        },
        figure_size=(64, 64),
        steps=600,
        epoch_steps=600,
        **_POOL,
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
"""The recipes by name."""
