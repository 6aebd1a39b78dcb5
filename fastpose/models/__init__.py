"""The architectures, one file each, and their registry."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fastpose.models.hourglass import StackedHourglass

_ARCHITECTURES: dict[str, type[nn.Module]] = {
    "hourglass": StackedHourglass,
}


def list_models() -> list[str]:
    """Return the names that `create_model` knows, sorted."""
    return sorted(_ARCHITECTURES)


def create_model(name: str, **options: Any) -> nn.Module:
    """Build an architecture with fresh weights.

    Args:
        name: one of `list_models`, such as ``"hourglass"``.
        **options: arguments of the architecture's class, such as ``stacks=2``.

    Returns:
        The model, in training mode, on the default device.

    Raises:
        ValueError: if ``name`` is not known, or the architecture refuses an option's value.
        TypeError: if the architecture has no option of a given name.
    """
    if name not in _ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(list_models())}")
    architecture = _ARCHITECTURES[name]
    allowed = inspect.signature(architecture).parameters
    unknown = sorted(options.keys() - allowed.keys())
    if unknown:
        raise TypeError(f"model {name!r} has no option {', '.join(unknown)}; it has {', '.join(allowed)}")
    return architecture(**options)


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


__all__ = ["StackedHourglass", "architecture_name", "create_model", "list_models"]
