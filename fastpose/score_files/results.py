"""Scores of predictions, with the counts behind them, in words that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from fastpose.metrics import OKSProtocol, Protocol, area_under_curve, average_precision
from fastpose.metrics.limbs import PCPMode
from fastpose.metrics.scores import limbs_of, pck_summary, pck_thresholds, pcp_distances, pcp_summary
from fastpose.score_files.predictions import Predictions
from fastpose.score_files.truth import Truth

MetricName = Literal["pck", "pcp", "pcp-loose"]
METRICS: tuple[MetricName, ...] = ("pck", "pcp", "pcp-loose")

_PCP_MODES: dict[str, PCPMode] = {"pcp": "strict", "pcp-loose": "loose"}


@dataclass(frozen=True)
class Score:
    """What a method reaches.

    Attributes:
        name: of the method.
        metric: such as ``"PCK@0.2"``.
        values: percentages by name, each joint or limb, each column, each total; NaN where there was nothing to
            count. For COCO its ten numbers from 0 to 1, -1 where there was nothing to find.
        columns: the names that papers print, in their order.
        hits: of each joint or limb.
        counted: of each joint or limb.
        auc: areas under the curves in percent, by the names of the values; empty if the protocol has no curve.
        thresholds: of the curves.
        curves: percentages at the thresholds, by the names of the values.
        notes: what was taken for granted in reading the predictions.
    """

    name: str
    metric: str
    values: dict[str, float]
    columns: tuple[str, ...]
    hits: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    auc: dict[str, float] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name for JSON, None in place of NaN."""
        return _jsonable(asdict(self))


def score_points(name: str, predictions: Predictions, truth: Truth, protocol: Protocol, metric: MetricName = "pck") -> Score:
    """Score predicted joints or limbs.

    Args:
        name: of the method.
        predictions: of the truth's people.
        truth: their labels.
        protocol: what counts.
        metric: ``"pck"``, ``"pcp"`` (strict) or ``"pcp-loose"``.

    Raises:
        ValueError: if predictions, labels, protocol and metric do not fit together.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if metric == "pck" and predictions.points.ndim == 4:
        raise ValueError(f"{name} has the ends of limbs, whose metric is pcp, got pck")
    lengths = truth.normalizer(protocol) if metric == "pck" else None
    # The labels stay as they are published; predictions move to their pixels.
    points = torch.from_numpy(predictions.points + (truth.base - predictions.base))
    keypoints = torch.from_numpy(truth.keypoints)
    if metric != "pck":
        return _score_limbs(name, metric, pcp_distances(points, keypoints, protocol, _PCP_MODES[metric]), protocol, predictions)
    distances = protocol.distances(points, keypoints, lengths)
    hits, counted = protocol.count(distances, pck_thresholds(protocol))
    curves = protocol.summarize(*protocol.count(distances, protocol.curve)) if protocol.curve else {}
    return Score(
        name,
        f"PCK{'h' if protocol.normalizer == 'head' else ''}@{protocol.threshold:g}",
        _floats(pck_summary(protocol, hits, counted)),
        (*protocol.columns, *protocol.totals, *protocol.also),
        _counts(protocol.skeleton.joints, hits[0]),
        _counts(protocol.skeleton.joints, counted),
        auc=_floats({key: area_under_curve(curve, protocol.curve) for key, curve in curves.items()}),
        thresholds=protocol.curve,
        curves={key: curve.tolist() for key, curve in curves.items()},
        notes=predictions.notes,
    )


def score_results(
    name: str, results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any], protocol: OKSProtocol
) -> Score:
    """Score COCO's results against its annotations.

    Args:
        name: of the method.
        results, annotations: see `fastpose.metrics.average_precision`.
        protocol: what counts.

    Raises:
        ValueError: if a field is missing or malformed; the message names it.
    """
    values = average_precision(annotations, results, protocol.sigmas)
    return Score(name, "OKS", values, tuple(values))


def _score_limbs(name: str, metric: MetricName, distances: torch.Tensor, protocol: Protocol, predictions: Predictions) -> Score:
    limbs = limbs_of(protocol)
    hits, counted = protocol.count(distances, (limbs.threshold,))
    return Score(
        name,
        f"{_PCP_MODES[metric]} PCP@{limbs.threshold:g}",
        _floats(pcp_summary(limbs, hits, counted)),
        (*limbs.columns, *limbs.totals),
        _counts(tuple(limbs.ends), hits[0]),
        _counts(tuple(limbs.ends), counted),
        notes=predictions.notes,
    )


def _floats(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def _counts(names: Sequence[str], counts: torch.Tensor) -> dict[str, int]:
    return dict(zip(names, counts.tolist(), strict=True))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
