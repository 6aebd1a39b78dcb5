"""Where crops are cut out of images: the rules of the papers and their codes, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose import _check
from fastpose.data.affine import Convention, crop_affine
from fastpose.data.augmentation import AUGMENTATIONS, Augmentation
from fastpose.data.records import Person

Size = tuple[int, int]
Region = tuple[NDArray[np.float64], float]
"""Middle (2,) of a square in image pixels, and its side divided by 200."""


def _by_person(person: Person, image_size: Size, crop_size: Size) -> Region:
    return person.center.astype(np.float64), person.scale


def _by_box(person: Person, image_size: Size, crop_size: Size) -> Region:
    box = person.box.astype(np.float64)
    if np.isnan(box).any():
        box = np.array([0.0, 0.0, image_size[1] - 1, image_size[0] - 1])
    height, width = crop_size
    # The box becomes as wide, or as high, as to have the crop's ratio; crops are placed by their smaller side.
    pixels_per_crop_pixel = max(box[2] / width, box[3] / height, 1 / max(crop_size))
    return box[:2] + box[2:] / 2, pixels_per_crop_pixel * min(crop_size) / 200


def _by_image_height(person: Person, image_size: Size, crop_size: Size) -> Region:
    height, width = image_size
    return np.array([(width - 1) / 2, (height - 1) / 2]), height / 200


def _by_joints(person: Person, image_size: Size, crop_size: Size) -> Region:
    if not person.labelled.any():
        raise ValueError(f"place 'joints' needs people with labelled joints, but {person.image_id!r} has one without")
    labels = person.keypoints[person.labelled].astype(np.float64)
    low, high = labels.min(axis=0), labels.max(axis=0)
    return (low + high) / 2, max(1.0, float((high - low).max())) / 200


def _by_torso(person: Person, image_size: Size, crop_size: Size) -> Region:
    x, y, width, height = person.box.astype(np.float64)
    if not height > 0:
        raise ValueError(f"place 'torso' needs people with FLIC's box of the torso, but {person.image_id!r} has one without")
    return np.array([x + width / 2, y + 0.3 * height]), 0.011 * height


PLACES: Mapping[str, Callable[[Person, Size, Size], Region]] = {
    "person": _by_person,
    "box": _by_box,
    "image_height": _by_image_height,
    "joints": _by_joints,
    "torso": _by_torso,
}
"""How a record says where its person is, by name.

