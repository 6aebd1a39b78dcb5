"""Frames Labeled in Cinema (Sapp and Taskar, CVPR 2013): upper bodies in 720 x 480 frames, counted from 1.

The file labels by the person's own left and right. The literature reports by the viewer's: people who are seen from
behind, 199 of 3,987 and 48 of 1,016, have their sides swapped. Which joints of them, the codes do not agree; see `SIDES`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastpose import _check
from fastpose.data._fields import LARGEST_COORDINATE, Entry
from fastpose.data._splits import check_split, of_split
from fastpose.data.matlab import read_mat
from fastpose.data.records import Person, distance, keypoints_of
from fastpose.skeletons import FLIC

SPLITS = ("train", "test")

_COLUMNS = (0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16)
"""Where the joints are among the 29 columns of the file."""
_FILE_JOINTS = 29

_ARM = ("shoulder", "elbow", "wrist")

SIDES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "person": ((), ()),
    "modec": (_ARM, _ARM),
    "joint_cnn_mrf": (("hip",), (*_ARM, "hip")),
    "hourglass": (("shoulder",), (*_ARM, "hip", "eye")),
}
"""Whose left and right: by name, the joints of which the left one must be left of the right one for someone to be seen
from behind, and the joints that are swapped then.

- ``"person"``: the person's own, as the file has it.
- ``"modec"``: MODEC's code (Sapp and Taskar): the arms.
- ``"joint_cnn_mrf"``: M. Andriushchenko's code for Tompson et al., NIPS 2014: the arms and hips.
- ``"hourglass"``: the hourglass and CPM codes: all joints.
"""

CENTER_HEIGHT, SCALE = 0.5, 2.2
"""The hourglass code's box: 440 pixels about the torso's column, half way down the frame."""


def read_flic(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    sides: str = "modec",
) -> list[Person]:
    """Read ``examples.mat``, or the HDF5 form of the hourglass code (one file for each split, from either side).

    Args:
        path: the file; one that ends in ``.h5`` or ``.hdf5`` is of the hourglass code.
        images: folder of the image files; the folder ``images`` beside the file if not given.
        split: ``"train"`` or ``"test"`` to keep only these people, where the file knows them; None: all.
        sides: whose left and right, a name in `SIDES`.

    Returns:
        One record for each person, with the joints of `fastpose.skeletons.FLIC` in 0-based pixels, the hourglass
        code's centre and scale, and the torso's box. ``torso_size`` is that of MODEC and the hourglass code, from the
        right shoulder to the left hip, of the person's own sides unless the file has others. FLIC does not say which
        joints are hidden. The image files are not opened.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or another, ``sides`` is unknown, or ``split`` is unknown or not in the file.
    """
    path = Path(path)
    check_split(split, SPLITS)
    _check.option("sides", sides, SIDES)
    folder = path.parent / "images" if images is None else Path(images)
    if path.suffix in (".h5", ".hdf5"):
        from fastpose.data.newell import read_newell

        people = read_newell(path, folder, FLIC)
    else:
        people_in_image: Counter[str] = Counter()
        people = []
        for example in Entry(read_mat(path, ("examples",)), str(path)).entries("examples"):
            name = example.text("filepath")
            people.append(_person(example, folder / name, people_in_image[name]))
            people_in_image[name] += 1
    return of_split([_seen_from(person, sides) for person in people], split, path)


def _person(example: Entry, image: Path, number: int) -> Person:
    coordinates = example.fields.get("coords")
    if not isinstance(coordinates, np.ndarray) or coordinates.shape != (2, _FILE_JOINTS):
        raise example.error("coords", f"numbers of shape (2, {_FILE_JOINTS})", coordinates)
    points = coordinates.T[list(_COLUMNS)] - 1.0
    labelled = ~np.isnan(points).any(axis=1)
    if (np.abs(points[labelled]) > LARGEST_COORDINATE).any():
        raise example.error("coords", f"coordinates within ±{LARGEST_COORDINATE:,.0f} pixels, or NaN", coordinates)
    x1, y1, x2, y2 = example.points("torsobox", (1, 4))[0] - 1.0
    if not (x1 < x2 and y1 < y2):
        raise example.error("torsobox", "x1 < x2 and y1 < y2", example.fields["torsobox"])
    height = example.array("imgdims", (1, 3))[0, 0]
    keypoints = keypoints_of(points, labelled)
    in_training, in_test = example.flag("istrain"), example.flag("istest")
    return Person(
        image=image,
        keypoints=keypoints,
        visible=labelled,
        center=np.array([(x1 + x2) / 2, CENTER_HEIGHT * height - 1.0], np.float32),
        scale=SCALE,
        torso_size=distance(keypoints, FLIC.index("right_shoulder"), FLIC.index("left_hip")),
        box=np.array([x1, y1, x2 - x1, y2 - y1], np.float32),
        image_id=image.name,
        person_id=number,
        split="train" if in_training else "test" if in_test else "",
    )


def _seen_from(person: Person, sides: str) -> Person:
    """Swap left and right of someone who is seen from behind."""
    tested, swapped = SIDES[sides]
    if not tested or not is_from_behind(person.keypoints, tested):
        return person
    order = list(range(FLIC.num_joints))
    for joint in swapped:
        left, right = FLIC.index(f"left_{joint}"), FLIC.index(f"right_{joint}")
        order[left], order[right] = right, left
    return replace(person, keypoints=person.keypoints[order], visible=person.visible[order])


def is_from_behind(keypoints: NDArray[np.floating], tested: Sequence[str]) -> bool:
    """Whether all of the tested joints of FLIC's are labelled and have their left one left of their right one."""
    x = keypoints[:, 0]
    return all(bool(x[FLIC.index(f"left_{joint}")] < x[FLIC.index(f"right_{joint}")]) for joint in tested)
