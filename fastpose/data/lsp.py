"""Leeds Sports Pose and its extended training set (Johnson and Everingham, BMVC 2010 and CVPR 2011).

The two files look alike and are not: ``joints`` is (3, 14, N) with a third row of 1 for *hidden* joints in LSP, and
(14, 3, N) with a third column of 1 for *labelled* joints in the extended set. Both count pixels from 1.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastpose.data._fields import LARGEST_COORDINATE, DataError, shorten
from fastpose.data._splits import check_split, of_split
from fastpose.data.matlab import read_mat
from fastpose.data.records import Person, distance, keypoints_of
from fastpose.skeletons import LSP

SPLITS = ("train", "test")
_TRAINING_IMAGES, _IMAGES = 1000, 2000
_SHAPES = "(3, 14, N), as in LSP, or (14, 3, N), as in LSP-extended"
_SHOULDER, _HIP = LSP.index("left_shoulder"), LSP.index("right_hip")


def read_lsp(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, split: str | None = None
) -> list[Person]:
    """Read ``joints.mat`` of LSP or of LSP-extended, which its shape tells.

    LSP comes with labels by the person's own left and right ("person-centric", ``joints.mat``) and by the viewer's
    ("observer-centric"); in either file they are what the file says.

    Args:
        path: the file.
        images: folder of the image files, ``im0001.jpg`` and so on in LSP, ``im00001.jpg`` in the extended set; the
            folder ``images`` beside the file if not given. Where they are PNG files, as in the extended set's later
            release, the records name these.
        split: ``"train"`` or ``"test"`` to keep only these people; None: all. The first 1000 of LSP's 2000 images are
            for training, and so are all of the extended set.

    Returns:
        One record for each image with a label, with the joints of `fastpose.skeletons.LSP` in 0-based pixels. LSP does
        not say where a person is: centre and scale are the middle and the longer side of the labels. The image files
        are not opened.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or another, or ``split`` is unknown or not in the file.
    """
    path = Path(path)
    check_split(split, SPLITS)
    folder = path.parent / "images" if images is None else Path(images)
    joints = read_mat(path, ("joints",)).get("joints")
    if not isinstance(joints, np.ndarray):
        raise DataError(f"{path}: variable 'joints' must be numbers of shape {_SHAPES}, got {shorten(joints)}")
    if joints.ndim == 2:  # of one image
        joints = joints[:, :, None]
    count = joints.shape[-1]
    if joints.shape == (3, LSP.num_joints, count):
        points, flags, digits = joints[:2].transpose(2, 1, 0), joints[2].T, 4
        labelled, visible = np.ones_like(flags, np.bool_), flags == 0
        splits = ["train"] * _TRAINING_IMAGES + ["test"] * (_IMAGES - _TRAINING_IMAGES) if count == _IMAGES else [""] * count
    elif joints.shape == (LSP.num_joints, 3, count):
        points, flags, digits = joints[:, :2].transpose(2, 0, 1), joints[:, 2].T, 5
        labelled = visible = flags == 1
        splits = ["train"] * count
    else:
        raise DataError(f"{path}: variable 'joints' must be numbers of shape {_SHAPES}, got {joints.shape}")
    _check(points, flags, path)
    suffix = ".png" if (folder / f"im{1:0{digits}}.png").is_file() else ".jpg"
    people = [
        _person(folder / f"im{row + 1:0{digits}}{suffix}", points[row] - 1.0, labelled[row], visible[row], splits[row])
        for row in range(len(points))
        if labelled[row].any()
    ]
    return of_split(people, split, path)


def _check(points: NDArray[np.float64], flags: NDArray[np.float64], path: Path) -> None:
    """Points (N, 14, 2) must be coordinates and flags (N, 14) 0 or 1."""
    for name, wrong, expected in (
        ("coordinates", ~(np.abs(points) <= LARGEST_COORDINATE).all(axis=2), f"within ±{LARGEST_COORDINATE:,.0f} pixels"),
        ("flags", (flags != 0) & (flags != 1), "0 or 1"),
    ):
        if wrong.any():
            row, joint = np.argwhere(wrong)[0]
            got = points[row, joint].tolist() if name == "coordinates" else flags[row, joint]
            raise DataError(f"{path}: 'joints' of image {row + 1}, {LSP.joints[joint]}: {name} must be {expected}, got {got}")


def _person(
    image: Path, points: NDArray[np.float64], labelled: NDArray[np.bool_], visible: NDArray[np.bool_], split: str
) -> Person:
    low, high = points[labelled].min(axis=0), points[labelled].max(axis=0)
    keypoints = keypoints_of(points, labelled)
    return Person(
        image=image,
        keypoints=keypoints,
        visible=visible,
        center=((low + high) / 2).astype(np.float32),
        scale=max(1.0, float((high - low).max())) / 200,
        torso_size=distance(keypoints, _SHOULDER, _HIP),
        image_id=image.name,
        split=split,
    )
