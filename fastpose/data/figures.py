"""Procedurally drawn people with exact keypoints: a data set that needs no download and never ends.

Jointed bodies of shaded solids (:mod:`fastpose.data.body`) in sampled poses (:mod:`fastpose.data.poses`)
stand before clutter, seen from the front, the back and the sides. They wear clothes, hide parts of themselves
and of each other, and reach beyond the picture. What tells left from right is what is seen: the face, the
hair, the feet and which limb is in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fastpose.data.body import FLESH, MATERIALS, PART_MATERIAL, Body, make_body, sample_build
from fastpose.data.paint import (
    Floats,
    Image,
    add_noise,
    outline_solids,
    paint_background,
    paint_solids,
    random_colors,
)
from fastpose.data.poses import sample_pose
from fastpose.data.records import Person

# In units of the picture's shorter side: the person side of MPII (200 · scale, about 6 heads), and the
# standard deviation of the person's middle from that of the picture.
PERSON_SIDE = (0.56, 0.84)
PERSON_SHIFT = 0.06

PEOPLE_SHARES = (0.55, 0.30, 0.15)
"""How often there are one, two or three people; the shares of more people than are wanted go to fewer."""

# Bystanders: size and sideways distance relative to the person, and how often they stand in front.
BYSTANDER_SIZE = (0.7, 1.05)
BYSTANDER_DISTANCE = (0.35, 0.95)
BYSTANDER_IN_FRONT = 0.25

HEAD_DIAGONALS_PER_SIDE = 4.8
"""MPII's person side is 4.8 diagonals of the head box, exactly, and PCKh's unit is 0.6 of that diagonal."""
HEAD_SIZE = 0.6
CENTER_ABOVE_MIDDLE = 6.0
"""MPII's centre is 6 · scale pixels above the middle of the joints' box (median of its validation set)."""

VALIDATION_FIGURES = 500
VALIDATION_SEED = 0
"""Figures to validate on are the same for every run, and training sees other ones."""

_LEAST_SIZE = 32
_DOWN = np.array([1.0, -1.0])  # y is up in a body and down in an image
_APART = 10.0  # heads between people in depth, so that they never interleave
_DISTINCT = 60.0  # least difference of shirt and trousers in some channel
_DEPTH_SHADE = 0.08  # per head of depth

# RGB
SKINS = np.array([(255, 219, 190), (240, 194, 155), (222, 170, 125), (190, 132, 90), (140, 92, 62), (98, 64, 46)])
HAIRS = np.array([(40, 30, 26), (74, 48, 30), (120, 78, 44), (196, 156, 92), (150, 68, 34), (150, 150, 150)])
EYES = np.array([(30, 24, 22), (60, 40, 26), (40, 80, 110), (50, 90, 60)])


class Figures(Sequence[Person]):
    """Drawn people, each item one :class:`~fastpose.data.records.Person` with the 16 MPII joints.

    An item depends on ``seed`` and its index alone, so that all workers, runs and lengths agree on it.

    Args:
        length: Number of items; any number, since an item exists only while it is looked at.
        seed: Figures of different seeds are independent.
        size: (height, width) of the pictures in pixels, at least 32 each.
        clutter: Draw backgrounds and sensor noise; otherwise the background is plain grey.
        max_people: At most this many people in a picture, 1 to 3. The one meant is nearest the middle.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        length: int = 10_000,
        *,
        seed: int = 0,
        size: tuple[int, int] = (256, 256),
        clutter: bool = True,
        max_people: int = len(PEOPLE_SHARES),
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if len(size) != 2 or min(size) < _LEAST_SIZE:
            raise ValueError(f"size must be (height, width), each at least {_LEAST_SIZE}, got {size}")
        if not 1 <= max_people <= len(PEOPLE_SHARES):
            raise ValueError(f"max_people must be 1 to {len(PEOPLE_SHARES)}, got {max_people}")
        self.length = length
        self.seed = seed
        self.size = size
        self.clutter = clutter
        self.max_people = max_people

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Person: ...

    @overload
    def __getitem__(self, index: slice) -> list[Person]: ...

    def __getitem__(self, index: int | slice) -> Person | list[Person]:
        """Draw one picture, or those of a slice.

        Raises:
            IndexError: ``index`` is outside of the data set.
        """
        if isinstance(index, slice):
            return [self[item] for item in range(self.length)[index]]
        item = range(self.length)[index]
        rng = np.random.default_rng((self.seed, item))
        people = _sample_people(rng, self.size, self.max_people)
        light = _sample_light(rng)
        image = paint_background(rng, self.size, light) if self.clutter else _plain_background(self.size)
        hidden = paint_people(rng, image, people, light)
        if self.clutter:
            add_noise(rng, image)
        return _label(image, people, hidden, item)


@dataclass(frozen=True)
class Figure:
    """A body in the picture: pixel of its pelvis, pixels per head, and nearness to the viewer in heads."""

    body: Body
    origin: Floats
    unit: float
    nearness: float

    @property
    def joints(self) -> Floats:
        """(16, 2) pixel coordinates of the joints."""
        return self.origin + self.unit * self.body.joints[:, :2] * _DOWN

    @property
    def balls(self) -> Floats:
        """(P, 2, 2) pixel coordinates of the centres of the balls."""
        return self.origin + self.unit * self.body.balls[:, :, :2] * _DOWN

    @property
    def axes(self) -> Floats:
        """(P, 2, 2, 3) projected semi-axes of the balls in pixels."""
        return self.unit * self.body.axes[:, :, :2] * _DOWN[:, None]

    @property
    def head_diagonal(self) -> float:
        """Diagonal of the head box in pixels."""
        return self.unit * float(np.hypot(*self.body.head_box))


