"""Distances in units of the person, hits within a threshold, the area under their curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch

Comparison = Literal["<", "<="]


def normalized_distances(
    predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Measure the distances of predictions from labels in units of a length of each person.

    Args:
        predictions: predicted (x, y) of N people's K joints, (N, K, 2), any real dtype.
        keypoints: true coordinates (N, K, 2) in the same frame; NaN where a joint has no label.
        lengths: the unit in the same pixels, of each person (N,), such as the head size or the torso diameter, or of
            each joint (N, K), such as the length of a limb; NaN where it is not known.
        dtype: of the arithmetic and of the distances.

    Returns:
        Distances (N, K). NaN where there is no label or no known length. Infinite, thus wrong at any threshold, where
        the prediction is NaN or infinite or the length is not positive.

    Raises:
        ValueError: if the shapes are not as above.
    """
    if keypoints.ndim != 3 or keypoints.shape[2] != 2:
        raise ValueError(f"keypoints must be of shape (N, K, 2), got {tuple(keypoints.shape)}")
    if predictions.shape != keypoints.shape:
        raise ValueError(
            f"predictions must have the shape of keypoints, {tuple(keypoints.shape)}, got {tuple(predictions.shape)}"
        )
    people, joints = keypoints.shape[:2]
    if lengths.shape not in ((people,), (people, joints)):
        raise ValueError(f"lengths must be of shape ({people},) or ({people}, {joints}), got {tuple(lengths.shape)}")
    # Converted before subtracting: published predictions are often unsigned bytes, and `<` and `<=` differ only if a
    # distance of exactly the threshold stays so.
    offsets = predictions.to(dtype) - keypoints.to(dtype)
    units = lengths.to(dtype)
    if units.ndim == 1:
        units = units[:, None]
    distances = torch.linalg.vector_norm(offsets, dim=2) / units
    wrong = ~predictions.isfinite().all(dim=2) | (units <= 0)
    uncounted = keypoints.isnan().any(dim=2) | units.isnan()
    return distances.masked_fill(wrong, torch.inf).masked_fill(uncounted, torch.nan)


def count_hits(
    distances: torch.Tensor, threshold: float | Sequence[float], comparison: Comparison = "<="
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the people whose joint is within a threshold.

    Args:
        distances: (N, K) as `normalized_distances` returns them.
        threshold: largest distance of a hit, in the same unit; or T of them.
        comparison: ``"<="`` if a joint exactly at the threshold is a hit, ``"<"`` if not.

    Returns:
        Hits (K,), for several thresholds (T, K), and people that were counted (K,), int64. They can be added over
        batches and processes.

    Raises:
        ValueError: if a threshold is negative or not finite, or ``comparison`` is neither of the two.
    """
    several = isinstance(threshold, Sequence)
    thresholds = list(threshold) if isinstance(threshold, Sequence) else [threshold]
    for value in thresholds:
        if not 0 <= value < math.inf:
            raise ValueError(f"threshold must be a finite number of at least 0, got {value}")
    if comparison not in ("<", "<="):
        raise ValueError(f"comparison must be '<' or '<=', got {comparison!r}")
    within = torch.lt if comparison == "<" else torch.le
    hits = [within(distances, value).sum(dim=0) for value in thresholds]
    return (torch.stack(hits) if several else hits[0]), (~distances.isnan()).sum(dim=0)


def area_under_curve(percentages: torch.Tensor, thresholds: Sequence[float]) -> torch.Tensor:
    """Average a curve over its thresholds, by the trapezoidal rule; what evalMPII and evalLSP call AUC.

    Args:
        percentages: of hits at each threshold, (T,).
        thresholds: T at least 2, increasing.

    Returns:
        The mean percentage, a scalar.

    Raises:
        ValueError: if there is not one percentage for each threshold, or they are too few or do not increase.
    """
    if len(thresholds) < 2 or any(a >= b for a, b in itertools.pairwise(thresholds)):
        raise ValueError(f"thresholds must be two or more increasing numbers, got {list(thresholds)}")
    if percentages.shape != (len(thresholds),):
        raise ValueError(f"percentages must be of shape ({len(thresholds)},), got {tuple(percentages.shape)}")
    points = torch.tensor(thresholds, dtype=percentages.dtype, device=percentages.device)
    return torch.trapezoid(percentages, points) / (points[-1] - points[0])
