"""What a run shows: its curves, and the same people after every stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fastpose.data.crops import PoseDataset, collate_samples
from fastpose.data.records import Person
from fastpose.plots import learning_curve, stage_sheet
from fastpose.prediction import Predictor
from fastpose.training.run import TrainingResult

_PEOPLE_SHOWN = 4


def write_report(result: TrainingResult, people: Sequence[Person], out: Path) -> list[Path]:
    """Draw ``curves.png``, loss and score of each stage over the epochs, and ``stages.png``, some people after each stage.

    Args:
        result: of the run.
        people: of whom the first few are shown.
        out: folder to write to.

    Returns:
        The files.
    """
    curves, sheet = out / "curves.png", out / "stages.png"
    learning_curve(result.history, curves)
    predictor = Predictor.load(result.weights)
    shown = [people[index] for index in range(min(_PEOPLE_SHOWN, len(people)))]
    crops = PoseDataset(shown, predictor.skeleton, predictor.crops)
    batch = collate_samples([crops[index] for index in range(len(shown))])
    (with_source,) = predictor.batches(shown, len(shown))
    points, _ = predictor.stages(with_source, flip_test=False)
    to_image = batch["crop_to_image"].double()
    to_crop = torch.linalg.inv(to_image[:, :, :2])
    in_crop = ((torch.from_numpy(points).double() - to_image[:, None, :, 2]) @ to_crop.mT).numpy()
    images = [np.asarray((255 * image).permute(1, 2, 0).byte().numpy()) for image in batch["image"]]
    names = predictor.model.stage_names
    stage_sheet(images, list(batch["keypoints"].numpy()), dict(zip(names, in_crop, strict=True)), predictor.skeleton, sheet)
    return [curves, sheet]
