"""The published protocols by name; docs/metrics.md has their differences and sources in one table."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastpose.metrics.coco import COCO_SIGMAS, OKSProtocol
from fastpose.metrics.limbs import Limbs
from fastpose.metrics.protocols import Protocol
from fastpose.skeletons import COCO, FLIC, LSP, MPII


def _sides(joint: str) -> tuple[str, str]:
    return f"right_{joint}", f"left_{joint}"


def _hundredths(last: int) -> tuple[float, ...]:
    return tuple(number / 100 for number in range(last + 1))


_PAIRS = {joint: _sides(joint) for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")}
# Pelvis and thorax hardly move in the box, so nobody counts them.
_MPII_TOTAL = tuple(joint for joint in MPII.joints if joint not in ("pelvis", "thorax"))

# evalMPII of Andriluka et al., CVPR 2014, which the test server runs.
MPII_OFFICIAL = Protocol(
    skeleton=MPII,
    threshold=0.5,
    comparison="<=",
    columns={"head": ("upper_neck", "head_top"), **_PAIRS},
    totals={
        "upper_body": (*_PAIRS["wrist"], *_PAIRS["elbow"], *_PAIRS["shoulder"]),
        "total": _MPII_TOTAL,
    },
    reduction="pooled",
    curve=_hundredths(50),
)
# The script of Tompson et al., CVPR 2015, and of pytorch-pose.
_PYTORCH_POSE = Protocol(
    skeleton=MPII,
    threshold=0.5,
    comparison="<",
    columns={"head": ("head_top",), **_PAIRS},
    totals={"total": _MPII_TOTAL},
    reduction="mean_of_joints",
    curve=_hundredths(50),
)
# SimpleBaseline and HRNet. What they print as Mean@0.1 is the twelfth value of a curve that starts at 0.
_HRNET = replace(_PYTORCH_POSE, comparison="<=", reduction="pooled", also={"total@0.1": 0.11})
# MMPose 1.x, which computes in single precision.
_MMPOSE = replace(_HRNET, comparison="<", also={"total@0.1": 0.10}, dtype=torch.float32)

# evalLSP of Pishchulin et al., from the site of MPII: PCK and strict PCP.
_LSP = Protocol(
    skeleton=LSP,
    threshold=0.2,
    comparison="<=",
    columns={"head": ("neck", "head_top"), **_PAIRS},
    totals={"total": LSP.joints},
    reduction="pooled",
    normalizer=("left_shoulder", "right_hip"),
    curve=_hundredths(20),
    limbs=Limbs(
        ends={
            "right_lower_leg": (("right_ankle",), ("right_knee",)),
            "right_upper_leg": (("right_knee",), ("right_hip",)),
            "left_upper_leg": (("left_hip",), ("left_knee",)),
            "left_lower_leg": (("left_knee",), ("left_ankle",)),
            "right_forearm": (("right_wrist",), ("right_elbow",)),
            "right_upper_arm": (("right_elbow",), ("right_shoulder",)),
            "left_upper_arm": (("left_shoulder",), ("left_elbow",)),
            "left_forearm": (("left_elbow",), ("left_wrist",)),
            "head": (("neck",), ("head_top",)),
            "torso": (("right_hip", "left_hip"), ("right_shoulder", "left_shoulder")),
        },
        columns={
            "torso": ("torso",),
            **{limb: _sides(limb) for limb in ("upper_leg", "lower_leg", "upper_arm", "forearm")},
            "head": ("head",),
        },
        totals={
            "total": (
                *_sides("lower_leg"),
                *_sides("upper_leg"),
                *_sides("forearm"),
                *_sides("upper_arm"),
                "head",
                "torso",
            )
        },
    ),
)

# Sapp and Taskar, CVPR 2013, as in the code released with MODEC, which turns arms alone to the observer.
_FLIC_MODEC = Protocol(
    skeleton=FLIC,
    threshold=0.2,
    comparison="<=",
    columns={joint: _sides(joint) for joint in ("elbow", "wrist")},
    # Nobody publishes it; it is here to have one number to watch.
    totals={"total": (*_sides("elbow"), *_sides("wrist"))},
    reduction="pooled",
    normalizer=("left_shoulder", "right_hip"),
    curve=_hundredths(20),
    relabel="arms",
    limbs=Limbs(
        ends={
            "left_upper_arm": (("left_shoulder",), ("left_elbow",)),
            "left_forearm": (("left_elbow",), ("left_wrist",)),
            "right_upper_arm": (("right_shoulder",), ("right_elbow",)),
            "right_forearm": (("right_elbow",), ("right_wrist",)),
            "torso": (("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")),
        },
        columns={"torso": ("torso",), "upper_arm": _sides("upper_arm"), "forearm": _sides("forearm")},
        totals={"total": (*_sides("upper_arm"), *_sides("forearm"), "torso")},
    ),
)

PROTOCOLS: dict[str, Protocol | OKSProtocol] = {
    "mpii_official": MPII_OFFICIAL,
    "pytorch_pose": _PYTORCH_POSE,
    "hrnet": _HRNET,
    "mmpose": _MMPOSE,
    # The same arithmetic on labels that are the person's own or the observer's left and right.
    "lsp_pc": _LSP,
    "lsp_oc": _LSP,
    "flic_modec": _FLIC_MODEC,
    # What reproduces the numbers of Wei et al., CVPR 2016.
    "flic_cpm": replace(_FLIC_MODEC, relabel="all"),
    # farrajota/human-pose-benchmark on FLIC; on LSP it is lsp_pc and lsp_oc.
    "human_pose_benchmark": replace(_FLIC_MODEC, relabel="none", normalizer="torso_box"),
    "coco": OKSProtocol(skeleton=COCO, sigmas=COCO_SIGMAS),
}
"""Published protocols by name."""


def get_protocol(name: str) -> Protocol | OKSProtocol:
    """Look a protocol up in `PROTOCOLS`.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def resolve(protocol: Protocol | str) -> Protocol:
    """A protocol of normalised distances, itself or by its name.

    Raises:
        ValueError: if the name is unknown or that of a protocol of average precision.
    """
    found = get_protocol(protocol) if isinstance(protocol, str) else protocol
    if not isinstance(found, Protocol):
        raise ValueError(f"protocol must be one of normalised distances, got {protocol!r}, for which see average_precision")
    return found
