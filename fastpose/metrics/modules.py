"""The scores of `fastpose.metrics` as torchmetrics modules, summed over batches and over processes.

Hits and counted people are kept as integers for each joint, so the result does not depend on how people are spread over
batches and processes. It does depend on who is there: a `DistributedSampler` repeats people to give each process as
many; evaluate with one that does not, as Lightning's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import Metric

from fastpose.metrics.limbs import PCPMode
from fastpose.metrics.presets import resolve
from fastpose.metrics.protocols import Protocol
from fastpose.metrics.scores import (
    auc_summary,
    limbs_of,
    pck_summary,
    pck_thresholds,
    pcp_distances,
    pcp_summary,
    pdj_summary,
)


class _Hits(Metric):
    """Hits (T, P) of P joints or limbs at T thresholds, and counted people (P,)."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: torch.Tensor
    counted: torch.Tensor

    def __init__(self, protocol: Protocol, thresholds: Sequence[float], parts: int) -> None:
        super().__init__()
        self.protocol = protocol
        self.thresholds = tuple(thresholds)
        self.add_state("hits", torch.zeros(len(self.thresholds), parts, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros(parts, dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, distances: torch.Tensor) -> None:
        hits, counted = self.protocol.count(distances, self.thresholds)
        self.hits += hits
        self.counted += counted


class PCK(_Hits):
    """Percentage of correct keypoints, see `fastpose.metrics.pck`.

    Args:
        protocol: name in `fastpose.metrics.PROTOCOLS`, or a protocol.

    Raises:
        ValueError: if ``protocol`` is an unknown name.
    """

    def __init__(self, protocol: Protocol | str) -> None:
        protocol = resolve(protocol)
        super().__init__(protocol, self._thresholds(protocol), protocol.skeleton.num_joints)

    def update(self, predictions: torch.Tensor, keypoints: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """Add people.

        Args:
            predictions: predicted (x, y), (N, K, 2), in image pixels.
            keypoints: true coordinates (N, K, 2); NaN where a joint has no label.
            lengths: normaliser of each person (N,), in image pixels; people for whom it is NaN are not counted. None
                where the protocol takes the distance of two joints.

        Raises:
            ValueError: if the shapes do not agree, or lengths are missing.
        """
        self._add(self.protocol.distances(predictions, keypoints, lengths))

    def compute(self) -> dict[Any, Any]:
        """Return percentages by name, see `fastpose.metrics.Protocol.summarize`."""
        return pck_summary(self.protocol, self.hits, self.counted)

    def _thresholds(self, protocol: Protocol) -> Sequence[float]:
        return pck_thresholds(protocol)


class PCKh(PCK):
    """Percentage of correct keypoints, relative to the head (Andriluka et al., CVPR 2014).

    Args:
        protocol: name in `fastpose.metrics.PROTOCOLS`, or a protocol, that normalises by the head.

    Raises:
        ValueError: if ``protocol`` is an unknown name, or normalises by something else.
    """

    def __init__(self, protocol: Protocol | str = "mpii_official") -> None:
        super().__init__(protocol)
        if self.protocol.normalizer != "head":
            raise ValueError(f"protocol must normalise by the head, got one that normalises by {self.protocol.normalizer}")


class PDJ(PCK):
    """Percentage of detected joints at several fractions of the torso, see `fastpose.metrics.pdj`.

    Args:
        protocol: name in `fastpose.metrics.PROTOCOLS`, or a protocol.
        thresholds: the fractions.

    Raises:
        ValueError: if ``protocol`` is an unknown name.
    """

    def __init__(self, protocol: Protocol | str, thresholds: Sequence[float] = (0.05, 0.1, 0.15, 0.2)) -> None:
        self._fractions = tuple(thresholds)
        super().__init__(protocol)

    def compute(self) -> dict[Any, Any]:
        """Return for each threshold percentages by name, see `fastpose.metrics.Protocol.summarize`."""
        return pdj_summary(self.protocol, self.thresholds, self.hits, self.counted)

    def _thresholds(self, protocol: Protocol) -> Sequence[float]:
        return self._fractions


class AUC(PCK):
    """Area under the curve of PCK over the protocol's thresholds, see `fastpose.metrics.auc`.

    Args:
        protocol: name in `fastpose.metrics.PROTOCOLS`, or a protocol.

    Raises:
        ValueError: if ``protocol`` is an unknown name.
    """

    def compute(self) -> dict[Any, Any]:
        """Return areas in percent by name, see `fastpose.metrics.Protocol.summarize`."""
        return auc_summary(self.protocol, self.hits, self.counted)

    def _thresholds(self, protocol: Protocol) -> Sequence[float]:
        return protocol.curve


class PCP(_Hits):
    """Percentage of correct parts, see `fastpose.metrics.pcp`.

    Args:
        protocol: name in `fastpose.metrics.PROTOCOLS`, or a protocol, that has limbs.
        mode: ``"strict"`` or ``"loose"``, see `fastpose.metrics.limb_distances`.

    Raises:
        ValueError: if ``protocol`` is an unknown name or has no limbs.
    """

    def __init__(self, protocol: Protocol | str, mode: PCPMode = "strict") -> None:
        protocol = resolve(protocol)
        self.mode = mode
        self.limbs = limbs_of(protocol)
        super().__init__(protocol, (self.limbs.threshold,), len(self.limbs.ends))

    def update(self, predictions: torch.Tensor, keypoints: torch.Tensor) -> None:
        """Add people.

        Args:
            predictions: predicted joints (N, K, 2) or ends of limbs (N, L, 2, 2), in image pixels.
            keypoints: true coordinates (N, K, 2); NaN where a joint has no label.

        Raises:
            ValueError: if the shapes do not agree.
        """
        self._add(pcp_distances(predictions, keypoints, self.protocol, self.mode))

    def compute(self) -> dict[str, torch.Tensor]:
        """Return percentages by name: each limb, each column, each total."""
        return pcp_summary(self.limbs, self.hits, self.counted)
