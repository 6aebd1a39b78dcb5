"""How near predicted joints are to labelled ones, and what share of them is near enough.

Every score takes the same steps: distances in units of a length of the person (`normalized_distances`), hits
within a threshold (`count_hits`), and what a paper prints of them (`Protocol`). A distance of NaN means that
there is nothing to compare with; it is neither a hit nor a miss.

Published numbers differ in whether a joint exactly at the threshold counts, in how joints are averaged and in
which are left out, by up to a point for the same predictions. So these choices have names: see `PROTOCOLS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from fastpose.skeletons import MPII, Skeleton

if TYPE_CHECKING:
    from fastpose.metric_modules import PCKh as PCKh

Comparison = Literal["<", "<="]
Reduction = Literal["pooled", "mean_of_joints"]


def normalized_distances(predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Measure the distances of predictions from labels in units of a length of each person.

    Args:
        predictions: predicted (x, y) of N people's K joints, (N, K, 2), any real dtype.
        keypoints: true coordinates (N, K, 2) in the same frame; NaN where a joint has no label.
        lengths: the unit of each person (N,) in the same pixels, such as the head size or the torso diameter;
            NaN where it is not known.

    Returns:
        Distances (N, K) in float64. NaN where there is no label or no known length. Infinite, thus wrong at
        any threshold, where the prediction is NaN or infinite or the length is not positive.

    Raises:
        ValueError: if the shapes are not as above.
    """
    if keypoints.ndim != 3 or keypoints.shape[2] != 2:
        raise ValueError(f"keypoints must be of shape (N, K, 2), got {tuple(keypoints.shape)}")
    if predictions.shape != keypoints.shape:
        raise ValueError(
            f"predictions must have the shape of keypoints, {tuple(keypoints.shape)}, got {tuple(predictions.shape)}"
        )
    if lengths.shape != keypoints.shape[:1]:
        raise ValueError(f"lengths must be of shape ({keypoints.shape[0]},), got {tuple(lengths.shape)}")
    # In float64 before subtracting: published predictions are often unsigned bytes, and `<` and `<=` differ
    # only if a distance of exactly the threshold stays so.
    offsets = predictions.double() - keypoints.double()
    units = lengths.double()[:, None]
    distances = torch.linalg.vector_norm(offsets, dim=2) / units
    wrong = ~predictions.isfinite().all(dim=2) | (units <= 0)
    uncounted = keypoints.isnan().any(dim=2) | units.isnan()
    return distances.masked_fill(wrong, torch.inf).masked_fill(uncounted, torch.nan)


def count_hits(distances: torch.Tensor, threshold: float, comparison: Comparison = "<=") -> tuple[torch.Tensor, torch.Tensor]:
    """Count the people whose joint is within a threshold.

    Args:
        distances: (N, K) as `normalized_distances` returns them.
        threshold: largest distance of a hit, in the same unit.
        comparison: ``"<="`` if a joint exactly at the threshold is a hit, ``"<"`` if not.

    Returns:
        Hits (K,) and people that were counted (K,), int64. They can be added over batches and processes.

    Raises:
        ValueError: if ``threshold`` is not positive or ``comparison`` is neither of the two.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    if comparison not in ("<", "<="):
        raise ValueError(f"comparison must be '<' or '<=', got {comparison!r}")
    hits = distances < threshold if comparison == "<" else distances <= threshold
    return hits.sum(dim=0), (~distances.isnan()).sum(dim=0)


@dataclass(frozen=True)
class Protocol:
    """What a benchmark calls correct, and what it prints of the counts.

    Attributes:
        skeleton: the joints, in the order of the counts.
        threshold: largest normalised distance of a hit.
        comparison: whether a joint exactly at the threshold is a hit.
        columns: name of each printed column and its joints; the mean of their percentages is printed.
        totals: name of each printed summary and its joints.
        reduction: ``"pooled"`` if a summary is the percentage of all its joints' instances taken together,
            ``"mean_of_joints"`` if it is the mean of its joints' percentages.
    """

    skeleton: Skeleton
    threshold: float
    comparison: Comparison
    columns: Mapping[str, tuple[str, ...]]
    totals: Mapping[str, tuple[str, ...]]
    reduction: Reduction

    def summarize(self, hits: torch.Tensor, counted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turn the counts of `count_hits` into percentages.

        Args:
            hits: hits of each joint (K,).
            counted: counted people of each joint (K,).

        Returns:
            Percentages, scalars in float64, by name: each joint, each column, each total. A joint that was
            counted for nobody is NaN and is left out of means; what has nothing to average is NaN.

        Raises:
            ValueError: if the counts are not of this skeleton's joints.
        """
        joints = self.skeleton.joints
        for name, counts in (("hits", hits), ("counted", counted)):
            if counts.shape != (len(joints),):
                raise ValueError(
                    f"{name} must be of shape ({len(joints)},), one for each joint of {self.skeleton.name}, "
                    f"got {tuple(counts.shape)}"
                )
        percentages = 100 * hits.double() / counted
        summary = dict(zip(joints, percentages.unbind(), strict=True))
        for name, members in self.columns.items():
            summary[name] = percentages[self._indices(members)].nanmean()
        for name, members in self.totals.items():
            indices = self._indices(members)
            if self.reduction == "pooled":
                summary[name] = 100 * hits[indices].sum().double() / counted[indices].sum()
            else:
                summary[name] = percentages[indices].nanmean()
        return summary

    def _indices(self, joints: tuple[str, ...]) -> list[int]:
        return [self.skeleton.index(joint) for joint in joints]


