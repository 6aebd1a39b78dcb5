"""MATLAB files as plain Python values; a damaged file is a `ValueError`, whatever is wrong with it.

SciPy reads level 5 too, but trusts the types and sizes that the file states: one wrong byte in a file that is not
compressed can end the process. Here every element is checked against the bytes that are there. The layout is that of
MathWorks' "MAT-File Format", chapter 1. Values are:

- a number, 1 x 1: `float`; any other numeric or logical array: float64 in MATLAB's shape, (0, 0) for ``[]``;
- text in one row: `str`;
- a struct array, 1 x 1 as well: a list with one `dict` for each element, column after column;
- a cell array: a list of its elements, likewise;
- anything else, such as complex or sparse arrays, objects and text of several rows: None.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data._fields import DataError

_HEADER_BYTES = 128
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSET = 512  # of the HDF5 file within one of level 7.3
_MAX_DEPTH = 32

# Types of elements
_INT8, _INT32, _UINT32, _DOUBLE, _MATRIX, _COMPRESSED = 1, 5, 6, 9, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", _DOUBLE: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: (1, "latin-1"), 2: (1, "latin-1"), 4: (2, "utf-16"), 16: (1, "utf-8"), 17: (2, "utf-16"), 18: (4, "utf-32")}

# Classes of matrices
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)  # double, single, and the integers of 8 to 64 bits
_COMPLEX = 0x0800

# One number without a name: what its head consists of next to its flags, and the length of all.
_FLAGS_TAG = (_UINT32, 8)
_ONE_BY_ONE_WITHOUT_NAME = (_INT32, 8, 1, 1, _INT8, 0)
_SCALAR_WORDS = 12
_SCALAR_BYTES = (48, 56)


def read_mat(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, Any]:
    """Read variables of a MATLAB file of level 5 (as of MATLAB 5 to 7) or 7.3.

    Args:
        path: the file.
        names: of the variables to read; None: all.

    Returns:
        The values by name, see above. A name that is not in the file is not in the result.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such MATLAB file or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no MATLAB file {path}")
    data = path.read_bytes()
    if _HDF5_SIGNATURE in (data[:8], data[_HDF5_OFFSET : _HDF5_OFFSET + 8]):
        from fastpose.data._hdf5 import read_mat_hdf5

        return read_mat_hdf5(path, names)
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise DataError(f"{path} is not a MATLAB file of level 5 or 7.3: its header does not say so")
    try:
        return _Reader(data, order).variables(names)
    except _DamageError as error:
        raise DataError(f"{path} is not a complete MATLAB file: {error}") from None


@lru_cache(maxsize=64)  # thousands of structs have the same
def _field_names(letters: bytes, size: int) -> list[str]:
    """Names of the same number of letters each, zeros behind."""
    return [letters[at : at + size].partition(b"\0")[0].decode("latin-1") for at in range(0, len(letters), size)]


class _DamageError(Exception):
    """What is wrong, and where."""


