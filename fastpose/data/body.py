"""A jointed body of simple solids, after the model of Marr and Nishihara (1978): a cylinder for each part.

Lengths are in heads, the distance from the upper neck to the top of the head; proportions follow the MPII
annotations. Every segment of the body has a frame with x to the person's left, y up and z forward. The camera's
frame has x to the right of the image, y up and z towards the viewer, so a body that is not turned faces the
viewer and has its left at the right of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastpose.data.poses import Pose
from fastpose.skeletons import MPII

Floats = NDArray[np.float64]
Vector = tuple[float, float, float]

# Segment: parent and position of its origin in the parent's frame. Parents come before their children.
SEGMENTS: dict[str, tuple[str, Vector]] = {
    "pelvis": ("", (0.0, 0.0, 0.0)),
    "chest": ("pelvis", (0.0, 0.40, 0.0)),
    "head": ("chest", (0.0, 1.88, 0.04)),
    "right_arm": ("chest", (-0.64, 1.48, 0.0)),
    "right_forearm": ("right_arm", (0.0, -1.10, 0.0)),
    "left_arm": ("chest", (0.64, 1.48, 0.0)),
    "left_forearm": ("left_arm", (0.0, -1.10, 0.0)),
    "right_thigh": ("pelvis", (-0.37, 0.0, 0.0)),
    "right_shin": ("right_thigh", (0.0, -1.60, 0.0)),
    "right_foot": ("right_shin", (0.0, -1.55, 0.0)),
    "left_thigh": ("pelvis", (0.37, 0.0, 0.0)),
    "left_shin": ("left_thigh", (0.0, -1.60, 0.0)),
    "left_foot": ("left_shin", (0.0, -1.55, 0.0)),
}
_SEGMENT = {name: index for index, name in enumerate(SEGMENTS)}
_PARENT = [_SEGMENT.get(parent, -1) for parent, _ in SEGMENTS.values()]
_ORIGIN = np.array([origin for _, origin in SEGMENTS.values()])
_LENGTH_FACTOR = {"pelvis": "torso", "chest": "torso"} | {
    f"{side}_{segment}": factor
    for side in ("left", "right")
    for segment, factor in (("arm", "arms"), ("forearm", "arms"), ("thigh", "legs"), ("shin", "legs"))
}

# Joint: the segment it lies in and its position there.
_JOINTS: dict[str, tuple[str, Vector]] = {
    "right_ankle": ("right_foot", (0.0, 0.0, 0.0)),
    "right_knee": ("right_shin", (0.0, 0.0, 0.0)),
    "right_hip": ("right_thigh", (0.0, 0.0, 0.0)),
    "left_hip": ("left_thigh", (0.0, 0.0, 0.0)),
    "left_knee": ("left_shin", (0.0, 0.0, 0.0)),
    "left_ankle": ("left_foot", (0.0, 0.0, 0.0)),
    "pelvis": ("pelvis", (0.0, 0.0, 0.0)),
    "thorax": ("chest", (0.0, 1.54, 0.0)),
    "upper_neck": ("head", (0.0, 0.0, 0.0)),
    "head_top": ("head", (0.0, 1.0, 0.0)),
    "right_wrist": ("right_forearm", (0.0, -0.95, 0.0)),
    "right_elbow": ("right_forearm", (0.0, 0.0, 0.0)),
    "right_shoulder": ("right_arm", (0.0, 0.0, 0.0)),
    "left_shoulder": ("left_arm", (0.0, 0.0, 0.0)),
    "left_elbow": ("left_forearm", (0.0, 0.0, 0.0)),
    "left_wrist": ("left_forearm", (0.0, -0.95, 0.0)),
}
_JOINT_SEGMENT = np.array([_SEGMENT[_JOINTS[joint][0]] for joint in MPII.joints])
_JOINT_OFFSET = np.array([_JOINTS[joint][1] for joint in MPII.joints])

# Semi-axes of the ellipsoid whose box is the head box. From the front that is 0.77 wide and 1 high, like the
# median of MPII; the neck and the top of the head are 0.79 of its diagonal apart (0.80 in MPII).
_HEAD_AXES = np.array([0.385, 0.5, 0.42])


class Ball(NamedTuple):
    """An ellipsoid in the frame of a segment: centre and semi-axes along x, y and z."""

    segment: str
    centre: Vector
    axes: Vector


class Part(NamedTuple):
    """The convex hull of two balls.

    ``joints`` are those whose flesh it is: it never hides them. ``bias`` moves it towards the viewer in the
    order of drawing, in heads. With a ``style``, only bodies of that style have it.
    """

    material: str
    start: Ball
    end: Ball
    joints: tuple[str, ...] = ()
    bias: float = 0.0
    style: str = ""


def _round(segment: str, centre: Vector, radius: float) -> Ball:
    return Ball(segment, centre, (radius, radius, radius))


def _single(
    material: str, ball: Ball, joints: tuple[str, ...] = (), bias: float = 0.0, style: str = ""
) -> Part:
    return Part(material, ball, ball, joints, bias, style)


def _limbs(side: str) -> tuple[Part, ...]:
    hip, knee, ankle, shoulder, elbow, wrist = (
        f"{side}_{joint}" for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
    )
    arm, forearm, thigh, shin, foot = (
        f"{side}_{segment}" for segment in ("arm", "forearm", "thigh", "shin", "foot")
    )
    origin = (0.0, 0.0, 0.0)
    return (
        Part("thigh", _round(thigh, origin, 0.29), _round(shin, origin, 0.20), (hip, knee)),
        Part("shin", _round(shin, origin, 0.19), _round(foot, origin, 0.115), (knee, ankle)),
        Part(
            "shoes",
            _round(foot, (0.0, -0.10, -0.05), 0.14),
            Ball(foot, (0.0, -0.15, 0.45), (0.13, 0.09, 0.14)),
            (ankle,),
        ),
        Part("arm", _round(arm, origin, 0.20), _round(forearm, origin, 0.145), (shoulder, elbow)),
        Part(
            "forearm", _round(forearm, origin, 0.14), _round(forearm, (0.0, -0.95, 0.0), 0.10), (elbow, wrist)
        ),
        Part(
            "skin",
            _round(forearm, (0.0, -0.98, 0.0), 0.10),
            Ball(forearm, (0.0, -1.22, 0.02), (0.07, 0.13, 0.11)),
            (wrist,),
        ),
    )


def _face(side: float) -> tuple[Part, ...]:
    return (
        _single("skin", Ball("head", (0.37 * side, 0.48, -0.03), (0.06, 0.11, 0.08))),
        _single("eye_white", Ball("head", (0.155 * side, 0.53, 0.33), (0.095, 0.075, 0.03)), bias=0.05),
        _single("eye", Ball("head", (0.155 * side, 0.53, 0.36), (0.055, 0.065, 0.03)), bias=0.05),
    )


PARTS: tuple[Part, ...] = (
    *_limbs("right"),
    *_limbs("left"),
    Part(
        "hips",
        Ball("pelvis", (0.0, 0.02, -0.02), (0.60, 0.30, 0.36)),
        Ball("pelvis", (0.0, 0.42, 0.0), (0.48, 0.15, 0.31)),
        ("pelvis", "right_hip", "left_hip"),
        bias=-0.08,
    ),
    Part(
        "shirt",
        Ball("chest", (0.0, 0.05, 0.0), (0.49, 0.20, 0.33)),
        Ball("chest", (0.0, 1.12, 0.0), (0.60, 0.42, 0.38)),
        ("thorax",),
        bias=-0.07,
    ),
    Part(
        "shirt",
        _round("right_arm", (0.0, 0.0, 0.0), 0.19),
        _round("left_arm", (0.0, 0.0, 0.0), 0.19),
        ("thorax", "right_shoulder", "left_shoulder"),
        bias=-0.09,
    ),
    _single("stripe", Ball("chest", (0.0, 1.05, 0.0), (0.61, 0.13, 0.395)), bias=-0.06, style="hoop"),
    Part(
        "stripe",
        _round("chest", (0.0, 1.30, 0.36), 0.045),
        _round("chest", (0.0, 0.10, 0.33), 0.045),
        style="buttons",
    ),
    _single("belt", Ball("pelvis", (0.0, 0.42, 0.0), (0.50, 0.09, 0.33)), bias=-0.05, style="belt"),
    _single("skin", Ball("chest", (0.0, 1.50, 0.22), (0.20, 0.17, 0.10))),
    Part(
        "skin",
        _round("chest", (0.0, 1.54, 0.0), 0.19),
        _round("head", (0.0, 0.10, -0.02), 0.18),
        ("thorax", "upper_neck"),
        bias=-0.02,
    ),
    Part(
        "skin",
        Ball("head", (0.0, 0.56, -0.01), (0.36, 0.36, 0.39)),
        Ball("head", (0.0, 0.17, 0.12), (0.19, 0.15, 0.20)),
        ("upper_neck", "head_top"),
    ),
    _single(
        "hair", Ball("head", (0.0, 0.60, -0.09), (0.41, 0.41, 0.40)), ("upper_neck", "head_top"), bias=0.07
    ),
    _single(
        "hair", Ball("head", (0.0, 0.83, 0.14), (0.31, 0.15, 0.26)), ("head_top",), bias=0.10, style="fringe"
    ),
    Part(
        "hair",
        Ball("head", (0.0, 0.60, -0.14), (0.38, 0.34, 0.30)),
        Ball("head", (0.0, -0.22, -0.24), (0.34, 0.20, 0.14)),
        ("upper_neck",),
        bias=0.05,
        style="long_hair",
    ),
    *_face(1.0),
    *_face(-1.0),
    Part(
        "nose",
        _round("head", (0.0, 0.46, 0.38), 0.04),
        _round("head", (0.0, 0.36, 0.44), 0.065),
        bias=0.02,
    ),
    _single("mouth", Ball("head", (0.0, 0.21, 0.31), (0.11, 0.03, 0.03)), bias=0.05),
)
"""All parts of a body."""

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


# Factors on the proportions above.
TORSO_LENGTH = (0.92, 1.08)
ARM_LENGTH = (0.92, 1.10)
LEG_LENGTH = (0.90, 1.10)
GIRTH = (0.85, 1.18)

STYLES: dict[str, float] = {"hoop": 0.3, "buttons": 0.4, "belt": 0.5, "long_hair": 0.4, "fringe": 0.75}
"""How often a body has the parts of each style."""


@dataclass(frozen=True)
class Body:
    """A posed body in the camera's frame, in heads, with its pelvis at the origin.

    Args:
        joints: (16, 3) the MPII joints.
        balls: (P, 2, 3) centres of the two balls of every part.
        axes: (P, 2, 3, 3) semi-axes of the balls, as the columns of a matrix.
        order: (P,) key of the order of drawing; greater is nearer to the viewer.
        present: bool (P,), the parts that this body has.
        head_box: (2,) width and height of the box around the head in the image plane.
    """

    joints: Floats
    balls: Floats
    axes: Floats
    order: Floats
    present: NDArray[np.bool_]
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
        np.array(
            [pose.angles.get(segment, (0.0, 0.0, 0.0)) for segment in SEGMENTS]
            + [(pitch, 0.0, roll), (0.0, turn, 0.0)]
        )
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
    return Body(
        joints=place(_JOINT_SEGMENT, _JOINT_OFFSET),
        balls=balls,
        axes=axes.reshape(-1, 2, 3, 3),
        order=balls[:, :, 2].mean(axis=1) + _PART_BIAS,
        present=np.array([not part.style or part.style in build.styles for part in PARTS]),
        head_box=2.0 * np.linalg.norm(frames[_SEGMENT["head"], :2] * _HEAD_AXES, axis=1),
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
