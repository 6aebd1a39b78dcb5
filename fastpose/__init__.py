"""fastpose: fused kernels, drop-in layers and models for human pose estimation in PyTorch."""

from fastpose import ops
from fastpose._library import NotBuiltError, backend, build_info

__version__ = "0.1.0"
__all__ = ["NotBuiltError", "__version__", "backend", "build_info", "ops"]
