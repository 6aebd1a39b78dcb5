"""From images of people to keypoints, by the weights that training writes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from fastpose import _check
from fastpose.checkpoints import CODEC_KEY, SKELETON_KEY, load_model, read_metadata
from fastpose.codec import HeatmapCodec
from fastpose.data.crops import CropSettings, PoseDataset
from fastpose.data.records import Person
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
        model: any that returns one heatmap tensor for each of its stages, as those of `fastpose.models` do. It
            is moved to the device and switched to evaluation.
        codec: convention that the model was trained with.
        skeleton: joints of the heatmaps.
        device: where to run; None: the current GPU if there is one, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """

    def __init__(
        self,
        model: nn.Module,
        codec: HeatmapCodec,
        skeleton: Skeleton,
        device: str | torch.device | None = None,
    ) -> None:
        self.device = _usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.codec = codec
        self.skeleton = skeleton
        self.crops = crop_settings(codec)

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
        missing = [key for key in (CODEC_KEY, SKELETON_KEY) if key not in metadata]
        if missing:
            raise ValueError(
                f"{weights} does not say how its heatmaps are read (metadata {', '.join(missing)}); "
                "build the model and its codec and use Predictor(model, codec, skeleton)"
            )
        try:
            codec = HeatmapCodec.from_dict(json.loads(metadata[CODEC_KEY]))
            skeleton = get_skeleton(metadata[SKELETON_KEY])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{weights} names a codec or skeleton that cannot be built: {error}") from error
        return cls(load_model(weights), codec, skeleton, device)

    def predict(self, people: Sequence[Person], *, flip_test: bool = True, batch_size: int = 32, stage: int = -1) -> list[Pose]:
        """Predict the pose of each person, from a crop as in training.

        Args:
            people: records of which the image, the centre and the scale are used.
            flip_test: whether to average the heatmaps of the crop and of its mirror image, for twice the time.
            batch_size: people at a time.
            stage: index of the model's output to decode; the last is the final prediction.

        Returns:
            One pose for each person, in the same order.

        Raises:
            FileNotFoundError: if image files are missing; the message names them.
            ValueError: if a file is no image, or a record has not the skeleton's number of joints.
        """
        dataset = PoseDataset(people, self.skeleton, self.crops)
        poses: list[Pose] = []
        for batch in DataLoader(dataset, batch_size=_check.positive_int("batch_size", batch_size)):
            images = batch["image"].to(self.device)
            coordinates, scores = self._decode(images, batch["crop_to_image"].to(self.device), flip_test, stage)
            poses += map(Pose, coordinates, scores, (people[index] for index in batch["index"].tolist()))
        return poses

    def person_at(self, image: NDArray[np.uint8], center: Sequence[float], scale: float) -> Person:
        """Make the record of an unlabelled person from MPII's two numbers for where someone is.

        Args:
            image: RGB, uint8 (H, W, 3).
            center: (x, y) about the middle of the person, in image pixels.
            scale: height of the person in pixels divided by 200.

        Raises:
            ValueError: if ``center`` is not finite or ``scale`` is not positive.
        """
        joints = self.skeleton.num_joints
        return Person(
            image=image,
            keypoints=np.full((joints, 2), np.nan, np.float32),
            visible=np.zeros(joints, np.bool_),
            center=np.asarray(center, np.float32),
            scale=scale,
        )

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
        return self.person_at(image, middle, scale)

    @torch.inference_mode()
    def _decode(
        self, images: torch.Tensor, crop_to_image: torch.Tensor, flip_test: bool, stage: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        mirrored: dict[str, Any] = {}
        if flip_test:
            mirrored["flipped"] = self.model(images.flip(-1))[stage]
            mirrored["flip_permutation"] = self.skeleton.flip_permutation
        decoded = self.codec.decode(self.model(images)[stage], affine=crop_to_image, **mirrored)
        return decoded.coordinates.cpu().numpy(), decoded.scores.cpu().numpy()


def crop_settings(codec: HeatmapCodec) -> CropSettings:
    """Crops without augmentation that meet the codec: of its input size, and unbiased where it is."""
    return CropSettings(size=codec.input_size, convention="udp" if codec.mapping == "udp" else "corner")


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA says so by an assertion
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device: got {str(device)!r}, which cannot be used here: {reason}") from error
