"""Going Deeper with Convolutions (Szegedy et al., CVPR 2015): GoogLeNet as a trunk, as it was before batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check

NORMS = ("lrn", "bn", "none")

# Channels of the branches: 1x1; 3x3 after a 1x1; 5x5 after a 1x1; 1x1 after a pooling. "P" halves the maps. Table 1.
_INCEPTIONS: dict[str, tuple[int, tuple[int, int], tuple[int, int], int]] = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
_POOLED = ("3a", "4a", "5a")  # whose input is pooled first


class Convolution(nn.Sequential):
    """A convolution and its ReLU, with batch normalisation between them or without."""

    def __init__(self, in_channels: int, out_channels: int, side: int, norm: str) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, side, padding=side // 2, bias=norm != "bn")]
        if norm == "bn":
            layers.append(nn.BatchNorm2d(out_channels))
        super().__init__(*layers, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Convolutions of three sizes and a pooling, side by side (figure 2b).

    Args:
        in_channels: channels of the input.
        one, three, five, pool: channels of the branches as in table 1; of those with two convolutions, both.
        norm: ``"bn"``, or anything else for none.
    """

    def __init__(self, in_channels: int, one: int, three: Sequence[int], five: Sequence[int], pool: int, norm: str) -> None:
        super().__init__()
        self.branch1 = Convolution(in_channels, one, 1, norm)
        self.branch3 = nn.Sequential(Convolution(in_channels, three[0], 1, norm), Convolution(three[0], three[1], 3, norm))
        self.branch5 = nn.Sequential(Convolution(in_channels, five[0], 1, norm), Convolution(five[0], five[1], 5, norm))
        self.branch_pool = Convolution(in_channels, pool, 1, norm)
        self.out_channels = one + three[1] + five[1] + pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.max_pool2d(x, 3, 1, padding=1)
        return torch.cat((self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(pooled)), 1)


class GoogLeNet(nn.Module):
    """The network up to its last average pooling.

    torchvision's ``googlenet`` is another one: with batch normalisation, and 3x3 instead of 5x5 convolutions.

    Args:
        in_channels: channels of the input.
        width: factor of all other channel counts.
        norm: ``"lrn"``: local response normalisation after the first pooling and before the second, as published; ``"bn"``:
            batch normalisation after every convolution; ``"none"``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(self, in_channels: int = 3, width: float = 1.0, norm: str = "lrn") -> None:
        super().__init__()
        _check.number("width", width, positive=True)
        _check.option("norm", norm, NORMS)

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        bn = norm == "bn"
        self.conv1 = nn.Conv2d(in_channels, scaled(64), 7, 2, padding=3, bias=not bn)
        self.bn1 = nn.BatchNorm2d(scaled(64)) if bn else nn.Identity()
        # Caffe's, with which the network was released: alpha is divided by the size, as in PyTorch.
        self.response_norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0) if norm == "lrn" else nn.Identity()
        self.conv2 = nn.Sequential(Convolution(scaled(64), scaled(64), 1, norm), Convolution(scaled(64), scaled(192), 3, norm))
        self.inceptions = nn.ModuleDict()
        channels = scaled(192)
        for name, (one, three, five, pool) in _INCEPTIONS.items():
            inception = Inception(channels, scaled(one), [*map(scaled, three)], [*map(scaled, five)], scaled(pool), norm)
            self.inceptions[name] = inception
            channels = inception.out_channels
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Caffe's "xavier", which looks at the inputs alone.
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to features (B, 1024, H/32, W/32)."""
        return self.after_conv1(self.conv1(images))

    def after_conv1(self, x: torch.Tensor) -> torch.Tensor:
        """The same from what the first convolution gives."""
        # Not in place: what the first convolution gives may serve several times.
        x = self.response_norm(_pool(functional.relu(self.bn1(x))))
        x = self.response_norm(self.conv2(x))
        for name, inception in self.inceptions.items():
            x = inception(_pool(x) if name in _POOLED else x)
        return x


def _pool(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)
