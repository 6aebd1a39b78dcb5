"""Object keypoint similarity, and the average precision that COCO computes from it.

The similarity is computed here, average precision by pycocotools, which defines it.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from fastpose.skeletons import Skeleton

COCO_SIGMAS = tuple(
    tenths / 10
    for tenths in (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
)
"""How much annotators differ about each of COCO's 17 joints, in units of the square root of a person's area."""

STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
"""Names of COCO's ten numbers, in its order."""

# Where a prediction is so far off that it has similarity 0 with anyone.
_NOWHERE = 1e8


@dataclass(frozen=True)
class OKSProtocol:
    """Average precision over thresholds of the object keypoint similarity.

    Attributes:
        skeleton: the joints, in the order of the files.
        sigmas: of the joints, see `oks`.
    """

    skeleton: Skeleton
    sigmas: tuple[float, ...]


def oks(
    predictions: torch.Tensor,
    keypoints: torch.Tensor,
    areas: torch.Tensor,
    boxes: torch.Tensor | None = None,
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> torch.Tensor:
    """Compare every detection with every person: the mean of exp(-d² / (2 · area · (2σ)²)) over the labelled joints.

    Args:
        predictions: (x, y) of D detections, (D, K, 2), in image pixels. A joint that is not finite has similarity 0.
        keypoints: true coordinates of G people, (G, K, 2); NaN where a joint has no label.
        areas: of the people's segments in square pixels, (G,).
        boxes: (x, y, width, height) of the people, (G, 4). Someone without any label is compared by all joints'
            distances from this box, enlarged threefold about its centre. None: such people have NaN.
        sigmas: of the joints, K of them.

    Returns:
        Similarities (D, G) in float64, from 0 to 1.

    Raises:
        ValueError: if the shapes do not agree.
    """
    joints = len(sigmas)
    people = len(keypoints)
    expected = {"predictions": (len(predictions), joints, 2), "keypoints": (people, joints, 2), "areas": (people,)}
    given = {"predictions": predictions, "keypoints": keypoints, "areas": areas}
    if boxes is not None:
        expected["boxes"], given["boxes"] = (people, 4), boxes
    for name, tensor in given.items():
        if tensor.shape != expected[name]:
            raise ValueError(f"{name} must be of shape {expected[name]}, got {tuple(tensor.shape)}")
    points, truth = predictions.double()[:, None], keypoints.double()[None]
    labelled = ~truth.isnan().any(dim=-1)  # (1, G, K)
    nobody = ~labelled.any(dim=-1, keepdim=True)
    offsets = points - truth
    if boxes is not None:
        corner, size = boxes.double()[None, :, None].split(2, dim=-1)
        outside = (corner - size - points).clamp(min=0) + (points - corner - 2 * size).clamp(min=0)
        offsets = torch.where(nobody[..., None], outside, offsets)
        labelled = labelled | nobody
    variances = (2 * torch.tensor(sigmas, dtype=torch.float64, device=points.device)).square()
    # Nobody has no area, but annotations do; COCO adds the same.
    denominators = 2 * (areas.double()[None, :, None] + torch.finfo(torch.float64).eps) * variances
    similarities = torch.exp(-offsets.square().sum(dim=-1) / denominators)
    similarities = similarities.masked_fill(~points.isfinite().all(dim=-1), 0).masked_fill(~labelled, 0)
    return similarities.sum(dim=-1) / labelled.sum(dim=-1)


def average_precision(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]], sigmas: Sequence[float] = COCO_SIGMAS
) -> dict[str, float]:
    """Score detections as COCO does.

    Thresholds .50:.05:.95, the 20 detections of each image with the best scores, areas all, 32² to 96² and above;
    crowds and people without labelled joints count neither for nor against.

    Args:
        annotations: contents of a COCO keypoint file: ``images``, ``annotations`` and ``categories``.
        results: contents of a file of COCO results: for each detection ``image_id``, ``category_id``, ``score`` and
            ``keypoints``, x, y and a number that is not used, for each joint. A joint that is not finite has
            similarity 0. Images without annotations are not allowed.
        sigmas: of the joints, see `oks`.

    Returns:
        COCO's ten numbers by name, from 0 to 1; -1 where there is nothing to find.

    Raises:
        ValueError: if a field is missing or malformed; the message names it.
    """
    annotations = _checked_annotations(annotations, len(sigmas))
    results, areas = _checked_results(results, annotations, len(sigmas))
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        found = COCO()
        found.dataset["annotations"] = []
        if results:  # it does not take an empty list
            found = truth.loadRes(results)
        for number, area in areas.items():
            found.anns[number + 1]["area"] = area
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATISTICS, map(float, evaluation.stats), strict=True))