def get_protocol(name: str) -> Protocol:
    """Look a protocol up in `PROTOCOLS`.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def pck(
    predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor, protocol: Protocol | str
) -> dict[str, torch.Tensor]:
    """Score predictions by the percentage of correct keypoints; PCKh where the lengths are head sizes.

    Args:
        predictions: predicted (x, y) of N people's K joints, (N, K, 2), in image pixels.
        keypoints: true coordinates (N, K, 2); NaN where a joint has no label. Hidden joints that have a label
            count, as in all the published numbers.
        lengths: normaliser of each person (N,) in pixels. For PCKh 0.6 times the diagonal of the head box.
        protocol: name in `PROTOCOLS`, or a protocol.

    Returns:
        Percentages by name, see `Protocol.summarize`.

    Raises:
        ValueError: if the shapes do not agree, or ``protocol`` is an unknown name.
    """
    if isinstance(protocol, str):
        protocol = get_protocol(protocol)
    distances = normalized_distances(predictions, keypoints, lengths)
    return protocol.summarize(*count_hits(distances, protocol.threshold, protocol.comparison))


def _sides(joint: str) -> tuple[str, str]:
    return f"right_{joint}", f"left_{joint}"


_LIMBS = {joint: _sides(joint) for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")}
# Pelvis and thorax hardly move in the box, so nobody counts them.
_MPII_TOTAL = tuple(joint for joint in MPII.joints if joint not in ("pelvis", "thorax"))

PROTOCOLS = {
    # evalMPII of Andriluka et al., CVPR 2014, which the test server runs.
    "mpii_official": Protocol(
        skeleton=MPII,
        threshold=0.5,
        comparison="<=",
        columns={"head": ("upper_neck", "head_top"), **_LIMBS},
        totals={
            "upper_body": (*_LIMBS["wrist"], *_LIMBS["elbow"], *_LIMBS["shoulder"]),
            "total": _MPII_TOTAL,
        },
        reduction="pooled",
    ),
    # The script of Tompson et al., CVPR 2015, and of pytorch-pose.
    "pytorch_pose": Protocol(
        skeleton=MPII,
        threshold=0.5,
        comparison="<",
        columns={"head": ("head_top",), **_LIMBS},
        totals={"total": _MPII_TOTAL},
        reduction="mean_of_joints",
    ),
}
"""Published protocols by name."""


def __getattr__(name: str) -> Any:
    # The functions above need PyTorch alone; the class also needs torchmetrics, of the training extra.
    if name == "PCKh":
        from fastpose.metric_modules import PCKh

        return PCKh
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
