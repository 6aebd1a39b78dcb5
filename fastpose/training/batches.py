"""Batches of crops: which people a step sees, on one process or on several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fastpose.data.crop_settings import CropSettings
from fastpose.data.crops import PoseDataset, collate_samples
from fastpose.data.records import Person
from fastpose.recipes import Recipe
from fastpose.skeletons import Skeleton

_PREFETCHED_BATCHES = 8  # of each worker, to outlast a validation


class PoseDataModule(pl.LightningDataModule):
    """Batches of crops for one phase of a recipe.

    Which people a step sees, and how they are augmented, depends on the seed and the number of the step alone. Several
    processes share a step's people, and those to validate on, out among themselves: none is left out or seen twice.

    Args:
        train: the people to learn from.
        validation: the people to validate on.
        skeleton: their joints.
        crops: how people are cut out, without augmentation.
        recipe: of the phase: how to augment, and how many steps.
        first: how many people the phases before have seen.
        seed: of order and augmentation.
        workers: processes that make the crops; 0: none, they are made in turn with the training.
        people_per_crop, with_source: see `fastpose.data.crops.PoseDataset`.

    Raises:
        FileNotFoundError: image files are missing; the message names them.
        ValueError: a record has not the skeleton's number of joints.
    """

    def __init__(
        self,
        train: Sequence[Person],
        validation: Sequence[Person],
        skeleton: Skeleton,
        crops: CropSettings,
        recipe: Recipe,
        *,
        first: int = 0,
        seed: int = 0,
        workers: int = 0,
        people_per_crop: int = 0,
        with_source: bool = False,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.workers = workers
        self.first = first
        looked_at: dict[str, Any] = {"people_per_crop": people_per_crop, "with_source": with_source}
        PoseDataset(train, skeleton, crops)  # checks the records now rather than in the course of the run
        passes = Passes(train, first + recipe.steps * recipe.batch_size, seed)
        augmented = replace(crops, augmentation=recipe.augmentation, seed=seed)
        self.train = PoseDataset(passes, skeleton, augmented, **looked_at)
        self.validation = PoseDataset(validation, skeleton, crops, **looked_at)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, _Epoch(self.recipe, self.first, *self._place()))

    def val_dataloader(self) -> DataLoader[Any]:
        rank, processes = self._place()
        return self._loader(self.validation, _Share(range(rank, len(self.validation), processes)))

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, dataset: PoseDataset, sampler: Sampler[int]) -> DataLoader[Any]:
        _, processes = self._place()
        if self.recipe.batch_size % processes:
            raise ValueError(f"batch_size: got {self.recipe.batch_size}, allowed is a multiple of the {processes} processes")
        return DataLoader(
            dataset,
            self.recipe.batch_size // processes,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate_samples,
            worker_init_fn=_use_one_thread,
            persistent_workers=self.workers > 0,
            prefetch_factor=_PREFETCHED_BATCHES if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )


class Passes(Sequence[Person]):
    """All people of a run in the order in which it sees them: pass after pass, each shuffled anew.

    As one long sequence it gives every crop of the run a number of its own, from which its augmentation is drawn.
    """

    def __init__(self, people: Sequence[Person], length: int, seed: int) -> None:
        self.people = people
        self.length = length
        self.seed = seed
        self._shuffled: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        number, position = divmod(range(self.length)[index], len(self.people))
        if self._shuffled[0] != number:
            self._shuffled = number, np.random.default_rng((self.seed, number)).permutation(len(self.people))
        return self.people[int(self._shuffled[1][position])]


class _Share(Sampler[int]):
    """The people of one process."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


class _Epoch(Sampler[int]):
    """The samples of one epoch that fall to one process, step by step; Lightning says which epoch it is."""

    def __init__(self, recipe: Recipe, first: int, rank: int, processes: int) -> None:
        self.steps = recipe.epoch_steps
        self.batch = recipe.batch_size
        self.first = first
        self.share = self.batch // processes
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.share

    def __iter__(self) -> Iterator[int]:
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            begin = self.first + step * self.batch + self.rank * self.share
            yield from range(begin, begin + self.share)


def _use_one_thread(worker: int) -> None:
    # A forked worker has this from its parent, and must not ask: OpenCV would wait for threads that were not forked.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
