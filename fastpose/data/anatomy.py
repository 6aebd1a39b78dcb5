"""The parts of a jointed body of simple solids, after the model of Marr and Nishihara (1978): cylinders, joined up.

Lengths are in heads, the distance from the upper neck to the top of the head; proportions follow the MPII
annotations. Every segment of the body has a frame with x to the person's left, y up and z forward.
"""

from __future__ import annotations

from typing import NamedTuple

Vector = tuple[float, float, float]

SEGMENTS: dict[str, tuple[str, Vector]] = {
    "pelvis": ("", (0.0, 0.0, 0.0)),
    "chest": ("pelvis", (0.0, 0.40, 0.0)),
    "head": ("chest", (0.0, 1.88, 0.04)),
    "right_arm": ("chest", (-0.64, 1.48, 0.0)),
    "right_forearm": ("right_arm", (0.0, -1.05, 0.0)),
    "left_arm": ("chest", (0.64, 1.48, 0.0)),
    "left_forearm": ("left_arm", (0.0, -1.05, 0.0)),
    "right_thigh": ("pelvis", (-0.37, 0.0, 0.0)),
    "right_shin": ("right_thigh", (0.0, -1.55, 0.0)),
    "right_foot": ("right_shin", (0.0, -1.50, 0.0)),
    "left_thigh": ("pelvis", (0.37, 0.0, 0.0)),
    "left_shin": ("left_thigh", (0.0, -1.55, 0.0)),
    "left_foot": ("left_shin", (0.0, -1.50, 0.0)),
}
"""For each segment its parent and its origin in the parent's frame; parents come before their children."""

JOINTS: dict[str, tuple[str, Vector]] = {
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
    "right_wrist": ("right_forearm", (0.0, -0.91, 0.0)),
    "right_elbow": ("right_forearm", (0.0, 0.0, 0.0)),
    "right_shoulder": ("right_arm", (0.0, 0.0, 0.0)),
    "left_shoulder": ("left_arm", (0.0, 0.0, 0.0)),
    "left_elbow": ("left_forearm", (0.0, 0.0, 0.0)),
    "left_wrist": ("left_forearm", (0.0, -0.91, 0.0)),
}
"""For each joint the segment that it lies in and its position there."""

HEAD_AXES: Vector = (0.385, 0.5, 0.42)
"""Semi-axes of the ellipsoid whose box is the head box.

From the front the box is 0.77 wide and 1 high, like the median of MPII; the neck and the top of the head are 0.79 of
its diagonal apart (0.80 in MPII).
"""

STYLES: dict[str, float] = {"hoop": 0.3, "buttons": 0.4, "belt": 0.5, "long_hair": 0.4, "fringe": 0.75}
"""How often a body has the parts of each style."""


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


def _single(material: str, ball: Ball, joints: tuple[str, ...] = (), bias: float = 0.0, style: str = "") -> Part:
    return Part(material, ball, ball, joints, bias, style)


def _limbs(side: str) -> tuple[Part, ...]:
    hip, knee, ankle, shoulder, elbow, wrist = (
        f"{side}_{joint}" for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
    )
    arm, forearm, thigh, shin, foot = (f"{side}_{segment}" for segment in ("arm", "forearm", "thigh", "shin", "foot"))
    origin = (0.0, 0.0, 0.0)
    return (
        Part("trousers", _round(thigh, origin, 0.29), _round(shin, origin, 0.20), (hip, knee)),
        Part("shin", _round(shin, origin, 0.19), _round(foot, origin, 0.115), (knee, ankle)),
        Part(
            "shoes",
            _round(foot, (0.0, -0.10, -0.05), 0.14),
            Ball(foot, (0.0, -0.15, 0.45), (0.13, 0.09, 0.14)),
            (ankle,),
        ),
        Part("arm", _round(arm, origin, 0.20), _round(forearm, origin, 0.145), (shoulder, elbow)),
        Part("forearm", _round(forearm, origin, 0.14), _round(forearm, (0.0, -0.91, 0.0), 0.10), (elbow, wrist)),
        Part(
            "skin",
            _round(forearm, (0.0, -0.94, 0.0), 0.10),
            Ball(forearm, (0.0, -1.17, 0.02), (0.07, 0.13, 0.11)),
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
        "trousers",
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
    _single("skin", Ball("chest", (0.0, 1.50, 0.22), (0.20, 0.17, 0.10)), ("thorax",)),
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
    _single("hair", Ball("head", (0.0, 0.60, -0.09), (0.41, 0.41, 0.40)), ("upper_neck", "head_top"), bias=0.07),
    _single("hair", Ball("head", (0.0, 0.83, 0.14), (0.31, 0.15, 0.26)), ("head_top",), bias=0.10, style="fringe"),
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
