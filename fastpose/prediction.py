"""From images of people to keypoints, by the weights that training writes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from fastpose import _check
from fastpose.checkpoints import CODEC_KEY, CROP_KEY, SKELETON_KEY, load_model, read_metadata
from fastpose.codec import HeatmapCodec
from fastpose.data.crop_settings import CropSettings
from fastpose.data.crops import PoseDataset, collate_samples
from fastpose.data.records import Person
from fastpose.models import HeatmapModel, PoseModel, Source, VectorModel
from fastpose.skeletons import Skeleton, get_skeleton


@dataclass(frozen=True, eq=False)
class Pose:
    """What was predicted for one person.

    Attributes:
        keypoints: float32 (K, 2), (x, y) in image pixels, 0-based with pixel i centred at i; NaN where the
            model's heatmap holds a NaN.
        scores: float32 (K,), the heatmap's value at its maximum: about 1 at best for targets with peak 1, not a
            probability.
        person: whose pose it is.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    person: Person


class Predictor:
    """A model with all that its predictions depend on.

    Args:
        model: of `fastpose.models`, or any other that returns one heatmap tensor for each of its stages. It is moved to the
            device and switched to evaluation.
        codec: convention that the model's heatmaps were trained with; None: it has none.
        skeleton: joints of the heatmaps.
        device: where to run; None: the current GPU if there is one, else the CPU.
        crop: how people were cut out in training, a name in `fastpose.data.crop_settings.CROPS`.

    Raises:
        ValueError: if there is no such device here, or no such crop, or the model needs a codec.
    """

    def __init__(
        self,
        model: nn.Module,
        codec: HeatmapCodec | None,
        skeleton: Skeleton,
        device: str | torch.device | None = None,
        crop: str = "mpii",
    ) -> None:
        self.device = _usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        pose_model = model if isinstance(model, PoseModel) else _Heatmaps(model)
        self.model: PoseModel = pose_model.to(self.device).eval()
        if codec is None and not isinstance(pose_model, VectorModel):
            raise ValueError(f"codec: got None, but {type(model).__name__} predicts heatmaps")
        self.codec = codec
        self.skeleton = skeleton
        self.crops = crop_settings(pose_model, codec, crop)

    @classmethod
    def load(cls, weights: str | os.PathLike[str], device: str | torch.device | None = None) -> Predictor:
        """Rebuild the predictor from a weights file of a training run.

        Args:
            weights: the safetensors file.
            device: as for the class.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, or does not name its model, codec and skeleton.
        """
        metadata = read_metadata(weights)
        model = load_model(weights)
        needed = (SKELETON_KEY,) if isinstance(model, VectorModel) else (CODEC_KEY, SKELETON_KEY)
        missing = [key for key in needed if key not in metadata]
        if missing:
            raise ValueError(
                f"{weights} does not say how its predictions are read (metadata {', '.join(missing)}); "
                "build the model and its codec and use Predictor(model, codec, skeleton)"
            )
        try:
            codec = HeatmapCodec.from_dict(json.loads(metadata[CODEC_KEY])) if CODEC_KEY in metadata else None
            skeleton = get_skeleton(metadata[SKELETON_KEY])
            crop = metadata.get(CROP_KEY, "mpii")
            CropSettings.preset(crop)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{weights} names a codec, skeleton or crop that cannot be built: {error}") from error
        return cls(model, codec, skeleton, device, crop)

    def predict(self, people: Sequence[Person], *, flip_test: bool = True, batch_size: int = 32, stage: int = -1) -> list[Pose]:
        """Predict the pose of each person, from a crop as in training.

        Args:
            people: records of which the image, the centre and the scale are used.
            flip_test: whether to average the heatmaps of the crop and of its mirror image, for twice the time.
            batch_size: people at a time.
            stage: index of the model's stage; the last is the final prediction.

        Returns:
            One pose for each person, in the same order.

        Raises:
            FileNotFoundError: if image files are missing; the message names them.
            ValueError: if a file is no image, or a record has not the skeleton's number of joints.
        """
        poses: list[Pose] = []
        for batch in self.batches(people, batch_size):
            coordinates, scores = self.stages(batch, flip_test=flip_test)
            poses += map(Pose, coordinates[stage], scores[stage], (people[index] for index in batch["index"].tolist()))
        return poses

    def batches(self, people: Sequence[Person], batch_size: int = 32, *, enlargement: float = 1.0) -> DataLoader[Any]:
        """Crops of people as the model takes them, in order.

        Args:
            people: as for `predict`.
            batch_size: people at a time.
            enlargement: factor of the crop's side.

        Raises:
            FileNotFoundError, ValueError: as `predict`.
        """
        crops = replace(self.crops, enlargement=self.crops.enlargement * enlargement)
        dataset = PoseDataset(people, self.skeleton, crops, with_source=self.model.looks_again)
        return DataLoader(dataset, batch_size=_check.positive_int("batch_size", batch_size), collate_fn=collate_samples)

    @torch.inference_mode()
    def stages(self, batch: Mapping[str, Any], *, flip_test: bool = True) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Predict a batch by every stage of the model.

        Args:
            batch: of `batches`.
            flip_test: as for `predict`.

        Returns:
            (x, y) in image pixels (S, B, K, 2) and scores (S, B, K).
        """
        to_image = batch["crop_to_image"].to(self.device)
        source = None
        if "source" in batch:
            images = batch["source"]
            on_device = images.to(self.device) if isinstance(images, torch.Tensor) else [i.to(self.device) for i in images]
            source = Source(on_device, to_image)
        permutation = self.skeleton.flip_permutation if flip_test else None
        images = batch["image"].to(self.device)
        stages = self.model.predict(images, codec=self.codec, flip_permutation=permutation, source=source)
        points = stages.coordinates @ to_image[:, :, :2].mT + to_image[:, None, :, 2]
        return points.cpu().numpy(), stages.scores.cpu().numpy()

    def person_at(self, image: NDArray[np.uint8], center: Sequence[float], scale: float) -> Person:
        """Make the record of an unlabelled person from MPII's two numbers for where someone is.

        Args:
            image: RGB, uint8 (H, W, 3).
            center: (x, y) about the middle of the person, in image pixels.
            scale: height of the person in pixels divided by 200.

        Raises:
            ValueError: if ``center`` is not finite or ``scale`` is not positive.
        """
        side = 200 * scale
        return self._person(image, center, scale, (center[0] - side / 2, center[1] - side / 2, side, side))

    def person_in_box(self, image: NDArray[np.uint8], box: Sequence[float] | None = None) -> Person:
        """Make the record of an unlabelled person in a box.

        The crop is centred on the box, and as much larger than its longer side as crops were in training.

        Args:
            image: RGB, uint8 (H, W, 3).
            box: (x, y, width, height) in image pixels: the first column and row of the person, and how many;
                None: the whole image.

        Raises:
            ValueError: if the box is not finite, is empty or lies outside of the image.
        """
        rows, columns = image.shape[:2]
        x, y, width, height = box = (0, 0, columns, rows) if box is None else tuple(box)
        if not (all(map(math.isfinite, box)) and width > 0 and height > 0):
            raise ValueError(f"box: got {box}, allowed are finite x, y and positive width, height")
        if x >= columns or y >= rows or x + width <= 0 or y + height <= 0:
            raise ValueError(f"box: got {box}, which is outside of the image of {columns} x {rows} pixels")
        scale = max(width, height) / 200
        # Pixel i is centred at i, so n pixels from x on have their middle at x + (n - 1) / 2. MPII's centres lie
        # above the middle, for which crops make up.
        middle = x + (width - 1) / 2, y + (height - 1) / 2 - self.crops.shift_down * scale
        return self._person(image, middle, scale, (x, y, max(width - 1, 0), max(height - 1, 0)))

    def _person(self, image: NDArray[np.uint8], center: Sequence[float], scale: float, box: Sequence[float]) -> Person:
        joints = self.skeleton.num_joints
        unlabelled = Person(
            image=image,
            keypoints=np.full((joints, 2), np.nan, np.float32),
            visible=np.zeros(joints, np.bool_),
            center=np.asarray(center, np.float32),
            scale=scale,
        )
        # Crops by other places than this one have no use for the box, or take it for another.
        return replace(unlabelled, box=np.asarray(box, np.float32)) if self.crops.place == "box" else unlabelled


class _Heatmaps(HeatmapModel):
    """Another module as one of `fastpose.models`."""

    stage_names = ()
    input_size = (256, 256)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.model(images)


def crop_settings(model: PoseModel, codec: HeatmapCodec | None, crop: str = "mpii") -> CropSettings:
    """Crops without augmentation as a model takes them: padded as it was trained, and unbiased where its codec is."""
    changes = {"convention": "udp"} if codec is not None and codec.mapping == "udp" else {}
    size = model.input_size if codec is None else codec.input_size
    return CropSettings.preset(crop, size=size, fill=round(255 * model.padding), **changes)


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA says so by an assertion
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device: got {str(device)!r}, which cannot be used here: {reason}") from error
