"""The pre-activation bottleneck that stacked hourglasses are made of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fastpose._layers import BatchNorm, Convolution, ResidualParameters
from fastpose.nn import _residual_training
from fastpose.nn._inference import InferencePath, inference_path, why_plain
from fastpose.nn._residual_training import TrainingPath
from fastpose.nn._unchanged import autocast_dtype
from fastpose.ops.hourglass_residual import fits, run_op, why_not_these_channels


class HourglassResidual(nn.Module):
    """Pre-activation bottleneck residual of the Stacked Hourglass network (Newell et al., ECCV 2016).

    Three times batch normalisation, ReLU and convolution: 1×1 to half the output channels, 3×3, 1×1 to the
    output channels. The result is added to the input, or to a 1×1 projection of the *raw* input where the
    channel counts differ. All convolutions have a bias; nothing follows the addition.

    Training goes one of three ways, with the same parameters, results and running statistics; :meth:`training_path` tells which
    and why. Fused kernels for GPUs keep the input and the outputs of the first two convolutions for the backward pass, half of
    what autograd keeps, and give the same gradients bit for bit from run to run. ``recompute=True`` has the same done in plain
    PyTorch where there are no kernels. Else the layers are called in turn, as they always are under
    ``fastpose.backend("reference")``, with hooks on them, or where one was replaced by something else.

    In evaluation, where no gradients are needed, a call goes one of three ways, with the same results up to rounding;
    :meth:`inference_path` tells which and why.

    - Fused, in two kernels: float16 and bfloat16 on a GPU (sm_80 and newer, with Triton), channels in multiples of 16, at most
      1024 behind the block. Under autocast, inputs of its dtype. The result is in channels_last memory; an input that is not is
      converted, as are weights of the 3×3 convolution (``model.to(memory_format=torch.channels_last)`` spares both).
    - Folded, with the second and third batch normalisation in the weights of the convolutions in front of them: float32 and
      float64 on a CPU, from 2048 pixels in a batch on, outside of ``torch.compile``, which fuses the layers itself. The result is
      in channels_last memory.
    - Plain, the layers in turn: everything else, as under ``fastpose.backend("reference")``, with hooks on the layers, or where
      one was replaced by something else.

    Nothing that is computed from parameters or statistics is kept between calls, so that changes of them, however made, are seen;
    by the kernels in a CUDA graph too, if they are made in place.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, even.
        recompute: whether training keeps half of the memory also where there are no kernels, at the cost of computing the
            normalisations twice. An attribute of the same name may be set at any time.

    Raises:
        ValueError: if ``in_channels`` is not positive or ``out_channels`` is not a positive even number.
    """

    recompute: bool = False

    def __init__(self, in_channels: int, out_channels: int, *, recompute: bool = False) -> None:
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
        self.recompute = recompute

    def forward(self, x: torch.Tensor, *, pool: bool = False, low: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the block.

        Args:
            x: features (B, in_channels, H, W).
            pool: whether to apply it to ``max_pool2d(x, 2)``.
            low: features (B, out_channels, H / 2, W / 2) to upsample (nearest) and add to the result, or None.

        Returns:
            Features (B, out_channels, H, W), with ``pool`` of half the height and width.
        """
        if not self.training and not self._why_plain(x) and fits(x, self.conv3.out_channels, pool, low):
            return run_op(x, self.layer_parameters(autocast_dtype(x)), pool, low)
        if pool:
            x = functional.max_pool2d(x, kernel_size=2)
        y = _residual_training.forward(self, x)
        return y if low is None else y + functional.interpolate(low, scale_factor=2, mode="nearest")

    def inference_path(self, x: torch.Tensor) -> InferencePath:
        """Which way a call with ``x`` goes in evaluation, and why; nothing is computed.

        Args:
            x: features (B, in_channels, H, W).

        Returns:
            ``name``, ``"fused"``, ``"folded"`` or ``"plain"``, as described above, and the ``reason``.
        """
        return inference_path(self, self._modules, x, self._why_not_these_channels)  # type: ignore[arg-type]

    def training_path(self, x: torch.Tensor) -> TrainingPath:
        """Which way a call with ``x`` goes in training, or in evaluation with gradients, and why; nothing is computed.

        Args:
            x: features (B, in_channels, H, W).

        Returns:
            ``name``, ``"fused"`` (kernels that keep half of what autograd keeps), ``"recompute"`` (the same in plain PyTorch) or
            ``"plain"`` (the layers in turn), and the ``reason``.
        """
        return _residual_training.training_path(self, x)

    def _why_plain(self, x: torch.Tensor) -> str:
        return why_plain(self, self._modules, x, self._why_not_these_channels)  # type: ignore[arg-type]

    def _why_not_these_channels(self) -> str:
        return why_not_these_channels(self.conv1.in_channels, self.conv1.out_channels, self.conv3.out_channels)

    def layer_parameters(self, dtype: torch.dtype | None = None) -> ResidualParameters:
        """Of the layers, as they are now; the convolutions' weights in another dtype if one is given."""
        return ResidualParameters(
            BatchNorm.of(self.bn1),
            Convolution.of(self.conv1, dtype),
            BatchNorm.of(self.bn2),
            Convolution.of(self.conv2, dtype),
            BatchNorm.of(self.bn3),
            Convolution.of(self.conv3, dtype),
            Convolution.of(self.skip, dtype) if isinstance(self.skip, nn.Conv2d) else None,
        )

    def _layers_in_turn(self, x: torch.Tensor) -> torch.Tensor:
        # The batch normalisations write new tensors, so the ReLUs may work in place: the skip sees the raw x.
        y = self.conv1(functional.relu(self.bn1(x), inplace=True))
        y = self.conv2(functional.relu(self.bn2(y), inplace=True))
        y = self.conv3(functional.relu(self.bn3(y), inplace=True))
        return y + self.skip(x)
