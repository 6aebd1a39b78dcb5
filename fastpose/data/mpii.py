"""MPII Human Pose (Andriluka et al., CVPR 2014), read from the two JSON forms in which it is passed around.

Both forms keep the numbers of the original MATLAB file: pixels counted from 1, the box as annotated, the
scale not enlarged. (The hourglass authors' ``valid.h5`` has these boxes with the centre moved down by
15·scale and the scale multiplied by 1.25.) So the reader subtracts 1 from coordinates, here and only once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastpose.data.records import Person
from fastpose.skeletons import MPII

# In MPII 200·scale is 4.8 diagonals of the head box, for all 2958 people of the validation set; the head size
# that PCKh divides by is 0.6 diagonals.
_HEAD_SIZE_PER_SCALE = 25.0

_MAX_SHOWN = 80

_BoxAndJoints = tuple[
    NDArray[np.float64], float, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]
]  # centre, scale, coordinates, labelled, visible

_FILE_NAME_FIELD = {"hrnet": "image", "pytorch_pose": "img_paths"}


def read_mpii(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    split: Literal["train", "val"] | None = None,
) -> list[Person]:
    """Read MPII annotations.

    Two forms are told apart by their field names: that of HRNet and MMPose (``image``, ``center``, ``scale``,
    ``joints``, ``joints_vis``; one file for each split), which does not say which joints are hidden, and that
    of pytorch-pose and the Convolutional Pose Machines (``img_paths``, ``objpos``, ``scale_provided``,
    ``joint_self``, ``isValidation``; one file for both splits).

    Args:
        path: the JSON file.
        images: folder of the image files; the folder ``images`` beside the JSON file if not given.
        split: ``"train"`` or ``"val"`` to keep only these people, where the file knows them; None for all.

    Returns:
        One record for each person, in the order of the file, with the joints of `fastpose.skeletons.MPII` in
        0-based pixels. The image files are not opened.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or has neither form; the message names the file, the person, the
            field and what it should hold. Also if ``split`` is unknown or not in the file.
    """
    path = Path(path)
    if split not in (None, "train", "val"):
        raise ValueError(f"split must be 'train', 'val' or None, got {split!r}")
    folder = path.parent / "images" if images is None else Path(images)
    entries = _load(path)
    form = next((form for form, field in _FILE_NAME_FIELD.items() if field in entries[0].fields), None)
    if form is None:
        raise ValueError(
            f"{entries[0].where} must name its image in the field {' or '.join(_FILE_NAME_FIELD.values())}; "
            f"it has {', '.join(entries[0].fields) or 'no fields'}"
        )
    if form == "hrnet" and split is not None:
        raise ValueError(f"split must be None, as {path} does not say who belongs to {split!r}")

    people = []
    people_in_image: Counter[str] = Counter()
    for entry in entries:
        name = entry.text(_FILE_NAME_FIELD[form])
        box_and_joints = _read_hrnet(entry) if form == "hrnet" else _read_pytorch_pose(entry)
        if split is None or bool(entry.array("isValidation", ())) == (split == "val"):
            people.append(_person(folder / name, *box_and_joints, person_id=people_in_image[name]))
        people_in_image[name] += 1
    return people


class _Entry:
    """One person's fields, which complain in terms of the file."""

    def __init__(self, fields: Any, where: str) -> None:
        if not isinstance(fields, dict):
            raise ValueError(f"{where} must be an object with named fields, got {_shorten(fields)}")
        self.fields: dict[str, Any] = fields
        self.where = where

    def array(self, field: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return a field of finite numbers of a given shape."""
        expected = f"finite numbers of shape {shape}" if shape else "a finite number"
        value = self._get(field, expected)
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise self._error(field, expected, value) from None
        if array.shape != shape or not np.isfinite(array).all():
            raise self._error(field, expected, value)
        return array

    def positive(self, field: str) -> float:
        """Return a field that is a positive number."""
        value = float(self.array(field, ()))
        if value <= 0:
            raise self._error(field, "a positive number", value)
        return value

    def text(self, field: str) -> str:
        """Return a field that is a non-empty string."""
        value = self._get(field, "a file name")
        if not isinstance(value, str) or not value:
            raise self._error(field, "a file name", value)
        return value

    def _get(self, field: str, expected: str) -> Any:
        if field not in self.fields:
            raise ValueError(f"{self.where}: field {field!r} is missing; it must be {expected}")
        return self.fields[field]

    def _error(self, field: str, expected: str, value: Any) -> ValueError:
        return ValueError(f"{self.where}: field {field!r} must be {expected}, got {_shorten(value)}")


def _load(path: Path) -> list[_Entry]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a complete JSON file: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a list of one or more people, got {_shorten(entries)}")
    return [_Entry(fields, f"{path}: person {number}") for number, fields in enumerate(entries)]


def _read_hrnet(entry: _Entry) -> _BoxAndJoints:
    joints = entry.array("joints", (MPII.num_joints, 2))
    # An unlabelled joint is (-1, -1) with a 0 in joints_vis, which has a 1 for hidden joints as well.
    labelled = entry.array("joints_vis", (MPII.num_joints,)) != 0
    return entry.array("center", (2,)), entry.positive("scale"), joints, labelled, labelled


def _read_pytorch_pose(entry: _Entry) -> _BoxAndJoints:
    joints = entry.array("joint_self", (MPII.num_joints, 3))
    # An unlabelled joint is (0, 0, 0); a labelled one has a third entry of 0 if it is hidden.
    labelled = (joints[:, :2] != 0).any(axis=1)
    visible = labelled & (joints[:, 2] != 0)
    return entry.array("objpos", (2,)), entry.positive("scale_provided"), joints[:, :2], labelled, visible


def _person(
    image: Path,
    center: NDArray[np.float64],
    scale: float,
    joints: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    person_id: int,
) -> Person:
    return Person(
        image=image,
        keypoints=np.where(labelled[:, None], joints - 1.0, np.nan).astype(np.float32),
        visible=visible,
        center=(center - 1.0).astype(np.float32),
        scale=scale,
        head_size=_HEAD_SIZE_PER_SCALE * scale,
        image_id=image.name,
        person_id=person_id,
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
