"""One labelled person in one image: the record that every reader yields and that crops are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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
        image_id: Identifies the image within its data set.
        person_id: Identifies the person within the image.

    Raises:
        TypeError: ``image`` is neither a path nor an array.
        ValueError: An array has the wrong shape or type, or ``scale`` or ``head_size`` is not positive.
    """

    image: Path | NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    visible: NDArray[np.bool_]
    center: NDArray[np.float32]
    scale: float
    head_size: float = math.nan
    image_id: int | str = 0
    person_id: int = 0

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
