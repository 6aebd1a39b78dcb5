"""Stacked Hourglass Networks for Human Pose Estimation (Newell, Yang and Deng, ECCV 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check
from fastpose.nn.residual import HourglassResidual

Stem = Literal["torch7", "pytorch_pose"]
Initialization = Literal["pytorch", "torch7"]

_STEM_STRIDE = 4


class HourglassStem(nn.Module):
    """From the image to features at a quarter of its resolution (section 3.2).

    Args:
        features: channels of the output, a multiple of 4.
        stem: ``"torch7"`` widens the features after the last residual, as the authors' Torch7 code does;
            ``"pytorch_pose"`` one residual earlier, as the PyTorch port of that name does.
        image_mean: three numbers to subtract from the images' channels; zeros: nothing is subtracted.
    """

    image_mean: torch.Tensor | None

    def __init__(self, features: int, stem: Stem, image_mean: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        super().__init__()
        quarter, half = features // 4, features // 2
        middle = half if stem == "torch7" else features
        # The convolution pads its input, what is left of the images, with zeros: the mean cannot become part of its bias.
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1) if any(image_mean) else None)
        self.conv = nn.Conv2d(3, quarter, kernel_size=7, stride=2, padding=3)
        self.bn = nn.BatchNorm2d(quarter)
        self.residual1 = HourglassResidual(quarter, half)
        self.residual2 = HourglassResidual(half, middle)
        self.residual3 = HourglassResidual(middle, features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to features (B, features, H/4, W/4)."""
        if self.image_mean is not None:
            images = images - self.image_mean
        x = functional.relu(self.bn(self.conv(images)), inplace=True)
        x = functional.max_pool2d(self.residual1(x), kernel_size=2)
        return self.residual3(self.residual2(x))


