"""Training by a recipe: data, loss, validation, checkpoints and logs, on Lightning.

A run is a sequence of epochs of a fixed number of steps. Which people a step sees, and how they are augmented,
depends on the seed and the number of the step alone; so a run that was interrupted and goes on from the end of an epoch
ends with the weights of one that was not, on the same machine with the same number of threads.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Sampler

from fastpose import _check
from fastpose.checkpoints import save_weights
from fastpose.data.crop_settings import CROPS
from fastpose.data.crops import PoseDataset, PoseSample, check_images
from fastpose.data.datasets import DATASETS, read
from fastpose.data.figures import Figures
from fastpose.data.records import Person
from fastpose.metric_modules import PCKh
from fastpose.models import create_model
from fastpose.prediction import CODEC_KEY, CROP_KEY, SKELETON_KEY, crop_settings
from fastpose.recipes import Recipe
from fastpose.scoring import SCORES, Score
from fastpose.skeletons import MPII, Skeleton

VALIDATION_FIGURES = 500
VALIDATION_SEED = 0
"""Figures to validate on are the same for every run."""

RECIPE_KEY = "fastpose.recipe"
"""Metadata key of the weights' recipe: `Recipe.to_dict` as JSON."""

_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
_LOG_EVERY = 50  # steps
_PREFETCHED_BATCHES = 8  # of each worker, to outlast a validation
_MAX_WORKERS = 8


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


