"""Labelled people as training samples: a crop around the person, with the map back to the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate
from typing_extensions import NotRequired

from fastpose.data.affine import (
    apply_affine,
    compose_affine,
    crop_affine,
    flip_affine,
    invert_affine,
    warp_affine,
)
from fastpose.data.augmentation import AUGMENTATIONS, recolor
from fastpose.data.crop_settings import CropSettings
from fastpose.data.records import Person
from fastpose.skeletons import Skeleton

_MAX_MISSING_NAMED = 10


class PoseSample(TypedDict):
    """One crop; PyTorch's default collation stacks every entry of a batch.

    Attributes:
        image: RGB in [0, 1], float32 (3, H, W).
        keypoints: (x, y) in crop pixels, float32 (K, 2); NaN where a joint has no label. Joints outside of
            the crop keep their coordinates.
        visible: bool (K,), False where a joint is hidden or has no label.
        crop_to_image: map from crop pixels to image pixels, float32 (2, 3).
        source_keypoints: the keypoints in image pixels, float32 (K, 2). In a mirrored crop left and right
            have changed places here too, so that ``crop_to_image`` takes ``keypoints`` to these.
        head_size: normaliser of PCKh in image pixels, float32 scalar; NaN if not known.
        torso_size: normaliser of PCK in image pixels, likewise.
        box: the record's ``box`` in image pixels, float32 (4,).
        area: the record's ``area`` in image pixels, float32 scalar.
        image_id: the record's ``image_id``.
        person_id: the record's ``person_id``.
        index: position in the data set.
        everyone: if asked for, keypoints of P people in crop pixels, float32 (P, K, 2): this one's and then the
            bystanders'; NaN where there are not so many.
        source: if asked for, the image that the crop is from, RGB, uint8 (3, h, w), its size the image's own.
    """

    image: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    crop_to_image: torch.Tensor
    source_keypoints: torch.Tensor
    head_size: torch.Tensor
    torso_size: torch.Tensor
    box: torch.Tensor
    area: torch.Tensor
    image_id: int | str
    person_id: int
    index: int
    everyone: NotRequired[torch.Tensor]
    source: NotRequired[torch.Tensor]


class PoseDataset(Dataset[PoseSample]):
    """Crops of people as a data set.

    The random changes of a crop depend on the seed, the epoch and the index alone: not on the order of
    access, on the number of workers, or on where an interrupted run resumes.

    Args:
        people: the records. Those in a list or tuple are all checked at once; of a sequence that makes its
            records on demand, each is checked when it is asked for.
        skeleton: the records' joints; mirrored crops swap its flip pairs.
        settings: how to crop.
        people_per_crop: P of ``everyone``; 0: without.
        with_source: whether samples have a ``source``.

    Raises:
        ValueError: if a record has not the skeleton's number of joints.
        FileNotFoundError: if image files are missing; the message names them.
    """

    def __init__(
        self,
        people: Sequence[Person],
        skeleton: Skeleton,
        settings: CropSettings,
        *,
        people_per_crop: int = 0,
        with_source: bool = False,
    ) -> None:
        self.people = people
        self.people_per_crop = people_per_crop
        self.with_source = with_source
        self.skeleton = skeleton
        self.settings = settings
        augmentation = settings.augmentation
        self._augmentation = AUGMENTATIONS[augmentation] if isinstance(augmentation, str) else augmentation
        self._flip_permutation = list(skeleton.flip_permutation)
        # In shared memory, so that loader workers which live longer than an epoch see set_epoch as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if isinstance(people, (list, tuple)):
            for index, person in enumerate(people):
                self._check_joints(person, index)
        check_images(people)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random changes of an epoch; call it before iterating over a loader.

        Args:
            epoch: number of the epoch, from 0.

        Raises:
            ValueError: if ``epoch`` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> PoseSample:
        """Crop one person.

        Raises:
            IndexError: if ``index`` is outside of the data set.
            FileNotFoundError: if the image file is missing.
            ValueError: if the image file cannot be read, or the record has the wrong number of joints or nothing by
                which the settings place it.
        """
        index = range(len(self))[index]
        person = self.people[index]
        self._check_joints(person, index)
        settings = self.settings
        image = person.image if isinstance(person.image, np.ndarray) else read_image(person.image)
        center, scale = settings.locate(person, (image.shape[0], image.shape[1]))
        keypoints, visible, bystanders = person.keypoints, person.visible, person.bystanders
        change = None
        if self._augmentation is None:
            matrix = crop_affine(center, scale, settings.size, convention=settings.convention)
        else:
            change = self._augmentation.draw(np.random.default_rng((settings.seed, int(self._epoch), index)))
            center = center + 200 * scale * change.shift
            matrix = crop_affine(center, scale * change.scale_factor, settings.size, change.rotation, settings.convention)
            if change.flip:
                matrix = compose_affine(flip_affine(settings.size[1]), matrix)
                keypoints = keypoints[self._flip_permutation]
                visible = visible[self._flip_permutation]
                bystanders = bystanders[:, self._flip_permutation] if len(bystanders) else bystanders
        crop = warp_affine(image, matrix, settings.size, settings.fill)
        pixels = torch.from_numpy(crop).permute(2, 0, 1).contiguous().float().div_(255)
        sample = PoseSample(
            image=pixels if change is None else recolor(pixels, change),
            keypoints=torch.from_numpy(apply_affine(keypoints, matrix)).float(),
            visible=torch.from_numpy(visible.copy()),
            crop_to_image=torch.from_numpy(invert_affine(matrix)).float(),
            source_keypoints=torch.from_numpy(keypoints.copy()),
            head_size=torch.tensor(person.head_size, dtype=torch.float32),
            torso_size=torch.tensor(person.torso_size, dtype=torch.float32),
            box=torch.from_numpy(person.box.copy()),
            area=torch.tensor(person.area, dtype=torch.float32),
            image_id=person.image_id,
            person_id=person.person_id,
            index=index,
        )
        if self.people_per_crop:
            everyone = np.full((self.people_per_crop, *keypoints.shape), np.nan, np.float32)
            everyone[0] = keypoints
            near = bystanders[: self.people_per_crop - 1]
            everyone[1 : 1 + len(near)] = near
            sample["everyone"] = torch.from_numpy(apply_affine(everyone, matrix)).float()
        if self.with_source:
            sample["source"] = torch.from_numpy(image).permute(2, 0, 1)
        return sample

    def _check_joints(self, person: Person, index: int) -> None:
        if len(person.keypoints) != self.skeleton.num_joints:
            raise ValueError(
                f"people[{index}] must have the {self.skeleton.num_joints} joints of {self.skeleton.name}, "
                f"got {len(person.keypoints)}"
            )


def collate_samples(samples: Sequence[PoseSample]) -> dict[str, Any]:
    """Stack the entries of samples; sources of different sizes become a list."""
    batch = [{name: value for name, value in sample.items() if name != "source"} for sample in samples]
    result: dict[str, Any] = default_collate(batch)
    if samples and "source" in samples[0]:
        sources = [sample["source"] for sample in samples]
        alike = all(source.shape == sources[0].shape for source in sources)
        result["source"] = torch.stack(sources) if alike else sources
    return result


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file.

    The pixels stay where the file has them, whatever orientation its metadata asks for: that is what the
    annotation tools of MPII, LSP and FLIC saw.

    Args:
        path: file of any format that OpenCV reads.

    Returns:
        RGB, uint8 (H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an image that can be read.
    """
    _check_files([path])
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{path} is not an image that OpenCV can read; it may be damaged")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def check_images(*groups: Sequence[Person]) -> None:
    """Make sure that there is every image file of some people; of sequences that make their records on demand, none.

    Raises:
        FileNotFoundError: if image files are missing; the message names them.
    """
    people = [person for group in groups if isinstance(group, (list, tuple)) for person in group]
    _check_files(person.image for person in people if isinstance(person.image, Path))


def _check_files(paths: Iterable[Path]) -> None:
    missing = [str(path) for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        more = len(missing) - _MAX_MISSING_NAMED
        raise FileNotFoundError(
            f"{len(missing)} image file(s) missing: {', '.join(missing[:_MAX_MISSING_NAMED])}"
            + (f" and {more} more" if more > 0 else "")
        )
