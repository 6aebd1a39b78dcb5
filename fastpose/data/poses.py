"""Plausible poses: what arms and legs do, within the limits of human joints.

Angles are in degrees about the axes of a segment's frame: x to the person's left, y up, z forward.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

Range = tuple[float, float]
Angles = tuple[float, float, float]
Choice = TypeVar("Choice")


class _Arm(NamedTuple):
    """Limits in degrees; an arm that hangs with the crease of the elbow forward is all zeros."""

    raise_forward: Range
    raise_sideways: Range
    turn_inward: Range
    bend_elbow: Range


class _Leg(NamedTuple):
    """Limits in degrees; a straight leg with the foot forward is all zeros."""

    raise_forward: Range
    raise_sideways: Range
    turn_inward: Range
    bend_knee: Range


class _Stance(NamedTuple):
    """One leg, the other leg (chance says which is the left), and how far the chest leans forward."""

    leg: _Leg
    other_leg: _Leg
    lean: Range


GESTURES: dict[str, tuple[float, _Arm]] = {
    "hang": (0.30, _Arm((-15, 20), (3, 16), (0, 40), (2, 30))),
    "swing": (0.16, _Arm((-35, 40), (3, 12), (0, 25), (10, 60))),
    "hand_on_hip": (0.10, _Arm((-20, -5), (38, 52), (58, 76), (85, 102))),
    "spread": (0.13, _Arm((-10, 10), (45, 95), (-20, 20), (0, 30))),
    "wave": (0.09, _Arm((-5, 10), (60, 95), (-95, -75), (60, 110))),
    "reach_up": (0.10, _Arm((-5, 10), (135, 165), (-20, 20), (0, 35))),
    "reach_forward": (0.05, _Arm((50, 95), (-5, 20), (0, 20), (0, 35))),
    "hold": (0.07, _Arm((10, 35), (4, 18), (10, 50), (75, 120))),
}
"""What an arm does: how often, and the limits of its angles."""

_STRAIGHT = _Leg((-5, 8), (1, 8), (-20, 0), (0, 8))
_OUTWARD = _Leg((-5, 8), (12, 26), (-25, 0), (0, 10))
_SQUATTING = _Leg((60, 95), (10, 28), (-25, 0), (80, 115))
STANCES: dict[str, tuple[float, _Stance]] = {
    "stand": (0.38, _Stance(_STRAIGHT, _STRAIGHT, (-4, 6))),
    "relaxed": (0.14, _Stance(_STRAIGHT, _Leg((0, 20), (6, 18), (-25, 0), (10, 35)), (-4, 6))),
    "astride": (0.14, _Stance(_OUTWARD, _OUTWARD, (-4, 10))),
    "stride": (
        0.16,
        _Stance(_Leg((15, 38), (0, 6), (-12, 4), (0, 25)), _Leg((-28, -8), (0, 6), (-12, 4), (10, 45)), (0, 10)),
    ),
    "lunge": (
        0.05,
        _Stance(_Leg((50, 80), (0, 12), (-15, 0), (60, 95)), _Leg((-28, -5), (0, 10), (-15, 0), (15, 50)), (0, 15)),
    ),
    "squat": (0.04, _Stance(_SQUATTING, _SQUATTING, (10, 30))),
    "kick": (0.05, _Stance(_Leg((40, 85), (0, 20), (-15, 5), (0, 30)), _STRAIGHT, (-10, 5))),
    "side_kick": (0.04, _Stance(_Leg((-5, 15), (35, 65), (-15, 5), (0, 30)), _STRAIGHT, (-8, 5))),
}
"""What the legs do: how often, and the limits of their angles."""

# Limits in degrees, about x (forward), y (about the vertical) and z (sideways).
SPINE: tuple[Range, Range, Range] = ((-4, 10), (-10, 10), (-8, 8))
NECK: tuple[Range, Range, Range] = ((-12, 16), (-28, 28), (-8, 8))
ANKLE: Range = (-8, 25)

FACING: dict[str, tuple[float, tuple[float, float]]] = {
    "front": (0.62, (0.0, 26.0)),
    "back": (0.20, (180.0, 22.0)),
    "left": (0.09, (90.0, 18.0)),
    "right": (0.09, (-90.0, 18.0)),
}
"""Where the body turns to: how often, and mean and standard deviation of the angle in degrees."""
CAMERA_PITCH: Range = (-6, 14)
CAMERA_ROLL: Range = (-6, 6)


@dataclass(frozen=True)
class Pose:
    """A pose and where it is seen from.

    Args:
        angles: For segments of the body (see :mod:`fastpose.data.body`) the angles about x, y and z against
            the segment they hang from: a turn about y, then a swing about z, then one about x. Absent means
            zeros: upright, arms and legs straight down.
        view: How far the camera looks down, how far the body is turned about the vertical (0 faces the
            viewer, 90 the right of the image) and how far the camera is tilted.
    """

    angles: Mapping[str, Angles]
    view: Angles = (0.0, 0.0, 0.0)


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose and a view within the limits above."""
    angles: dict[str, Angles] = {}
    stance = _choose(rng, STANCES)
    legs = (stance.leg, stance.other_leg) if rng.random() < 0.5 else (stance.other_leg, stance.leg)
    # Mirroring a pose, x -> -x, keeps the angles about x and reverses those about y and z.
    for side, mirror, leg in (("right", -1.0, legs[0]), ("left", 1.0, legs[1])):
        forward, sideways, inward, knee = _uniform(rng, leg)
        angles[f"{side}_thigh"] = (-forward, -mirror * inward, mirror * sideways)
        forward, sideways, inward, elbow = _uniform(rng, _choose(rng, GESTURES))
        angles[f"{side}_arm"] = (-forward, -mirror * inward, mirror * sideways)
        (toes,) = _uniform(rng, (ANKLE,))
        angles |= {f"{side}_shin": (knee, 0.0, 0.0), f"{side}_foot": (toes, 0.0, 0.0)}
        angles[f"{side}_forearm"] = (-elbow, 0.0, 0.0)
    lean, bend, twist, tilt = _uniform(rng, (stance.lean, *SPINE))
    nod, turn, cock = _uniform(rng, NECK)
    angles |= {"chest": (lean + bend, twist, tilt), "head": (nod, turn, cock)}
    pitch, roll = _uniform(rng, (CAMERA_PITCH, CAMERA_ROLL))
    return Pose(angles, (pitch, rng.normal(*_choose(rng, FACING)), roll))


def _choose(rng: np.random.Generator, table: Mapping[str, tuple[float, Choice]]) -> Choice:
    """Draw from a table of (share, choice)."""
    shares, choices = zip(*table.values(), strict=True)
    return choices[bisect.bisect(list(itertools.accumulate(shares)), rng.random() * sum(shares))]


def _uniform(rng: np.random.Generator, limits: Sequence[Range]) -> list[float]:
    """Draw one number between each pair of limits."""
    return [low + (high - low) * part for (low, high), part in zip(limits, rng.random(len(limits)), strict=True)]
