"""COCO keypoints (Lin et al., ECCV 2014). The only one of the data sets that counts pixels from 0."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose.data._fields import DataError, Entry, load_json, shorten
from fastpose.data._splits import check_split
from fastpose.data.records import Person, distance, keypoints_of
from fastpose.skeletons import COCO

SPLITS = ("train", "val")
_SHOULDER, _HIP = COCO.index("left_shoulder"), COCO.index("right_hip")


def read_coco(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    everyone: bool = False,
) -> list[Person]:
    """Read ``person_keypoints_*.json``.

    Args:
        path: the file.
        images: folder of the image files; the folder ``images`` beside the file if not given.
        split: what split these people are of, as the file does not say: ``"train"`` or ``"val"``; None: none.
        everyone: whether to read crowds, and people without a labelled joint, too. Training and the published scores
            of crops leave them out.

    Returns:
        One record for each person, in the order of the annotations, with the joints of `fastpose.skeletons.COCO`;
        ``image_id`` and ``person_id`` are COCO's of the image and the annotation. The box is cut off at the borders of
        the image, and centre and scale are its middle and its longer side. People without a box or an outline in the
        image are left out. The image files are not opened.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or another, or ``split`` is unknown.
    """
    path = Path(path)
    check_split(split, SPLITS)
    folder = path.parent / "images" if images is None else Path(images)
    content = Entry(load_json(path), str(path))
    person = _person_category(content)
    known: dict[int, Entry] = {}
    for image in content.entries("images"):
        if known.setdefault(_identifier(image, "id"), image) is not image:
            raise image.error("id", "that of no other image", image.fields["id"])
    people = []
    for annotation in content.entries("annotations"):
        if _identifier(annotation, "category_id") != person:
            continue
        place = _identifier(annotation, "image_id")
        if place not in known:
            raise annotation.error("image_id", "the id of one of the images", place)
        record = _read(annotation, known[place], folder, split or "")
        if record is not None and (everyone or (record.labelled.any() and not record.crowd)):
            people.append(record)
    return people


def _person_category(content: Entry) -> int:
    for category in content.entries("categories"):
        if category.fields.get("name") == "person":
            joints = category.fields.get("keypoints")
            if joints != list(COCO.joints):
                raise category.error("keypoints", f"the {COCO.num_joints} joints of COCO in its order", joints)
            return _identifier(category, "id")
    raise content.error("categories", "categories with 'person' among them", content.fields["categories"])


def _read(annotation: Entry, image: Entry, folder: Path, split: str) -> Person | None:
    """One person's record; None if there is no one in the image to look at."""
    crowd = annotation.flag("iscrowd")
    area = annotation.number("area")
    box = _clip(annotation.points("bbox", (4,)), image.integer("width", 1), image.integer("height", 1))
    if area <= 0 or box is None:
        return None
    points = annotation.points("keypoints", (3 * COCO.num_joints,)).reshape(-1, 3)
    flags = points[:, 2]
    if not np.isin(flags, (0, 1, 2)).all():
        raise annotation.error("keypoints", "x, y and a flag of 0, 1 or 2 for each joint", points.ravel().tolist())
    labelled = flags > 0
    keypoints = keypoints_of(points[:, :2], labelled)
    return Person(
        image=folder / image.text("file_name"),
        keypoints=keypoints,
        visible=flags == 2,
        center=(box[:2] + box[2:] / 2).astype(np.float32),
        scale=max(1.0, float(box[2:].max())) / 200,
        torso_size=distance(keypoints, _SHOULDER, _HIP),
        box=box.astype(np.float32),
        area=area,
        crowd=crowd,
        image_id=_identifier(image, "id"),
        person_id=_identifier(annotation, "id"),
        split=split,
    )


def _clip(box: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64] | None:
    """The part of a box within an image, from pixel centre to pixel centre; None if there is none.

    As HRNet does it: a box of COCO's that is n pixels wide ends n - 1 after the pixel where it begins.
    """
    low = np.maximum(box[:2], 0.0)
    high = np.minimum(low + np.maximum(box[2:] - 1.0, 0.0), (width - 1.0, height - 1.0))
    return None if (high < low).any() else np.concatenate([low, high - low])


def _identifier(entry: Entry, field: str) -> int:
    value: Any = entry.fields.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{entry.where}: field {field!r} must be a whole number, got {shorten(value)}")
    return value
