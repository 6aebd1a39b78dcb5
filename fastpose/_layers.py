"""Parameters of layers in evaluation, as ops and kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


def empty_maps(like: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    """Maps in channels_last memory, of the batch, dtype and device of others."""
    size = (like.shape[0], channels, height, width)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class BatchNorm(NamedTuple):
    """A batch normalisation in evaluation; the tensors are (C,), of any floating dtype."""

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    eps: float

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> BatchNorm:
        """Of a layer with scale and shift and running statistics."""
        p, statistics = module._parameters, module._buffers  # where they usually are, and found faster than as attributes
        weight, bias = (p["weight"], p["bias"]) if len(p) == 2 else (module.weight, module.bias)
        return cls(weight, bias, statistics["running_mean"], statistics["running_var"], module.eps)  # type: ignore[arg-type]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=self.eps)

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift (C,), in float32 at least."""
        variance = self.variance.to(torch.promote_types(self.variance.dtype, torch.float32))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - self.mean * scale


class Convolution(NamedTuple):
    """A convolution of stride 1, whose output has the size of its input: weight (O, I, k, k), k odd, and bias (O,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, module: nn.Conv2d, dtype: torch.dtype | None = None) -> Convolution:
        """Of a layer with a bias, with weights in another dtype if one is given."""
        p = module._parameters
        weight, bias = (p["weight"], p["bias"]) if len(p) == 2 else (module.weight, module.bias)
        return cls(weight if dtype is None else weight.to(dtype), bias)  # type: ignore[arg-type, union-attr]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def followed_by(self, bn: BatchNorm) -> Convolution:
        """One convolution that does what this one and then the batch normalisation do."""
        scale, shift = bn.affine()
        weight = (self.weight * scale.view(-1, 1, 1, 1)).to(self.weight.dtype)
        return Convolution(weight, (self.bias * scale + shift).to(self.bias.dtype))


class ResidualParameters(NamedTuple):
    """Of the pre-activation bottleneck: relu(bn1), conv1 (1×1), relu(bn2), conv2 (3×3), relu(bn3), conv3 (1×1), and a skip."""

    bn1: BatchNorm
    conv1: Convolution
    bn2: BatchNorm
    conv2: Convolution
    bn3: BatchNorm
    conv3: Convolution
    skip: Convolution | None


class HeadParameters(NamedTuple):
    """Of what follows an hourglass. All convolutions are 1×1."""

    conv: Convolution
    """C to C channels, followed by ``bn`` and a ReLU."""
    bn: BatchNorm
    head: Convolution
    """C to K channels: the heatmaps."""
    from_features: Convolution | None = None
    """C to N channels, back into the features; None behind the last stack."""
    from_heatmaps: Convolution | None = None
    """K to N channels, likewise."""
