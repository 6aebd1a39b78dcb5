"""Posed bodies: the parts of :mod:`fastpose.data.anatomy` turned about their joints and seen by a camera.

The camera's frame has x to the right of the image, y up and z towards the viewer, so a body that is not turned
faces the viewer and has its left at the right of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastpose.data.anatomy import HEAD_AXES, JOINTS, PARTS, SEGMENTS, STYLES
from fastpose.data.poses import Pose
from fastpose.skeletons import MPII

Floats = NDArray[np.float64]

_SEGMENT = {name: index for index, name in enumerate(SEGMENTS)}
_PARENT = [_SEGMENT.get(parent, -1) for parent, _ in SEGMENTS.values()]
_ORIGIN = np.array([origin for _, origin in SEGMENTS.values()])
_LENGTH_FACTOR = {"pelvis": "torso", "chest": "torso"} | {
    f"{side}_{segment}": factor
    for side in ("left", "right")
    for segment, factor in (("arm", "arms"), ("forearm", "arms"), ("thigh", "legs"), ("shin", "legs"))
}

_JOINT_SEGMENT = np.array([_SEGMENT[JOINTS[joint][0]] for joint in MPII.joints])
_JOINT_OFFSET = np.array([JOINTS[joint][1] for joint in MPII.joints])

_BALLS = [ball for part in PARTS for ball in (part.start, part.end)]
_BALL_SEGMENT = np.array([_SEGMENT[ball.segment] for ball in _BALLS])
_IN_HEAD = np.array([ball.segment == "head" for ball in _BALLS])
_BALL_CENTRE = np.array([ball.centre for ball in _BALLS])
_BALL_AXES = np.array([ball.axes for ball in _BALLS])
_PART_BIAS = np.array([part.bias for part in PARTS])

MATERIALS: tuple[str, ...] = tuple(dict.fromkeys(part.material for part in PARTS))
"""The materials that a body is made of."""

PART_MATERIAL: NDArray[np.int64] = np.array([MATERIALS.index(part.material) for part in PARTS])
"""(P,) material of every part, an index into :data:`MATERIALS`."""

FLESH: NDArray[np.bool_] = np.array([[joint in part.joints for part in PARTS] for joint in MPII.joints])
"""(16, P) which parts are the flesh of which joint."""

# Factors on the proportions of the anatomy.
TORSO_LENGTH = (0.92, 1.08)
ARM_LENGTH = (0.92, 1.10)
LEG_LENGTH = (0.90, 1.10)
GIRTH = (0.85, 1.18)


@dataclass(frozen=True)
class Body:
    """A posed body in the camera's frame, in heads, with its pelvis at the origin.

    Args:
        joints: (16, 3) the MPII joints.
        parts: (P,) the parts that this body has, as indices of :data:`~fastpose.data.anatomy.PARTS`.
        balls: (P, 2, 3) centres of the two balls of every part.
        axes: (P, 2, 3, 3) semi-axes of the balls, as the columns of a matrix.
        order: (P,) key of the order of drawing; greater is nearer to the viewer.
        head_box: (2,) width and height of the box around the head in the image plane.
    """

    joints: Floats
    parts: NDArray[np.int64]
    balls: Floats
    axes: Floats
    order: Floats
    head_box: Floats


@dataclass(frozen=True)
class Build:
    """What tells one body from another: factors on the lengths of its segments, its girth, and its styles."""

    torso: float = 1.0
    arms: float = 1.0
    legs: float = 1.0
    girth: float = 1.0
    styles: frozenset[str] = frozenset()


def sample_build(rng: np.random.Generator) -> Build:
    """Draw a build within the limits above."""
    torso, arms, legs, girth = (rng.uniform(*limits) for limits in (TORSO_LENGTH, ARM_LENGTH, LEG_LENGTH, GIRTH))
    return Build(torso, arms, legs, girth, frozenset(style for style in STYLES if rng.random() < STYLES[style]))


def make_body(pose: Pose, build: Build) -> Body:
    """Pose a body before the camera.

    Args:
        pose: Angles of the segments and the direction of view.
        build: Proportions and styles.

    Returns:
        The body in the camera's frame; dropping z is the orthographic projection.
    """
    pitch, turn, roll = pose.view
    rotations = _rotations(
        np.array([pose.angles.get(segment, (0.0, 0.0, 0.0)) for segment in SEGMENTS] + [(pitch, 0.0, roll), (0.0, turn, 0.0)])
    )
    factors = {"torso": build.torso, "arms": build.arms, "legs": build.legs}
    length = np.array([factors.get(_LENGTH_FACTOR.get(segment, ""), 1.0) for segment in SEGMENTS])
    frames = np.empty((len(SEGMENTS), 3, 3))
    origins = np.zeros((len(SEGMENTS), 3))
    frames[0] = rotations[-2] @ rotations[-1] @ rotations[0]
    for segment in range(1, len(SEGMENTS)):
        parent = _PARENT[segment]
        frames[segment] = frames[parent] @ rotations[segment]
        origins[segment] = origins[parent] + frames[parent] @ (length[parent] * _ORIGIN[segment])

    def place(segment: NDArray[np.int64], offset: Floats) -> Floats:
        return origins[segment] + (frames[segment] @ (length[segment, None] * offset)[..., None])[..., 0]

    balls = place(_BALL_SEGMENT, _BALL_CENTRE).reshape(-1, 2, 3)
    # The head sets the unit of PCKh, so it stays as it is while the rest of the body grows stout or slim.
    stout = np.where(_IN_HEAD, 1.0, build.girth)
    axes = frames[_BALL_SEGMENT] * (stout[:, None] * _BALL_AXES)[:, None, :]
    parts = np.flatnonzero([not part.style or part.style in build.styles for part in PARTS])
    return Body(
        joints=place(_JOINT_SEGMENT, _JOINT_OFFSET),
        parts=parts,
        balls=balls[parts],
        axes=axes.reshape(-1, 2, 3, 3)[parts],
        order=(balls[:, :, 2].mean(axis=1) + _PART_BIAS)[parts],
        head_box=2.0 * np.linalg.norm(frames[_SEGMENT["head"], :2] * HEAD_AXES, axis=1),
    )


def _rotations(degrees: Floats) -> Floats:
    """(N, 3) angles about x, y and z -> (N, 3, 3) matrices Rx·Rz·Ry."""
    radians = np.radians(degrees.T)
    (cos_x, cos_y, cos_z), (sin_x, sin_y, sin_z) = np.cos(radians), np.sin(radians)
    rows = [
        [cos_z * cos_y, -sin_z, cos_z * sin_y],
        [cos_x * sin_z * cos_y + sin_x * sin_y, cos_x * cos_z, cos_x * sin_z * sin_y - sin_x * cos_y],
        [sin_x * sin_z * cos_y - cos_x * sin_y, sin_x * cos_z, sin_x * sin_z * sin_y + cos_x * cos_y],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
