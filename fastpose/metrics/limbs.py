"""Limbs: which joints they join, and how far predicted ends are from true ones in units of the limb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fastpose.metrics.distances import normalized_distances
from fastpose.skeletons import Skeleton

PCPMode = Literal["strict", "loose"]


@dataclass(frozen=True)
class Limbs:
    """The limbs that PCP counts, and what is printed of them.

    Attributes:
        ends: by the name of a limb its two ends, each the middle of one or more joints; in the order of the published
            files of sticks.
        columns: name of each printed column and its limbs; the mean of their percentages is printed.
        totals: name of each printed summary and its limbs, whose instances are taken together.
        threshold: largest error of an end, in units of the limb's true length.
    """

    ends: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    columns: Mapping[str, tuple[str, ...]]
    totals: Mapping[str, tuple[str, ...]]
    threshold: float = 0.5

    def locate(self, keypoints: torch.Tensor, skeleton: Skeleton) -> torch.Tensor:
        """Find the ends of the limbs.

        Args:
            keypoints: (N, K, 2) of the skeleton's joints; NaN where a joint has no label.
            skeleton: whose joints these are.

        Returns:
            Ends (N, L, 2, 2) in float64, as (limb, end, coordinate); NaN where a joint is.
        """
        points = keypoints.double()
        ends = [
            torch.stack([points[:, [skeleton.index(joint) for joint in joints]].mean(dim=1) for joints in pair], dim=1)
            for pair in self.ends.values()
        ]
        return torch.stack(ends, dim=1)


def limb_distances(predictions: torch.Tensor, ends: torch.Tensor, mode: PCPMode = "strict") -> torch.Tensor:
    """Measure the errors of limbs' ends in units of each limb's true length.

    Args:
        predictions: predicted ends of N people's L limbs, (N, L, 2, 2), as (limb, end, coordinate).
        ends: true ends likewise; NaN where one is not known.
        mode: ``"strict"``: the larger error of the two ends, so that both must be within the threshold;
            ``"loose"``: the mean of the two, as in the Buffy toolkit.

    Returns:
        Distances (N, L) in float64, for `count_hits`. NaN where a true end is not known; infinite where a predicted
        end is NaN or infinite, or the limb has no length.

    Raises:
        ValueError: if the shapes are not as above or ``mode`` is neither of the two.
    """
    if mode not in ("strict", "loose"):
        raise ValueError(f"mode must be 'strict' or 'loose', got {mode!r}")
    if ends.ndim != 4 or ends.shape[2:] != (2, 2):
        raise ValueError(f"ends must be of shape (N, L, 2, 2), got {tuple(ends.shape)}")
    if predictions.shape != ends.shape:
        raise ValueError(f"predictions must have the shape of ends, {tuple(ends.shape)}, got {tuple(predictions.shape)}")
    lengths = torch.linalg.vector_norm(ends[:, :, 0].double() - ends[:, :, 1].double(), dim=2)
    first, second = (normalized_distances(predictions[:, :, end], ends[:, :, end], lengths) for end in (0, 1))
    return torch.maximum(first, second) if mode == "strict" else (first + second) / 2
