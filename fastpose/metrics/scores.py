"""The scores of predictions that are all at hand; `fastpose.metrics.modules` adds them up over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastpose.metrics.distances import area_under_curve
from fastpose.metrics.limbs import Limbs, PCPMode, limb_distances
from fastpose.metrics.presets import resolve
from fastpose.metrics.protocols import Protocol, summarize

Summary = dict[str, torch.Tensor]


def pck(predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor | None, protocol: Protocol | str) -> Summary:
    """Score predictions by the percentage of correct keypoints; PCKh where the lengths are head sizes.

    Args:
        predictions: predicted (x, y) of N people's K joints, (N, K, 2), in image pixels.
        keypoints: true coordinates (N, K, 2); NaN where a joint has no label. Hidden joints that have a label
            count, as in all the published numbers.
        lengths: normaliser of each person (N,) in pixels. For PCKh 0.6 times the diagonal of the head box. None where
            the protocol takes the distance of two joints.
        protocol: name in `PROTOCOLS`, or a protocol.

    Returns:
        Percentages by name, see `Protocol.summarize`.

    Raises:
        ValueError: if the shapes do not agree, lengths are missing, or ``protocol`` is an unknown name.
    """
    protocol = resolve(protocol)
    distances = protocol.distances(predictions, keypoints, lengths)
    return pck_summary(protocol, *protocol.count(distances, pck_thresholds(protocol)))


def pdj(
    predictions: torch.Tensor,
    keypoints: torch.Tensor,
    lengths: torch.Tensor | None,
    protocol: Protocol | str,
    thresholds: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
) -> dict[float, Summary]:
    """Score predictions by the percentage of detected joints: PCK at several fractions of the torso.

    Args:
        predictions, keypoints, lengths, protocol: as for `pck`.
        thresholds: the fractions.

    Returns:
        For each threshold percentages by name, see `Protocol.summarize`.

    Raises:
        ValueError: as `pck`, or if a threshold is negative.
    """
    protocol = resolve(protocol)
    distances = protocol.distances(predictions, keypoints, lengths)
    return pdj_summary(protocol, thresholds, *protocol.count(distances, thresholds))


def auc(predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor | None, protocol: Protocol | str) -> Summary:
    """Score predictions by the area under the curve of PCK over the protocol's thresholds.

    Args:
        predictions, keypoints, lengths, protocol: as for `pck`.

    Returns:
        Areas in percent of the largest possible, by name, see `Protocol.summarize`.

    Raises:
        ValueError: as `pck`.
    """
    protocol = resolve(protocol)
    distances = protocol.distances(predictions, keypoints, lengths)
    return auc_summary(protocol, *protocol.count(distances, protocol.curve))


def pcp(predictions: torch.Tensor, keypoints: torch.Tensor, protocol: Protocol | str, mode: PCPMode = "strict") -> Summary:
    """Score predictions by the percentage of correct parts.

    Args:
        predictions: predicted (x, y) of N people's K joints, (N, K, 2), or of the ends of their L limbs,
            (N, L, 2, 2), in image pixels. Published files of sticks have the latter.
        keypoints: true coordinates (N, K, 2); NaN where a joint has no label.
        protocol: name in `PROTOCOLS`, or a protocol, that has limbs.
        mode: ``"strict"`` or ``"loose"``, see `limb_distances`.

    Returns:
        Percentages by name: each limb, each column, each total.

    Raises:
        ValueError: if the shapes do not agree, ``protocol`` is an unknown name or has no limbs, or ``mode`` is unknown.
    """
    protocol = resolve(protocol)
    limbs = limbs_of(protocol)
    distances = pcp_distances(predictions, keypoints, protocol, mode)
    return pcp_summary(limbs, *protocol.count(distances, (limbs.threshold,)))


def pck_thresholds(protocol: Protocol) -> tuple[float, ...]:
    """The thresholds whose counts `pck_summary` takes."""
    return protocol.threshold, *protocol.also.values()


def pck_summary(protocol: Protocol, hits: torch.Tensor, counted: torch.Tensor) -> Summary:
    """Percentages of the counts at `pck_thresholds`, (T, K) and (K,)."""
    summary = protocol.summarize(hits, counted)
    values = {name: value[0] for name, value in summary.items()}
    for row, name in enumerate(protocol.also, start=1):
        values[name] = summary["total"][row]
    return values


def pdj_summary(
    protocol: Protocol, thresholds: Sequence[float], hits: torch.Tensor, counted: torch.Tensor
) -> dict[float, Summary]:
    """Percentages by threshold of the counts (T, K) and (K,)."""
    summary = protocol.summarize(hits, counted)
    return {threshold: {name: value[row] for name, value in summary.items()} for row, threshold in enumerate(thresholds)}


def auc_summary(protocol: Protocol, hits: torch.Tensor, counted: torch.Tensor) -> Summary:
    """Areas of the counts at the thresholds of the protocol's curve, (T, K) and (K,)."""
    return {name: area_under_curve(values, protocol.curve) for name, values in protocol.summarize(hits, counted).items()}


def pcp_summary(limbs: Limbs, hits: torch.Tensor, counted: torch.Tensor) -> Summary:
    """Percentages of the counts of limbs, (1, L) and (L,)."""
    summary = summarize(tuple(limbs.ends), hits, counted, limbs.columns, limbs.totals, "pooled")
    return {name: value[0] for name, value in summary.items()}


def limbs_of(protocol: Protocol) -> Limbs:
    """The limbs of a protocol.

    Raises:
        ValueError: if it has none.
    """
    if protocol.limbs is None:
        raise ValueError(f"protocol must have limbs for PCP, but that of {protocol.skeleton.name} has none")
    return protocol.limbs


def pcp_distances(predictions: torch.Tensor, keypoints: torch.Tensor, protocol: Protocol, mode: PCPMode) -> torch.Tensor:
    """Distances (N, L) of `limb_distances` for predicted joints or sticks; the other arguments as for `pcp`."""
    limbs = limbs_of(protocol)
    joints = protocol.skeleton.num_joints
    if keypoints.ndim != 3 or keypoints.shape[1:] != (joints, 2):
        raise ValueError(
            f"keypoints must be of shape (N, {joints}, 2), the joints of {protocol.skeleton.name}, got {tuple(keypoints.shape)}"
        )
    if predictions.ndim == 3:
        if predictions.shape != keypoints.shape:
            raise ValueError(
                f"predictions must be of shape {tuple(keypoints.shape)} or "
                f"({len(keypoints)}, {len(limbs.ends)}, 2, 2), got {tuple(predictions.shape)}"
            )
        predictions = limbs.locate(predictions, protocol.skeleton)
    return limb_distances(predictions, limbs.locate(protocol.relabelled(keypoints), protocol.skeleton), mode)