class _Reader:
    """Reads elements, each of which says its type and its length, from bytes.

    Args:
        data: the bytes.
        order: ``"<"`` or ``">"``.
        inside: what the bytes are, for messages.
    """

    def __init__(self, data: bytes, order: str, inside: str = "") -> None:
        self.data = data
        self.order = order
        self.inside = inside
        self.words = {count: struct.Struct(f"{order}{count}I").unpack_from for count in (1, 2, _SCALAR_WORDS)}
        self.numbers = {kind: struct.Struct(order + np.dtype(code).char) for kind, code in _NUMBERS.items()}

    def variables(self, names: Collection[str] | None) -> dict[str, Any]:
        """All variables, or those of the names."""
        variables = {}
        position = _HEADER_BYTES
        while position < len(self.data):
            kind, start, end, position = self.element(position, len(self.data))
            reader = self
            if kind == _COMPRESSED:
                try:
                    unpacked = zlib.decompress(self.data[start:end])
                except zlib.error as error:
                    raise self.error(start, f"what is compressed cannot be unpacked, {error}") from None
                reader, position = _Reader(unpacked, self.order, f" of what is packed at byte {start}"), end
                kind, start, end, _ = reader.element(0, len(unpacked))
            if kind != _MATRIX:
                raise reader.error(start, f"a variable must be of type {_MATRIX}, not {kind}")
            flags, dims, name, body = reader.head(start, end)
            if names is None or name in names:
                variables[name] = reader.body(flags, dims, body, end, depth=0)
        return variables

    def element(self, position: int, limit: int) -> tuple[int, int, int, int]:
        """Type of the element at a position, begin and end of its content, and where the next one is."""
        if position + 8 > limit:
            raise self.error(position, "the file ends here")
        kind, length = self.words[2](self.data, position)
        if kind >> 16:  # so small that it shares 8 bytes with its type
            kind, length = kind & 0xFFFF, kind >> 16
            if length > 4:
                raise self.error(position, f"an element of {length} bytes does not fit into 4")
            return kind, position + 4, position + 4 + length, position + 8
        start, end = position + 8, position + 8 + length
        if end > limit:
            raise self.error(position, f"an element of {length} bytes does not fit into the {limit - start} that are left")
        return kind, start, end, min(end + -length % 8, limit)

    def content(self, position: int, limit: int, kind: int, what: str) -> tuple[bytes, int]:
        """Content of an element that must be of a type, and where the next one is."""
        found, start, end, following = self.element(position, limit)
        if found != kind:
            raise self.error(position, f"{what} must be of type {kind}, not {found}")
        return self.data[start:end], following

    def head(self, start: int, end: int) -> tuple[int, tuple[int, ...], str, int]:
        """Flags, size and name of the matrix between two positions, and where its body begins."""
        flags, position = self.content(start, end, _UINT32, "a matrix's flags")
        if len(flags) != 8:
            raise self.error(start, f"a matrix's flags must have 8 bytes, not {len(flags)}")
        sizes, following = self.content(position, end, _INT32, "a matrix's size")
        dims = struct.unpack(f"{self.order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4])
        if len(sizes) % 4 or not 2 <= len(dims) <= 8 or min(dims) < 0:
            raise self.error(position, f"a matrix's size must be 2 to 8 numbers of at least 0, not {dims}")
        name, following = self.content(following, end, _INT8, "a matrix's name")
        return self.words[1](flags, 0)[0], dims, name.decode("latin-1"), following

    def body(self, flags: int, dims: tuple[int, ...], position: int, end: int, depth: int) -> Any:
        """Value of a matrix whose head ends at a position."""
        kind = flags & 0xFF
        if depth > _MAX_DEPTH:
            raise self.error(position, f"matrices are more than {_MAX_DEPTH} deep in one another")
        if kind in _NUMERIC and not flags & _COMPLEX:
            return self.array(dims, position, end)
        if kind == _CHAR:
            return self.text(dims, position, end)
        if kind == _CELL:
            return self.matrices(prod(dims), position, end, depth)
        if kind == _STRUCT:
            return self.structs(prod(dims), position, end, depth)
        return None

    def array(self, dims: tuple[int, ...], position: int, end: int) -> Any:
        kind, start, stop = self.element(position, end)[:3] if position < end else (_DOUBLE, end, end)
        if kind not in _NUMBERS:
            raise self.error(position, f"there are no numbers of type {kind}")
        dtype = np.dtype(self.order + _NUMBERS[kind])
        if stop - start != prod(dims) * dtype.itemsize:
            raise self.error(position, f"a matrix of size {dims} has {stop - start} bytes of {dtype.name}")
        with np.errstate(invalid="ignore"):  # of NaNs that signal
            values = np.frombuffer(self.data[start:stop], dtype).astype(np.float64)
        return float(values[0]) if dims == (1, 1) else values.reshape(dims, order="F")

    def text(self, dims: tuple[int, ...], position: int, end: int) -> str | None:
        kind, start, stop = self.element(position, end)[:3] if position < end else (_INT8, end, end)
        if kind not in _TEXTS:
            raise self.error(position, f"there is no text of type {kind}")
        width, codec = _TEXTS[kind]
        if width > 1:
            codec += {"<": "-le", ">": "-be"}[self.order]
        try:
            text = self.data[start:stop].decode(codec)
        except UnicodeDecodeError as error:
            raise self.error(position, f"text cannot be read, {error}") from None
        letters = prod(dims)
        if dims[0] != 1 and letters:
            return None
        if letters not in (len(text), (stop - start) // width):
            raise self.error(position, f"text of size {dims} has {len(text)} letters")
        return text

    def structs(self, count: int, position: int, end: int, depth: int) -> list[dict[str, Any]]:
        length, following = self.content(position, end, _INT32, "the length of field names")
        letters, following = self.content(following, end, _INT8, "field names")
        size = self.words[1](length, 0)[0] if len(length) == 4 else 0
        if size == 0 or len(letters) % size:
            raise self.error(position, f"{len(letters)} letters are no field names of {size} letters each")
        names = _field_names(letters, size)
        if not names:
            if count > 1:
                raise self.error(position, f"{count} structs have no fields")
            return [{}] * count
        values = self.matrices(count * len(names), following, end, depth)
        return [dict(zip(names, values[at : at + len(names)], strict=True)) for at in range(0, len(values), len(names))]

    def matrices(self, count: int, position: int, end: int, depth: int) -> list[Any]:
        """Values of matrices one after the other."""
        if count * 8 > end - position:
            raise self.error(position, f"{count} matrices do not fit into {end - position} bytes")
        values: list[Any] = []
        for _ in range(count):
            kind, start, stop, following = self.element(position, end)
            if kind != _MATRIX:
                raise self.error(position, f"a matrix must be of type {_MATRIX}, not {kind}")
            value = self.scalar(start, stop)
            values.append(self.matrix(start, stop, depth + 1) if value is None else value)
            position = following
        return values

    def matrix(self, start: int, end: int, depth: int) -> Any:
        if start == end:
            return np.empty((0, 0))
        flags, dims, _, body = self.head(start, end)
        return self.body(flags, dims, body, end, depth)

    def scalar(self, start: int, end: int) -> float | None:
        """Value of a matrix without a name that is one number; None if it is anything else.

        Nearly all matrices of annotations are of this kind. It saves two thirds of the time.
        """
        if end - start not in _SCALAR_BYTES:
            return None
        words = self.words[_SCALAR_WORDS](self.data, start)
        if words[:2] != _FLAGS_TAG or words[4:10] != _ONE_BY_ONE_WITHOUT_NAME:
            return None
        if words[2] & _COMPLEX or words[2] & 0xFF not in _NUMERIC:
            return None
        kind, length, at = words[10], words[11], start + 48
        if kind >> 16:
            kind, length, at = kind & 0xFFFF, kind >> 16, start + 44
        number = self.numbers.get(kind)
        if number is None or number.size != length or at + length > end:
            return None
        return float(number.unpack_from(self.data, at)[0])

    def error(self, position: int, what: str) -> _DamageError:
        return _DamageError(f"byte {position}{self.inside}: {what}")
