"""What the weights' file keeps beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastpose.checkpoints import load_model, read_metadata, save_weights
from fastpose.models import StackedHourglass


@pytest.fixture
def small() -> StackedHourglass:
    torch.manual_seed(0)
    return StackedHourglass(stacks=1, num_joints=2, features=4, depth=1)


def test_metadata_comes_back_with_the_architecture(tmp_path: Path, small: StackedHourglass) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(small, path, metadata={"fastpose.skeleton": "mpii", "note": "σ = 2"})
    metadata = read_metadata(path)
    assert metadata["fastpose.skeleton"] == "mpii"
    assert metadata["note"] == "σ = 2"
    assert metadata["fastpose.architecture"] == "hourglass"
    assert load_model(path).options == small.options


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"steps": 3}, TypeError, "strings to strings, got 'steps': 3"),
        ({"fastpose.options": "{}"}, ValueError, r"must not have 'fastpose\.options'"),
    ],
)
def test_refused_metadata_writes_nothing(
    tmp_path: Path, small: StackedHourglass, metadata: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save_weights(small, tmp_path / "model.safetensors", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_missing_and_damaged_files(tmp_path: Path, small: StackedHourglass) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        read_metadata(path)
    save_weights(small, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_metadata(path)