def _checked_annotations(annotations: Mapping[str, Any], joints: int) -> dict[str, Any]:
    """A copy for pycocotools, which writes into it."""
    for name in ("images", "annotations", "categories"):
        if not isinstance(annotations.get(name), list):
            raise ValueError(f"annotations must have a list {name!r}, as COCO files have; it has {', '.join(annotations)}")
    for number, image in enumerate(annotations["images"]):
        _require(image, ("id",), f"annotations: image {number}")
    images = {image["id"] for image in annotations["images"]}
    people = []
    for number, person in enumerate(annotations["annotations"]):
        where = f"annotations: annotation {number}"
        _require(person, ("id", "image_id", "category_id", "area", "bbox", "keypoints"), where)
        _check_keypoints(person["keypoints"], joints, where)
        if not _are_numbers([person["area"]], 1) or not _are_numbers(person["bbox"], 4):
            raise ValueError(
                f"{where}: area must be a number and bbox four, got {person['area']!r:.80} and {person['bbox']!r:.80}"
            )
        if person["image_id"] not in images:
            raise ValueError(f"{where}: there is no image {person['image_id']!r}")
        labelled = sum(flag > 0 for flag in person["keypoints"][2::3])
        people.append({"iscrowd": 0, "num_keypoints": labelled, **person})
    return {**copy.deepcopy({name: annotations[name] for name in ("images", "categories")}), "annotations": people}


def _checked_results(
    results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any], joints: int
) -> tuple[list[dict[str, Any]], dict[int, float]]:
    """Finite results for pycocotools, and the areas that it cannot see where some joints were not."""
    images = {image["id"] for image in annotations["images"]}
    checked, areas = [], {}
    for number, result in enumerate(results):
        where = f"results: detection {number}"
        _require(result, ("image_id", "category_id", "score", "keypoints"), where)
        _check_keypoints(result["keypoints"], joints, where)
        if not _are_numbers([result["score"]], 1):
            raise ValueError(f"{where}: score must be a number, got {result['score']!r:.80}")
        if result["image_id"] not in images:
            raise ValueError(f"{where}: the annotations have no image {result['image_id']!r}")
        keypoints = np.asarray(result["keypoints"], np.float64).reshape(joints, 3)
        finite = np.asarray(np.isfinite(keypoints[:, :2]).all(axis=1))
        if not finite.all():
            areas[number] = float(np.ptp(keypoints[finite, :2], axis=0).prod()) if finite.any() else 0.0
            keypoints = np.where(finite[:, None], keypoints, _NOWHERE)
        names = ("image_id", "category_id", "score")
        checked.append({**{name: result[name] for name in names}, "keypoints": keypoints.ravel().tolist()})
    return checked, areas


def _require(record: Any, fields: Sequence[str], where: str) -> None:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} must be an object with named fields, got {record!r:.80}")
    missing = [field for field in fields if field not in record]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing; it has {', '.join(map(str, record))}")


def _check_keypoints(keypoints: Any, joints: int, where: str) -> None:
    if not _are_numbers(keypoints, 3 * joints):
        raise ValueError(f"{where}: keypoints must be {3 * joints} numbers, x, y and v of {joints} joints, got {keypoints!r:.80}")


def _are_numbers(values: Any, count: int) -> bool:
    listed = isinstance(values, (list, tuple, np.ndarray)) and len(values) == count
    return listed and all(isinstance(value, Real) for value in values)
