"""MPII Human Pose (Andriluka et al., CVPR 2014) in the forms in which it is passed around.

All keep MATLAB's counting of pixels from 1; so coordinates lose 1 here, once, and gain it again in the writers. All but
the hourglass code's HDF5 keep the box as annotated, that is, not enlarged.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastpose._files import write_atomically
from fastpose.data._fields import DataError, Entry, load_json, shorten
from fastpose.data._splits import check_split, of_split
from fastpose.data.records import Person, distance, keypoints_of
from fastpose.skeletons import MPII

HEAD_SIZE_PER_SCALE = 25.0
"""200 · scale is 4.8 diagonals of the head box, for all 2958 people of the validation set; PCKh divides by 0.6."""

SPLITS = ("train", "val", "test")

_FILE_NAME_FIELD = {"hrnet": "image", "pytorch_pose": "img_paths"}
_SHOULDER, _HIP = MPII.index("left_shoulder"), MPII.index("right_hip")


def read_mpii(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    validation: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
) -> list[Person]:
    """Read MPII annotations in any of these forms:

    - the official ``.mat`` file (``RELEASE``), or one with its ``annolist`` alone, such as ``detections.mat`` with
      Tompson's validation people;
    - the JSON of HRNet and MMPose (``image``, ``center``, ``scale``, ``joints``, ``joints_vis``), one file for each
      split, which does not say which joints are hidden;
    - the JSON of pytorch-pose and the Convolutional Pose Machines (``img_paths``, ``objpos``, ``scale_provided``,
      ``joint_self``, ``isValidation``), one file for training and validation;
    - the HDF5 of the hourglass code (``part``, ``visible``, ``center``, ``scale``, ``normalize``), one file for each
      split. Its boxes are enlarged, which is undone, and its joints cut to whole pixels, which cannot be.

    Args:
        path: the file; what does not end in ``.mat``, ``.h5`` or ``.hdf5`` is taken for JSON.
        images: folder of the image files; the folder ``images`` beside the file if not given.
        split: ``"train"``, ``"val"`` or ``"test"`` to keep only these people, where the file knows them; None: all.
        validation: of the official file: who is to validate on, a ``.mat`` file with ``RELEASE_img_index`` and
            ``RELEASE_person_index`` or a ``.h5`` file with ``index`` and ``person``. Other people in their images
            belong to no split. Without it everyone with labels is of ``"train"``.
        names: of ``.mat`` and HDF5 files that do not name their images: a text file with one name for each person;
            ``valid_images.txt`` beside ``detections.mat`` or ``valid.h5`` if not given.

    Returns:
        One record for each person with a centre and a scale, in the order of the file, with the joints of
        `fastpose.skeletons.MPII` in 0-based pixels. ``image_id`` is the name of the image and ``person_id`` counts its
        people. The image files are not opened.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or has none of these forms; the message names the file, the person, the
            field and what it should hold. Also if ``split`` is unknown or not in the file.
    """
    path = Path(path)
    check_split(split, SPLITS)
    folder = path.parent / "images" if images is None else Path(images)
    if path.suffix == ".mat":
        from fastpose.data.mpii_mat import read_annolist

        people = read_annolist(path, folder, validation, names)
    elif path.suffix in (".h5", ".hdf5"):
        from fastpose.data.newell import read_newell

        people = read_newell(path, folder, MPII, names)
    else:
        people = _read_json(path, folder)
    return of_split(people, split, path)


def write_mpii(path: str | os.PathLike[str], people: Sequence[Person]) -> None:
    """Write people in pytorch-pose's JSON form, from which `read_mpii` reads the same records.

    Args:
        path: file to write or replace.
        people: with MPII's joints, in image files; those that are not of ``"val"`` are written as of ``"train"``.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if a record has not MPII's joints or no image file.
    """
    entries = []
    for index, person in enumerate(people):
        if len(person.keypoints) != MPII.num_joints or not isinstance(person.image, Path):
            raise ValueError(f"people[{index}] must have {MPII.num_joints} joints and an image file, got {shorten(person)}")
        labels = np.column_stack([person.keypoints.astype(np.float64) + 1.0, person.visible])
        entries.append(
            {
                "dataset": "MPI",
                "isValidation": float(person.split == "val"),
                "img_paths": person.image.name,
                "objpos": (person.center.astype(np.float64) + 1.0).tolist(),
                "scale_provided": person.scale,
                "joint_self": np.where(person.labelled[:, None], labels, 0.0).tolist(),
                "people_index": float(person.person_id + 1),
            }
        )
    write_atomically(path, json.dumps(entries, allow_nan=False).encode())


def write_mpii_predictions(path: str | os.PathLike[str], keypoints: ArrayLike) -> None:
    """Write predictions as the evaluations of MPII's validation set read them: ``preds`` in a MATLAB file, from 1.

    Args:
        path: the ``.mat`` file to write or replace.
        keypoints: (N, 16, 2) in 0-based image pixels, as everywhere else; NaN stays NaN.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the shape is another.
    """
    from io import BytesIO

    from scipy.io import savemat

    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (MPII.num_joints, 2):
        raise ValueError(f"keypoints must be of shape (N, {MPII.num_joints}, 2), got {keypoints.shape}")
    content = BytesIO()
    savemat(content, {"preds": keypoints + 1.0}, do_compression=True)
    write_atomically(path, content.getbuffer())


def mpii_person(
    image: Path,
    center: NDArray[np.float64],
    scale: float,
    joints: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    **known: Any,
) -> Person:
    """Make a record from numbers that count pixels from 1."""
    keypoints = keypoints_of(joints - 1.0, labelled)
    return Person(
        image=image,
        keypoints=keypoints,
        visible=visible & labelled,
        center=(center - 1.0).astype(np.float32),
        scale=scale,
        torso_size=distance(keypoints, _SHOULDER, _HIP),
        image_id=image.name,
        **known,
    )


def _read_json(path: Path, folder: Path) -> list[Person]:
    entries = _load(path)
    form = next((form for form, field in _FILE_NAME_FIELD.items() if field in entries[0].fields), None)
    if form is None:
        raise DataError(
            f"{entries[0].where} must name its image in the field {' or '.join(_FILE_NAME_FIELD.values())}; "
            f"it has {', '.join(entries[0].fields) or 'no fields'}"
        )
    read = _read_hrnet if form == "hrnet" else _read_pytorch_pose
    people_in_image: Counter[str] = Counter()
    people = []
    for entry in entries:
        name = entry.text(_FILE_NAME_FIELD[form])
        people.append(read(entry, folder / name, people_in_image[name]))
        people_in_image[name] += 1
    return people


def _load(path: Path) -> list[Entry]:
    entries = load_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} must hold a list of one or more people, got {shorten(entries)}")
    return [Entry(fields, f"{path}: person {number}") for number, fields in enumerate(entries)]


def _read_hrnet(entry: Entry, image: Path, number: int) -> Person:
    scale = entry.scale("scale")
    # An unlabelled joint is (-1, -1) with a 0 in joints_vis, which has a 1 for hidden joints as well.
    labelled = entry.array("joints_vis", (MPII.num_joints,)) != 0
    return mpii_person(
        image,
        entry.points("center", (2,)),
        scale,
        entry.points("joints", (MPII.num_joints, 2)),
        labelled,
        labelled,
        head_size=HEAD_SIZE_PER_SCALE * scale,
        person_id=number,
    )


def _read_pytorch_pose(entry: Entry, image: Path, number: int) -> Person:
    scale = entry.scale("scale_provided")
    # An unlabelled joint is (0, 0, 0); a labelled one has a third entry of 0 if it is hidden.
    joints = entry.points("joint_self", (MPII.num_joints, 3))
    return mpii_person(
        image,
        entry.points("objpos", (2,)),
        scale,
        joints[:, :2],
        (joints[:, :2] != 0).any(axis=1),
        joints[:, 2] != 0,
        head_size=HEAD_SIZE_PER_SCALE * scale,
        person_id=entry.integer("people_index", 1) - 1 if "people_index" in entry.fields else number,
        split="val" if entry.flag("isValidation") else "train",
    )