def figures_data(recipe: Recipe, seed: int = 0, *, validation: int = VALIDATION_FIGURES) -> TrainingData:
    """Drawn figures of the size of the recipe's input: as many as the run sees, so that none is seen twice.

    Args:
        recipe: what to draw them for.
        seed: of the figures to learn from; those to validate on are the same for all.
        validation: how many figures to validate on.
    """
    seen = recipe.steps * recipe.batch_size
    return TrainingData(
        name="figures",
        train=Figures(seen, seed=VALIDATION_SEED + 1 + seed, size=recipe.input_size),
        validation=Figures(validation, seed=VALIDATION_SEED, size=recipe.input_size)[:],
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
    if validation is not None:
        train, unseen = (read(name, file, images=images) for file in (source, validation))
    else:
        people = read(name, source, splits if Path(source).is_dir() else None, images=images)
        train, unseen = ([person for person in people if person.split == split] for split in splits)
        if not (train and unseen):
            train = unseen = people
    train, unseen = ([person for person in part if person.labelled.any()] for part in (train, unseen))
    return TrainingData(name, train, unseen, data.skeleton, data.crop, SCORES[name])


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves.

    Attributes:
        weights: file of the weights after the last step, with their codec, skeleton and recipe.
        history: ``"loss"`` and the data's total score (%) on the validation people of the first and of the last stack,
            such as ``"PCKh@0.5 first stack"`` and ``"PCKh@0.5 last stack"``; one number an epoch.
        initial: score (%) of the first stack after the last epoch, by joint group; ``"total"`` of all.
        final: likewise of the last stack.
    """

    weights: Path
    history: dict[str, list[float]]
    initial: dict[str, float]
    final: dict[str, float]


class HeatmapPose(pl.LightningModule):
    """A model that learns heatmaps, with intermediate supervision of every stack.

    Args:
        recipe: how it learns.
        skeleton: whose joints it learns.
        seed: of its weights.
        score: what it is judged by.
    """

    def __init__(self, recipe: Recipe, skeleton: Skeleton, seed: int = 0, score: Score = SCORES["mpii"]) -> None:
        super().__init__()
        self.recipe = recipe
        self.skeleton = skeleton
        self.seed = seed
        self.score = score
        self.codec = recipe.make_codec()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = create_model(recipe.model, **{**recipe.model_options, "num_joints": skeleton.num_joints})
        if recipe.zero_heads:
            for name, parameter in model.named_parameters():
                if ".head." in name:
                    nn.init.zeros_(parameter)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.first, self.last = PCKh(score.protocol), PCKh(score.protocol)
        self.history: dict[str, list[float]] = {"loss": [], f"{score.name} first stack": [], f"{score.name} last stack": []}
        self.initial: dict[str, float] = {}
        self.final: dict[str, float] = {}
        self.plateau: ReduceLROnPlateau | None = None
        self.plateau_state: dict[str, Any] | None = None
        self.loss_sum = torch.zeros(())

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, 3, H, W) to one tensor of heatmaps (B, K, h, w) for each stack."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        optimizer = getattr(torch.optim, recipe.optimizer)(self.parameters(), **recipe.optimizer_options)
        if recipe.schedule == "OneCycleLR":
            schedule = OneCycleLR(optimizer, total_steps=recipe.steps, **recipe.schedule_options)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        if recipe.schedule == "ReduceLROnPlateau":
            # Not handed to Lightning, which would go on with it only after the epoch's checkpoint is written.
            self.plateau = ReduceLROnPlateau(optimizer, mode="max", **recipe.schedule_options)
            if self.plateau_state is not None:  # checkpoints are loaded before there are optimizers
                self.plateau.load_state_dict(self.plateau_state)
        return optimizer

    def on_train_epoch_start(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)

    def training_step(self, batch: PoseSample, batch_idx: int) -> torch.Tensor:
        loss = self.codec.loss(self(batch["image"]), batch["keypoints"]).sum()
        self.loss_sum += loss.detach()
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: PoseSample, batch_idx: int) -> None:
        # Only now and then, because reading a number waits for the GPU; but before a checkpoint is written.
        if (self.trainer.is_last_batch or not self.global_step % _LOG_EVERY) and not self.loss_sum.isfinite():
            raise FloatingPointError(
                f"the loss is no longer finite at step {self.global_step} of {self.recipe.steps}; try a lower learning "
                f"rate (optimizer_options lr, now {self.recipe.optimizer_options['lr']}), clip_norm, or fp32. The "
                f"last checkpoint, of the {self.current_epoch} epochs before, is as it was"
            )

    def validation_step(self, batch: PoseSample, batch_idx: int) -> None:
        stacks = self(batch["image"])
        for heatmaps, metric in ((stacks[0], self.first), (stacks[-1], self.last)):
            decoded = self.codec.decode(heatmaps, affine=batch["crop_to_image"])
            metric.update(decoded.coordinates, batch["source_keypoints"], self.score.lengths(batch))

    def on_validation_epoch_end(self) -> None:
        self.initial, self.final = _scores(self.first), _scores(self.last)
        self.log(f"{self.score.metric}_first_stack", self.initial["total"])
        self.log(self.score.metric, self.final["total"], prog_bar=True)

    def on_train_epoch_end(self) -> None:
        epoch = (self.loss_sum.item() / self.recipe.epoch_steps, self.initial["total"], self.final["total"])
        for values, value in zip(self.history.values(), epoch, strict=True):
            values.append(value)
        if self.plateau is not None:
            self.plateau.step(self.final["total"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fastpose"] = {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "history": self.history,
            "initial": self.initial,
            "final": self.final,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get("fastpose", {"recipe": {}, "seed": None})
        given = {**self.recipe.to_dict(), "seed": self.seed}
        stored = {**kept["recipe"], "seed": kept["seed"]}
        changed = [f"{name} is {value!r}, was {stored.get(name)!r}" for name, value in given.items() if value != stored.get(name)]
        if changed:
            raise ValueError(f"resume: the checkpoint belongs to another run: {'; '.join(changed)}")
        self.history, self.initial, self.final = kept["history"], kept["initial"], kept["final"]
        self.plateau_state = kept["plateau"]


def _scores(metric: PCKh) -> dict[str, float]:
    values = metric.compute()
    metric.reset()
    return {name: float(values[name]) for name in (*metric.protocol.columns, "total")}


class PoseDataModule(pl.LightningDataModule):
    """Batches of crops of a recipe's people.

    Args:
        data: the people.
        recipe: how to crop and augment, and how many steps.
        seed: of order and augmentation.
        workers: processes that make the crops; 0: none, they are made in turn with the training.

    Raises:
        FileNotFoundError: image files are missing; the message names them.
        ValueError: a record has not the skeleton's number of joints.
    """

    def __init__(self, data: TrainingData, recipe: Recipe, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.recipe = recipe
        self.workers = workers
        check_images(data.train, data.validation)
        plain = crop_settings(recipe.make_codec(), data.crop)
        augmented = replace(plain, augmentation=recipe.augmentation, seed=seed)
        self.validation = PoseDataset(data.validation, data.skeleton, plain)
        PoseDataset(data.train, data.skeleton, plain)  # checks the records now rather than in the course of the run
        self.train = PoseDataset(_Passes(data.train, recipe.steps * recipe.batch_size, seed), data.skeleton, augmented)

    def train_dataloader(self) -> DataLoader[PoseSample]:
        return self._loader(self.train, sampler=_Epoch(self.recipe))

    def val_dataloader(self) -> DataLoader[PoseSample]:
        return self._loader(self.validation)

    def _loader(self, dataset: PoseDataset, sampler: Sampler[int] | None = None) -> DataLoader[PoseSample]:
        return DataLoader(
            dataset,
            self.recipe.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            worker_init_fn=_use_one_thread,
            persistent_workers=self.workers > 0,
            prefetch_factor=_PREFETCHED_BATCHES if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )


class _Passes(Sequence[Person]):
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


class _Epoch(Sampler[int]):
    """The samples of one epoch, in order; Lightning says of which."""

    def __init__(self, recipe: Recipe) -> None:
        self.length = recipe.epoch_steps * recipe.batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


def _use_one_thread(worker: int) -> None:
    # A forked worker has this from its parent, and must not ask: OpenCV would wait for threads that were not forked.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)


def train(
    recipe: Recipe,
    data: TrainingData,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    precision: str | None = None,
    workers: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train a model on the first GPU, or on the CPU if there is none.

    Args:
        recipe: what and how.
        data: whom to learn from and to validate on.
        out: folder of the run, made if need be: ``weights.safetensors`` of the last step, ``checkpoints/last.ckpt`` and
            ``checkpoints/best.ckpt`` (by the data's score), ``logs/`` for CSV and TensorBoard.
        seed: of weights, order and augmentation.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``; None: the recipe's.
        workers: processes that load data; None: by the machine.
        resume: a checkpoint to go on from, or ``"last"``: that of ``out``. It must be of the same recipe and seed.
        progress: whether to show a progress bar.

    Raises:
        FileExistsError: ``out`` holds a run and ``resume`` is not given.
        FileNotFoundError: there is no such checkpoint, or image files are missing.
        FloatingPointError: the loss is no longer a finite number; the checkpoints are those of the epochs before.
        ValueError: an argument is not as above.
    """
    out = Path(out)
    precision = _resolve_precision(recipe.precision if precision is None else precision)
    cores = os.cpu_count() or 1
    if workers is None:
        # One process draws or reads about as fast as three threads train on it; a GPU is faster.
        workers = max(1, min(_MAX_WORKERS, cores - 1 if torch.cuda.is_available() else cores // 4))
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers: got {workers!r}, allowed is an integer of at least 0")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, allowed is an integer of at least 0")
    last = out / "checkpoints" / "last.ckpt"
    checkpoint = last if resume == "last" else None if resume is None else Path(resume)
    if checkpoint is None and last.exists():
        raise FileExistsError(f"out: {out} holds a run already; resume it, or choose another folder")
    if checkpoint is not None and not checkpoint.is_file():
        raise FileNotFoundError(f"resume: there is no checkpoint {checkpoint}")
    module = HeatmapPose(recipe, data.skeleton, seed, data.score)
    batches = PoseDataModule(data, recipe, seed, workers)

    csv = CSVLogger(out, name="logs")
    # Two of them, because the option save_last writes the last one only when it is the best one too.
    best_and_last: Any = {"dirpath": last.parent, "save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(filename="best", monitor=data.score.metric, mode="max", **best_and_last),
        ModelCheckpoint(filename="last", **best_and_last),
    ]
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    with _quiet_lightning(), _threads(cores - workers):
        trainer = pl.Trainer(
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=1,
            precision=_LIGHTNING_PRECISION[precision],  # type: ignore[arg-type]
            max_epochs=recipe.epochs,
            gradient_clip_val=recipe.clip_norm,
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            logger=[csv, TensorBoardLogger(out, name="logs", version=csv.version)],
            log_every_n_steps=_LOG_EVERY,
            num_sanity_val_steps=0,
            # On the CPU everything is deterministic as it is.
            deterministic=torch.cuda.is_available(),
        )
        trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)

    weights = out / "weights.safetensors"
    save_weights(
        module.model,
        weights,
        metadata={
            CODEC_KEY: json.dumps(module.codec.to_dict()),
            SKELETON_KEY: data.skeleton.name,
            CROP_KEY: data.crop,
            RECIPE_KEY: json.dumps(recipe.to_dict()),
        },
    )
    return TrainingResult(weights, module.history, module.initial, module.final)


def _resolve_precision(precision: str) -> str:
    _check.option("precision", precision, ("auto", *_LIGHTNING_PRECISION))
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        computes_in_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        computes_in_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if computes_in_bf16 else "fp32"


@contextmanager
def _threads(spare: int) -> Iterator[None]:
    """Leave cores to the workers: threads that wait for one another on a busy core take many times as long."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(max(1, min(before[0], spare)))
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's remarks on hardware that is not there and on choices that are meant."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for remark in (
                "does not have many workers",
                "Checkpoint directory",
                "logging interval",
                "LeafSpec",
                "The dirpath has changed",
            ):
                warnings.filterwarnings("ignore", message=f".*{remark}")
            yield
    finally:
        logger.setLevel(level)
