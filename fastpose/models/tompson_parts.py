"""The networks of Tompson et al., CVPR 2015: banks over a pyramid of images, and the fine model that shares their features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check
from fastpose.models.interface import check_images
from fastpose.models.pixels import Pixels
from fastpose.models.resnet import DeconvolutionHead, ResNet
from fastpose.ops import crop_windows, local_contrast_normalization

POOLINGS = (4, 8, 16)
TAPS = ("pool", "conv")

_RESNET_STRIDE = 32


class Tap(NamedTuple):
    """Features that the fine model shares, and where their cells lie: cell i at ``origin`` + ``stride`` i, in crop pixels."""

    features: torch.Tensor  # (B, C, h, w)
    stride: int
    origin: float


class Bank(nn.Module):
    """The convolutions of one resolution (figure 2): 5x5 three times, and 9x9 at the end.

    Args:
        pooling: pixels a cell at the end: 4, 8 or 16. Two poolings follow the first two convolutions, the others the third.
        features: channels of the 5x5 convolutions.
        wide: of the 9x9 one.
        extra_convs: more 5x5 convolutions after the third.
        tap: whether the fine model shares what comes out of the first two poolings, ``"pool"``, or goes into them, ``"conv"``.
    """

    def __init__(self, pooling: int, features: int, wide: int, extra_convs: int, tap: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, features, 5, padding=2)
        self.conv2 = nn.Conv2d(features, features, 5, padding=2)
        self.conv3 = nn.Conv2d(features, features, 5, padding=2)
        self.extra = nn.ModuleList(nn.Conv2d(features, features, 5, padding=2) for _ in range(extra_convs))
        self.conv4 = nn.Conv2d(features, wide, 9, padding=4)
        self.pooled = tap == "pool"
        self.last_poolings = POOLINGS.index(pooling)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Map normalised images (B, 3, H, W) to features (B, wide, H/p, W/p) and the two taps."""
        x, taps = images, []
        for first in (self.conv1, self.conv2):
            before = functional.relu(first(x))
            x = functional.max_pool2d(before, 2)
            taps.append(x if self.pooled else before)
        x = functional.relu(self.conv3(x))
        for _ in range(self.last_poolings):
            x = functional.max_pool2d(x, 2)
        for extra in self.extra:
            x = functional.relu(extra(x))
        return functional.relu(self.conv4(x)), taps


