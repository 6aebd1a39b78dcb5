"""Skeletons: which joints a data set labels, in which order, how they connect and which of them swap sides.

The four orders are those of the files that the data sets publish. "Left" and "right" are the person's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right", "centre"]


@dataclass(frozen=True)
class Skeleton:
    """An ordered set of joints.

    Args:
        name: Name of the convention, e.g. ``"mpii"``.
        joints: The K joint names in label order. A name that starts with ``left_`` or ``right_`` is on that
            side.
        edges: Pairs of joint indices that a drawing connects.
        flip_pairs: Pairs of joint indices that change places when the image is mirrored.

    Raises:
        ValueError: A joint name repeats, an index is outside of 0..K-1, a pair holds the same joint twice, or
            a joint is in more than one flip pair.
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.joints or len(set(self.joints)) != len(self.joints):
            raise ValueError(f"joints must be one or more distinct names, got {self.joints}")
        for argument, pairs in (("edges", self.edges), ("flip_pairs", self.flip_pairs)):
            for pair in pairs:
                if len(pair) != 2 or pair[0] == pair[1]:
                    raise ValueError(f"{argument} must hold pairs of two different joints, got {pair}")
                if not all(0 <= joint < len(self.joints) for joint in pair):
                    raise ValueError(f"{argument} must hold indices 0..{len(self.joints) - 1}, got {pair}")
        paired = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(paired)) != len(paired):
            raise ValueError(f"flip_pairs must be disjoint, got {self.flip_pairs}")

    @property
    def num_joints(self) -> int:
        """Number of joints, K."""
        return len(self.joints)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """For every joint the joint it becomes in the mirror; a permutation that is its own inverse."""
        permutation = list(range(self.num_joints))
        for left, right in self.flip_pairs:
            permutation[left], permutation[right] = right, left
        return tuple(permutation)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The side of the body of every joint, read from its name."""
        return tuple(_side(joint) for joint in self.joints)

    def index(self, joint: str) -> int:
        """Position of a joint in label order.

        Args:
            joint: Joint name, e.g. ``"left_wrist"``.

        Raises:
            ValueError: This skeleton has no such joint.
        """
        if joint not in self.joints:
            raise ValueError(f"joint must be one of {', '.join(self.joints)} ({self.name}), got {joint!r}")
        return self.joints.index(joint)


def _side(joint: str) -> Side:
    if joint.startswith("left_"):
        return "left"
    return "right" if joint.startswith("right_") else "centre"


MPII = Skeleton(
    name="mpii",
    joints=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "upper_neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    edges=(
        (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5),
        (6, 7), (7, 8), (8, 9),
        (10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15),
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
)  # fmt: skip
"""MPII Human Pose (Andriluka et al., CVPR 2014): 16 joints."""

LSP = Skeleton(
    name="lsp",
    joints=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "neck",
        "head_top",
    ),
    edges=(
        (0, 1), (1, 2), (3, 4), (4, 5), (2, 3),
        (6, 7), (7, 8), (9, 10), (10, 11), (8, 9),
        (8, 12), (9, 12), (12, 13),
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
)  # fmt: skip
"""Leeds Sports Pose and its extended set (Johnson and Everingham, BMVC 2010, CVPR 2011): 14 joints."""

FLIC = Skeleton(
    name="flic",
    joints=(
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "right_shoulder",
        "right_elbow",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_eye",
        "right_eye",
        "nose",
    ),
    edges=((0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (0, 6), (3, 7), (6, 7)),
    flip_pairs=((0, 3), (1, 4), (2, 5), (6, 7), (8, 9)),
)
"""Frames Labeled in Cinema (Sapp and Taskar, CVPR 2013): the 11 labelled joints of the file's 29."""

COCO = Skeleton(
    name="coco",
    joints=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12),
        (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
)  # fmt: skip
"""COCO keypoints (Lin et al., ECCV 2014): 17 joints."""

SKELETONS: dict[str, Skeleton] = {skeleton.name: skeleton for skeleton in (MPII, LSP, FLIC, COCO)}
"""The skeletons by name."""


def get_skeleton(name: str) -> Skeleton:
    """Look a skeleton up by name.

    Args:
        name: A key of :data:`SKELETONS`: ``"mpii"``, ``"lsp"``, ``"flic"`` or ``"coco"``.

    Raises:
        ValueError: No skeleton has this name.
    """
    if name not in SKELETONS:
        raise ValueError(f"name must be one of {', '.join(SKELETONS)}, got {name!r}")
    return SKELETONS[name]
