"""Fields of annotation files, which complain in terms of the file: where, which field, what it must be, what it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_COORDINATE = 1e6
"""Pixels. No picture is as large; what lies beyond is damage, which would pass for a label."""

SCALES = (1e-3, LARGEST_COORDINATE / 200)
"""Of people, likewise: from a fifth of a pixel on."""

_MAX_SHOWN = 80


class DataError(ValueError):
    """A file is damaged, or not what its reader reads."""


class Entry:
    """Named values of a file.

    Args:
        fields: the values by name.
        where: the file, and where in it these values are.

    Raises:
        DataError: ``fields`` has no names.
    """

    def __init__(self, fields: Any, where: str) -> None:
        if not isinstance(fields, dict):
            raise DataError(f"{where} must be an object with named fields, got {shorten(fields)}")
        self.fields: dict[str, Any] = fields
        self.where = where

    def given(self, field: str) -> bool:
        """Whether there is a field of this name that is not empty."""
        value = self.fields.get(field)
        if isinstance(value, np.ndarray):
            return value.size > 0
        return bool(value) if isinstance(value, (list, str)) else value is not None

    def array(self, field: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """A field of finite numbers of a given shape."""
        expected = f"finite numbers of shape {shape}" if shape else "a finite number"
        value = self._get(field, expected)
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            raise self.error(field, expected, value) from None
        # Text that looks like a number is none.
        if array.dtype.kind not in "iuf" or array.shape != shape or not np.isfinite(array).all():
            raise self.error(field, expected, value)
        return array.astype(np.float64)

    def points(self, field: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """A field of coordinates in pixels."""
        points = self.array(field, shape)
        if np.abs(points).max(initial=0) > LARGEST_COORDINATE:
            raise self.error(field, f"coordinates within ±{LARGEST_COORDINATE:,.0f} pixels", points.tolist())
        return points

    def number(self, field: str) -> float:
        """A field that is a finite number."""
        value = self.fields.get(field)
        if type(value) is float and math.isfinite(value):  # most numbers of MATLAB files, of which there are many
            return value
        return float(self.array(field, ()))

    def coordinate(self, field: str) -> float:
        """A field that is a coordinate in pixels."""
        value = self.number(field)
        if abs(value) > LARGEST_COORDINATE:
            raise self.error(field, f"a coordinate within ±{LARGEST_COORDINATE:,.0f} pixels", value)
        return value

    def scale(self, field: str) -> float:
        """A field that is a positive number, such as a person may have for a scale."""
        value = self.number(field)
        if value <= 0:
            raise self.error(field, "a positive number", value)
        if not SCALES[0] <= value <= SCALES[1]:
            raise self.error(field, f"a number of {SCALES[0]:g} to {SCALES[1]:g}", value)
        return value

    def integer(self, field: str, least: int = 0) -> int:
        """A field that is a whole number, of at least some other."""
        value = self.number(field)
        if value != int(value) or value < least:
            raise self.error(field, f"a whole number of at least {least}", value)
        return int(value)

    def flag(self, field: str) -> bool:
        """A field that is 0 or 1, or false or true."""
        value = self._get(field, "0 or 1")
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise self.error(field, "0 or 1", value)
        return bool(value)

    def text(self, field: str, expected: str = "a file name") -> str:
        """A field that is a text, not empty and without what cannot be printed."""
        value = self._get(field, expected)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.error(field, expected, value)
        return value

    def entries(self, field: str) -> list[Entry]:
        """A field that is a list of objects, or a struct array."""
        value = self._get(field, "a list of objects")
        if not isinstance(value, list):
            raise self.error(field, "a list of objects", value)
        return [Entry(item, f"{self.where}: {field} {number}") for number, item in enumerate(value)]

    def entry(self, field: str) -> Entry:
        """A field that is one struct."""
        value = self._get(field, "one struct")
        if not isinstance(value, list) or len(value) != 1:
            raise self.error(field, "one struct", value)
        return Entry(value[0], f"{self.where}: {field}")

    def error(self, field: str, expected: str, value: Any) -> DataError:
        """What to raise where a field is not as expected."""
        return DataError(f"{self.where}: field {field!r} must be {expected}, got {shorten(value)}")

    def _get(self, field: str, expected: str) -> Any:
        if field not in self.fields:
            raise DataError(f"{self.where}: field {field!r} is missing; it must be {expected}")
        return self.fields[field]


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not complete.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a complete JSON file: {error}") from error


def shorten(value: object) -> str:
    """The beginning of a value, for messages."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
