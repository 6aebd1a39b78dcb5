"""The fused ops. One page each: what it computes, in plain PyTorch and in words, and how it is registered."""

from fastpose.ops.decode_heatmaps import BORDERS, METHODS, Decoded, decode_heatmaps
from fastpose.ops.gaussian_heatmap import gaussian_heatmap
from fastpose.ops.heatmap_mse_loss import REDUCTIONS, UNLABELLED, heatmap_mse_loss
from fastpose.ops.soft_argmax2d import SoftArgmax, soft_argmax2d

__all__ = [
    "BORDERS",
    "METHODS",
    "REDUCTIONS",
    "UNLABELLED",
    "Decoded",
    "SoftArgmax",
    "decode_heatmaps",
    "gaussian_heatmap",
    "heatmap_mse_loss",
    "soft_argmax2d",
]
