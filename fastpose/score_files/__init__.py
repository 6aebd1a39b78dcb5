"""Scores of prediction files against files of labels, in the forms in which they are published."""

from __future__ import annotations

from fastpose.score_files.predictions import Predictions, read_predictions, save_predictions
from fastpose.score_files.results import Score, score_points, score_results
from fastpose.score_files.truth import Truth, read_truth, save_truth

__all__ = [
    "Predictions",
    "Score",
    "Truth",
    "read_predictions",
    "read_truth",
    "save_predictions",
    "save_truth",
    "score_points",
    "score_results",
]
