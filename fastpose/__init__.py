"""fastpose: fused kernels, drop-in layers and models for human pose estimation in PyTorch."""

from fastpose import nn, ops
from fastpose._library import NotBuiltError, backend, build_info
from fastpose.codec import HeatmapCodec

__version__ = "0.1.0"
__all__ = ["HeatmapCodec", "NotBuiltError", "__version__", "backend", "build_info", "nn", "ops"]
