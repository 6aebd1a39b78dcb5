"""Drop-in layers over the ops. Those over heatmap ops have no parameters and no buffers, nothing to save but their options."""

from fastpose.nn.heatmap import DecodeHeatmaps, GaussianHeatmap, HeatmapMSELoss, SoftArgmax2d
from fastpose.nn.residual import HourglassResidual
from fastpose.nn.switch import Fused, fuse, unfuse
from fastpose.nn.tree import TreeMaxSum, TreePoses, tree_parents
from fastpose.nn.vector_loss import ResidualLogLikelihood, VectorLoss

__all__ = [
    "DecodeHeatmaps",
    "Fused",
    "GaussianHeatmap",
    "HeatmapMSELoss",
    "HourglassResidual",
    "ResidualLogLikelihood",
    "SoftArgmax2d",
    "TreeMaxSum",
    "TreePoses",
    "VectorLoss",
    "fuse",
    "tree_parents",
    "unfuse",
]
