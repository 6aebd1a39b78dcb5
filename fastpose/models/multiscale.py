"""Prediction from several sizes of the person, as Convolutional Pose Machines are tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from fastpose import _check
from fastpose.codec import HeatmapCodec
from fastpose.models.interface import HeatmapModel, Source, Stages, View, check_view
from fastpose.models.windows import Windows, cut_windows
from fastpose.ops import decode_heatmaps

SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
"""Of the released Convolutional Pose Machines."""


@torch.no_grad()
def predict_multiscale(
    model: HeatmapModel,
    images: torch.Tensor,
    *,
    scales: Sequence[float] = SCALES,
    codec: HeatmapCodec | None = None,
    center: torch.Tensor | None = None,
    source: Source | None = None,
) -> Stages:
    """Predict from crops of the same people at several sizes, and find the maxima of the mean heatmaps.

    The heatmaps of each size are brought onto the crop's pixels by cubic interpolation; where they do not reach, there is
    no joint.

    Args:
        model: any whose stages are heatmaps, in evaluation mode.
        images: crops (B, 3, N, N), RGB in [0, 1].
        scales: how large the person is shown, compared with the crop.
        codec: how the cells of heatmaps lie on pixels; None: the model's.
        center, source: as of `PoseModel.predict`. Without a source, people shown smaller are surrounded by the model's padding.

    Returns:
        Coordinates, whole crop pixels, and scores, of all stages.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    view = View(images, center, source)
    check_view(view)
    side = images.shape[-1]
    if images.shape[-2] != side:
        raise ValueError(f"images: got shape {_check.shape(images)}, allowed are squares (B, 3, N, N)")
    if not scales:
        raise ValueError("scales: got none, allowed is at least one")
    middle = (side - 1) / 2
    pixels = torch.arange(side, dtype=torch.float32, device=images.device)
    centers = torch.full((len(images), 1, 2), middle, device=images.device)
    totals: list[torch.Tensor] = []
    for scale in scales:
        _check.number("scales", scale, positive=True)
        windows = Windows(centers, torch.full_like(centers[..., 0], side / scale))
        zoomed = cut_windows(view, windows, side, model.padding).squeeze(1)
        moved = None if center is None else middle + scale * (center - middle)
        stages = model.heatmaps(View(zoomed, moved))
        shown = middle + scale * (pixels - middle)  # where the crop's pixels are in what the model has seen
        maps = [_on_pixels(heatmaps.float(), shown, codec or model.codec_of(heatmaps)) for heatmaps in stages]
        totals = [total + stage for total, stage in zip(totals, maps, strict=True)] if totals else maps
    decoded = [decode_heatmaps(total / len(scales), "argmax") for total in totals]
    return Stages(model.stage_names, torch.stack([d.coordinates for d in decoded]), torch.stack([d.scores for d in decoded]))


def _on_pixels(heatmaps: torch.Tensor, pixels: torch.Tensor, codec: HeatmapCodec) -> torch.Tensor:
    """Values (B, K, N, N) of heatmaps (B, C, h, w) at N pixels (N,), the same on both axes; 0 outside of the input."""
    heatmaps = heatmaps[:, :-1] if codec.background else heatmaps
    sizes = pixels.new_tensor(codec.heatmap_size[::-1])
    cells = codec.to_heatmap(torch.stack((pixels, pixels), -1)) - codec.decode_offset
    x, y = ((2 * cells + 1) / sizes - 1).unbind(-1)  # as grid_sample counts
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(len(heatmaps), -1, -1, -1)
    values = functional.grid_sample(heatmaps, grid, "bicubic", "border", align_corners=False)
    inside = (pixels >= -0.5) & (pixels <= codec.input_size[0] - 0.5)
    return values * (inside & inside.unsqueeze(-1))
