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
    "hang": (0.24, _Arm((-15, 25), (2, 18), (0, 45), (2, 40))),
    "swing": (0.14, _Arm((-40, 50), (2, 12), (0, 30), (10, 70))),
    "hand_on_hip": (0.09, _Arm((-25, -5), (35, 55), (55, 80), (80, 105))),
    "spread": (0.12, _Arm((-10, 20), (40, 105), (-40, 40), (0, 45))),
    "wave": (0.10, _Arm((-5, 20), (55, 105), (-100, -70), (50, 120))),
    "reach_up": (0.11, _Arm((-5, 20), (130, 170), (-40, 40), (0, 60))),
    "reach_forward": (0.08, _Arm((45, 110), (-5, 25), (0, 30), (0, 50))),
    "hold": (0.12, _Arm((10, 50), (2, 25), (0, 60), (70, 135))),
}
"""What an arm does: how often, and the limits of its angles."""

_STRAIGHT = _Leg((-6, 10), (0, 9), (-25, 5), (0, 8))
_OUTWARD = _Leg((-6, 10), (12, 30), (-30, 0), (0, 12))
_SQUATTING = _Leg((55, 105), (5, 30), (-30, 0), (75, 125))
STANCES: dict[str, tuple[float, _Stance]] = {
    "stand": (0.32, _Stance(_STRAIGHT, _STRAIGHT, (-5, 8))),
    "relaxed": (0.12, _Stance(_STRAIGHT, _Leg((0, 25), (5, 20), (-30, 5), (10, 40)), (-5, 8))),
    "astride": (0.12, _Stance(_OUTWARD, _OUTWARD, (-5, 15))),
    "stride": (
        0.16,
        _Stance(
            _Leg((15, 45), (0, 6), (-15, 5), (0, 35)), _Leg((-30, -5), (0, 6), (-15, 5), (10, 60)), (0, 15)
        ),
    ),
    "lunge": (
        0.08,
        _Stance(
            _Leg((50, 90), (0, 20), (-20, 5), (55, 100)), _Leg((-30, 0), (0, 15), (-20, 5), (15, 70)), (0, 25)
        ),
    ),
    "squat": (0.06, _Stance(_SQUATTING, _SQUATTING, (10, 40))),
    "kick": (0.08, _Stance(_Leg((35, 95), (0, 30), (-20, 10), (0, 45)), _STRAIGHT, (-12, 8))),
    "side_kick": (0.06, _Stance(_Leg((-5, 30), (30, 75), (-20, 10), (0, 60)), _STRAIGHT, (-8, 8))),
}
"""What the legs do: how often, and the limits of their angles."""

# Limits in degrees, about x (forward), y (about the vertical) and z (sideways).
SPINE: tuple[Range, Range, Range] = ((-6, 18), (-14, 14), (-12, 12))
NECK: tuple[Range, Range, Range] = ((-18, 22), (-35, 35), (-12, 12))
ANKLE: Range = (-10, 35)

FACING: dict[str, tuple[float, tuple[float, float]]] = {
    "front": (0.58, (0.0, 32.0)),
    "back": (0.20, (180.0, 28.0)),
    "left": (0.11, (90.0, 22.0)),
    "right": (0.11, (-90.0, 22.0)),
}
"""Where the body turns to: how often, and mean and standard deviation of the angle in degrees."""
CAMERA_PITCH: Range = (-8, 18)
CAMERA_ROLL: Range = (-10, 10)


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
    return [
        low + (high - low) * part for (low, high), part in zip(limits, rng.random(len(limits)), strict=True)
    ]
