"""The fused ops. One page each: what it computes, in plain PyTorch and in words, and how it is registered."""

from fastpose.ops.gaussian_heatmap import gaussian_heatmap

__all__ = ["gaussian_heatmap"]
