"""The score by which training goes, for each data set: what is measured, in which unit, and what counts as near."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastpose.metrics import Protocol
from fastpose.metrics.presets import MPII_OFFICIAL
from fastpose.skeletons import COCO, FLIC, LSP, Skeleton


def _largest_side(batch: Mapping[str, Any]) -> torch.Tensor:
    return batch["box"][:, 2:].amax(dim=1)


_UNITS: Mapping[str, Callable[[Mapping[str, Any]], torch.Tensor]] = {
    "head_size": lambda batch: batch["head_size"],
    "torso_size": lambda batch: batch["torso_size"],
    "box": _largest_side,
}


@dataclass(frozen=True)
class Score:
    """A percentage of correct keypoints.

    Attributes:
        name: as it is printed, with its threshold.
        unit: length of a person by which distances are divided: ``"head_size"``, ``"torso_size"`` or ``"box"``, the
            longer side of the box.
        protocol: what counts, and what is averaged.
    """

    name: str
    unit: str
    protocol: Protocol

    @property
    def metric(self) -> str:
        """The name without the threshold."""
        return self.name.partition("@")[0]

    def lengths(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The unit of each person of a batch (B,), in image pixels; NaN where it is not known."""
        return _UNITS[self.unit](batch)


def _sides(*joints: str) -> dict[str, tuple[str, ...]]:
    return {joint: (f"right_{joint}", f"left_{joint}") for joint in joints}


def _pck(skeleton: Skeleton, threshold: float, columns: Mapping[str, tuple[str, ...]], total: tuple[str, ...]) -> Protocol:
    return Protocol(skeleton, threshold, "<=", columns, {"total": total}, "pooled")


_LIMBS = _sides("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_UPPER_BODY = _sides("shoulder", "elbow", "wrist", "hip")

SCORES: Mapping[str, Score] = {
    "mpii": Score("PCKh@0.5", "head_size", MPII_OFFICIAL),
    "lsp": Score("PCK@0.2", "torso_size", _pck(LSP, 0.2, {"head": ("neck", "head_top"), **_LIMBS}, LSP.joints)),
    # Of FLIC the literature prints elbows and wrists.
    "flic": Score("PCK@0.2", "torso_size", _pck(FLIC, 0.2, _UPPER_BODY, (*_UPPER_BODY["elbow"], *_UPPER_BODY["wrist"]))),
    # As MMPose's PCKAccuracy does by default. COCO's own score needs detections of the whole image.
    "coco": Score("PCK@0.05", "box", _pck(COCO, 0.05, {"head": COCO.joints[:5], **_LIMBS}, COCO.joints)),
}
"""The score of each data set by its name."""
