"""ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky et al., NIPS 2012), for images of 220 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from fastpose import _check

NORMS = ("lrn", "bn", "none")
INITS = ("alexnet", "he")

# Channels, kernel side, stride, padding of the convolutions; in two groups where AlexNet has two GPUs.
_CONVOLUTIONS = ((96, 11, 4, 4), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1))
_GROUPED = (1, 3, 4)
_NORMALIZED = (0, 1)
_POOLED = (0, 1, 4)
_LEAST_SIZE = 59


class AlexNet(nn.Module):
    """Five convolutions, and fully connected layers that predict ``outputs`` numbers.

    220 pixels a side become maps of 55, 27, 13 and 6 with 4 pixels of padding around the image: with less, it is 5 at the end.

    Args:
        outputs: numbers to predict.
        input_size: pixels a side.
        groups: 2 for AlexNet's own, whose second, fourth and fifth convolution see half of the channels each; else 1.
        fc_dims: outputs of the fully connected layers before the last one.
        dropout: share of these outputs that training leaves out.
        norm: ``"lrn"``: local response normalisation after the first two convolutions; ``"bn"``: batch normalisation before
            the ReLU of all five; ``"none"``.
        lrn_alpha: of the sum of squares in the local response normalisation.
        width: factor of the convolutions' channel counts.
        init: ``"alexnet"``: N(0, 0.01), biases of 1 where AlexNet has them; ``"he"``: by the number of inputs.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(
        self,
        outputs: int,
        input_size: int,
        *,
        groups: int = 1,
        fc_dims: Sequence[int] = (4096, 4096),
        dropout: float = 0.6,
        norm: str = "lrn",
        lrn_alpha: float = 1e-4,
        width: float = 1.0,
        init: str = "alexnet",
    ) -> None:
        super().__init__()
        _check.option("norm", norm, NORMS)
        _check.option("init", init, INITS)
        _check.number("width", width, positive=True)
        if groups not in (1, 2):
            raise ValueError(f"groups: got {groups!r}, allowed are 1 and 2")
        if _check.positive_int("input_size", input_size) < _LEAST_SIZE:
            raise ValueError(f"input_size: got {input_size}, of which the poolings leave nothing; {_LEAST_SIZE} is the least")
        layers: list[nn.Module] = []
        channels, side = 3, input_size
        for index, (full, kernel, stride, padding) in enumerate(_CONVOLUTIONS):
            out = max(groups, round(full * width / groups) * groups)
            split = groups if index in _GROUPED else 1
            layers.append(nn.Conv2d(channels, out, kernel, stride, padding, groups=split, bias=norm != "bn"))
            layers += [nn.BatchNorm2d(out)] if norm == "bn" else []
            layers.append(nn.ReLU(inplace=True))
            if norm == "lrn" and index in _NORMALIZED:
                # PyTorch divides alpha by the size, the paper does not.
                layers.append(nn.LocalResponseNorm(5, 5 * lrn_alpha, 0.75, 2.0))
            side = (side + 2 * padding - kernel) // stride + 1
            if index in _POOLED:
                layers.append(nn.MaxPool2d(3, 2))
                side = (side - 3) // 2 + 1
            channels = out
        layers.append(nn.Flatten())
        self.features = nn.Sequential(*layers)
        dims = (channels * side**2, *(_check.positive_int("fc_dims", dim) for dim in fc_dims))
        hidden: list[nn.Module] = []
        for before, after in pairwise(dims):
            hidden += [nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.head = nn.Sequential(*hidden, nn.Linear(dims[-1], outputs))
        self._initialize(init)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, input_size, input_size) to (B, outputs)."""
        return self.head(self.features(images))

    def _initialize(self, init: str) -> None:
        convolutions = [module for module in self.features if isinstance(module, nn.Conv2d)]
        linears = [module for module in self.head if isinstance(module, nn.Linear)]
        ones = [*(convolutions[index] for index in _GROUPED), *linears[:-1]]
        modules: list[nn.Conv2d | nn.Linear] = [*convolutions, *linears]
        for module in modules:
            if init == "he" and module is not linears[-1]:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.constant_(module.bias, float(init == "alexnet" and any(module is one for one in ones)))
