"""Layers in evaluation without gradients: whether several of them can be computed as one op, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from fastpose import _library
from fastpose.ops.hourglass_residual import FUSED_DTYPES

FOLDED_DTYPES = (torch.float32, torch.float64)


class InferencePath(NamedTuple):
    """Which way a call in evaluation goes."""

    name: str
    """``"fused"``: in kernels on a GPU; ``"folded"``: on a CPU, with batch normalisations in the weights of the convolutions in
    front of them; ``"plain"``: the layers in turn."""
    reason: str


def inference_path(
    module: nn.Module, layers: Mapping[str, nn.Module], x: torch.Tensor, why_not_these_channels: Callable[[], str]
) -> InferencePath:
    """Which way layers go for the input ``x`` (B, C, H, W) of the first convolution among them.

    Args:
        module: what the layers are of.
        layers: batch normalisations, convolutions and an identity, by name. Those of ``conv2`` are 3×3, others 1×1.
        x: the input.
        why_not_these_channels: says what keeps GPU kernels from taking as many channels; nothing, if they do.
    """
    reason = _why_not_in_evaluation(module, x) or _why_not_ours(layers) or _why_not_together(layers, x)
    if reason:
        return InferencePath("plain", reason)
    dtype = autocast_dtype(x) or x.dtype
    if x.device.type == "cuda":
        if x.dtype != dtype or dtype not in FUSED_DTYPES:
            reason = f"x is {x.dtype}; GPU kernels are for float16, bfloat16, and under autocast for its dtype"
        reason = reason or _why_no_kernels(x.device) or why_not_these_channels()
        return InferencePath("plain" if reason else "fused", reason or f"there are kernels for {dtype} on {x.device}")
    if x.device.type != "cpu":
        return InferencePath("plain", f"there are kernels for cuda and cpu, not for {x.device.type}")
    if torch.compiler.is_compiling():
        return InferencePath("plain", "on a CPU the compiler fuses the layers itself")
    if dtype not in FOLDED_DTYPES:
        return InferencePath("plain", f"on a CPU {dtype} is left to PyTorch")
    return InferencePath("folded", f"x is {dtype} on a CPU")


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Of the convolutions, where autocast is on."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _why_not_in_evaluation(module: nn.Module, x: torch.Tensor) -> str:
    if module.training:
        return "it is in training mode"
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters())):
        return "gradients are needed"
    if _library.current_backend() == "reference":
        return 'fastpose.backend("reference") is in force'
    if torch._C._are_functorch_transforms_active():
        return "the op has no rules for the transforms of torch.func"
    return ""


def _why_not_ours(layers: Mapping[str, nn.Module]) -> str:
    """Why a layer does something of its own, or nothing."""
    for name, layer in layers.items():
        kind = type(layer)
        if layer._forward_hooks or layer._forward_pre_hooks:
            return f"{name} has hooks, which only a call of it runs"
        if kind.forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward):
            if layer.training or layer.running_mean is None:
                return f"{name} uses the statistics of the batch"
            if not layer.affine:
                return f"{name} has no scale and shift"
        elif kind.forward is nn.Conv2d.forward:
            size = 3 if name == "conv2" else 1
            geometry = (layer.kernel_size, layer.stride, layer.padding, layer.padding_mode, layer.dilation, layer.groups)
            if geometry != ((size, size), (1, 1), (size // 2, size // 2), "zeros", (1, 1), 1) or layer.bias is None:
                return f"{name} is another convolution"
        elif kind is not nn.Identity:
            return f"{name} is a {kind.__name__}"
    return ""


def _why_not_together(layers: Mapping[str, nn.Module], x: torch.Tensor) -> str:
    """Why the layers cannot be applied to x at once, or nothing."""
    convolutions = [layer for layer in layers.values() if isinstance(layer, nn.Conv2d)]
    if x.ndim != 4 or x.shape[1] != convolutions[0].in_channels:
        return f"x has shape {tuple(x.shape)}"  # of which PyTorch complains
    autocast = autocast_dtype(x)
    for weight in (layer.weight for layer in convolutions):
        if weight.device != x.device or (weight.dtype != x.dtype and not autocast):
            return f"x is {x.dtype} on {x.device}, and the weights are {weight.dtype} on {weight.device}"
    return "" if x.numel() else "x is empty"


@torch.compiler.assume_constant_result
def _why_no_kernels(device: torch.device) -> str:
    """What is in the way of Triton kernels on a GPU; nothing, if they run."""
    return _library.why_no_triton(device.index if device.index is not None else torch.cuda.current_device())
