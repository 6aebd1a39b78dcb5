"""One labelled person in one image: the record that every reader yields and that crops are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _no_box() -> NDArray[np.float32]:
    return np.full(4, np.nan, np.float32)


def _nobody() -> NDArray[np.float32]:
    return np.zeros((0, 0, 2), np.float32)


@dataclass(frozen=True, eq=False)
class Person:
    """One person in one image; coordinates are (x, y) in pixels, 0-based, with pixel i centred at i.

    Args:
        image: The image file, or the image itself as RGB, uint8 (H, W, 3).
        keypoints: float32 (K, 2) in the order of the data set's skeleton; NaN where a joint is not labelled.
        visible: bool (K,), False for a joint that is hidden or not labelled. A hidden joint with finite
            coordinates *is* labelled: it trains and it counts in every metric.
        center: float32 (2,), about the middle of the person.
        scale: The person's side in pixels divided by 200, as MPII defines it, before any enlargement.
        head_size: Normaliser of PCKh in pixels, 0.6 times the diagonal of the head box; NaN if not known.
        torso_size: Normaliser of PCK in pixels, from a shoulder to the opposite hip; NaN if not known.
        box: float32 (4,), (x, y, width, height) of the box that the data set draws, around the person in COCO and
            around the torso in FLIC; from pixel centre to pixel centre, so that a box of n pixels is n - 1 wide; NaN
            if there is none.
        area: Pixels of the person's outline, as COCO gives it; NaN if not known.
        crowd: Whether this is a crowd that COCO does not tell apart.
        bystanders: float32 (P, K, 2), the keypoints of other people in the image, as ``keypoints``; (0, 0, 2) if there are none
            or if nobody looked, see `with_bystanders`.
        image_id: Identifies the image within its data set.
        person_id: Identifies the person within the image.
        split: The part of the data set to which the person belongs, ``"train"``, ``"val"`` or ``"test"``; empty if to
            none or if the file does not say.

    Raises:
        TypeError: ``image`` is neither a path nor an array.
        ValueError: An array has the wrong shape or type, ``scale`` or ``head_size`` is not positive, or
            ``torso_size`` or ``area`` is negative.
    """

    image: Path | NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    visible: NDArray[np.bool_]
    center: NDArray[np.float32]
    scale: float
    head_size: float = math.nan
    torso_size: float = math.nan
    box: NDArray[np.float32] = field(default_factory=_no_box)
    area: float = math.nan
    crowd: bool = False
    bystanders: NDArray[np.float32] = field(default_factory=_nobody)
    image_id: int | str = 0
    person_id: int = 0
    split: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.image, np.ndarray):
            if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
                raise ValueError(f"image must be uint8 (H, W, 3), got {self.image.dtype} {self.image.shape}")
        elif not isinstance(self.image, Path):
            raise TypeError(f"image must be a pathlib.Path or a NumPy array, got {type(self.image).__name__}")
        if self.keypoints.ndim != 2 or self.keypoints.shape[1] != 2 or self.keypoints.dtype != np.float32:
            raise ValueError(f"keypoints must be float32 (K, 2), got {self.keypoints.dtype} {self.keypoints.shape}")
        joints = len(self.keypoints)
        if self.visible.shape != (joints,) or self.visible.dtype != np.bool_:
            raise ValueError(f"visible must be bool ({joints},), got {self.visible.dtype} {self.visible.shape}")
        if self.center.shape != (2,) or not np.isfinite(self.center).all():
            raise ValueError(f"center must be two finite coordinates, got {self.center}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not (math.isnan(self.head_size) or 0 < self.head_size < math.inf):
            raise ValueError(f"head_size must be positive and finite, or NaN if unknown, got {self.head_size}")
        for name in ("torso_size", "area"):
            value = getattr(self, name)
            if not (math.isnan(value) or 0 <= value < math.inf):
                raise ValueError(f"{name} must be at least 0 and finite, or NaN if unknown, got {value}")
        if self.box.shape != (4,) or self.box.dtype != np.float32:
            raise ValueError(f"box must be float32 (4,), got {self.box.dtype} {self.box.shape}")
        if not np.isnan(self.box).all() and not (np.isfinite(self.box).all() and self.box[2:].min() >= 0):
            raise ValueError(f"box must be finite with width and height of at least 0, or NaN if there is none, got {self.box}")

        others = self.bystanders
        if others.dtype != np.float32 or others.ndim != 3 or (len(others) and others.shape[1:] != (joints, 2)):
            raise ValueError(f"bystanders must be float32 (P, {joints}, 2), got {others.dtype} {others.shape}")

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """bool (K,), which joints have a label."""
        return np.isfinite(self.keypoints[:, 0]) & np.isfinite(self.keypoints[:, 1])


def with_bystanders(people: Sequence[Person]) -> list[Person]:
    """The same people, each with the keypoints of those who are in the same image and have any."""
    images: dict[int | str, list[Person]] = {}
    for person in people:
        if person.labelled.any():
            images.setdefault(person.image_id, []).append(person)
    result = []
    for person in people:
        others = [other.keypoints for other in images.get(person.image_id, []) if other is not person]
        result.append(replace(person, bystanders=np.stack(others)) if others else person)
    return result


def keypoints_of(points: ArrayLike, labelled: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Keypoints (K, 2) as records have them, from points (K, 2) of which only some are labels (K,)."""
    return np.where(labelled[:, None], points, np.nan).astype(np.float32)


def distance(points: NDArray[np.floating], first: int, second: int) -> float:
    """Pixels between two of the points (K, 2); NaN where one of them is."""
    return math.dist(points[first].tolist(), points[second].tolist())