class PyramidTrunk(nn.Module):
    """The coarse model: a bank for each of several resolutions, summed up at the finest, and 1x1 convolutions.

    Args:
        maps: K.
        banks: resolutions, each half of the one before.
        hint: whether one more channel goes into the 1x1 convolutions.
        dropout: share of the channels that SpatialDropout takes away in training, each as a whole.
        head: channels of the 1x1 convolutions.
        window, border: of the local contrast normalisation, see :func:`fastpose.ops.local_contrast_normalization`.
        pooling, features, wide, extra_convs, tap: as of `Bank`.
    """

    def __init__(
        self,
        maps: int,
        *,
        banks: int,
        hint: bool,
        dropout: float,
        head: int,
        window: int,
        border: str,
        pooling: int,
        features: int,
        wide: int,
        extra_convs: int,
        tap: str,
    ) -> None:
        super().__init__()
        self.window, self.border = window, border
        self.banks = nn.ModuleList(Bank(pooling, features, wide, extra_convs, tap) for _ in range(banks))
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Sequential(
            nn.Conv2d(wide + hint, head, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(head, head, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(head, maps, 1),
        )
        self.hint_stride = pooling
        self.least_side = pooling * 2 ** (banks - 1)
        first = 2 if tap == "pool" else 1
        self.strides = [first * 2 ** (level + depth) for level in range(banks) for depth in range(2)]
        self.channels = [features] * len(self.strides)

    def forward(self, images: torch.Tensor, hint: torch.Tensor | None) -> tuple[torch.Tensor, list[Tap]]:
        """Map images (B, 3, H, W), RGB in [0, 1], to maps (B, K, H/p, W/p) and the taps of all banks."""
        check_images(images)
        if min(images.shape[-2:]) < self.least_side:
            raise ValueError(f"images: got shape {_check.shape(images)}, the least side that leaves a cell is {self.least_side}")
        total, tapped = None, []
        for level, bank in enumerate(self.banks):
            if level:
                images = functional.avg_pool2d(images, 2)
            x, taps = bank(local_contrast_normalization(images, self.window, border=self.border))
            tapped += taps
            total = x if total is None else total + _enlarged(x, 2**level, total.shape[-2:])
        total = self.dropout(total)
        if hint is not None:
            total = torch.cat((total, hint.to(total)), 1)
        # Cells are as wide as their stride, and the first one begins where the crop does.
        return self.head(total), [Tap(x, s, (s - 1) / 2) for x, s in zip(tapped, self.strides, strict=True)]


class ResNetTrunk(nn.Module):
    """A coarse model of today: ResNet and deconvolutions (Xiao et al., ECCV 2018); the fine model shares its first features."""

    def __init__(self, maps: int, *, hint: bool, head: int, width: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.pixels = Pixels("imagenet")
        self.trunk = ResNet(layers, width, 3 + hint)
        self.head = DeconvolutionHead(self.trunk.out_channels, head, maps)
        self.hint_stride = 1
        self.strides = [2, 4]
        self.channels = [width, 4 * width]

    def forward(self, images: torch.Tensor, hint: torch.Tensor | None) -> tuple[torch.Tensor, list[Tap]]:
        """Map images (B, 3, H, W), RGB in [0, 1], to maps (B, K, H/4, W/4) and two taps."""
        check_images(images, _RESNET_STRIDE)
        x = self.pixels(images)
        if hint is not None:
            x = torch.cat((x, hint.to(x)), 1)
        features = self.trunk(x)
        # Strided convolutions with odd kernels have their first cell on the first pixel.
        taps = [Tap(tap, s, 0.0) for tap, s in zip(features, self.strides, strict=False)]
        return self.head(features[-1]), taps


class FineModel(nn.Module):
    """Finds each joint in a window around where the coarse model puts it, by the coarse model's own features (figures 4, 5).

    One Siamese network for all joints but for its last layer: for every tap a path of 5x5 convolutions, whose results are
    enlarged to the finest and summed up, and three 1x1 convolutions.

    Args:
        maps: K.
        size: n, cells a side of the finest tap's window and of the maps.
        channels: of the taps.
        strides: of the taps, in crop pixels a cell.
        features: channels of the paths.
        head: channels of the 1x1 convolutions.
        convs: convolutions of a path.
    """

    def __init__(
        self, maps: int, size: int, channels: Sequence[int], strides: Sequence[int], features: int, head: int, convs: int
    ) -> None:
        super().__init__()
        self.size = size
        self.side = size * strides[0]  # in crop pixels
        self.paths = nn.ModuleList()
        for width in channels:
            layers: list[nn.Module] = []
            for depth in range(convs):
                layers += [nn.Conv2d(features if depth else width, features, 5, padding=2), nn.ReLU(inplace=True)]
            self.paths.append(nn.Sequential(*layers))
        self.hidden = nn.Sequential(
            nn.Conv2d(features, head, 1), nn.ReLU(inplace=True), nn.Conv2d(head, head, 1), nn.ReLU(inplace=True)
        )
        self.joints = nn.Conv1d(maps * head, maps, 1, groups=maps)

    def forward(self, taps: Sequence[Tap], centers: torch.Tensor) -> torch.Tensor:
        """Map taps, and (B, K, 2) middles of windows in crop pixels, to maps (B, K, n, n). No gradient goes to the middles."""
        total: torch.Tensor | None = None
        for tap, path in zip(taps, self.paths, strict=True):
            cells = (centers.detach() - tap.origin) / tap.stride
            side = self.side / tap.stride
            windows = crop_windows(tap.features, cells, side, math.ceil(side))
            x = path(windows.flatten(0, 1))
            if x.shape[-1] != self.size:
                x = functional.interpolate(x, (self.size, self.size), mode="bilinear")
            total = x if total is None else total + x
        hidden = self.hidden(total).unflatten(0, centers.shape[:2])  # (B, K, head, n, n)
        return self.joints(hidden.flatten(1, 2).flatten(2)).unflatten(2, (self.size, self.size))


def _enlarged(x: torch.Tensor, times: int, size: torch.Size) -> torch.Tensor:
    """Each cell becomes ``times`` squared ones; where the poolings left the last pixels out, the last cell stands in."""
    x = functional.interpolate(x, scale_factor=times, mode="nearest")
    rows, columns = (max(0, wanted - got) for wanted, got in zip(size, x.shape[-2:], strict=True))
    if rows or columns:
        x = functional.pad(x, (0, columns, 0, rows), mode="replicate")
    return x[..., : size[0], : size[1]]
