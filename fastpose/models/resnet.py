"""Deep Residual Learning for Image Recognition (He, Zhang, Ren and Sun, CVPR 2016): ResNet-50 as a trunk.

Names of parameters are torchvision's, so that its ImageNet weights load. As there, a bottleneck halves the maps in its 3x3
convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check

_EXPANSION = 4
_STRIDES = (1, 2, 2, 2)


class Bottleneck(nn.Module):
    """1x1 to ``channels``, 3x3, 1x1 to four times as many, each with batch normalisation; added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """The residual network without its classifier.

    Args:
        layers: bottlenecks at each of four resolutions; (3, 4, 6, 3) is ResNet-50.
        width: channels of the first convolution, 64 in the paper; the others are multiples.
        in_channels: channels of the input.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(self, layers: Sequence[int] = (3, 4, 6, 3), width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        _check.positive_int("width", width)
        if len(layers) != len(_STRIDES) or any(_check.positive_int("layers", count) < 1 for count in layers):
            raise ValueError(f"layers: got {layers}, allowed are {len(_STRIDES)} positive integers")
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, parts = width, []
        for level, (count, stride) in enumerate(zip(layers, _STRIDES, strict=True)):
            blocks = []
            for block in range(count):
                blocks.append(Bottleneck(channels, width * 2**level, stride if block == 0 else 1))
                channels = _EXPANSION * width * 2**level
            parts.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = parts
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to features at 1/2, 1/4, 1/8, 1/16 and 1/32 of their resolution, rounded up."""
        return self.after_conv1(self.conv1(images))

    def after_conv1(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The same from what the first convolution gives."""
        features = [functional.relu(self.bn1(x), inplace=True)]
        x = functional.max_pool2d(features[0], 3, 2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


class DeconvolutionHead(nn.Sequential):
    """Three 4x4 deconvolutions, each twice as large, and a 1x1 prediction (Xiao et al., ECCV 2018, SimpleBaseline).

    Args:
        in_channels: of features at 1/32 of the image's resolution.
        channels: of the deconvolutions; 256 in the paper.
        maps: of the prediction, at 1/4.
    """

    def __init__(self, in_channels: int, channels: int, maps: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(3):
            layers.append(nn.ConvTranspose2d(in_channels, channels, 4, 2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            in_channels = channels
        super().__init__(*layers, nn.Conv2d(channels, maps, 1))
        for module in self:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def load_pretrained(trunk: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights of a classifier, such as torchvision's ``resnet50``, into a trunk, in place.

    A trunk whose first convolution has more input channels, image first, keeps its own weights for the others.

    Args:
        trunk: a :class:`ResNet` or a :class:`fastpose.models.googlenet.GoogLeNet`, whose parameters the weights name.
        weights: the classifier's ``state_dict()``. What belongs to its last layer, ``fc.``, or to auxiliary classifiers,
            ``aux1.`` and ``aux2.``, is left out.

    Raises:
        ValueError: a weight is missing, unknown, or of another shape; nothing is changed then.
    """
    own = trunk.state_dict()
    given = {name: tensor for name, tensor in weights.items() if not name.startswith(("fc.", "aux1.", "aux2."))}
    # Files from before PyTorch 0.4.1 do not have the counters.
    missing = sorted(name for name in own.keys() - given.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(given.keys() - own.keys())
    if missing or unknown:
        raise ValueError(f"weights: missing are {missing or 'none'}, unknown are {unknown or 'none'}")
    merged = dict(own)
    for name, tensor in given.items():
        here = own[name].shape
        if name == "conv1.weight" and here[1] > tensor.shape[1]:
            tensor = torch.cat((tensor.to(own[name]), own[name][:, tensor.shape[1] :]), 1)
        if tensor.shape != here:
            raise ValueError(f"weights: {name} is of shape {_check.shape(tensor)}, the trunk's is {tuple(here)}")
        merged[name] = tensor
    trunk.load_state_dict(merged)