- ``"person"``: by its centre and scale.
- ``"box"``: by its box, made larger to the crop's ratio of height to width; a record without a box by the whole image.
- ``"image_height"``: in the middle of the image, which is as high as the person's side.
- ``"joints"``: by the box around its labels, which is known in training only.
- ``"torso"``: by FLIC's box of the torso as the CPM code does: 30 % down the box, with 0.011 of its height as scale.
"""


@dataclass(frozen=True)
class CropSettings:
    """How people are cut out of images.

    The crop's smaller side shows a square of side 200 · scale · ``enlargement`` around the person's centre; `preset`
    makes the published settings.

    Attributes:
        size: (height, width) of the crop in pixels.
        enlargement: factor of the person's side. MPII's boxes are tight, so every MPII method enlarges them.
        shift_down: pixels by which the box's centre moves down for each unit of the record's scale, likewise.
        convention: how the box meets the crop's pixels, see `fastpose.data.affine.crop_affine`.
        augmentation: random changes, by name in `fastpose.data.augmentation.AUGMENTATIONS` or spelt out; None for none.
        seed: seed of the random changes.
        place: what of the record says where the person is, a name in `PLACES`.
        fill: grey level of 0 to 255 outside of the image.

    Raises:
        ValueError: if a value is out of its range or ``augmentation`` or ``place`` is an unknown name.
    """

    size: Size = (256, 256)
    enlargement: float = 1.25
    shift_down: float = 15.0
    convention: Convention = "corner"
    augmentation: Augmentation | str | None = None
    seed: int = 0
    place: str = "person"
    fill: int = 0

    def __post_init__(self) -> None:
        if not self.enlargement > 0:
            raise ValueError(f"enlargement must be positive, got {self.enlargement}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if isinstance(self.augmentation, str) and self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"augmentation must be one of {', '.join(AUGMENTATIONS)}, an Augmentation or None, got {self.augmentation!r}"
            )
        _check.option("place", self.place, PLACES)
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill must be a grey level of 0 to 255, got {self.fill}")
        # Any person shows whether size and convention are acceptable.
        crop_affine((0.0, 0.0), 1.0, self.size, convention=self.convention)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> CropSettings:
        """Make the crops of a published method.

        Args:
            name: key of `CROPS`.
            **changes: attributes to set otherwise.

        Raises:
            TypeError: if there is no such attribute.
            ValueError: if the name is unknown, or a value is not allowed.
        """
        _check.option("name", name, CROPS)
        return replace(CROPS[name], **changes)

    def locate(self, person: Person, image_size: Size) -> Region:
        """Find the square that the crop's smaller side shows.

        Args:
            person: whom to cut out.
            image_size: (height, width) of the image in pixels.

        Returns:
            The middle of the square (2,) in image pixels and its side divided by 200, for `crop_affine`.

        Raises:
            ValueError: if the record does not have what ``place`` goes by.
        """
        center, scale = PLACES[self.place](person, image_size, self.size)
        return center + np.array([0.0, self.shift_down * scale]), scale * self.enlargement


_BOX_SIZE = 368
_CPM_ZOOM = 1.171  # crop pixels per image pixel, times MPII's scale

CROPS: Mapping[str, CropSettings] = {
    # The hourglass code, pytorch-pose, SimpleBaseline, HRNet and MMPose; also where others say no more than "MPII".
    "mpii": CropSettings(),
    "mpii_udp": CropSettings(convention="udp"),
    # Wei et al., CVPR 2016, and its code. Grey is 0 after its normalisation.
    "cpm": CropSettings((_BOX_SIZE, _BOX_SIZE), _BOX_SIZE / (200 * _CPM_ZOOM), 0.0, fill=128),
    # Its scale of LSP's images is their height / 368.
    "lsp_cpm": CropSettings((_BOX_SIZE, _BOX_SIZE), 1 / _CPM_ZOOM, 0.0, place="image_height", fill=128),
    "flic_cpm": CropSettings((_BOX_SIZE, _BOX_SIZE), _BOX_SIZE / (200 * _CPM_ZOOM), 0.0, place="torso", fill=128),
    # The whole image, as the first stage of DeepPose (Toshev and Szegedy, CVPR 2014) has it: LSP's are cut to the person.
    "lsp": CropSettings(enlargement=1.0, shift_down=0.0, place="box"),
    # The hourglass code: 440 pixels about the torso, which are FLIC's centre and scale here.
    "flic": CropSettings(enlargement=1.0, shift_down=0.0),
    # Tompson et al., NIPS 2014 and CVPR 2015: the whole frame of FLIC at half its size.
    "flic_tompson": CropSettings((240, 360), 1.0, 0.0, "centre", place="image_height"),
    # SimpleBaseline, HRNet and MMPose.
    "coco": CropSettings((256, 192), 1.25, 0.0, place="box"),
    "coco_udp": CropSettings((256, 192), 1.25, 0.0, "udp", place="box"),
    # DeepPose as its re-implementations train it: half as much again as the box around the labels.
    "deeppose": CropSettings((220, 220), 1.5, 0.0, place="joints"),
    # Carreira et al., CVPR 2016: 4/3 of MPII's side at 256 pixels, of which the middle 224 are used. The authors choose
    # among ten sizes by a network; this one gives the median head of 24 pixels of their choice.
    "ief": CropSettings((224, 224), 4 / 3 * 224 / 256, 0.0, "centre"),
}
"""Published crops by name; what differs between two codes of a name is said in the documentation of the data."""
