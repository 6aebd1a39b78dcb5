"""How each architecture is trained, as plain data: printed when a run starts and kept with its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fastpose import _check
from fastpose.codec import HeatmapCodec

OPTIMIZERS = ("AdamW", "RMSprop")
SCHEDULES = ("constant", "OneCycleLR", "ReduceLROnPlateau")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights of a run, but for its data and its seed.

    Args:
        name: of the recipe.
        model: name of the architecture, for :func:`fastpose.models.create_model`.
        model_options: its options; the number of joints is that of the data.
        input_size: (height, width) of the network's input in pixels.
        codec: preset of :meth:`fastpose.codec.HeatmapCodec.preset`.
        codec_options: fields of the preset to set otherwise.
        optimizer: class of ``torch.optim``: ``"AdamW"`` or ``"RMSprop"``.
        optimizer_options: its arguments, ``lr`` among them.
        schedule: of the learning rate: ``"constant"``, or a class of ``torch.optim.lr_scheduler``:
            ``"OneCycleLR"``, which goes on after every step and ends with the run, or ``"ReduceLROnPlateau"``,
            which looks at PCKh once an epoch.
        schedule_options: its arguments.
        steps: optimizer steps of the whole run.
        epoch_steps: optimizer steps from one validation and checkpoint to the next; divides ``steps``.
        batch_size: people a step.
        augmentation: preset of :data:`fastpose.data.augmentation.AUGMENTATIONS`; None: none.
        clip_norm: largest norm of the gradient; None: any.
        precision: ``"fp32"``, ``"bf16"`` (autocast; weights stay fp32), or ``"auto"``: bf16 where the machine computes
            in it, else fp32.
        zero_heads: whether the prediction heads start at 0. Maps are nearly empty, so that starting there saves the
            steps that unlearn random predictions.

    Raises:
        TypeError, ValueError: a value is not as above.
    """

    name: str
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] = (256, 256)
    codec: str
    codec_options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str
    optimizer_options: Mapping[str, Any]
    schedule: str = "constant"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int
    epoch_steps: int
    batch_size: int
    augmentation: str | None = None
    clip_norm: float | None = None
    precision: str = "auto"
    zero_heads: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", _check.size("input_size", self.input_size))
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            _check.option(name, getattr(self, name), allowed)
        for name in ("steps", "epoch_steps", "batch_size"):
            _check.positive_int(name, getattr(self, name))
        if self.steps % self.epoch_steps:
            raise ValueError(f"epoch_steps: got {self.epoch_steps}, allowed is a divisor of steps, {self.steps}")
        if "lr" not in self.optimizer_options:
            raise ValueError(f"optimizer_options: got {dict(self.optimizer_options)}, 'lr' must be among them")
        if self.clip_norm is not None:
            _check.number("clip_norm", self.clip_norm, positive=True)
        self.make_codec()

    @property
    def epochs(self) -> int:
        """Number of validations and checkpoints."""
        return self.steps // self.epoch_steps

    def make_codec(self) -> HeatmapCodec:
        """The convention of the heatmaps, for the recipe's input."""
        return HeatmapCodec.preset(self.codec, self.input_size, **self.codec_options)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON has them."""
        return {**asdict(self), "input_size": list(self.input_size)}

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
            the steps are rounded up to whole epochs.

    Raises:
        TypeError: no field has the name of an override.
        ValueError: unknown name, or a value that is not allowed.
    """
    _check.option("name", name, RECIPES)
    _check_fields(overrides)
    recipe = RECIPES[name]
    if "steps" in overrides and "epoch_steps" not in overrides:
        steps = _check.positive_int("steps", overrides["steps"])
        epochs = max(1, round(steps / recipe.epoch_steps))
        epoch_steps = math.ceil(steps / epochs)
        overrides = {**overrides, "steps": epochs * epoch_steps, "epoch_steps": epoch_steps}
    return replace(recipe, **overrides)


def _check_fields(values: Mapping[str, Any]) -> None:
    allowed = [entry.name for entry in fields(Recipe)]
    unknown = sorted(values.keys() - set(allowed))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: a recipe has no such field, allowed are {', '.join(allowed)}")


_RECIPES = (
    # Newell, Yang and Deng, ECCV 2016, section 3.1, and the Torch7 code released with it. The code trains 100 epochs of
    # 8000 steps at one rate; the paper divides it by 5 when validation levels off, here after ten epochs without gain.
    Recipe(
        name="hourglass",
        model="hourglass",
        model_options={"stacks": 8, "init": "torch7"},
        input_size=(256, 256),
        codec="torch7_hourglass",
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
    # Small enough to learn the drawn figures on two CPU cores in minutes. They never repeat, so nothing is augmented.
    # On 16 by 16 cells a narrow target keeps neighbouring joints apart.
    Recipe(
        name="hourglass-demo",
        model="hourglass",
        model_options={"stacks": 2, "features": 64},
        input_size=(64, 64),
        codec="tompson",
        codec_options={"sigma": 0.8, "reduction": "mean", "method": "dark"},
        optimizer="AdamW",
        optimizer_options={"lr": 3e-3, "betas": [0.9, 0.99], "weight_decay": 0.0, "fused": True},
        schedule="OneCycleLR",
        schedule_options={
            "max_lr": 3e-3,
            "pct_start": 0.15,
            "div_factor": 10,
            "final_div_factor": 100,
            "cycle_momentum": False,
        },
        steps=3_360,
        epoch_steps=560,
        batch_size=16,
        zero_heads=True,
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
"""The recipes by name."""
