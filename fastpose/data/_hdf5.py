"""HDF5 files: the hourglass code's annotations, and MATLAB files of level 7.3, which are HDF5 within."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from fastpose.data._fields import DataError

_Result = TypeVar("_Result")

_LEAST_BYTES = 100
"""Of an object of HDF5 with its attributes; so there are no more of them."""
_MAX_EXPANSION = 1100
"""Deflate makes data at most 1032 times as small; what claims to be larger is damage, and would fill the memory."""


def with_hdf5(path: str | os.PathLike[str], read: Callable[[h5py.File], _Result]) -> _Result:
    """Read from an HDF5 file.

    Args:
        path: the file.
        read: what to do with the open file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, whatever HDF5 says to that, or ``read`` raises one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no HDF5 file {path}")
    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except DataError:
        raise
    except Exception as error:  # HDF5 meets damage in all its layers, and h5py has an exception for each
        raise DataError(f"{path} is not a complete HDF5 file: {error}") from error


def read_dataset(dataset: Any, where: str) -> np.ndarray:
    """Values of an HDF5 dataset.

    Raises:
        DataError: it is none, or claims to hold more than the file can.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} must be a dataset, got {type(dataset).__name__}")
    stored = os.path.getsize(dataset.file.filename)
    if dataset.size is None or dataset.nbytes > _MAX_EXPANSION * stored:
        raise DataError(f"{where} of shape {dataset.shape} does not fit into a file of {stored} bytes")
    return np.asarray(dataset[()])


def read_mat_hdf5(path: Path, names: Collection[str] | None) -> dict[str, Any]:
    """Read a MATLAB file of level 7.3, see `fastpose.data.matlab.read_mat`."""

    def read(file: h5py.File) -> dict[str, Any]:
        chosen = [name for name in file if not name.startswith("#") and (names is None or name in names)]
        reader = _MatReader(file, os.path.getsize(path) // _LEAST_BYTES)
        return {name: reader.value(file[name], f"{path}: variable {name!r}") for name in chosen}

    return with_hdf5(path, read)


class _MatReader:
    """Makes Python values of what MATLAB stores.

    Args:
        file: the open file.
        most: values that it can hold. Damaged references may go in circles, of which there is no end.
    """

    def __init__(self, file: h5py.File, most: int) -> None:
        self.file = file
        self.left = most

    def value(self, item: Any, where: str) -> Any:
        self.left -= 1
        if self.left < 0:
            raise DataError(f"{where}: there are more values than fit into the file; references go in circles")
        if isinstance(item, h5py.Group):
            return self.structs(item, where)
        kind = _class(item)
        if "MATLAB_empty" in item.attrs:
            return {"char": "", "struct": [], "cell": []}.get(kind, np.empty((0, 0)))
        content = read_dataset(item, where)
        if kind == "cell":
            return self.referenced(content, where)
        if kind == "char":
            in_one_row = content.dtype.kind == "u" and content.shape[1:] == (1,)
            return content.astype("<u2").tobytes().decode("utf-16-le") if in_one_row else None
        if content.dtype.kind not in "iufb" or "MATLAB_object_decode" in item.attrs:
            return None
        # HDF5 goes through an array row by row, MATLAB column by column; so here is its transpose.
        values = content.T.astype(np.float64)
        return float(values.item()) if values.shape == (1, 1) else values

    def structs(self, group: h5py.Group, where: str) -> list[dict[str, Any]]:
        """A struct array, of which each field is an array of references; or one struct, of which each is the value."""
        fields = {name: group[name] for name in group}
        if not fields or not all(_is_references(field) for field in fields.values()):
            return [{name: self.value(field, f"{where}.{name}") for name, field in fields.items()}]
        columns = {}
        for name, field in fields.items():
            columns[name] = self.referenced(read_dataset(field, f"{where}.{name}"), f"{where}.{name}")
        if len({len(values) for values in columns.values()}) > 1:
            raise DataError(f"{where}: the fields of a struct array must be of one length")
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def referenced(self, references: np.ndarray, where: str) -> list[Any]:
        flat = references.ravel().tolist()
        if not all(isinstance(reference, h5py.Reference) for reference in flat):
            raise DataError(f"{where} must hold references, got {references.dtype}")
        return [self.value(self.file[reference], f"{where}({number})") for number, reference in enumerate(flat, 1)]


def _is_references(field: Any) -> bool:
    return isinstance(field, h5py.Dataset) and field.dtype.kind == "O" and not _class(field)


def _class(item: Any) -> str:
    kind = item.attrs.get("MATLAB_class", b"")
    return kind.decode() if isinstance(kind, bytes) else str(kind)
