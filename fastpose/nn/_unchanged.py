"""Whether layers still do what their places in a block ask for, so that one op may do it instead."""

from __future__ import annotations

import torch
from torch import nn

CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps what a call of it runs beside its forward."""

_BATCH_NORMS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


def has_call_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs anything beside its forward."""
    return any(getattr(module, hooks) for hooks in CALL_HOOKS)


def why_changed(name: str, layer: nn.Module) -> str:
    """Why an op must not stand in for a layer, or nothing.

    Args:
        name: batch normalisations begin with ``bn``, ``conv2`` is 3×3, and a ``skip`` may be an identity. All others are 1×1
            convolutions.
        layer: that is there now.
    """
    if has_call_hooks(layer):
        return f"{name} has hooks, which only a call of it runs"
    kind = type(layer)
    if name.startswith("bn"):
        return "" if kind.forward in _BATCH_NORMS else f"{name} is a {kind.__name__}"
    if name == "skip" and kind is nn.Identity:
        return ""
    if kind.forward is not nn.Conv2d.forward:
        return f"{name} is a {kind.__name__}"
    size = 3 if name == "conv2" else 1
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.padding_mode, layer.dilation, layer.groups)
    ours = ((size, size), (1, 1), (size // 2, size // 2), "zeros", (1, 1), 1)
    return "" if geometry == ours else f"{name} is another convolution"


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Of the convolutions of ``x``, where autocast is on."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
