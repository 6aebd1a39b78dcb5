"""Predictions of all stages of a model, from crops at several scales whose heatmaps are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fastpose import _check
from fastpose.codec import HeatmapCodec
from fastpose.data.records import Person
from fastpose.models import HeatmapModel, View
from fastpose.prediction import Predictor
from fastpose.skeletons import Skeleton


class StageBatch(NamedTuple):
    """What all S stages of a model predict for B people."""

    coordinates: NDArray[np.float32]
    """(S, B, K, 2): (x, y) in image pixels, 0-based."""
    scores: NDArray[np.float32]
    """(S, B, K): the heatmap's value at its maximum."""


def predict_stages(
    predictor: Predictor,
    people: Sequence[Person],
    *,
    flip_test: bool = True,
    scales: Sequence[float] = (1.0,),
    batch_size: int = 32,
) -> Iterator[StageBatch]:
    """Predict the poses of people by every stage of a model.

    Args:
        predictor: what predicts.
        people: records of which the image, the centre and the scale are used.
        flip_test: whether to average the heatmaps of a crop and of its mirror image.
        scales: factors of the crop's side. Heatmaps are averaged on the cells of the first; a cell that another crop does
            not reach is averaged over those that do.
        batch_size: people at a time.

    Yields:
        Batches in the order of the people.

    Raises:
        FileNotFoundError: if image files are missing; the message names them.
        ValueError: if a file is no image, a record has not the skeleton's number of joints, or ``scales`` is empty or not
            positive.
    """
    if not len(scales):
        raise ValueError("scales: got none, allowed is at least one")
    for scale in scales:
        _check.number("scales", scale, positive=True)
    if len(scales) == 1:
        for batch in predictor.batches(people, batch_size, enlargement=scales[0]):
            yield StageBatch(*predictor.stages(batch, flip_test=flip_test))
        return
    if not isinstance(predictor.model, HeatmapModel) or predictor.codec is None:
        raise ValueError(
            f"scales: got {len(scales)}, allowed is 1 for {type(predictor.model).__name__}: heatmaps of all stages are averaged"
        )
    loaders = [predictor.batches(people, batch_size, enlargement=scale) for scale in scales]
    for batches in zip(*loaders, strict=True):
        views = [(batch["image"].to(predictor.device), batch["crop_to_image"].to(predictor.device)) for batch in batches]
        yield _predict(predictor.model, predictor.codec, predictor.skeleton, views, flip_test)


@torch.inference_mode()
def _predict(
    model: HeatmapModel,
    codec: HeatmapCodec,
    skeleton: Skeleton,
    views: Sequence[tuple[torch.Tensor, torch.Tensor]],
    flip_test: bool,
) -> StageBatch:
    target = views[0][1]
    plain = [model.heatmaps(View(images)) for images, _ in views]
    mirrored = [model.heatmaps(View(images.flip(-1))) for images, _ in views] if flip_test else []
    maps_between = [_between(target, crop_to_image) for _, crop_to_image in views]
    mirror = target.new_tensor([[-1, 0, codec.input_size[1] - 1], [0, 1, 0]]).expand_as(target)
    mirrored_between = [_compose(mirror, _compose(between, mirror)) for between in maps_between]
    coordinates, scores = [], []
    for stage in range(len(plain[0])):
        averaged = _average([maps[stage] for maps in plain], maps_between, codec)
        flipped = _average([maps[stage] for maps in mirrored], mirrored_between, codec) if flip_test else None
        permutation = skeleton.flip_permutation if flip_test else None
        decoded = codec.decode(averaged, flipped=flipped, flip_permutation=permutation, affine=target)
        coordinates.append(decoded.coordinates)
        scores.append(decoded.scores)
    return StageBatch(torch.stack(coordinates).cpu().numpy(), torch.stack(scores).cpu().numpy())


def _average(maps: Sequence[torch.Tensor], between: Sequence[torch.Tensor], codec: HeatmapCodec) -> torch.Tensor:
    """The mean of heatmaps (B, K, h, w) of several crops on the cells of the first.

    Args:
        maps: of the crops.
        between: from pixels of the first crop to pixels of each, (B, 2, 3).
        codec: where the cells lie in a crop.
    """
    height, width = maps[0].shape[2:]
    rows, columns = (torch.arange(size, dtype=torch.float32, device=maps[0].device) for size in (height, width))
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    total, count = maps[0].clone(), torch.ones_like(maps[0][:, :1])
    extent = cells.new_tensor([width - 1, height - 1])
    for other, matrix in zip(maps[1:], between[1:], strict=True):
        pixels = torch.einsum("bij,hwj->bhwi", matrix[:, :, :2], codec.to_input(cells)) + matrix[:, None, None, :, 2]
        grid = (2 * codec.to_heatmap(pixels) / extent - 1).to(other.dtype)
        with_ones = torch.cat((other, torch.ones_like(other[:, :1])), 1)
        sampled = functional.grid_sample(with_ones, grid, align_corners=True)
        total += sampled[:, :-1]
        count += sampled[:, -1:]
    return total / count


def _between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The map (B, 2, 3) from pixels of one crop to those of another, from the maps of both to the image."""
    linear = torch.linalg.solve(second[:, :, :2].double(), first[:, :, :2].double())
    shift = torch.linalg.solve(second[:, :, :2].double(), (first[:, :, 2:] - second[:, :, 2:]).double())
    return torch.cat((linear, shift), 2).to(first.dtype)


def _compose(second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The map (B, 2, 3) that applies one and then another."""
    return torch.cat((second[:, :, :2] @ first[:, :, :2], second[:, :, :2] @ first[:, :, 2:] + second[:, :, 2:]), 2)
