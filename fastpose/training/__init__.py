"""Training by a recipe: data, phases, validation, checkpoints and logs, on Lightning."""

from fastpose.training.batches import PoseDataModule
from fastpose.training.data import TrainingData, figures_data, published_data
from fastpose.training.module import PoseTraining
from fastpose.training.run import RECIPE_KEY, TrainingResult, build, rank, train
from fastpose.training.score import SCORES, Score

__all__ = [
    "RECIPE_KEY",
    "SCORES",
    "PoseDataModule",
    "PoseTraining",
    "Score",
    "TrainingData",
    "TrainingResult",
    "build",
    "figures_data",
    "published_data",
    "rank",
    "train",
]
