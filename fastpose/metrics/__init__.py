"""How near predicted joints are to labelled ones, and what share of them is near enough.

Every score takes the same steps: distances in units of a length of the person (`normalized_distances`), hits
within a threshold (`count_hits`), and what a paper prints of them (`Protocol`). A distance of NaN means that
there is nothing to compare with; it is neither a hit nor a miss. COCO's average precision is another matter, see
`average_precision`.

Published numbers differ in whether a joint exactly at the threshold counts, in how joints are averaged and in
which are left out, by up to a point for the same predictions. So these choices have names: see `PROTOCOLS`, and
docs/metrics.md for how they differ.

The functions need PyTorch alone, `average_precision` also pycocotools. The classes, `PCK`, `PCKh`, `PDJ`, `AUC`, `PCP`
and `KeypointAP`, are torchmetrics modules; torchmetrics is in the training extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastpose.metrics.coco import COCO_SIGMAS, OKSProtocol, average_precision, oks
from fastpose.metrics.distances import Comparison, area_under_curve, count_hits, normalized_distances
from fastpose.metrics.limbs import Limbs, limb_distances
from fastpose.metrics.presets import PROTOCOLS, get_protocol
from fastpose.metrics.protocols import Protocol, Reduction
from fastpose.metrics.scores import auc, pck, pcp, pdj

if TYPE_CHECKING:
    from fastpose.metrics.keypoint_ap import Detections, KeypointAP, People
    from fastpose.metrics.modules import AUC, PCK, PCP, PDJ, PCKh

_MODULES = {
    **dict.fromkeys(("AUC", "PCK", "PCP", "PDJ", "PCKh"), "modules"),
    **dict.fromkeys(("Detections", "KeypointAP", "People"), "keypoint_ap"),
}

__all__ = [
    "AUC",
    "COCO_SIGMAS",
    "PCK",
    "PCP",
    "PDJ",
    "PROTOCOLS",
    "Comparison",
    "Detections",
    "KeypointAP",
    "Limbs",
    "OKSProtocol",
    "PCKh",
    "People",
    "Protocol",
    "Reduction",
    "area_under_curve",
    "auc",
    "average_precision",
    "count_hits",
    "get_protocol",
    "limb_distances",
    "normalized_distances",
    "oks",
    "pck",
    "pcp",
    "pdj",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