class Hourglass(nn.Module):
    """One hourglass: pool down ``depth`` times and come back up, with a branch at each resolution (Figure 3).

    Args:
        depth: number of poolings, at least 1.
        features: channels everywhere.
        modules: residuals in a row at each place.
    """

    def __init__(self, depth: int, features: int, modules: int) -> None:
        super().__init__()
        self.up1 = _residuals(features, modules)
        self.low1 = _residuals(features, modules)
        self.low2 = Hourglass(depth - 1, features, modules) if depth > 1 else _residuals(features, modules)
        self.low3 = _residuals(features, modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (B, features, H, W) to features of the same shape."""
        low = self.low3(self.low2(self.low1(functional.max_pool2d(x, kernel_size=2))))
        return self.up1(x) + functional.interpolate(low, scale_factor=2, mode="nearest")


class HourglassStack(nn.Module):
    """An hourglass and its prediction head (Figure 4, left)."""

    def __init__(self, num_joints: int, features: int, depth: int, modules: int) -> None:
        super().__init__()
        self.hourglass = Hourglass(depth, features, modules)
        self.residuals = _residuals(features, modules)
        self.conv = nn.Conv2d(features, features, kernel_size=1)
        self.bn = nn.BatchNorm2d(features)
        self.head = nn.Conv2d(features, num_joints, kernel_size=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (B, features, H, W) to features of the same shape and heatmaps (B, K, H, W)."""
        x = functional.relu(self.bn(self.conv(self.residuals(self.hourglass(x)))), inplace=True)
        return x, self.head(x)


class HourglassMerge(nn.Module):
    """Feed a stack's features and heatmaps back into the input of the next stack (Figure 4, right)."""

    def __init__(self, num_joints: int, features: int) -> None:
        super().__init__()
        self.from_features = nn.Conv2d(features, features, kernel_size=1)
        self.from_heatmaps = nn.Conv2d(num_joints, features, kernel_size=1)

    def forward(self, x: torch.Tensor, features: torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
        """Add both, brought to the width of ``x`` (B, features, H, W), to it."""
        return x + self.from_features(features) + self.from_heatmaps(heatmaps)


class StackedHourglass(nn.Module):
    """Stacked Hourglass network (Newell et al., ECCV 2016, section 3), with a prediction after every stack.

    Args:
        stacks: number of hourglasses; the paper's results are of 8, its ablations of 1, 2 and 4.
        num_joints: number of heatmaps K.
        features: channels of the hourglasses, a multiple of 4. The stem is a quarter and half as wide at its
            start, 64 and 128 of 256 in the paper.
        depth: poolings in each hourglass; the paper goes from 64×64 down to 4×4 with 4.
        modules: residuals in a row wherever the paper has one.
        stem: ``"torch7"`` for the authors' network, ``"pytorch_pose"`` for the somewhat wider stem of the
            PyTorch port with that name, whose published weights need it.
        image_mean: red, green and blue that the network subtracts from the images, for weights that were trained
            that way. Unless all are 0, the mean is kept with the weights, as a buffer.
        init: ``"pytorch"`` starts the batch normalisations with scale 1; ``"torch7"`` draws the scales from
            U(0, 1), as Torch7 did. Convolutions are the same in both: weight and bias from U(±1/√fan_in).

    Raises:
        ValueError: if an option is out of its range or unknown.
        TypeError: if ``image_mean`` holds anything but numbers.
    """

    def __init__(
        self,
        stacks: int = 8,
        num_joints: int = 16,
        *,
        features: int = 256,
        depth: int = 4,
        modules: int = 1,
        stem: Stem = "torch7",
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        init: Initialization = "pytorch",
    ) -> None:
        super().__init__()
        counts = {"stacks": stacks, "num_joints": num_joints, "depth": depth, "modules": modules}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if features < 4 or features % 4:
            raise ValueError(f"features must be a positive multiple of 4, got {features}")
        if stem not in ("torch7", "pytorch_pose"):
            raise ValueError(f"stem must be 'torch7' or 'pytorch_pose', got {stem!r}")
        if init not in ("pytorch", "torch7"):
            raise ValueError(f"init must be 'pytorch' or 'torch7', got {init!r}")
        if len(image_mean) != 3:
            raise ValueError(f"image_mean must be three numbers, got {image_mean}")
        # A list is what JSON makes of it, so that the options of a saved model are equal to these.
        image_mean = [_check.number("image_mean", value) for value in image_mean]
        self.options: dict[str, Any] = {**counts, "features": features, "stem": stem, "image_mean": image_mean, "init": init}
        self.stride = _STEM_STRIDE
        self.size_divisor = _STEM_STRIDE * 2**depth
        self.stem = HourglassStem(features, stem, image_mean)
        self.stacks = nn.ModuleList(HourglassStack(num_joints, features, depth, modules) for _ in range(stacks))
        self.merges = nn.ModuleList(HourglassMerge(num_joints, features) for _ in range(stacks - 1))
        if init == "torch7":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Predict heatmaps.

        Args:
            images: RGB in [0, 1], (B, 3, H, W), H and W multiples of 4·2^depth; the paper takes 256×256.

        Returns:
            One tensor (B, K, H/4, W/4) of heatmaps for each stack, the last being the final prediction.

        Raises:
            ValueError: if ``images`` does not have that shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be of shape (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[2:]
        if height % self.size_divisor or width % self.size_divisor:
            raise ValueError(
                f"the height and width of images must be multiples of {self.size_divisor}, a stride of "
                f"{_STEM_STRIDE} and {self.options['depth']} poolings, got {height}×{width}"
            )
        x = self.stem(images)
        features, heatmaps = self.stacks[0](x)
        predictions = [heatmaps]
        for merge, stack in zip(self.merges, self.stacks[1:], strict=True):
            x = merge(x, features, heatmaps)
            features, heatmaps = stack(x)
            predictions.append(heatmaps)
        return predictions


def _residuals(features: int, modules: int) -> nn.Sequential:
    return nn.Sequential(*(HourglassResidual(features, features) for _ in range(modules)))
