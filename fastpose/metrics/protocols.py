"""What a benchmark calls correct and what it prints, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fastpose.metrics.distances import Comparison, count_hits, normalized_distances
from fastpose.metrics.limbs import Limbs
from fastpose.skeletons import Skeleton

Reduction = Literal["pooled", "mean_of_joints"]
Relabel = Literal["none", "arms", "all"]


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
        normalizer: the unit of the distances: two joints, whose true distance it is, or the name of a length that
            comes with the labels: ``"head"``, 0.6 times the diagonal of MPII's head box, or ``"torso_box"``, the diagonal
            of FLIC's box of the torso.
        also: summaries at other thresholds: by the name under which ``total`` is printed the threshold.
        curve: the thresholds of the curve, and of its area.
        relabel: how person-centric labels become observer-centric ones before anything is measured: ``"none"``: they
            are taken as they are; ``"arms"``: the two arms of who has every joint of the left one left of the right one
            in the image change places; ``"all"``: so do all joints of who has the left shoulder left of the right one.
            Labels that are observer-centric already stay as they are.
        dtype: of the arithmetic.
        limbs: for PCP; None if the benchmark has none.
    """

    skeleton: Skeleton
    threshold: float
    comparison: Comparison
    columns: Mapping[str, tuple[str, ...]]
    totals: Mapping[str, tuple[str, ...]]
    reduction: Reduction
    normalizer: str | tuple[str, str] = "head"
    also: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    relabel: Relabel = "none"
    dtype: torch.dtype = torch.float64
    limbs: Limbs | None = None

    def distances(self, predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Measure normalised distances as the benchmark does.

        Args:
            predictions: predicted (x, y) of N people's K joints, (N, K, 2), in image pixels.
            keypoints: true coordinates (N, K, 2); NaN where a joint has no label.
            lengths: normaliser of each person (N,) in pixels; not needed where it is the distance of two joints.

        Returns:
            Distances (N, K), see `normalized_distances`.

        Raises:
            ValueError: if the shapes do not agree, or lengths are needed but not given.
        """
        joints = self.skeleton.num_joints
        if keypoints.ndim != 3 or keypoints.shape[1:] != (joints, 2):
            raise ValueError(
                f"keypoints must be of shape (N, {joints}, 2), the joints of {self.skeleton.name}, got {tuple(keypoints.shape)}"
            )
        keypoints = self.relabelled(keypoints)
        if lengths is None:
            if isinstance(self.normalizer, str):
                raise ValueError(f"lengths must be given, as this protocol normalises by {self.normalizer!r}")
            first, second = (keypoints[:, self.skeleton.index(joint)].double() for joint in self.normalizer)
            lengths = torch.linalg.vector_norm(first - second, dim=1)
        return normalized_distances(predictions, keypoints, lengths, self.dtype)

    def relabelled(self, keypoints: torch.Tensor) -> torch.Tensor:
        """Swap left and right as ``relabel`` says.

        Args:
            keypoints: true coordinates (N, K, 2).
        """
        if self.relabel == "none":
            return keypoints
        parts = ("shoulder", "elbow", "wrist") if self.relabel == "arms" else ("shoulder",)
        left, right = ([self.skeleton.index(f"{side}_{part}") for part in parts] for side in ("left", "right"))
        backwards = (keypoints[:, left, 0] < keypoints[:, right, 0]).all(dim=1)
        order = list(self.skeleton.flip_permutation)
        if self.relabel == "arms":
            order = [order[joint] if joint in (*left, *right) else joint for joint in range(len(order))]
        return torch.where(backwards[:, None, None], keypoints[:, order], keypoints)

    def count(self, distances: torch.Tensor, thresholds: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Count hits (T, K) and counted people (K,) at T thresholds, see `count_hits`."""
        return count_hits(distances, tuple(thresholds), self.comparison)

    def summarize(self, hits: torch.Tensor, counted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turn the counts of `count_hits` into percentages.

        Args:
            hits: hits of each joint (..., K).
            counted: counted people of each joint (K,).

        Returns:
            Percentages (...) in float64, by name: each joint, each column, each total. A joint that was counted for
            nobody is NaN and is left out of means; what has nothing to average is NaN.

        Raises:
            ValueError: if the counts are not of this skeleton's joints.
        """
        joints = self.skeleton.joints
        for name, counts in (("hits", hits), ("counted", counted)):
            if counts.shape[-1:] != (len(joints),):
                raise ValueError(
                    f"{name} must be of shape ({len(joints)},), one for each joint of {self.skeleton.name}, "
                    f"got {tuple(counts.shape)}"
                )
        return summarize(joints, hits, counted, self.columns, self.totals, self.reduction)


def summarize(
    parts: Sequence[str],
    hits: torch.Tensor,
    counted: torch.Tensor,
    columns: Mapping[str, tuple[str, ...]],
    totals: Mapping[str, tuple[str, ...]],
    reduction: Reduction,
) -> dict[str, torch.Tensor]:
    """Turn counts of joints or limbs into percentages; see `Protocol.summarize`."""
    percentages = 100 * hits.double() / counted
    indices = {name: [parts.index(part) for part in members] for name, members in {**columns, **totals}.items()}
    summary = dict(zip(parts, percentages.unbind(-1), strict=True))
    for name in columns:
        summary[name] = percentages[..., indices[name]].nanmean(-1)
    for name in totals:
        if reduction == "pooled":
            summary[name] = 100 * hits[..., indices[name]].sum(-1).double() / counted[indices[name]].sum(-1)
        else:
            summary[name] = percentages[..., indices[name]].nanmean(-1)
    return summary
