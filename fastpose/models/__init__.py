"""The architectures, one file each, and their registry."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fastpose.models.cpm import CPM
from fastpose.models.deeppose import DeepPose
from fastpose.models.hourglass import StackedHourglass
from fastpose.models.ief import IEF
from fastpose.models.interface import HeatmapModel, PoseModel, Source, Stages, VectorModel, View
from fastpose.models.multiscale import predict_multiscale
from fastpose.models.tompson import Tompson

_ARCHITECTURES: dict[str, type[PoseModel]] = {
    "cpm": CPM,
    "deeppose": DeepPose,
    "hourglass": StackedHourglass,
    "ief": IEF,
    "tompson": Tompson,
}


def list_models() -> list[str]:
    """Return the names that `create_model` knows, sorted."""
    return sorted(_ARCHITECTURES)


def list_configurations(name: str) -> list[str]:
    """Return the sets of options that `create_model` knows for an architecture; ``"paper"`` is the first.

    Raises:
        ValueError: if ``name`` is not known.
    """
    return list(_architecture(name).configurations)


def create_model(name: str, *, num_joints: int | None = None, config: str = "paper", **options: Any) -> PoseModel:
    """Build an architecture with fresh weights.

    Args:
        name: one of `list_models`, such as ``"hourglass"``.
        num_joints: K; None: as many as the configuration is published for.
        config: one of `list_configurations`: ``"paper"``, or ``"modern"`` for the same idea with what has been learnt since.
        **options: arguments of the architecture's class that differ from the configuration's, such as ``stages=2``.

    Returns:
        The model, in training mode, on the default device.

    Raises:
        ValueError: if ``name`` or ``config`` is not known, or the architecture refuses an option's value.
        TypeError: if the architecture has no option of a given name.
    """
    architecture = _architecture(name)
    configurations = architecture.configurations
    if config not in configurations:
        raise ValueError(f"unknown config {config!r} of model {name!r}; it has {', '.join(configurations)}")
    allowed = inspect.signature(architecture).parameters
    unknown = sorted(options.keys() - allowed.keys())
    if unknown:
        raise TypeError(f"model {name!r} has no option {', '.join(unknown)}; it has {', '.join(allowed)}")
    if num_joints is not None:
        options["num_joints"] = num_joints
    return architecture(**{**configurations[config], **options})


def architecture_name(model: nn.Module) -> str:
    """Return the name under which `create_model` builds models of this class.

    Raises:
        TypeError: if ``model`` is not of a known architecture.
    """
    for name, architecture in _ARCHITECTURES.items():
        if type(model) is architecture:
            return name
    known = ", ".join(architecture.__name__ for architecture in _ARCHITECTURES.values())
    raise TypeError(f"model must be one of {known}, got {type(model).__name__}")


def _architecture(name: str) -> type[PoseModel]:
    if name not in _ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(list_models())}")
    return _ARCHITECTURES[name]


__all__ = [
    "CPM",
    "IEF",
    "DeepPose",
    "HeatmapModel",
    "PoseModel",
    "Source",
    "StackedHourglass",
    "Stages",
    "Tompson",
    "VectorModel",
    "View",
    "architecture_name",
    "create_model",
    "list_configurations",
    "list_models",
    "predict_multiscale",
]
