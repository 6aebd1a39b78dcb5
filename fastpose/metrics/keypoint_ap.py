"""COCO's average precision as a torchmetrics module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torchmetrics import Metric

from fastpose.metrics.coco import OKSProtocol, average_precision
from fastpose.metrics.presets import get_protocol


class Detections(NamedTuple):
    """Detections for `KeypointAP`.

    Attributes:
        image_ids: integers (D,).
        keypoints: (x, y) of the joints, (D, K, 2), in image pixels.
        scores: (D,).
    """

    image_ids: torch.Tensor
    keypoints: torch.Tensor
    scores: torch.Tensor


class People(NamedTuple):
    """People for `KeypointAP`.

    Attributes:
        image_ids: integers (G,).
        keypoints: true coordinates (G, K, 2) in image pixels; NaN where a joint has no label. Who has no labels counts
            neither for nor against.
        areas: of the people's segments in square pixels, (G,).
        boxes: (x, y, width, height), (G, 4).
        crowd: bool (G,): who is a crowd, that counts neither for nor against; None: nobody.
    """

    image_ids: torch.Tensor
    keypoints: torch.Tensor
    areas: torch.Tensor
    boxes: torch.Tensor
    crowd: torch.Tensor | None = None


class KeypointAP(Metric):
    """Average precision of keypoints, see `fastpose.metrics.average_precision`.

    All detections and people are kept, and compared when it is computed; so the detections and the people of an image
    may come in different batches and on different processes.

    Args:
        protocol: ``"coco"``, or an `fastpose.metrics.OKSProtocol` for other joints.

    Raises:
        ValueError: if ``protocol`` is an unknown name or one of normalised distances.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    detections: list[torch.Tensor]
    people: list[torch.Tensor]

    def __init__(self, protocol: OKSProtocol | str = "coco") -> None:
        super().__init__()
        found = get_protocol(protocol) if isinstance(protocol, str) else protocol
        if not isinstance(found, OKSProtocol):
            raise ValueError(f"protocol must be one of average precision, such as 'coco', got {protocol!r}")
        self.protocol = found
        # One row each, in float64, which holds COCO's numbers for images exactly.
        self._joints = found.skeleton.num_joints
        self._columns = {"detections": 2 + 2 * self._joints, "people": 7 + 2 * self._joints}
        for state in self._columns:
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, detections: Detections | None, people: People | None) -> None:
        """Add detections, and people who are there to be found.

        Args:
            detections: None: no more of them.
            people: None: no more of them.

        Raises:
            ValueError: if the shapes do not agree.
        """
        if detections is not None:
            self._append("detections", detections.image_ids, {"scores": detections.scores}, detections.keypoints)
        if people is not None:
            crowd = torch.zeros_like(people.image_ids) if people.crowd is None else people.crowd
            others = {"areas": people.areas, "boxes": people.boxes, "crowd": crowd}
            self._append("people", people.image_ids, others, people.keypoints)

    def compute(self) -> dict[str, torch.Tensor]:
        """Return COCO's ten numbers by name, from 0 to 1; -1 where there is nothing to find."""
        detections, people = (_rows(getattr(self, state), columns) for state, columns in self._columns.items())
        annotations = []
        for number, (image, area, x, y, width, height, crowd, *points) in enumerate(people, start=1):
            annotations.append(
                {
                    "id": number,
                    "image_id": int(image),
                    "category_id": 1,
                    "area": area,
                    "bbox": [x, y, width, height],
                    "iscrowd": int(crowd),
                    "keypoints": _with_flags(points),
                }
            )
        results = [
            {"image_id": int(image), "category_id": 1, "score": score, "keypoints": _with_flags(points, missing=float("nan"))}
            for image, score, *points in detections
        ]
        images = [{"id": image} for image in sorted({int(row[0]) for row in (*detections, *people)})]
        truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        values = average_precision(truth, results, self.protocol.sigmas)
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}

    def _append(self, state: str, image_ids: torch.Tensor, others: dict[str, torch.Tensor], points: torch.Tensor) -> None:
        count = len(image_ids)
        shapes = {"boxes": (count, 4), "keypoints": (count, self._joints, 2)}
        given = {"image_ids": image_ids, **others, "keypoints": points}
        for name, tensor in given.items():
            if tensor.shape != shapes.get(name, (count,)):
                raise ValueError(f"{name} of {state} must be of shape {shapes.get(name, (count,))}, got {tuple(tensor.shape)}")
        rows = [tensor.to(self.device, torch.float64).reshape(count, -1) for tensor in given.values()]
        getattr(self, state).append(torch.cat(rows, dim=1))

    def _sync_dist(self, *arguments: Any, **options: Any) -> None:
        # A process without rows must still take part, with rows of the same dtype and as many columns.
        for state, columns in self._columns.items():
            getattr(self, state).append(torch.empty(0, columns, dtype=torch.float64, device=self.device))
        super()._sync_dist(*arguments, **options)


def _rows(state: list[torch.Tensor] | torch.Tensor, columns: int) -> list[list[float]]:
    """All rows in an order that does not depend on which process had them."""
    parts = [state] if isinstance(state, torch.Tensor) else state
    rows = torch.cat([torch.empty(0, columns, dtype=torch.float64), *(part.cpu() for part in parts)]).numpy()
    return rows[np.lexsort(rows.T[::-1])].tolist()


def _with_flags(points: Sequence[float], missing: float = 0.0) -> list[float]:
    """COCO's (x, y, v) of each joint from (x, y) and NaN."""
    flat: list[float] = []
    for x, y in zip(points[::2], points[1::2], strict=True):
        flat += (x, y, 2.0) if x == x and y == y else (missing, missing, 0.0)
    return flat
