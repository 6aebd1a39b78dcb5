"""Crops as affine maps, and the one function that resamples an image by such a map.

A map is a float64 (2, 3) matrix on (x, y) in pixels, 0-based, with pixel i centred at i.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
Convention = Literal["corner", "centre", "udp"]

# Below this zoom bilinear interpolation skips source pixels; the hourglass code shrinks first from here too.
_SHRINK_FIRST_ZOOM = 0.5


def crop_affine(
    center: ArrayLike,
    scale: float,
    size: tuple[int, int],
    rotation: float = 0.0,
    convention: Convention = "corner",
) -> Matrix:
    """Build the map from an image to the crop around a person.

    The square box of side 200·scale around the centre just fits into the crop. With R the crop's smaller side
    and h = 200·scale, and without rotation, a square crop takes x to

    - ``"corner"``: (R/h)·(x - c) + R/2, as the hourglass, SimpleBaseline and HRNet code does;
    - ``"centre"``: (R/h)·(x - c) + (R-1)/2, which cuts the box into R cells of equal width and has a pixel at each
      one's centre, as `cv2.resize` does; commutes with mirroring;
    - ``"udp"``: ((R-1)/h)·(x - c) + (R-1)/2, which treats the crop's pixel centres as its corners and is
      unbiased under resizing and flipping (Huang et al., "The Devil is in the Details", CVPR 2020).

    Args:
        center: (x, y) of the box in image pixels.
        scale: side of the box in image pixels divided by 200, as MPII defines it.
        size: (height, width) of the crop in pixels.
        rotation: degrees by which the crop's content turns anticlockwise, as seen, about the box's centre.
        convention: ``"corner"``, ``"centre"`` or ``"udp"``.

    Returns:
        Matrix (2, 3) from image pixels to crop pixels.

    Raises:
        ValueError: if an argument is not finite, ``scale`` or ``size`` is not positive, or ``convention`` is
            not one of the three.
    """
    center = np.asarray(center, np.float64)
    if center.shape != (2,) or not np.isfinite(center).all():
        raise ValueError(f"center must be two finite coordinates, got {center}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if not math.isfinite(rotation):
        raise ValueError(f"rotation must be finite, got {rotation}")
    if len(size) != 2 or min(size) < 2:
        raise ValueError(f"size must be (height, width), each at least 2, got {size}")
    if convention not in ("corner", "centre", "udp"):
        raise ValueError(f"convention must be 'corner', 'centre' or 'udp', got {convention!r}")
    pixels = np.asarray(size[::-1], np.float64)
    extent = pixels - (convention == "udp")
    middle = (pixels if convention == "corner" else pixels - 1) / 2
    zoom = extent.min() / (200.0 * scale)
    angle = math.radians(rotation)
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    linear = np.array([[cosine, sine], [-sine, cosine]])
    return np.column_stack([linear, middle - linear @ center])


def flip_affine(width: int) -> Matrix:
    """Build the map that mirrors an image of a given width: x to width - 1 - x.

    Returns:
        Matrix (2, 3), its own inverse.
    """
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])


def compose_affine(second: Matrix, first: Matrix) -> Matrix:
    """Build the map (2, 3) that applies one map (2, 3) and then another (2, 3)."""
    linear = second[:, :2] @ first[:, :2]
    return np.column_stack([linear, second[:, :2] @ first[:, 2] + second[:, 2]])


def invert_affine(matrix: Matrix) -> Matrix:
    """Build the map (2, 3) that undoes a map (2, 3).

    Raises:
        ValueError: if the map cannot be undone.
    """
    if np.linalg.det(matrix[:, :2]) == 0:
        raise ValueError(f"matrix must be invertible, got {matrix.tolist()}")
    return np.asarray(cv2.invertAffineTransform(matrix))


def apply_affine(points: ArrayLike, matrix: Matrix) -> NDArray[np.float64]:
    """Map points.

    Args:
        points: (..., 2) coordinates (x, y); NaN stays NaN.
        matrix: (2, 3).

    Returns:
        Mapped points (..., 2) in float64.
    """
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def warp_affine(image: NDArray[Any], matrix: Matrix, size: tuple[int, int], fill: float = 0) -> NDArray[Any]:
    """Resample an image by a map.

    Where the map halves the image or shrinks it more, the image is first shrunk by area averaging, so that
    fine texture does not alias.

    Args:
        image: (H, W) or (H, W, C).
        matrix: (2, 3) from image pixels to output pixels.
        size: (height, width) of the output.
        fill: value of what the map reaches outside of the image.

    Returns:
        Output (height, width) or (height, width, C) of the same dtype.
    """
    zoom = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if zoom <= _SHRINK_FIRST_ZOOM:
        shrunk_size = [max(1, round(side * zoom)) for side in image.shape[:2]]
        ratio = np.divide(shrunk_size, image.shape[:2])[::-1]
        # cv2.resize aligns the outer edges of the pixels: x goes to (x + 1/2)·ratio - 1/2.
        shrink = np.column_stack([np.diag(ratio), ratio / 2 - 0.5])
        image = cv2.resize(image, shrunk_size[::-1], interpolation=cv2.INTER_AREA)
        matrix = compose_affine(matrix, invert_affine(shrink))
    return cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=(fill,) * 4)