def _sample_people(rng: np.random.Generator, size: tuple[int, int], max_people: int) -> list[Figure]:
    """Draw the person meant, near the middle, and then bystanders at either side."""
    count = min(1 + int(rng.choice(len(PEOPLE_SHARES), p=PEOPLE_SHARES)), max_people)
    height, width = size
    side = rng.uniform(*PERSON_SIDE) * min(size)
    middle = (np.array([width, height]) - 1) / 2 + rng.normal(0, PERSON_SHIFT * min(size), 2)
    people = [_place(make_body(sample_pose(rng), sample_build(rng)), middle, side, 0.0)]
    for bystander in range(1, count):
        distance = rng.choice((-1, 1)) * rng.uniform(*BYSTANDER_DISTANCE) * side
        where = middle + np.array([distance, rng.uniform(-0.1, 0.1) * side])
        nearness = _APART * bystander * (1 if rng.random() < BYSTANDER_IN_FRONT else -1)
        body = make_body(sample_pose(rng), sample_build(rng))
        people.append(_place(body, where, rng.uniform(*BYSTANDER_SIZE) * side, nearness))
    return people


def _place(body: Body, middle: Floats, side: float, nearness: float) -> Figure:
    """Put the middle of the box around a body's joints at a pixel."""
    unit = side / (HEAD_DIAGONALS_PER_SIDE * float(np.hypot(*body.head_box)))
    joints = body.joints[:, :2] * _DOWN
    return Figure(body, middle - unit * (joints.min(0) + joints.max(0)) / 2, unit, nearness)


def _sample_light(rng: np.random.Generator) -> Floats:
    """Draw light from above, from the left to the right: (x, y) in the image, shorter than 1."""
    angle, strength = np.radians(rng.uniform(200, 340)), rng.uniform(0.2, 0.9)
    return strength * np.array([np.cos(angle), np.sin(angle)])


def _sample_clothes(rng: np.random.Generator) -> Floats:
    """Draw the RGB colours of all materials, (M, 3): skin, hair and clothes; some leave arms or legs bare."""
    skin = rng.choice(SKINS) * rng.uniform(0.9, 1.05)
    shirt, trousers, shoes, trim = random_colors(rng, 4)
    if np.abs(shirt - trousers).max() < _DISTINCT:
        trousers = (shirt + 127.5) % 255.0
    bare_arms, bare_forearms, bare_shins = rng.random(3) < (0.25, 0.6, 0.5)
    colors = {
        "skin": skin,
        "nose": 0.88 * skin,
        "mouth": skin * (0.75, 0.5, 0.5),
        "hair": rng.choice(HAIRS),
        "eye_white": np.full(3, 250.0),
        "eye": rng.choice(EYES),
        "shirt": shirt,
        "stripe": trim,
        "belt": 0.5 * trim,
        "trousers": trousers,
        "shoes": shoes,
        "arm": skin if bare_arms else shirt,
        "forearm": skin if bare_arms or bare_forearms else shirt,
        "shin": skin if bare_shins else trousers,
    }
    return np.array([colors[material] for material in MATERIALS])


def paint_people(rng: np.random.Generator, image: Image, people: list[Figure], light: Floats) -> NDArray[np.bool_]:
    """Paint people far to near.

    Returns:
        bool (16,): which joints of the first one are covered by something that is not their own flesh.
    """
    bodies = [figure.body for figure in people]
    depth = np.concatenate([body.order for body in bodies])
    far_to_near = np.argsort(np.concatenate([figure.body.order + figure.nearness for figure in people]))
    colors = np.concatenate([_sample_clothes(rng)[PART_MATERIAL[body.parts]] for body in bodies])
    # The far side of a body is a little darker.
    colors *= 1.0 + _DEPTH_SHADE * np.clip(depth, -1.5, 1.5)[:, None]
    centers = np.concatenate([figure.balls for figure in people])
    axes = np.concatenate([figure.axes for figure in people])
    labels = np.full(image.shape[:2], -1, np.int16)
    outlines = outline_solids(centers[far_to_near], axes[far_to_near], light)
    paint_solids(image, outlines, colors[far_to_near], labels)

    first = bodies[0].parts
    rank = np.argsort(far_to_near)[: len(first)]
    nearest_flesh = np.where(FLESH[:, first], rank, -1).max(axis=1)
    pixel = np.round(people[0].joints).astype(int)
    x, y = np.clip(pixel, 0, (image.shape[1] - 1, image.shape[0] - 1)).T
    return np.greater(labels[y, x], nearest_flesh)


def _label(image: Image, people: list[Figure], hidden: NDArray[np.bool_], index: int) -> Person:
    """Label the first of the figures as MPII does: joints beyond the picture are not labelled, hidden ones are."""
    height, width = image.shape[:2]
    joints = np.stack([figure.joints for figure in people])
    x, y = joints[..., 0], joints[..., 1]
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    keypoints = np.where(inside[:, :, None], joints, np.nan).astype(np.float32)
    labelled = joints[0][inside[0]]
    head_diagonal = people[0].head_diagonal
    scale = HEAD_DIAGONALS_PER_SIDE * head_diagonal / 200
    center = (labelled.min(0) + labelled.max(0)) / 2 - (0, CENTER_ABOVE_MIDDLE * scale)
    return Person(
        image=image,
        keypoints=keypoints[0],
        visible=inside[0] & ~hidden,
        center=center.astype(np.float32),
        scale=scale,
        head_size=HEAD_SIZE * head_diagonal,
        bystanders=keypoints[1:],
        image_id=index,
    )


def _plain_background(size: tuple[int, int]) -> Image:
    return np.full((*size, 3), 128, np.uint8)
