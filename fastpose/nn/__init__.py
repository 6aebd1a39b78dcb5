"""Drop-in layers: over the ops, without parameters; the residual block of hourglasses; trees of springs; losses of vectors."""

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
