"""Drop-in layers over the ops: no parameters, no buffers, nothing to save but their options."""

from fastpose.nn.heatmap import DecodeHeatmaps, GaussianHeatmap, HeatmapMSELoss, SoftArgmax2d
from fastpose.nn.residual import HourglassResidual
from fastpose.nn.switch import Fused, fuse, unfuse

__all__ = [
    "DecodeHeatmaps",
    "Fused",
    "GaussianHeatmap",
    "HeatmapMSELoss",
    "HourglassResidual",
    "SoftArgmax2d",
    "fuse",
    "unfuse",
]
