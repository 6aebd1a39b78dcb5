"""A run: the phases of an architecture's training one after the other, on Lightning, with what it leaves in its folder."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from fastpose import _check
from fastpose.checkpoints import CODEC_KEY, CROP_KEY, SKELETON_KEY, load_weights, read_metadata, save_weights
from fastpose.codec import HeatmapCodec
from fastpose.data.crop_settings import CropSettings
from fastpose.data.crops import PoseDataset, check_images, collate_samples
from fastpose.data.records import Person
from fastpose.models import PoseModel, View, create_model
from fastpose.prediction import crop_settings
from fastpose.recipes import Recipe
from fastpose.skeletons import Skeleton
from fastpose.training.batches import PoseDataModule
from fastpose.training.data import TrainingData
from fastpose.training.module import LOG_EVERY, PoseTraining, view_of

RECIPE_KEY = "fastpose.recipe"
"""Metadata key of the weights' recipe: `Recipe.to_dict` as JSON."""

_PROGRESS_KEY = "fastpose.progress"
_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
_MAX_WORKERS = 8
_PEOPLE_PER_CROP = 8


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves.

    Attributes:
        weights: file of the weights after the last step, with their codec, skeleton and recipe.
        history: ``"loss"``, and for each stage of the model the data's total score (%) on the validation people, such as
            ``"PCKh@0.5 stack 1"``; one number an epoch, over all phases. NaN for a stage that was not trained yet.
        scores: for each stage of the model the score (%) after the last epoch, by joint group; ``"total"`` of all.
    """

    weights: Path
    history: dict[str, list[float]]
    scores: dict[str, dict[str, float]]

    @property
    def initial(self) -> dict[str, float]:
        """The scores of the first stage."""
        return next(iter(self.scores.values()))

    @property
    def final(self) -> dict[str, float]:
        """The scores of the last stage."""
        return list(self.scores.values())[-1]


def train(
    recipe: Recipe,
    data: TrainingData,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    precision: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    progress: bool = True,
    devices: int = 1,
    nodes: int = 1,
) -> TrainingResult:
    """Train a model, phase by phase.

    A phase is a sequence of epochs of a fixed number of steps. Which people a step sees, how they are augmented and whatever
    else is random depends on the seed and the number of the step alone; so a run that was interrupted and goes on from the
    end of an epoch ends with the weights of one that was not, on the same machine with the same number of threads.

    On several devices or machines, started by Lightning itself or by ``torchrun``, the people of a step are shared out, so
    that ``batch_size`` remains that of the recipe. On GPUs batch normalisation then is over all of them.

    Args:
        recipe: what and how.
        data: whom to learn from and to validate on.
        out: folder of the run, made if need be: ``weights.safetensors`` of the last step, a file of weights for each phase
            before, ``checkpoints/`` with ``last.ckpt`` and ``best.ckpt`` (by the data's score) of each phase, ``logs/`` for CSV
            and TensorBoard.
        seed: of weights, order and augmentation.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``; None: the recipe's.
        workers: processes that load data, for each device; None: by the machine.
        resume: whether to go on with the run in ``out``, from its last checkpoint. It must be of the same recipe and seed.
        progress: whether to show a progress bar.
        devices: GPUs, or processes where there are none, of each machine.
        nodes: machines.

    Raises:
        FileExistsError: ``out`` holds a run and ``resume`` is not given.
        FileNotFoundError: there is nothing to resume, or image files are missing.
        FloatingPointError: the loss is no longer a finite number; the checkpoints are those of the epochs before.
        torch.OutOfMemoryError: the memory does not suffice for the batch size; likewise.
        ValueError: an argument is not as above.
    """
    out = Path(out)
    precision = _resolve_precision(recipe.precision if precision is None else precision)
    cores = os.cpu_count() or 1
    if workers is None:
        # One process draws or reads about as fast as three threads train on it; a GPU is faster.
        workers = max(1, min(_MAX_WORKERS, cores - 1 if torch.cuda.is_available() else cores // 4))
    for name, number in (("workers", workers), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{name}: got {number!r}, allowed is an integer of at least 0")
    for name, number in (("devices", devices), ("nodes", nodes)):
        _check.positive_int(name, number)
    check_images(data.train, data.validation)
    model, codec = build(recipe, data.skeleton, seed)
    crops = _crops(recipe, model, codec, data)
    folders = _Folders(out, model.phases)
    folders.check(resume)
    learners = data.train, data.train
    if any(model.needs_people(phase) for phase in model.phases):
        learners = data.hold_out(recipe.held_out)
    history: dict[str, list[float]] = {}
    scores: dict[str, dict[str, float]] = {}
    seen = 0
    for phase in model.phases:
        plan = recipe.of_phase(phase)
        first, seen = seen, seen + plan.steps * plan.batch_size
        if resume and folders.weights(phase).is_file():
            load_weights(model, folders.weights(phase))
            kept = json.loads(read_metadata(folders.weights(phase))[_PROGRESS_KEY])
            history, scores = kept["history"], kept["scores"]
            continue
        checkpoint = folders.checkpoints(phase) / "last.ckpt"
        going_on = checkpoint if resume and checkpoint.is_file() else None
        if model.needs_people(phase) and going_on is None:
            model.prepare(phase, _views(learners[1], data.skeleton, crops, plan, model))
        module = PoseTraining(model, phase, plan, data.score, codec, seed, history)
        batches = PoseDataModule(
            learners[0],
            data.validation,
            data.skeleton,
            crops,
            plan,
            first=first,
            seed=seed,
            workers=workers,
            people_per_crop=_PEOPLE_PER_CROP if "everyone" in getattr(model, "stage_targets", ()) else 0,
            with_source=model.looks_again,
        )
        trainer_options = {"precision": _LIGHTNING_PRECISION[precision], "devices": devices, "num_nodes": nodes}
        with _quiet_lightning(), _threads((cores - workers) // devices):
            trainer = _trainer(folders, phase, plan, data.score.metric, progress, trainer_options)
            _fit(trainer, module, batches, going_on)
        history, scores = module.history, module.scores
        if trainer.is_global_zero:
            metadata = {
                SKELETON_KEY: data.skeleton.name,
                CROP_KEY: recipe.crop or data.crop,
                RECIPE_KEY: json.dumps(recipe.to_dict()),
                _PROGRESS_KEY: json.dumps({"history": history, "scores": scores}),
                **({CODEC_KEY: json.dumps(codec.to_dict())} if codec else {}),
            }
            save_weights(model, folders.weights(phase), metadata=metadata)
        trainer.strategy.barrier()
    return TrainingResult(folders.weights(model.phases[-1]), history, scores)


def rank() -> int:
    """Number of this process among those of a run, 0 for the one that writes; by what launchers set, before there is a run."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def build(recipe: Recipe, skeleton: Skeleton, seed: int = 0) -> tuple[PoseModel, HeatmapCodec | None]:
    """The model of a recipe with fresh weights, and the convention of its heatmaps; None: it has none.

    Args:
        recipe: of which model.
        skeleton: whose joints it predicts.
        seed: of its weights.

    Raises:
        TypeError, ValueError: the model has no such option, or a value is not allowed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {**recipe.model_options, "num_joints": skeleton.num_joints}
        model: Any = create_model(recipe.model, config=recipe.config, **options)
    if recipe.zero_heads:
        for name, parameter in model.named_parameters():
            if ".head." in name:
                nn.init.zeros_(parameter)
    return model.to(memory_format=torch.channels_last), recipe.make_codec(model)


class _Folders:
    """Where the parts of a run lie."""

    def __init__(self, out: Path, phases: Sequence[str]) -> None:
        self.out = out
        self.phases = list(phases)

    def weights(self, phase: str) -> Path:
        return self.out / ("weights.safetensors" if phase == self.phases[-1] else f"{self._slug(phase)}.safetensors")

    def checkpoints(self, phase: str) -> Path:
        return self.out / "checkpoints" / ("" if len(self.phases) == 1 else self._slug(phase))

    def check(self, resume: bool) -> None:
        """Refuse to write over a run, or to resume none."""
        begun = [phase for phase in self.phases if (self.checkpoints(phase) / "last.ckpt").is_file()]
        if resume and not begun:
            raise FileNotFoundError(f"resume: there is no checkpoint {self.checkpoints(self.phases[0]) / 'last.ckpt'}")
        # The other processes of a run may look when the first one has begun to write.
        if begun and not resume and not rank():
            raise FileExistsError(f"out: {self.out} holds a run already; resume it, or choose another folder")

    def _slug(self, phase: str) -> str:
        return f"{self.phases.index(phase) + 1}-{phase.replace(' ', '-')}"


def _crops(recipe: Recipe, model: PoseModel, codec: HeatmapCodec | None, data: TrainingData) -> CropSettings:
    return crop_settings(model, codec, recipe.crop or data.crop)


def _views(
    people: Sequence[Person], skeleton: Skeleton, crops: CropSettings, plan: Recipe, model: PoseModel
) -> Iterator[tuple[View, torch.Tensor]]:
    dataset = PoseDataset(people, skeleton, crops, with_source=model.looks_again)
    mode = model.training
    model.eval()
    try:
        for batch in DataLoader(dataset, plan.batch_size, collate_fn=collate_samples):
            yield view_of(batch), batch["keypoints"]
    finally:
        model.train(mode)


def _trainer(folders: _Folders, phase: str, plan: Recipe, metric: str, progress: bool, options: dict[str, Any]) -> pl.Trainer:
    csv = CSVLogger(folders.out, name="logs")
    # Two of them, because the option save_last writes the last one only when it is the best one too.
    kept: Any = {
        "dirpath": folders.checkpoints(phase),
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(filename="best", monitor=metric, mode="max", **kept),
        ModelCheckpoint(filename="last", **kept),
    ]
    if plan.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=plan.ema, use_buffers=True))
    if plan.early_stop is not None:
        callbacks.append(EarlyStopping(monitor=metric, mode="max", patience=plan.early_stop))
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    on_gpus = torch.cuda.is_available()
    processes = options["devices"] * options["num_nodes"]
    return pl.Trainer(
        accelerator="cuda" if on_gpus else "cpu",
        strategy="ddp" if processes > 1 else "auto",
        sync_batchnorm=on_gpus and processes > 1,
        use_distributed_sampler=False,
        max_epochs=plan.epochs,
        gradient_clip_val=plan.clip_norm,
        callbacks=callbacks,
        enable_progress_bar=progress,
        enable_model_summary=False,
        logger=[csv, TensorBoardLogger(folders.out, name="logs", version=csv.version)],
        log_every_n_steps=LOG_EVERY,
        num_sanity_val_steps=0,
        # On the CPU everything is deterministic as it is.
        deterministic=on_gpus,
        **options,
    )


def _fit(trainer: pl.Trainer, module: PoseTraining, batches: PoseDataModule, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:  # also what a GPU says, and what the CPU's allocator says
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(
            f"out of memory with batch_size {module.recipe.batch_size}; try a smaller one. The last checkpoint is intact, but "
            f"belongs to this batch size. {str(error).strip().partition(chr(10))[0]}"
        ) from error


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
