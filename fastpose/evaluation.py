"""What a model reaches on labelled people, stage by stage, and its predictions in files that can be scored again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose._files import write_atomically
from fastpose.data.records import Person
from fastpose.metrics import OKSProtocol, Protocol, get_protocol
from fastpose.multi_scale import predict_stages
from fastpose.prediction import Predictor
from fastpose.score_files import Predictions, Score, Truth, save_predictions, save_truth, score_points, score_results
from fastpose.skeletons import Skeleton

DEFAULT_PROTOCOLS = {"mpii": "mpii_official", "lsp": "lsp_pc", "flic": "flic_cpm", "coco": "coco"}
"""The protocol of each skeleton, if none is asked for."""

_LEAST_JOINT_SCORE = 0.2  # of joints whose mean is a person's score, as in SimpleBaseline


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions for N labelled people by all S stages of a model, or its last one alone.

    Attributes:
        people: whose they are.
        skeleton: their K joints.
        points: (x, y) in 0-based image pixels, float32 (S, N, K, 2).
        joint_scores: (S, N, K): the heatmap's value at its maximum.
        scores: what each stage reaches, by its name in the model.
    """

    people: Sequence[Person]
    skeleton: Skeleton
    points: NDArray[np.float32]
    joint_scores: NDArray[np.float32]
    scores: tuple[Score, ...]

    def save(self, folder: Path) -> None:
        """Write the predictions and the labels for `fastpose.score_files`, and the scores.

        A file for each stage, such as ``stage-1.npz``, for COCO's joints also ``stage-1.json`` in the form of its results;
        ``truth.npz``; ``scores.json``.

        Args:
            folder: where to; made if it does not exist. Files of the same names are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        images = [str(person.image_id) for person in self.people]
        persons = [person.person_id for person in self.people]
        save_truth(Truth.of_people(self.people, self.skeleton), folder / "truth.npz")
        for score, points, scores in zip(self.scores, self.points, self.joint_scores, strict=True):
            stem = score.name.replace(" ", "-")
            save_predictions(folder / f"{stem}.npz", points, scores, self.skeleton, images=images, persons=persons)
            if self.skeleton.name == "coco":
                results = coco_results(self.people, points, scores)
                write_atomically(folder / f"{stem}.json", json.dumps(results).encode())
        text = json.dumps([score.to_dict() for score in self.scores], indent=1, allow_nan=False)
        write_atomically(folder / "scores.json", text.encode())


def evaluate(
    predictor: Predictor,
    people: Sequence[Person],
    protocol: str | None = None,
    *,
    annotations: Mapping[str, Any] | None = None,
    flip_test: bool = True,
    scales: Sequence[float] = (1.0,),
    all_stages: bool = True,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict people's poses and score them.

    Args:
        predictor: what predicts.
        people: labelled records, at least one.
        protocol: name in `fastpose.metrics.PROTOCOLS`; None: the one of the skeleton in `DEFAULT_PROTOCOLS`.
        annotations: contents of COCO's file of the people, for the protocol ``"coco"``.
        flip_test, scales, batch_size: see `fastpose.multi_scale.predict_stages`.
        all_stages: whether to keep every stage of the model, or its last one alone.
        progress: called with the number of people that have been dealt with since the last call.

    Raises:
        FileNotFoundError: if image files are missing; the message names them.
        ValueError: if there are no people, protocol, labels and skeleton do not fit together, or as `predict_stages`.
    """
    if not len(people):
        raise ValueError("people must hold at least one person, got none")
    skeleton = predictor.skeleton
    name = protocol or DEFAULT_PROTOCOLS.get(skeleton.name)
    if name is None:
        raise ValueError(f"protocol must be given for the joints of {skeleton.name}, got none")
    counts = get_protocol(name)
    if counts.skeleton != skeleton:
        raise ValueError(f"protocol {name} is for {counts.skeleton.name}, but the model predicts {skeleton.name}")
    truth = Truth.of_people(people, skeleton)
    if isinstance(counts, Protocol):
        truth.normalizer(counts)  # complains now rather than after hours of predicting
    elif annotations is None:
        raise ValueError(f"protocol {name} needs the annotations")
    points, joint_scores = [], []
    first = 0
    for batch in predict_stages(predictor, people, flip_test=flip_test, scales=scales, batch_size=batch_size):
        first = 0 if all_stages else len(batch.coordinates) - 1
        points.append(batch.coordinates[first:])
        joint_scores.append(batch.scores[first:])
        if progress is not None:
            progress(batch.coordinates.shape[1])
    kept, kept_scores = np.concatenate(points, axis=1), np.concatenate(joint_scores, axis=1)
    names = predictor.model.stage_names or tuple(f"stage {number}" for number in range(1, 1 + first + len(kept)))
    scores = [
        _score(stage, people, found, found_scores, truth, counts, annotations)
        for stage, found, found_scores in zip(names[first:], kept, kept_scores, strict=True)
    ]
    return Evaluation(people, skeleton, kept, kept_scores, tuple(scores))


def coco_results(
    people: Sequence[Person], points: NDArray[np.floating], scores: NDArray[np.floating], category: int = 1
) -> list[dict[str, Any]]:
    """Put predictions into the form of COCO's results.

    Args:
        people: whose ``image_id`` is COCO's.
        points: (x, y) in 0-based image pixels, (N, K, 2).
        scores: (N, K). A person's score is the mean of those above 0.2, as in SimpleBaseline.
        category: number of the category.
    """
    results = []
    for person, joints, confidences in zip(people, points, scores, strict=True):
        sure = confidences[confidences > _LEAST_JOINT_SCORE]
        triples = np.column_stack((joints, confidences)).astype(float)
        results.append(
            {
                "image_id": person.image_id,
                "category_id": category,
                "keypoints": np.nan_to_num(triples).ravel().tolist(),
                "score": float(sure.mean()) if sure.size else 0.0,
            }
        )
    return results


def _score(
    name: str,
    people: Sequence[Person],
    points: NDArray[np.float32],
    scores: NDArray[np.float32],
    truth: Truth,
    protocol: Protocol | OKSProtocol,
    annotations: Mapping[str, Any] | None,
) -> Score:
    if isinstance(protocol, OKSProtocol):
        assert annotations is not None
        return score_results(name, coco_results(people, points, scores), annotations, protocol)
    return score_points(name, Predictions(points.astype(np.float64), base=0), truth, protocol)
