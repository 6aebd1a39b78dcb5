"""What a cell of a network sees, found by changing pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def positive(module: nn.Module) -> nn.Module:
    """Make all weights positive and all biases 0, so that brighter pixels make brighter cells, whatever is pooled."""
    for name, parameter in module.named_parameters():
        parameter.data = torch.zeros_like(parameter) if name.endswith("bias") else parameter.data.abs() + 0.01
    return module.eval()


@torch.no_grad()
def seen_columns(maps: Callable[[torch.Tensor], torch.Tensor], width: int, height: int) -> list[tuple[int, int]]:
    """For each column of cells in the maps the first and the last pixel column that it depends on.

    Args:
        maps: from images (B, 3, height, width) to maps (B, C, h, w); made `positive`.
    """
    images = torch.zeros(width, 3, height, width, dtype=torch.float64)
    images[range(width), :, :, range(width)] = 1.0
    touched = maps(images).flatten(1, 2).amax(1) > 0  # (pixel column, cell column)
    first = touched.int().argmax(0)
    last = width - 1 - touched.flip(0).int().argmax(0)
    return list(zip(first.tolist(), last.tolist(), strict=True))
