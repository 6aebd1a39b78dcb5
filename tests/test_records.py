"""What the record of a person refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpose.data.records import Person


def person(**changes: Any) -> Person:
    arguments: dict[str, Any] = {
        "image": np.zeros((4, 6, 3), np.uint8),
        "keypoints": np.zeros((2, 2), np.float32),
        "visible": np.ones(2, bool),
        "center": np.zeros(2, np.float32),
        "scale": 1.0,
    }
    return Person(**(arguments | changes))


def test_an_image_may_be_a_file_and_labels_may_be_missing() -> None:
    record = person(image=Path("people.jpg"), keypoints=np.full((2, 2), np.nan, np.float32))
    assert record.image == Path("people.jpg")
    assert math.isnan(record.head_size)
    assert math.isnan(record.torso_size)
    assert np.isnan(record.box).all()
    assert not record.labelled.any()
    assert person(torso_size=0.0, area=0.0, box=np.zeros(4, np.float32)).labelled.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 6), np.uint8)}, "image"),
        ({"image": np.zeros((4, 6, 3), np.float32)}, "image must be uint8 .* got float32"),
        ({"keypoints": np.zeros((2, 3), np.float32)}, "keypoints"),
        ({"keypoints": np.zeros((2, 2))}, "keypoints must be float32 .* got float64"),
        ({"visible": np.ones(3, bool)}, "visible"),
        ({"visible": np.ones(2, np.uint8)}, "visible"),
        ({"center": np.array([0.0, np.nan])}, "center"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"head_size": -1.0}, "head_size"),
        ({"torso_size": -1.0}, "torso_size must be at least 0 and finite, or NaN if unknown, got -1"),
        ({"area": math.inf}, "area must be at least 0 and finite"),
        ({"box": np.zeros(4)}, "box must be float32 .* got float64"),
        ({"box": np.zeros(5, np.float32)}, "box must be float32"),
        ({"box": np.array([0, 0, -1, 5], np.float32)}, "box must be finite with width and height of at least 0"),
        ({"box": np.array([0, np.nan, 1, 5], np.float32)}, "box must be finite"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        person(**changes)


def test_an_image_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"pathlib\.Path or a NumPy array, got str"):
        person(image="people.jpg")
