"""Square windows around points of a crop, cut from the image that the crop is from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastpose.models.interface import View
from fastpose.ops import crop_windows

# Of the axes of a source against those of its crop, as a share of the scale between them.
_MAX_SKEW = 1e-3


class Windows(NamedTuple):
    """Where K windows of B people are, and coordinates relative to them: 0 in the middle, +-1/2 at the edges."""

    centers: torch.Tensor
    """(B, K, 2), (x, y) in crop pixels. NaN: no window."""
    sides: torch.Tensor
    """(B, K) in crop pixels."""

    def normalize(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (B, K, 2) from crop pixels to coordinates relative to their windows."""
        return (points - self.centers) / self.sides.unsqueeze(-1)

    def denormalize(self, vectors: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`normalize`."""
        return self.centers + vectors * self.sides.unsqueeze(-1)


def cut_windows(view: View, windows: Windows, size: int | tuple[int, int], fill: float | Sequence[float] = 0.0) -> torch.Tensor:
    """Cut windows from the crops' source, or from the crops themselves where there is no source.

    Args:
        view: the crops. Their source, if any, is scaled, shifted and perhaps mirrored, but not rotated against them.
        windows: where to cut.
        size: (height, width) of the windows in pixels, or one number for a square.
        fill: what lies outside of the image, in [0, 1]. A window that reaches there is neither moved nor shrunk.

    Returns:
        (B, K, 3, height, width), RGB in [0, 1], mirrored as the crops are; 0 where there is no window.

    Raises:
        ValueError: a source is rotated.
    """
    images, source = view.images, view.source
    if source is None:
        return crop_windows(images, windows.centers, windows.sides, size, fill=fill)
    linear, shift = source.crop_to_source.split((2, 1), -1)
    scale = linear.diagonal(dim1=1, dim2=2)
    across = torch.stack((linear[:, 0, 1], linear[:, 1, 0]), -1).abs()
    if bool((across > _MAX_SKEW * scale.abs()).any() | (scale[:, 1] < 0).any()):
        raise ValueError(
            "source.crop_to_source: got a rotation, but windows are cut along the axes of the source; rotate the source too, "
            "or leave it out, so that windows are cut from the crops"
        )
    centers = windows.centers * scale[:, None] + shift.transpose(1, 2)
    sides = windows.sides.unsqueeze(-1) * scale.abs()[:, None]
    if isinstance(source.images, torch.Tensor):
        pixels = crop_windows(source.images, centers, sides, size, fill=fill)
    else:  # of different sizes
        one_by_one = zip(source.images, centers.split(1), sides.split(1), strict=True)
        pixels = torch.cat([crop_windows(image.unsqueeze(0), c, s, size, fill=fill) for image, c, s in one_by_one])
    mirrored = (scale[:, 0] < 0)[:, None, None, None, None]
    return torch.where(mirrored, pixels.flip(-1), pixels).to(images.dtype)
