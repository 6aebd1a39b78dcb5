"""Stacked Hourglass Networks for Human Pose Estimation (Newell, Yang and Deng, ECCV 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check, _streams
from fastpose._layers import BatchNorm, Convolution, HeadParameters
from fastpose.models.interface import Configurations, HeatmapModel
from fastpose.nn._inference import InferencePath, inference_path, why_plain
from fastpose.nn._unchanged import autocast_dtype
from fastpose.nn.residual import HourglassResidual
from fastpose.ops.hourglass_head import run_op as run_head
from fastpose.ops.hourglass_head import why_not_these_channels
from fastpose.ops.hourglass_residual import add_upsampled_

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
        return self.residual3(_residual(self.residual2, self.residual1(x), pool=True))


class Residuals(nn.Sequential):
    """Residual blocks in a row."""

    def __init__(self, features: int, modules: int) -> None:
        super().__init__(*(HourglassResidual(features, features) for _ in range(modules)))

    def forward(self, x: torch.Tensor, *, pool: bool = False, low: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the first block to x (B, features, H, W), with ``pool`` max-pooled; add ``low``, upsampled, behind the last."""
        for index, block in enumerate(self, 1):
            x = _residual(block, x, pool=pool and index == 1, low=low if index == len(self) else None)
        return x


def _residual(block: nn.Module, x: torch.Tensor, *, pool: bool = False, low: torch.Tensor | None = None) -> torch.Tensor:
    """A residual block between pooling and upsampling, which are parts of it if it is ours."""
    if isinstance(block, HourglassResidual):
        return block(x, pool=pool, low=low)
    y = block(functional.max_pool2d(x, kernel_size=2) if pool else x)
    return y if low is None else y + functional.interpolate(low, scale_factor=2, mode="nearest")


