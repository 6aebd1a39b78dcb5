"""fastpose: fused kernels, drop-in layers and models for human pose estimation in PyTorch."""

from fastpose import nn, ops
from fastpose._library import NotBuiltError, backend, build_info
from fastpose.codec import HeatmapCodec
from fastpose.inference import CompiledModel, compile_for_inference

__version__ = "0.1.0"
__all__ = [
    "CompiledModel",
    "HeatmapCodec",
    "NotBuiltError",
    "__version__",
    "backend",
    "build_info",
    "compile_for_inference",
    "nn",
    "ops",
]
