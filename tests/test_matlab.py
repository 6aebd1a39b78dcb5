"""The MATLAB reader: everything that annotation files hold, as SciPy and HDF5 write it, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from annotation_files import EMPTY, structs, write_mat, write_mat_hdf5
from scipy.io import loadmat
from scipy.sparse import csc_array

from fastpose.data.lsp import read_lsp
from fastpose.data.matlab import read_mat

cell = np.empty((1, 3), object)
cell[0] = ["a", np.array([[1.5, 2]]), EMPTY]

VARIABLES: dict[str, Any] = {
    "number": 2.5,
    "negative": np.int16(-3),
    "row": np.arange(5, dtype=np.uint8)[None],
    "matrix": np.arange(6.0).reshape(2, 3) + 0.25,
    "volume": np.arange(24, dtype=np.int32).reshape(2, 3, 4) - 5,
    "singles": np.array([[1.5, np.nan, np.inf]], np.float32),
    "empty": EMPTY,
    "text": "a name, ü",
    "no_text": "",
    "cell": cell,
    "one": structs([{"a": 1.0, "b": "x"}]),
    "several": structs([{"x": float(index), "is_visible": value} for index, value in enumerate([1.0, "0", EMPTY])]),
    "nested": structs([{"inner": structs([{"x": np.uint16(300)}, {"x": 4.5}])}]),
}
EXPECTED: dict[str, Any] = {
    "number": 2.5,
    "negative": -3.0,
    "row": [[0, 1, 2, 3, 4]],
    "matrix": VARIABLES["matrix"],
    "volume": VARIABLES["volume"],
    "singles": VARIABLES["singles"],
    "empty": EMPTY,
    "text": "a name, ü",
    "no_text": "",
    "cell": ["a", [[1.5, 2]], EMPTY],
    "one": [{"a": 1.0, "b": "x"}],
    "several": [{"x": 0.0, "is_visible": 1.0}, {"x": 1.0, "is_visible": "0"}, {"x": 2.0, "is_visible": EMPTY}],
    "nested": [{"inner": [{"x": 300.0}, {"x": 4.5}]}],
}


def check_equal(value: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for name in expected:
            check_equal(value[name], expected[name])
    elif isinstance(value, list):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            check_equal(one, other)
    elif isinstance(value, np.ndarray):
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, expected)
    else:
        assert type(value) is type(expected)
        assert value == expected


@pytest.mark.parametrize("level", ["5", "5 compressed", "7.3"])
def test_reads_what_annotations_hold(tmp_path: Path, level: str) -> None:
    path = tmp_path / "a.mat"
    if level == "7.3":
        write_mat_hdf5(path, VARIABLES)
    else:
        write_mat(path, VARIABLES, compressed=level != "5")
    check_equal(read_mat(path), EXPECTED)
    assert read_mat(path, ("number", "other")) == {"number": 2.5}


def test_reads_big_endian_files(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">2I", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(kind: int, dims: tuple[int, ...], name: bytes, *body: bytes) -> bytes:
        head = element(6, struct.pack(">2I", kind, 0)) + element(5, struct.pack(f">{len(dims)}i", *dims)) + element(1, name)
        return element(14, head + b"".join(body))

    scalar = matrix(6, (1, 1), b"", element(9, struct.pack(">d", 2.5)))
    small = matrix(9, (1, 1), b"", struct.pack(">2HB3x", 1, 2, 7))
    text = matrix(4, (1, 2), b"", element(17, "hé".encode("utf-16-be")))
    fields = element(5, struct.pack(">i", 4)) + element(1, b"abc\0b\0\0\0c\0\0\0")
    path = tmp_path / "a.mat"
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    path.write_bytes(header + matrix(2, (1, 1), b"s", fields, scalar, small, text))
    assert read_mat(path) == {"s": [{"abc": 2.5, "b": 7.0, "c": "hé"}]}


@pytest.mark.parametrize("value", [np.array([[1 + 2j]]), np.array(["ab", "cd"]), csc_array(np.eye(3))])
def test_other_values_are_none(tmp_path: Path, value: Any) -> None:
    path = write_mat(tmp_path / "a.mat", {"good": 1.0, "other": value, "within": structs([{"x": value, "y": 2.0}])})
    assert read_mat(path) == {"good": 1.0, "other": None, "within": [{"x": None, "y": 2.0}]}
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        with pytest.raises(ValueError, match=r"a\.mat: variable 'joints' must be numbers .*, got None"):
            read_lsp(write_mat(path, {"joints": value}))


def patched(path: Path, at: int, word: int) -> Path:
    """An uncompressed file of one number whose 32-bit word at a byte is another."""
    write_mat(path, {"a": 2.5}, compressed=False)
    content = bytearray(path.read_bytes())
    content[at : at + 4] = struct.pack("<I", word)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("at", "word", "message"),
    [
        (128, 7, "byte 136: a variable must be of type 14, not 7"),
        (132, 1000, "byte 128: an element of 1000 bytes does not fit into the 56"),
        (136, 5, "byte 136: a matrix's flags must be of type 6, not 5"),
        (140, 4, "a matrix's flags must have 8 bytes, not 4"),
        (152, 6, "a matrix's size must be of type 5, not 6"),
        (160, 0xFFFFFFFF, r"a matrix's size must be 2 to 8 numbers of at least 0, not \(-1, 1\)"),
        (160, 3, r"byte 176: a matrix of size \(3, 1\) has 8 bytes of float64"),
        (176, 99, "byte 176: there are no numbers of type 99"),
        (176, 0x00090001, "byte 176: an element of 9 bytes does not fit into 4"),
    ],
)
def test_says_where_the_damage_is(tmp_path: Path, at: int, word: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"a.mat is not a complete MATLAB file: .*{message}"):
        read_mat(patched(tmp_path / "a.mat", at, word))


def test_counts_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", {"s": structs([{"x": 1.0}])}, compressed=False)
    content = path.read_bytes()
    dims = struct.pack("<2i", 1, 1)
    huge = content.replace(dims, struct.pack("<2i", 2**15, 2**16 - 1), 1)
    path.write_bytes(huge)
    with pytest.raises(ValueError, match=r"2147450880 matrices do not fit into \d+ bytes"):
        read_mat(path)


def test_deep_nesting_ends(tmp_path: Path) -> None:
    value: Any = 1.0
    for _ in range(40):
        outer = np.empty((1, 1), object)
        outer[0, 0] = value
        value = outer
    with pytest.raises(ValueError, match="more than 32 deep"):
        read_mat(write_mat(tmp_path / "a.mat", {"a": value}))


def test_checksums_of_compressed_variables_count(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", {"a": np.arange(100.0)})
    content = path.read_bytes()
    assert zlib.decompress(content[136:])
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"byte 136: what is compressed cannot be unpacked, .*incorrect data check"):
        read_mat(path)


def test_names_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no MATLAB file .*a\.mat"):
        read_mat(tmp_path / "a.mat")
    for content in (b"", b"joints = [1 2 3]", bytes(200)):
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.mat is not a MATLAB file of level 5 or 7\.3"):
            read_mat(tmp_path / "a.mat")


def test_level_73_claims_no_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", shape=(10**6, 10**6), dtype="f8", chunks=(1000, 1000))
        file.create_dataset("words", data=[b"x", b"yz"])
    with pytest.raises(ValueError, match=r"a\.mat: variable 'a' of shape \(1000000, 1000000\) does not fit into a file of"):
        read_mat(path, ("a",))
    assert read_mat(path, ("words",)) == {"words": None}


def test_level_73_does_not_go_in_circles(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        cells = file.create_dataset("a", shape=(3, 1), dtype=h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = np.bytes_("cell")
        cells[:, 0] = [cells.ref] * 3
    with pytest.raises(ValueError, match="there are more values than fit into the file; references go in circles"):
        read_mat(path)


def plain(value: Any) -> Any:
    """SciPy's value in the form of ours."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.names:
        return [{name: plain(item[name]) for name in value.dtype.names} for item in value.ravel(order="F")]
    if value.dtype == object:
        return [plain(item) for item in value.ravel(order="F")]
    if value.dtype.kind == "U":
        return str(value[0]) if value.size else ""
    return float(value.item()) if value.shape == (1, 1) else value.astype(np.float64)


@pytest.mark.parametrize("name", ["mpii/detections.mat", "flic/examples.mat", "lsp/LSP-joints-PC.mat"])
def test_real_files_are_as_scipy_reads_them(shared_data: Path, name: str) -> None:
    wanted = ("annolist", "RELEASE_img_index", "examples", "joints")
    expected = loadmat(shared_data / name, variable_names=wanted)
    values = read_mat(shared_data / name, wanted)
    assert values
    for variable, value in values.items():
        every = 20 if isinstance(value, list) else 1
        check_equal(value[::every], plain(expected[variable][:, ::every] if every > 1 else expected[variable]))
