"""The HDF5 annotations that the hourglass code (Newell et al., ECCV 2016) reads: MPII's and FLIC's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fastpose.data._fields import LARGEST_COORDINATE, DataError, Entry
from fastpose.data._hdf5 import read_dataset, with_hdf5
from fastpose.data.records import Person, distance, keypoints_of
from fastpose.skeletons import MPII, Skeleton

ENLARGEMENT = 1.25
SHIFT_DOWN = 15.0
"""What the hourglass authors did to MPII's scale and, in units of the scale before, to its centre."""


def read_newell(
    path: str | os.PathLike[str],
    folder: Path,
    skeleton: Skeleton,
    names: str | os.PathLike[str] | None = None,
) -> list[Person]:
    """Read one file, of which each row is a person.

    Args:
        path: the file.
        folder: of the images.
        skeleton: whose joints they are. MPII's boxes are made those that were annotated again; FLIC's are as they are.
        names: text file with the image's name for each row, where the file has no ``imgname``; if not given, and
            the file is ``valid.h5``: ``valid_images.txt`` beside it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or of another form.
    """
    path = Path(path)

    def read(file: h5py.File) -> dict[str, Any]:
        if not isinstance(file.get("part"), h5py.Dataset):
            raise DataError(f"{path}: dataset 'part' is missing; it must be joints of shape (N, {skeleton.num_joints}, 2)")
        rows = file["part"].shape[0] if file["part"].shape else 0
        joints = skeleton.num_joints
        shapes = {"part": (joints, 2), "visible": (joints,), "center": (2,), "scale": (), "normalize": ()}
        columns: dict[str, Any] = {name: _numbers(file, name, (rows, *shape), path) for name, shape in shapes.items()}
        columns["person"] = _numbers(file, "person", (rows,), path) if "person" in file else np.zeros(rows)
        columns["imgname"] = _image_names(file, rows, path) if "imgname" in file else None
        return columns

    columns = with_hdf5(path, read)
    image_names = columns.pop("imgname")
    if image_names is None:
        image_names = read_names(path, path.with_name(f"{path.stem}_images.txt") if names is None else Path(names))
    count = len(columns["scale"])
    if len(image_names) != count:
        raise DataError(f"{path}: the names of the images must be {count}, one for each row, got {len(image_names)}")
    people = []
    for number, name in enumerate(image_names):
        row = {column: values[number] for column, values in columns.items()}
        people.append(_person(folder / name, row, skeleton, f"{path}: row {number}"))
    return people


def read_names(path: Path, names: Path) -> list[str]:
    """Read a text file of image names, one a line, that belongs to a file without them.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no text, or a line is empty.
    """
    if not names.is_file():
        raise FileNotFoundError(f"{path} does not name its images, and there is no file {names} with one name for each row")
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{names} must hold one image name a line: {error}") from error
    for line in lines:
        if not line.strip() or not line.isprintable():
            raise DataError(f"{names} must hold one image name a line, got {line!r}")
    return [line.strip() for line in lines]


def _person(image: Path, row: dict[str, Any], skeleton: Skeleton, where: str) -> Person:
    joints, center, is_mpii = row["part"], row["center"], skeleton == MPII
    scale = Entry({"scale": float(row["scale"])}, where).scale("scale")
    if is_mpii:
        scale /= ENLARGEMENT
        center = center - (0.0, SHIFT_DOWN * scale)
    # Joints without a label are (0, 0), and those of the test set all (-1, -1). Nor are hidden ones visible.
    labelled = (joints != 0).any(axis=1) & (joints != -1).any()
    keypoints = keypoints_of(joints - 1.0, labelled)
    size = float(row["normalize"]) if row["normalize"] > 0 and labelled.any() else np.nan
    torso = distance(keypoints, skeleton.index("left_shoulder"), skeleton.index("right_hip"))
    return Person(
        image=image,
        keypoints=keypoints,
        visible=labelled & (row["visible"] != 0),
        center=(center - 1.0).astype(np.float32),
        scale=scale,
        head_size=size if is_mpii else np.nan,
        torso_size=torso if is_mpii else size,
        image_id=image.name,
        person_id=int(row["person"]),
    )


def _numbers(file: h5py.File, name: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64]:
    where = f"{path}: dataset {name!r}"
    if name not in file:
        raise DataError(f"{where} is missing; it must be finite numbers of shape {shape}")
    values = read_dataset(file[name], where)
    if values.dtype.kind not in "iuf" or values.shape != shape:
        raise DataError(f"{where} must be finite numbers of shape {shape}, got {values.dtype} of shape {values.shape}")
    # In float64 a large number of a type of fewer bytes cannot become infinite.
    values = values.astype(np.float64)
    if not (np.abs(values) <= LARGEST_COORDINATE).all():
        row = int(np.argmin((np.abs(values) <= LARGEST_COORDINATE).reshape(len(values), -1).all(axis=1)))
        raise DataError(f"{where}, row {row}, must be numbers within ±{LARGEST_COORDINATE:,.0f}, got {values[row].tolist()}")
    return values


def _image_names(file: h5py.File, rows: int, path: Path) -> list[str]:
    """Names of the images, as byte strings or, in older files, as the numbers of their letters with zeros behind."""
    where = f"{path}: dataset 'imgname'"
    values = read_dataset(file["imgname"], where)
    if values.dtype.kind in "iuf" and values.ndim == 2 and (values >= 0).all() and (values < 256).all():
        names = [bytes(row).rstrip(b"\0") for row in values.astype(np.uint8)]
    elif values.dtype.kind in "SO" and values.ndim == 1 and all(isinstance(name, bytes) for name in values.tolist()):
        names = values.tolist()
    else:
        raise DataError(f"{where} must be {rows} names, as text or as the numbers of their letters, got {values.dtype}")
    try:
        decoded = [name.decode("utf-8") for name in names]
    except UnicodeDecodeError as error:
        raise DataError(f"{where} must be {rows} names: {error}") from error
    for name in decoded:
        if not name or not name.isprintable():
            raise DataError(f"{where} must be {rows} file names, got {name!r}")
    return decoded
