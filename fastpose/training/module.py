"""One phase of an architecture's training, as Lightning runs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from fastpose.codec import HeatmapCodec
from fastpose.metrics import PCKh
from fastpose.models import PoseModel, Source, View
from fastpose.recipes import Recipe
from fastpose.training.score import Score

LOG_EVERY = 50  # steps


class PoseTraining(pl.LightningModule):
    """A model that learns what one of its phases trains; all else in it stays as it is.

    Args:
        model: with the weights that the phase starts from.
        phase: of ``model.phases``.
        recipe: how the phase learns.
        score: what it is judged by.
        codec: convention of the heatmaps; None: the model has none.
        seed: of what is random in the training itself, such as dropout.
        history: loss and scores of the epochs before, see `TrainingResult`; is added to.
    """

    def __init__(
        self,
        model: PoseModel,
        phase: str,
        recipe: Recipe,
        score: Score,
        codec: HeatmapCodec | None,
        seed: int = 0,
        history: Mapping[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.phase = phase
        self.phase_number = model.phases.index(phase)
        self.recipe = recipe
        self.score = score
        self.codec = codec
        self.seed = seed
        self.trained = model.stage_names[: model.trained_stages(phase)]
        self.metrics: Any = torch.nn.ModuleList(PCKh(score.protocol) for _ in self.trained)
        names = ("loss", *(self.curve(stage) for stage in model.stage_names))
        self.history = {name: list((history or {}).get(name, ())) for name in names}
        self.scores: dict[str, dict[str, float]] = {}
        self.plateau: ReduceLROnPlateau | None = None
        self.plateau_state: dict[str, Any] | None = None
        self.loss_sum = torch.zeros(())
        learning = {id(p) for module in model.phase_modules(phase) for p in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in learning)

    def curve(self, stage: str) -> str:
        """The name of a stage's score in the history."""
        return f"{self.score.name} {stage}"

    def train(self, mode: bool = True) -> PoseTraining:
        super().train(mode)
        if mode:  # what does not learn must not drop features out, nor move its statistics
            for child in self.model.children():
                child.eval()
            for module in self.model.phase_modules(self.phase):
                module.train()
        return self

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        options = dict(recipe.optimizer_options)
        lr = options.pop("lr")
        groups = self.model.parameter_groups(lr, options.pop("weight_decay", 0.0), self.phase)
        optimizer = getattr(torch.optim, recipe.optimizer)(groups, lr=lr, **options)
        if recipe.schedule == "constant":
            return optimizer
        schedule_options = dict(recipe.schedule_options)
        if recipe.schedule == "ReduceLROnPlateau":
            # Not handed to Lightning, which would go on with it only after the epoch's checkpoint is written.
            self.plateau = ReduceLROnPlateau(optimizer, mode="max", **schedule_options)
            if self.plateau_state is not None:  # checkpoints are loaded before there are optimizers
                self.plateau.load_state_dict(self.plateau_state)
            return optimizer
        if recipe.schedule == "OneCycleLR":
            peak = schedule_options.pop("max_lr")
            peaks = [peak * group["lr"] / lr for group in groups]
            schedule: Any = OneCycleLR(optimizer, peaks, total_steps=recipe.steps, **schedule_options)
        else:
            schedule = getattr(torch.optim.lr_scheduler, recipe.schedule)(optimizer, **schedule_options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        # So that a run that goes on from the end of an epoch draws what one that was not interrupted would.
        torch.manual_seed(hash((self.seed, self.phase_number, self.global_step, self.global_rank)))
        keypoints = batch["keypoints"]
        everyone = batch.get("everyone", keypoints.unsqueeze(1))
        loss = self.model.objective(self.phase, view_of(batch), keypoints, everyone, self.codec).sum()
        self.loss_sum += loss.detach()
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        # Only now and then, because reading a number waits for the GPU; but before a checkpoint is written.
        if (self.trainer.is_last_batch or not self.global_step % LOG_EVERY) and not self.loss_sum.isfinite():
            raise FloatingPointError(
                f"the loss is no longer finite at step {self.global_step} of {self.recipe.steps} of phase {self.phase!r}; try a "
                f"lower learning rate (optimizer_options lr, now {self.recipe.optimizer_options['lr']}), clip_norm, or fp32. "
                f"The last checkpoint, of the {self.current_epoch} epochs before, is as it was"
            )

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        view = view_of(batch)
        stages = self.model.predict(view.images, codec=self.codec, source=view.source)
        to_image = batch["crop_to_image"]
        lengths = self.score.lengths(batch)
        for points, metric in zip(stages.coordinates, self.metrics, strict=False):
            in_image = points @ to_image[:, :, :2].mT + to_image[:, None, :, 2]
            metric.update(in_image, batch["source_keypoints"], lengths)

    def on_validation_epoch_end(self) -> None:
        self.scores = {}
        for stage, metric in zip(self.trained, self.metrics, strict=True):
            values = metric.compute()  # over all processes
            metric.reset()
            self.scores[stage] = {name: float(values[name]) for name in (*self.score.protocol.columns, "total")}
            self.log(f"{self.score.metric}_{stage.replace(' ', '_')}", self.scores[stage]["total"])
        self.log(self.score.metric, self.scores[self.trained[-1]]["total"], prog_bar=True)

    def on_train_epoch_end(self) -> None:
        loss = self.loss_sum / self.recipe.epoch_steps
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss)
        self.history["loss"].append(loss.item())
        for stage in self.model.stage_names:
            self.history[self.curve(stage)].append(self.scores.get(stage, {}).get("total", math.nan))
        if self.plateau is not None:
            self.plateau.step(self.scores[self.trained[-1]]["total"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fastpose"] = {
            "recipe": self.recipe.to_dict(),
            "phase": self.phase,
            "seed": self.seed,
            "history": self.history,
            "scores": self.scores,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get("fastpose", {"recipe": {}, "seed": None, "phase": None})
        given = {**self.recipe.to_dict(), "seed": self.seed, "phase": self.phase}
        stored = {**kept["recipe"], "seed": kept["seed"], "phase": kept.get("phase")}
        changed = [f"{name} is {value!r}, was {stored.get(name)!r}" for name, value in given.items() if value != stored.get(name)]
        if changed:
            raise ValueError(f"resume: the checkpoint belongs to another run: {'; '.join(changed)}")
        self.history, self.scores = kept["history"], kept["scores"]
        self.plateau_state = kept["plateau"]


def view_of(batch: dict[str, Any]) -> View:
    """What a batch of crops shows a model."""
    images = batch["image"].contiguous(memory_format=torch.channels_last)
    source = Source(batch["source"], batch["crop_to_image"]) if "source" in batch else None
    return View(images, source=source)
