"""Weights as safetensors files that know which model they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fastpose._files import write_atomically
from fastpose.models import architecture_name, create_model

_ARCHITECTURE_KEY = "fastpose.architecture"
_OPTIONS_KEY = "fastpose.options"
CODEC_KEY = "fastpose.codec"
"""Metadata key of the weights' codec: `HeatmapCodec.to_dict` as JSON."""
SKELETON_KEY = "fastpose.skeleton"
"""Metadata key of the name of the skeleton."""
CROP_KEY = "fastpose.crop"
"""Metadata key of the name of the crops in `fastpose.data.crop_settings.CROPS`; MPII's if there is none."""
_MAX_NAMES = 8


def save_weights(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights of a model, with its architecture and options, to a safetensors file.

    The file appears under its name only when it is complete.

    Args:
        model: a model of `fastpose.models`, on any device and in any memory format.
        path: file to write or replace; its folder must exist.
        metadata: more texts to keep with the weights, for `read_metadata`; such as the codec and the recipe.

    Raises:
        TypeError: if ``model`` is not of a known architecture, or ``metadata`` holds anything but strings.
        ValueError: if ``metadata`` has a key under which the architecture or its options are written.
        FileNotFoundError: if the folder does not exist.
    """
    entries = {_ARCHITECTURE_KEY: architecture_name(model), _OPTIONS_KEY: json.dumps(model.options)}
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map strings to strings, got {key!r}: {value!r}")
        if key in entries:
            raise ValueError(f"metadata must not have {key!r}, which save_weights writes itself")
        entries[key] = value
    # safetensors stores dense row-major tensors only, which channels_last weights are not.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(tensors, entries))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the texts that a safetensors file keeps with its weights, without reading the weights.

    Args:
        path: the safetensors file.

    Returns:
        What `save_weights` was given as ``metadata`` with the architecture and its options, each text by key;
        empty if the file has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a complete safetensors file.
    """
    with _open(path) as file:
        return file.metadata() or {}


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy weights from a safetensors file into a model; all of them, or none where they do not fit.

    Args:
        model: any model; its parameters keep their device, dtype and memory format.
        path: file written by `save_weights`, or any safetensors file with the same tensor names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a safetensors file, or its tensors are not those of the model; the
            message names the missing, the unexpected and the differently shaped ones.
    """
    _, tensors = _read(path)
    _copy_weights(tensors, model, path)


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Rebuild the model that `save_weights` wrote.

    Args:
        path: the safetensors file.

    Returns:
        The model with its weights, in training mode, on the default device.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a safetensors file, does not say which model it belongs to, or was
            damaged.
    """
    metadata, tensors = _read(path)
    if _ARCHITECTURE_KEY not in metadata or _OPTIONS_KEY not in metadata:
        raise ValueError(
            f"{path} does not name its model (metadata {_ARCHITECTURE_KEY} and {_OPTIONS_KEY}); "
            "build the model with create_model and use load_weights"
        )
    try:
        model = create_model(metadata[_ARCHITECTURE_KEY], **json.loads(metadata[_OPTIONS_KEY]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} names a model that cannot be built: {error}") from error
    _copy_weights(tensors, model, path)
    return model


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[safe_open]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with _open(path) as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _copy_weights(tensors: dict[str, torch.Tensor], model: nn.Module, path: str | os.PathLike[str]) -> None:
    problems = misfit(tensors, model.state_dict())
    if problems:
        raise ValueError(f"the weights in {path} do not fit {type(model).__name__}: {problems}")
    model.load_state_dict(tensors)


def misfit(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Name the tensors that are missing, unexpected or of another shape than expected; an empty text if none is.

    Args:
        tensors: what there is, by name.
        expected: tensors of the right names and shapes.
    """
    problems = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    return "; ".join(f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names)


def _shorten(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
