"""MPII's official MATLAB file, with the irregularities that it has.

Points come in any order and any number, each with its joint's number; ``is_visible`` is a number, a text or empty;
people may lack points, a place or a scale; images may lack people.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose.data._fields import DataError, Entry
from fastpose.data._hdf5 import read_dataset, with_hdf5
from fastpose.data.matlab import read_mat
from fastpose.data.mpii import mpii_person
from fastpose.data.newell import read_names
from fastpose.data.records import Person
from fastpose.skeletons import MPII

HEAD_SIZE_PER_DIAGONAL = 0.6
"""Of the diagonal of the head box: what PCKh divides by."""

_ROW_VARIABLES = ("RELEASE_img_index", "RELEASE_person_index")
_LARGEST_NUMBER = 1e9  # of images and people
_HEAD_BOX = ("x1", "y1", "x2", "y2")
_VISIBLE = {0.0: False, 1.0: True, "0": False, "1": True, "": True}


def read_annolist(
    path: Path,
    folder: Path,
    validation: str | os.PathLike[str] | None,
    names: str | os.PathLike[str] | None,
) -> list[Person]:
    """Read everyone who has a centre and a scale, see `fastpose.data.mpii.read_mpii`."""
    variables = Entry(read_mat(path, ("RELEASE", "annolist", *_ROW_VARIABLES)), str(path))
    if "RELEASE" in variables.fields:
        return _read_release(variables.entry("RELEASE"), folder, validation)
    images = variables.entries("annolist")
    is_one_person_a_row = all(name in variables.fields for name in _ROW_VARIABLES)
    if images and "image" in images[0].fields:
        image_names = [image.entry("image").text("name") for image in images]
    else:
        image_names = read_names(path, path.with_name("valid_images.txt") if names is None else Path(names))
    if len(image_names) != len(images):
        raise DataError(f"{path}: the names of the images must be {len(images)}, one for each row, got {len(image_names)}")
    rows = _pairs(variables, _ROW_VARIABLES, len(images), 1) if is_one_person_a_row else []
    people = []
    for row, (image, name) in enumerate(zip(images, image_names, strict=True)):
        found = _people(image)
        if is_one_person_a_row:
            if len(found) != 1:
                raise DataError(f"{image.where}: field 'annorect' must be one person with a place and a scale, got {len(found)}")
            (known,) = found.values()
            found = {rows[row][1]: {**known, "split": "val"}}
        people += [mpii_person(folder / name, person_id=number, **known) for number, known in found.items()]
    return people


def _read_release(release: Entry, folder: Path, validation: str | os.PathLike[str] | None) -> list[Person]:
    images = release.entries("annolist")
    in_training = release.array("img_train", (1, len(images)) if len(images) != 1 else ()).ravel() != 0
    held_out = set() if validation is None else _read_rows(Path(validation))
    held_out_images = {image for image, _ in held_out}
    people = []
    for index, image in enumerate(images):
        name = image.entry("image").text("name")
        for number, known in _people(image).items():
            split = "train" if in_training[index] else "test"
            if in_training[index] and (index in held_out_images or not known["labelled"].any()):
                split = "val" if (index, number) in held_out else ""
            people.append(mpii_person(folder / name, person_id=number, split=split, **known))
    return people


def _read_rows(path: Path) -> set[tuple[int, int]]:
    """Image and person, counted from 0, of everyone in a file of the validation people."""
    if path.suffix == ".mat":
        names, first = _ROW_VARIABLES, 1
        columns = Entry(read_mat(path, names), str(path))
    else:
        names, first = ("index", "person"), 0

        def read(file: Any) -> dict[str, Any]:
            return {name: read_dataset(file[name], f"{path}: dataset {name!r}") for name in names if name in file}

        columns = Entry(with_hdf5(path, read), str(path))
    return set(_pairs(columns, names, np.size(columns.fields.get(names[0], ())), first))


def _pairs(columns: Entry, names: tuple[str, str], count: int, first: int) -> list[tuple[int, int]]:
    """Numbers of image and person, from 0, in two fields of numbers from 0 or 1."""
    numbers = []
    for name in names:
        column = np.asarray(columns.fields.get(name, ()))
        is_whole = column.dtype.kind in "iuf" and (column == np.trunc(column)).all() and (column >= first).all()
        if column.size != count or not is_whole or (column > _LARGEST_NUMBER).any():
            raise columns.error(name, f"{count} whole numbers from {first} on", column)
        numbers.append((column.ravel() - first).astype(int).tolist())
    return list(zip(*numbers, strict=True))


def _people(image: Entry) -> dict[int, dict[str, Any]]:
    """What is known of those people of an image who have a place and a scale, by their number."""
    people = {}
    for number, person in enumerate(image.entries("annorect") if image.given("annorect") else ()):
        if not (person.given("objpos") and person.given("scale")):
            continue
        place = person.entry("objpos")
        joints, labelled, visible = _read_points(person)
        people[number] = {
            "center": np.array([place.coordinate("x"), place.coordinate("y")]),
            "scale": person.scale("scale"),
            "joints": joints,
            "labelled": labelled,
            "visible": visible,
            "head_size": _head_size(person),
        }
    return people


def _head_size(person: Entry) -> float:
    if not all(person.given(side) for side in _HEAD_BOX):
        return math.nan
    x1, y1, x2, y2 = (person.coordinate(side) for side in _HEAD_BOX)
    return HEAD_SIZE_PER_DIAGONAL * math.hypot(x2 - x1, y2 - y1) or math.nan


def _read_points(person: Entry) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Joints (16, 2), which of them are labelled (16,) and which are visible (16,)."""
    joints = np.zeros((MPII.num_joints, 2))
    labelled = np.zeros(MPII.num_joints, np.bool_)
    visible = np.zeros(MPII.num_joints, np.bool_)
    points = person.entry("annopoints") if person.given("annopoints") else None
    if points is None or not points.given("point"):
        return joints, labelled, visible
    for point in points.entries("point"):
        joint = point.integer("id")
        if joint >= MPII.num_joints or labelled[joint]:
            raise point.error("id", f"a joint of 0 to {MPII.num_joints - 1} that no other point has", joint)
        joints[joint] = point.coordinate("x"), point.coordinate("y")
        labelled[joint] = True
        visible[joint] = _is_visible(point)
    return joints, labelled, visible


def _is_visible(point: Entry) -> bool:
    """Head and neck were labelled without it: what is empty is visible."""
    if not point.given("is_visible"):
        return True
    value = point.fields["is_visible"]
    if not isinstance(value, (float, str)) or value not in _VISIBLE:
        raise point.error("is_visible", "0, 1 or empty", value)
    return _VISIBLE[value]
