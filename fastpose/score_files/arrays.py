"""The arrays in a file, by name, whatever kind of file it is."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastpose._files import write_atomically
from fastpose.data.matlab import read_mat

Arrays = dict[str, Any]
"""Values by name: arrays of numbers in MATLAB's shape; of MATLAB files also a single number as a float, text in one row as
a string, a cell array as a list, and a struct array as a list of dicts, the last two column after column."""

_MOST_EXPANSION = 1100
"""Deflate makes data at most 1032 times as small; what claims to be larger is damage."""

UNNAMED = "(unnamed)"
"""Name of the array of a file that holds but one and no name for it."""

MATLAB_LIKE = (".mat", ".h5", ".hdf5")
"""Files that come from MATLAB or Torch7, where pixels are counted from 1."""


def read_arrays(path: str | os.PathLike[str]) -> Arrays:
    """Read all arrays of a file.

    MATLAB's shapes are those that MATLAB shows, in both of its formats. JSON may be nested lists, an object of these, or a
    list of objects, whose fields are then put together; null is NaN.

    Args:
        path: a file that ends in .mat, .h5, .hdf5, .json, .npz, .npy or .safetensors.

    Returns:
        Values by name, see `Arrays`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise ValueError(f"{path} must end in one of {', '.join(_READERS)}")
    return _READERS[kind](path)


def read_json(path: Path) -> Any:
    """Read what a JSON file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a complete JSON file: {error}") from error


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write arrays to an .npz file that appears under its name only when it is complete.

    Raises:
        FileNotFoundError: if its folder does not exist.
    """
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(buffer, **named)
    write_atomically(path, buffer.getbuffer())


def _read_mat(path: Path) -> Arrays:
    return {name: value for name, value in read_mat(path).items() if value is not None}


def _read_hdf5(path: Path) -> Arrays:
    arrays: Arrays = {}
    stored = path.stat().st_size

    def visit(name: str, item: Any) -> None:
        # MATLAB keeps the contents of its cells and structs under names that begin with a hash.
        if isinstance(item, h5py.Dataset) and not name.startswith("#") and item.dtype.kind in "biuf":
            if item.nbytes > _MOST_EXPANSION * stored:
                raise ValueError(f"{name} of shape {item.shape} does not fit into {stored} bytes")
            arrays[name] = np.asarray(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # HDF5 meets damage in all its layers, and h5py has an exception for each
        raise ValueError(f"{path} is not a complete HDF5 file: {error}") from error
    return arrays


def _read_numpy(path: Path) -> Arrays:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {UNNAMED: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # of the archive, of its members, and of the text in which they say what they are
        raise ValueError(f"{path} is not a complete NumPy file of arrays: {error}") from error


def _read_safetensors(path: Path) -> Arrays:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    # NumPy has no bfloat16.
    return {name: (tensor.double() if tensor.is_floating_point() else tensor).numpy() for name, tensor in tensors.items()}


def _read_json_arrays(path: Path) -> Arrays:
    content = read_json(path)
    if isinstance(content, list) and content and all(isinstance(record, dict) for record in content):
        names = [name for name in content[0] if all(name in record for record in content)]
        content = {name: [record[name] for record in content] for name in names}
    if not isinstance(content, dict):
        content = {UNNAMED: content}
    arrays = {name: _as_array(value) for name, value in content.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def _as_array(value: Any) -> NDArray[Any] | None:
    """Numbers or a text as an array; None for what is neither, such as lists of different lengths."""
    if isinstance(value, str):
        return np.asarray(value)
    try:
        return np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".mat": _read_mat,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".json": _read_json_arrays,
    ".npz": _read_numpy,
    ".npy": _read_numpy,
    ".safetensors": _read_safetensors,
}
