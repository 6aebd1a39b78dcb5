"""The scores of `fastpose.metrics` as torchmetrics modules, summed over batches and over processes."""

from __future__ import annotations

import torch
from torchmetrics import Metric

from fastpose.metrics import Protocol, count_hits, get_protocol, normalized_distances


class PCKh(Metric):
    """Percentage of correct keypoints, relative to the head (Andriluka et al., CVPR 2014).

    Hits and counted people are kept as integers for each joint, so the result does not depend on how people
    are spread over batches and processes.

    Args:
        protocol: name in `fastpose.metrics.PROTOCOLS`, or a protocol.

    Raises:
        ValueError: if ``protocol`` is an unknown name.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: torch.Tensor
    counted: torch.Tensor

    def __init__(self, protocol: Protocol | str = "mpii_official") -> None:
        super().__init__()
        self.protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        joints = self.protocol.skeleton.num_joints
        for state in ("hits", "counted"):
            self.add_state(state, torch.zeros(joints, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: torch.Tensor, keypoints: torch.Tensor, head_sizes: torch.Tensor) -> None:
        """Add people.

        Args:
            predictions: predicted (x, y), (N, K, 2), in image pixels.
            keypoints: true coordinates (N, K, 2); NaN where a joint has no label.
            head_sizes: 0.6 times the diagonal of each person's head box (N,), in image pixels; people whose
                head size is NaN are not counted.

        Raises:
            ValueError: if the shapes do not agree.
        """
        distances = normalized_distances(predictions, keypoints, head_sizes)
        hits, counted = count_hits(distances, self.protocol.threshold, self.protocol.comparison)
        self.hits += hits
        self.counted += counted

    def compute(self) -> dict[str, torch.Tensor]:
        """Return percentages by name, see `fastpose.metrics.Protocol.summarize`."""
        return self.protocol.summarize(self.hits, self.counted)
