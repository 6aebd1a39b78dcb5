"""Whom a run learns from, and whom it is judged by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpose import _check
from fastpose.data.crop_settings import CROPS
from fastpose.data.datasets import DATASETS, read
from fastpose.data.figures import VALIDATION_FIGURES, VALIDATION_SEED, Figures
from fastpose.data.records import Person, with_bystanders
from fastpose.recipes import Recipe
from fastpose.skeletons import MPII, Skeleton
from fastpose.training.score import SCORES, Score

_HOLD_OUT = 20  # one of so many people


@dataclass(frozen=True)
class TrainingData:
    """People to learn from and people to validate on.

    Args:
        name: of the data set.
        train: people with labels.
        validation: people with labels and the lengths by which the score divides.
        skeleton: whose joints these are.
        crop: how people are cut out, a name in :data:`fastpose.data.crop_settings.CROPS`.
        score: what the run is judged by; its joints are those of the skeleton.

    Raises:
        ValueError: there are no people, the score is of another skeleton, or there is no such crop.
    """

    name: str
    train: Sequence[Person]
    validation: Sequence[Person]
    skeleton: Skeleton
    crop: str = "mpii"
    score: Score = SCORES["mpii"]

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            if not len(getattr(self, name)):
                raise ValueError(f"{name} must hold at least one person, got none")
        if self.skeleton != self.score.protocol.skeleton:
            raise ValueError(f"score must be of the joints of {self.skeleton.name}, got {self.score.protocol.skeleton.name}'s")
        _check.option("crop", self.crop, CROPS)

    def hold_out(self, at_most: int) -> tuple[Sequence[Person], Sequence[Person]]:
        """Keep some of the people to learn from apart, for what a phase has to know about people it was not trained on.

        Args:
            at_most: how many to keep apart.

        Returns:
            The others, and those kept apart: one of twenty. Of fewer than twenty people both are all.
        """
        count = min(len(self.train) // _HOLD_OUT, at_most)
        if not count:
            return self.train, self.train
        reach = count * _HOLD_OUT
        others = [*(i for i in range(reach) if i % _HOLD_OUT), *range(reach, len(self.train))]
        return Part(self.train, others), Part(self.train, range(0, reach, _HOLD_OUT))


class Part(Sequence[Person]):
    """Some of the people, by their numbers; a record of those that are made on demand exists only while it is looked at."""

    def __init__(self, people: Sequence[Person], numbers: Sequence[int]) -> None:
        self.people = people
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.people[self.numbers[index]]


def figures_data(recipe: Recipe, seed: int = 0, *, validation: int = VALIDATION_FIGURES) -> TrainingData:
    """Drawn figures of the size of the recipe's input: as many as the run sees, so that none is seen twice.

    Args:
        recipe: what to draw them for.
        seed: of the figures to learn from; those to validate on are the same for all.
        validation: how many figures to validate on.
    """
    size = recipe.figure_size or recipe.input_size or (256, 256)
    return TrainingData(
        name="figures",
        train=Figures(recipe.people_seen, seed=VALIDATION_SEED + 1 + seed, size=size),
        validation=Figures(validation, seed=VALIDATION_SEED, size=size)[:],
        skeleton=MPII,
    )


def published_data(
    name: str,
    source: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
) -> TrainingData:
    """A published data set, from whatever :func:`fastpose.data.read` reads.

    Args:
        name: of the data set: ``"mpii"``, ``"lsp"``, ``"flic"`` or ``"coco"``.
        source: the folder of the data set, or the annotation file of the people to learn from.
        images: folder of the image files; by default where the data set has it.
        validation: the file of the people to validate on. If not given: the validation split of ``source``, which is
            the test split where there is no other; or, where a file does not know both splits, the people learnt
            from, which shows how well they are fitted and no more.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or no one is left to learn from or to validate on.
    """
    _check.option("name", name, DATASETS)
    data = DATASETS[name]
    splits = data.splits[:2]

    def labelled(file: str | os.PathLike[str], parts: Sequence[str] | None = None) -> list[Person]:
        return [person for person in with_bystanders(read(name, file, parts, images=images)) if person.labelled.any()]

    if validation is not None:
        train, unseen = labelled(source), labelled(validation)
    else:
        people = labelled(source, splits if Path(source).is_dir() else None)
        train, unseen = ([person for person in people if person.split == split] for split in splits)
        if not (train and unseen):
            train = unseen = people
    return TrainingData(name, train, unseen, data.skeleton, data.crop, SCORES[name])
