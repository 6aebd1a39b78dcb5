"""The fused ops. One page each: what it computes, in plain PyTorch and in words, and how it is registered."""

from fastpose._layers import BatchNorm, Convolution, HeadParameters, ResidualParameters
from fastpose.ops.crop_windows import crop_windows
from fastpose.ops.decode_heatmaps import BORDERS, METHODS, Decoded, decode_heatmaps
from fastpose.ops.distance_transform2d import DistanceTransform, distance_transform2d
from fastpose.ops.gaussian_conv2d import gaussian_conv2d
from fastpose.ops.gaussian_heatmap import gaussian_heatmap
from fastpose.ops.heatmap_mse_loss import REDUCTIONS, UNLABELLED, heatmap_mse_loss
from fastpose.ops.hourglass_head import HeadOutput, hourglass_head
from fastpose.ops.hourglass_residual import hourglass_residual
from fastpose.ops.local_contrast_normalization import CONTRAST_BORDERS, local_contrast_normalization
from fastpose.ops.soft_argmax2d import SoftArgmax, soft_argmax2d

__all__ = [
    "BORDERS",
    "CONTRAST_BORDERS",
    "METHODS",
    "REDUCTIONS",
    "UNLABELLED",
    "BatchNorm",
    "Convolution",
    "Decoded",
    "DistanceTransform",
    "HeadOutput",
    "HeadParameters",
    "ResidualParameters",
    "SoftArgmax",
    "crop_windows",
    "decode_heatmaps",
    "distance_transform2d",
    "gaussian_conv2d",
    "gaussian_heatmap",
    "heatmap_mse_loss",
    "hourglass_head",
    "hourglass_residual",
    "local_contrast_normalization",
    "soft_argmax2d",
]
