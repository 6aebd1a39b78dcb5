"""Layers in evaluation without gradients: whether several of them can be computed as one op, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from fastpose import _library
from fastpose.nn._unchanged import autocast_dtype, why_changed
from fastpose.ops.hourglass_residual import FUSED_DTYPES

FOLDED_DTYPES = (torch.float32, torch.float64)
FOLDED_PIXELS = 2048
"""From which on, in all images of a batch, folded convolutions are faster than the time that the folding takes."""


class InferencePath(NamedTuple):
    """Which way a call in evaluation goes."""

    name: str
    """``"fused"``: in kernels on a GPU; ``"folded"``: on a CPU, with batch normalisations in the weights of the convolutions in
    front of them; ``"plain"``: the layers in turn."""
    reason: str


def inference_path(
    module: nn.Module, layers: Mapping[str, nn.Module], x: torch.Tensor, channels: Callable[[], str]
) -> InferencePath:
    """Which way layers go, and why; arguments as of :func:`why_plain`."""
    reason = why_plain(module, layers, x, channels)
    if reason:
        return InferencePath("plain", reason)
    if x.device.type == "cuda":
        return InferencePath("fused", f"there are kernels for {x.dtype} on {x.device}")
    return InferencePath("folded", f"x is {x.dtype} on a CPU")


def why_plain(module: nn.Module, layers: Mapping[str, nn.Module], x: torch.Tensor, channels: Callable[[], str]) -> str:
    """Why layers must be called in turn, or nothing if there is one op for them.

    Args:
        module: what the layers are of.
        layers: batch normalisations, convolutions and an identity, by name. Those of ``conv2`` are 3×3, others 1×1.
        x: the input of the first convolution among them (B, C, H, W).
        channels: says what keeps GPU kernels from taking as many channels; nothing, if they do.
    """
    return _why_not_in_evaluation(module, x) or _why_not_there(x, channels) or _why_not_ours(layers, x)


def _why_not_in_evaluation(module: nn.Module, x: torch.Tensor) -> str:
    if module.training:
        return "it is in training mode"
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters())):
        return "gradients are needed"
    if _library.current_backend() == "reference":
        return 'fastpose.backend("reference") is in force'
    if _library.transformed():
        return "the op has no rules for the transforms of torch.func and for forward mode"
    return ""


def _why_not_there(x: torch.Tensor, channels: Callable[[], str]) -> str:
    """Why there is no op for x where it is, or nothing."""
    device = x.device.type
    if x.ndim != 4 or not x.numel():
        return f"x has shape {tuple(x.shape)}"
    dtype = autocast_dtype(x) or x.dtype
    if device == "cuda":
        if x.dtype != dtype or dtype not in FUSED_DTYPES:
            return f"x is {x.dtype}; GPU kernels are for float16, bfloat16, and under autocast for its dtype"
        return _library.why_no_triton(x.device) or channels()
    if device != "cpu":
        return f"there are kernels for cuda and cpu, not for {device}"
    if torch.compiler.is_compiling():
        return "on a CPU the compiler fuses the layers itself"
    if dtype not in FOLDED_DTYPES:
        return f"on a CPU {dtype} is left to PyTorch"
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return "" if pixels >= FOLDED_PIXELS else f"folding does not pay for {pixels} pixels, but from {FOLDED_PIXELS} on"


def _why_not_ours(layers: Mapping[str, nn.Module], x: torch.Tensor) -> str:
    """Why a layer does something else than the op, or nothing."""
    autocast, first = autocast_dtype(x), True
    for name, layer in layers.items():
        changed = why_changed(name, layer)
        if changed:
            return changed
        if isinstance(layer, nn.Conv2d):
            if layer.bias is None:
                return f"{name} has no bias"
            if first and x.shape[1] != layer.in_channels:
                return f"x has shape {tuple(x.shape)}"
            weight, first = layer.weight, False
            if weight.device != x.device or (weight.dtype != x.dtype and not autocast):
                return f"x is {x.dtype} on {x.device}, and the weights are {weight.dtype} on {weight.device}"
        elif name.startswith("bn"):
            if layer.training or layer.running_mean is None:
                return f"{name} uses the statistics of the batch"
            if not layer.affine:
                return f"{name} has no scale and shift"
    return ""