class Hourglass(nn.Module):
    """One hourglass: pool down ``depth`` times and come back up, with a branch at each resolution (Figure 3).

    Args:
        depth: number of poolings, at least 1.
        features: channels everywhere.
        modules: residuals in a row at each place.
    """

    def __init__(self, depth: int, features: int, modules: int) -> None:
        super().__init__()
        self.up1 = Residuals(features, modules)
        self.low1 = Residuals(features, modules)
        self.low2 = Hourglass(depth - 1, features, modules) if depth > 1 else Residuals(features, modules)
        self.low3 = Residuals(features, modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (B, features, H, W) to features of the same shape."""
        branches = None if self.training else _streams.branches()
        if branches is None:
            return self.up1(x, low=self._lower(x))
        y, low = branches.beside(lambda: self.up1(x), lambda: self._lower(x))
        add_upsampled_(y, low)
        return y

    def _lower(self, x: torch.Tensor) -> torch.Tensor:
        return self.low3(self.low2(self.low1(x, pool=True)))


class HourglassStack(nn.Module):
    """An hourglass and its prediction head (Figure 4, left)."""

    def __init__(self, num_joints: int, features: int, depth: int, modules: int) -> None:
        super().__init__()
        self.hourglass = Hourglass(depth, features, modules)
        self.residuals = Residuals(features, modules)
        self.conv = nn.Conv2d(features, features, kernel_size=1)
        self.bn = nn.BatchNorm2d(features)
        self.head = nn.Conv2d(features, num_joints, kernel_size=1)

    def forward(
        self, x: torch.Tensor, merge: HourglassMerge | None, *, heatmaps: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """From an input (B, features, H, W) to heatmaps and the input of the next stack.

        Args:
            x: the input.
            merge: makes the next input; None behind the last stack.
            heatmaps: whether they are wanted, besides what the next stack needs of them.

        Returns:
            Heatmaps (B, K, H, W) and features (B, features, H, W), None where not wanted.
        """
        y = self.residuals(self.hourglass(x))
        if not self.training and x.shape == y.shape and x.dtype == y.dtype and not why_plain(*self._head(y, merge)):
            maps, merged = run_head(y, self.layer_parameters(merge, autocast_dtype(y)), x if merge else None, heatmaps)
            return maps if heatmaps else None, merged if merge else None
        y = functional.relu(self.bn(self.conv(y)), inplace=True)
        maps = self.head(y)
        return maps if heatmaps else None, merge(x, y, maps) if merge else None

    def inference_path(self, y: torch.Tensor, merge: HourglassMerge | None) -> InferencePath:
        """Which way the head goes in evaluation for what the residuals return, (B, features, H, W), and why.

        As of `HourglassResidual.inference_path`. On a GPU the features must be a multiple of 16, at most 256.
        """
        return inference_path(*self._head(y, merge))

    def _head(self, y: torch.Tensor, merge: HourglassMerge | None) -> tuple[Any, ...]:
        layers: dict[str, nn.Module] = {"conv": self.conv, "bn": self.bn, "head": self.head}
        if merge and (merge._forward_hooks or merge._forward_pre_hooks):
            layers["merge"] = merge
        elif merge:
            layers |= {"from_features": merge.from_features, "from_heatmaps": merge.from_heatmaps}
        return self, layers, y, lambda: why_not_these_channels(self.conv.in_channels, self.conv.out_channels)

    def layer_parameters(self, merge: HourglassMerge | None, dtype: torch.dtype | None = None) -> HeadParameters:
        """Of the layers, as they are now; the convolutions' weights in another dtype if one is given."""
        back = (merge.from_features, merge.from_heatmaps) if merge else ()
        return HeadParameters(
            Convolution.of(self.conv, dtype),
            BatchNorm.of(self.bn),
            Convolution.of(self.head, dtype),
            *(Convolution.of(layer, dtype) for layer in back),
        )


class HourglassMerge(nn.Module):
    """Feed a stack's features and heatmaps back into the input of the next stack (Figure 4, right)."""

    def __init__(self, num_joints: int, features: int) -> None:
        super().__init__()
        self.from_features = nn.Conv2d(features, features, kernel_size=1)
        self.from_heatmaps = nn.Conv2d(num_joints, features, kernel_size=1)

    def forward(self, x: torch.Tensor, features: torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
        """Add both, brought to the width of ``x`` (B, features, H, W), to it."""
        return x + self.from_features(features) + self.from_heatmaps(heatmaps)


class StackedHourglass(HeatmapModel):
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

    configurations: ClassVar[Configurations] = {
        "paper": {},
        # As many stacks as the first version of the paper on arXiv, whose layers were others.
        "v1": {"stacks": 2},
        "modern": {"stacks": 2, "stem": "pytorch_pose"},
    }

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
        self.input_size = (256, 256)
        self.stride = _STEM_STRIDE
        self.codec_preset = "torch7_hourglass"
        self.stage_names = tuple(f"stack {stack}" for stack in range(1, stacks + 1))
        self.size_divisor = _STEM_STRIDE * 2**depth
        self.stem = HourglassStem(features, stem, image_mean)
        self.stacks = nn.ModuleList(HourglassStack(num_joints, features, depth, modules) for _ in range(stacks))
        self.merges = nn.ModuleList(HourglassMerge(num_joints, features) for _ in range(stacks - 1))
        if init == "torch7":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight)

    def forward(self, images: torch.Tensor, *, last_only: bool = False) -> list[torch.Tensor]:
        """Predict heatmaps.

        Args:
            images: RGB in [0, 1], (B, 3, H, W), H and W multiples of 4·2^depth; the paper takes 256×256.
            last_only: whether only the last stack's heatmaps are wanted, which saves time in evaluation.

        Returns:
            One tensor (B, K, H/4, W/4) of heatmaps for each stack, the last being the final prediction; with ``last_only`` a list
            of that one.

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
        predictions = []
        for stack, merge in zip(self.stacks, [*self.merges, None], strict=True):
            heatmaps, x = stack(x, merge, heatmaps=not last_only or merge is None)
            predictions.append(heatmaps)
        return predictions[-1:] if last_only else predictions
