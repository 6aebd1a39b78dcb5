"""The pre-activation bottleneck that stacked hourglasses are made of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class HourglassResidual(nn.Module):
    """Pre-activation bottleneck residual of the Stacked Hourglass network (Newell et al., ECCV 2016).

    Three times batch normalisation, ReLU and convolution: 1×1 to half the output channels, 3×3, 1×1 to the
    output channels. The result is added to the input, or to a 1×1 projection of the *raw* input where the
    channel counts differ. All convolutions have a bias; nothing follows the addition.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, even.

    Raises:
        ValueError: if ``in_channels`` is not positive or ``out_channels`` is not a positive even number.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels must be positive, got {in_channels}")
        if out_channels < 2 or out_channels % 2:
            raise ValueError(f"out_channels must be a positive even number, got {out_channels}")
        mid_channels = out_channels // 2
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, mid_channels, kernel_size=1)
        self.bn2 = nn.BatchNorm2d(mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, mid_channels, kernel_size=3, padding=1)
        self.bn3 = nn.BatchNorm2d(mid_channels)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, kernel_size=1)
        self.skip: nn.Module
        if in_channels == out_channels:
            self.skip = nn.Identity()
        else:
            self.skip = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block.

        Args:
            x: features (B, in_channels, H, W).

        Returns:
            Features (B, out_channels, H, W).
        """
        # The batch normalisations write new tensors, so the ReLUs may work in place: the skip sees the raw x.
        y = self.conv1(functional.relu(self.bn1(x), inplace=True))
        y = self.conv2(functional.relu(self.bn2(y), inplace=True))
        y = self.conv3(functional.relu(self.bn3(y), inplace=True))
        return y + self.skip(x)
