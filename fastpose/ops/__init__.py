"""The fused ops. One page each: what it computes, in plain PyTorch and in words, and how it is registered."""

from fastpose._layers import BatchNorm, Convolution, HeadParameters, ResidualParameters
from fastpose.ops.decode_heatmaps import BORDERS, METHODS, Decoded, decode_heatmaps
from fastpose.ops.gaussian_heatmap import gaussian_heatmap
from fastpose.ops.heatmap_mse_loss import REDUCTIONS, UNLABELLED, heatmap_mse_loss
from fastpose.ops.hourglass_head import HeadOutput, hourglass_head
from fastpose.ops.hourglass_residual import hourglass_residual
from fastpose.ops.soft_argmax2d import SoftArgmax, soft_argmax2d

__all__ = [
    "BORDERS",
    "METHODS",
    "REDUCTIONS",
    "UNLABELLED",
    "BatchNorm",
    "Convolution",
    "Decoded",
    "HeadOutput",
    "HeadParameters",
    "ResidualParameters",
    "SoftArgmax",
    "decode_heatmaps",
    "gaussian_heatmap",
    "heatmap_mse_loss",
    "hourglass_head",
    "hourglass_residual",
    "soft_argmax2d",
]
