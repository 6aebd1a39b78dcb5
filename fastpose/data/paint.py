"""Shaded solids and cluttered backgrounds, drawn with OpenCV.

Images are RGB, uint8 (H, W, 3). Coordinates are (x, y) in pixels with pixel i centred at i.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]

# A solid is painted as nested outlines, from its silhouette inwards: how large, and how bright.
_BAND_SIZE = np.array([1.0, 0.82, 0.58, 0.30])
_BAND_TERMS = np.array([[1.0, 1.0 - size, size] for size in _BAND_SIZE], np.float32)  # of centre, slide, rim
_BAND_BRIGHTNESS = np.array([0.68, 0.86, 0.98, 1.07])

# An outline's corners are its farthest points in these directions.
_CORNER_ANGLES = np.arange(20) * (2 * np.pi / 20)
_DIRECTIONS = np.stack([np.cos(_CORNER_ANGLES), np.sin(_CORNER_ANGLES)], axis=1).astype(np.float32)

_SUBPIXEL_BITS = 4
# OpenCV's anti-aliased fill covers this many pixels more than the polygon on every side (measured on discs).
_FILL_GROWTH = 0.55

_BACKGROUND_SHAPES = (4, 14)
_BACKGROUND_SOLIDS = (0, 6)
_NOISE_LEVELS = (4, 8, 16, 32)


def outline_solids(centers: Floats, axes: Floats, light: Floats) -> NDArray[np.int32]:
    """Outline the convex hulls of pairs of ellipsoids, with isophotes as light from one side makes them.

    Args:
        centers: (P, 2, 2) projected centres of both ellipsoids in pixels.
        axes: (P, 2, 2, 3) projected semi-axes of both in pixels, one in each column.
        light: (2,) direction of the light in the image, shorter than 1 and not 0; highlights move that way.

    Returns:
        (bands, P, corners, 2) corners in 1/16 pixel, as :func:`paint_solids` takes them.
    """
    # In direction n an ellipsoid with semi-axes A is farthest at A Aᵀ n / |Aᵀ n| from its centre, and the
    # hull of two is farthest where one of them is. Nested outlines shrink and slide to the lit side without
    # crossing.
    shapes = axes @ axes.swapaxes(-1, -2)
    rim = _DIRECTIONS @ shapes
    reach = np.sqrt((rim * _DIRECTIONS).sum(-1, keepdims=True))
    rim = rim / reach - np.minimum(_FILL_GROWTH, 0.5 * reach) * _DIRECTIONS
    lit = shapes @ light
    slide = lit * (np.hypot(*light) / np.sqrt((lit @ light)[..., None]))

    terms = np.empty((3, *rim.shape), np.float32)
    terms[0] = centers[:, :, None]
    terms[1] = slide[:, :, None]
    terms[2] = rim
    terms *= 1 << _SUBPIXEL_BITS
    corners = np.tensordot(_BAND_TERMS, terms, axes=1)
    distance = np.tensordot(_BAND_TERMS, (terms * _DIRECTIONS).sum(-1), axes=1)
    farther = (distance[:, :, 0] >= distance[:, :, 1])[..., None]
    return np.rint(np.where(farther, corners[:, :, 0], corners[:, :, 1])).astype(np.int32)


def paint_solids(image: Image, outlines: NDArray[np.int32], colors: Floats, labels: NDArray[np.int16]) -> None:
    """Paint solids over each other, the first one farthest away.

    Args:
        image: Painted on.
        outlines: (bands, P, corners, 2) from :func:`outline_solids`.
        colors: (P, 3) RGB, 0 to 255.
        labels: (H, W), set to i where the i-th solid covers what was there.
    """
    shades = np.minimum(colors[:, None] * _BAND_BRIGHTNESS[:, None], 255.0).tolist()
    for label, (bands, shade) in enumerate(zip(zip(*outlines, strict=True), shades, strict=True)):
        for outline, color in zip(bands, shade, strict=True):
            cv2.fillConvexPoly(image, outline, color, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.fillConvexPoly(labels, bands[0], label, cv2.LINE_8, _SUBPIXEL_BITS)


def paint_background(rng: np.random.Generator, size: tuple[int, int], light: Floats) -> Image:
    """Paint a cluttered scene without people: smooth colours, stripes, flat shapes, and solids like limbs.

    Args:
        rng: Source of chance.
        size: (height, width) in pixels.
        light: As for :func:`outline_solids`.
    """
    height, width = size
    image = _smooth(rng, height, width)
    if rng.random() < 0.5:
        horizon = int(height * rng.uniform(0.45, 0.9))
        image[horizon:] = _smooth(rng, height - horizon, width)
    if rng.random() < 0.4:
        _paint_stripes(rng, image)
    for color in random_colors(rng, int(rng.integers(*_BACKGROUND_SHAPES))).tolist():
        _paint_shape(rng, image, color)
    count = int(rng.integers(*_BACKGROUND_SOLIDS))
    if count:
        centers = rng.uniform(0, 1, (count, 1, 2)) * (width, height) + rng.normal(0, 0.12 * height, (count, 2, 2))
        radii = rng.uniform(0.01, 0.06, (count, 2, 1, 1)) * height
        paint_solids(
            image,
            outline_solids(centers, radii * np.eye(2, 3), light),
            random_colors(rng, count),
            np.empty(size, np.int16),
        )
    return image


def add_noise(rng: np.random.Generator, image: Image) -> None:
    """Add uniform sensor noise of a random strength to an image, in place."""
    level = int(rng.choice(_NOISE_LEVELS))
    noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape) & np.uint8(level - 1)
    cv2.add(image, noise, dst=image)
    cv2.subtract(image, np.full_like(image, level // 2), dst=image)


def random_colors(rng: np.random.Generator, count: int) -> Floats:
    """Draw (count, 3) RGB colours from 0 to 255, muted more often than vivid."""
    hue = rng.uniform(0, 6, (count, 1))
    saturation = rng.uniform(0, 1, (count, 1)) ** 2 * 0.85
    value = rng.uniform(0.15, 1.0, (count, 1))
    # The usual hexagon of hues: each channel is 1 within 1 of its own hue and 0 beyond 2.
    channel = np.clip(2.0 - np.abs((hue - (0.0, 2.0, 4.0) + 3.0) % 6.0 - 3.0), 0.0, 1.0)
    return 255.0 * value * (1.0 - saturation * (1.0 - channel))


def _smooth(rng: np.random.Generator, height: int, width: int) -> Image:
    """A blend of a few colours: a gradient of two rows or columns, blotches of more."""
    rows, columns = rng.integers(1, 6, 2)
    brightness, hue = rng.normal(0, 30, (rows, columns, 1)), rng.normal(0, 8, (rows, columns, 3))
    colors = np.clip(random_colors(rng, 1) + brightness + hue, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _paint_stripes(rng: np.random.Generator, image: Image) -> None:
    """Parallel lines over a rectangle, in one or two directions."""
    height, width = image.shape[:2]
    top, left = (rng.uniform(0, 0.6, 2) * (height, width)).astype(int)
    bottom, right = (top, left) + rng.uniform(0.3, 1, 2) * (height, width)
    region = image[top : int(bottom), left : int(right)]
    (color,) = random_colors(rng, 1).astype(np.uint8)
    period = int(rng.integers(4, max(6, height // 8)))
    thickness = max(1, int(period * rng.uniform(0.1, 0.6)))
    directions = rng.random(2) < 0.6
    for offset in range(thickness):
        if directions[0]:
            region[offset::period] = color
        if directions[1]:
            region[:, offset::period] = color


def _paint_shape(rng: np.random.Generator, image: Image, color: list[float]) -> None:
    """One flat rectangle, ellipse, triangle or bar."""
    height, width = image.shape[:2]
    center = (rng.uniform(0, width), rng.uniform(0, height))
    extent = (rng.uniform(0.03, 0.35) * width, rng.uniform(0.03, 0.35) * height)
    angle = rng.uniform(0, 180)
    kind = rng.integers(4)
    if kind == 0:
        corners = cv2.boxPoints((center, extent, angle))
        cv2.fillConvexPoly(image, np.round(corners).astype(np.int32), color, cv2.LINE_AA)
    elif kind == 1:
        cv2.ellipse(image, (center, extent, angle), color, cv2.FILLED, cv2.LINE_AA)
    elif kind == 2:
        triangle = center + rng.normal(0, 0.5, (3, 2)) * extent
        cv2.fillConvexPoly(image, np.round(triangle).astype(np.int32), color, cv2.LINE_AA)
    else:
        corners = cv2.boxPoints((center, (0.25 * extent[0], 1.5 * height), angle))
        cv2.fillConvexPoly(image, np.round(corners).astype(np.int32), color, cv2.LINE_AA)
