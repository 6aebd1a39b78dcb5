"""Hourglass residuals with constant weights on a CPU: batch normalisations folded in, weights laid out as oneDNN reads them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fastpose._layers import Convolution
from fastpose.nn._inference import FOLDED_PIXELS
from fastpose.nn.residual import HourglassResidual
from fastpose.ops.hourglass_residual import add_upsampled_

_PACK_FROM_PIXELS = 128  # below, oneDNN's fused operations take longer than PyTorch's choice of a convolution


def pack_(model: nn.Module) -> nn.Module:
    """Replaces the residuals that can be packed, in place, and returns the model (or what replaces it)."""
    if isinstance(model, HourglassResidual):
        return PackedResidual(model) if _can_be_packed(model) else model
    for name, block in [*model.named_modules(remove_duplicate=False)]:
        if isinstance(block, HourglassResidual) and _can_be_packed(block):
            model.set_submodule(name, PackedResidual(block))
    return model


def _can_be_packed(block: HourglassResidual) -> bool:
    hooks = block._forward_hooks or block._forward_pre_hooks
    example = torch.empty(1, block.conv1.in_channels, 1, 1).expand(-1, -1, FOLDED_PIXELS, -1)
    with torch.no_grad():
        return not hooks and block.inference_path(example).name == "folded"


class PackedResidual(nn.Module):
    """What a `HourglassResidual` in evaluation computes, with its weights of now, in float32."""

    def __init__(self, block: HourglassResidual) -> None:
        super().__init__()
        p = block.layer_parameters()
        with torch.no_grad():
            self.bn1 = p.bn1._replace(**{name: getattr(p.bn1, name).clone() for name in ("weight", "bias", "mean", "variance")})
            self.conv1 = _Packed(p.conv1.followed_by(p.bn2))
            self.conv2 = _Packed(p.conv2.followed_by(p.bn3))
            self.conv3 = _Packed(p.conv3)
            self.skip = _Packed(p.skip) if p.skip else None

    def forward(self, x: torch.Tensor, *, pool: bool = False, low: torch.Tensor | None = None) -> torch.Tensor:
        """As of `HourglassResidual`."""
        x = x.contiguous(memory_format=torch.channels_last)
        if pool:
            x = functional.max_pool2d(x, 2)
        y = functional.relu_(self.bn1(x))
        y = self.conv2(self.conv1(y, relu=True), relu=True)
        y = self.conv3(y, add=self.skip(x) if self.skip else x)
        if low is not None:
            add_upsampled_(y, low)
        return y


class _Packed:
    """A convolution, packed for the first size of input that it meets."""

    def __init__(self, conv: Convolution) -> None:
        weight, bias = conv.weight.detach().contiguous(memory_format=torch.channels_last), conv.bias.detach().clone()
        self.conv = Convolution(weight, bias)
        self.padding = weight.shape[-1] // 2
        self.packed: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, *, relu: bool = False, add: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[0] * x.shape[2] * x.shape[3] < _PACK_FROM_PIXELS or not torch.backends.mkldnn.is_available():
            y = self.conv(x)
            y = y if add is None else y.add_(add)
            return functional.relu_(y) if relu else y
        ops = torch.ops.mkldnn
        geometry = ([self.padding] * 2, [1, 1], [1, 1], 1)
        if self.packed is None:
            self.packed = ops._reorder_convolution_weight(self.conv.weight, *geometry, x.shape)
        if add is None:
            return ops._convolution_pointwise(x, self.packed, self.conv.bias, *geometry, "relu" if relu else "none", [], "")
        return ops._convolution_pointwise.binary(x, add, self.packed, self.conv.bias, *geometry, "add", None, None, [], None)
