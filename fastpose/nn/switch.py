"""From the plain residuals of any model to fused ones and back, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from fastpose.nn._plain_residual import NotAlike, looks_alike, residual_layers
from fastpose.nn._unchanged import CALL_HOOKS
from fastpose.nn.residual import HourglassResidual

_ORIGIN = "_fuse_origin"
# The fused block holds the very dictionaries of the plain one, so that handles of hooks go on working, and hooks that are
# added or removed meanwhile are so in the plain one too.
_HOOKS = (
    *CALL_HOOKS,
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
)


class Fused(NamedTuple):
    """What `fuse` did."""

    replaced: list[str]
    """Names of the blocks that are `HourglassResidual` now."""
    left: dict[str, str]
    """For blocks that look alike but were left as they are, by name, the reason."""


@dataclass
class _Origin:
    """The plain block that a fused one stands for, and where in it the fused one's layers belong."""

    block: nn.Module
    layers: dict[str, str]


def fuse(model: nn.Module) -> Fused:
    """Replace the plain pre-activation bottlenecks of a model by `HourglassResidual`, in place.

    They are found by what they are made of, under whatever class name: children ``bn1``, ``conv1`` to ``bn3``, ``conv3`` (a
    convolution may be in a wrapper), ReLUs, and a projection if the channel counts differ, as in pytorch-pose's
    ``Bottleneck`` and princeton-vl's ``Residual``. A trial on random numbers makes sure that they compute the same. `unfuse`
    puts the former modules back.

    The fused blocks hold the same layers: parameters are the same objects, so that optimizers stay valid, and their device,
    dtype, ``requires_grad`` and mode are as they were; hooks on the blocks stay on them. The ``state_dict`` has the names of
    `HourglassResidual`, such as ``skip.weight`` for ``downsample.0.weight`` or ``skip_layer.conv.weight``, as
    ``named_parameters`` has; weights that a plain block holds but never uses are not in it. Load and save files with the
    former names before `fuse` or after `unfuse`.

    Args:
        model: any module; its weights may be on any device, also on ``meta``.

    Returns:
        The names of the replaced blocks, and of those that look alike but were left, with the reasons. A block that the
        model uses in several places is replaced in all of them and named once.

    Raises:
        ValueError: if ``model`` is such a block itself, which cannot be replaced in place. Nothing was changed.
    """
    places = _places(model, looks_alike)
    layers, left = {}, {}
    for block, names in places.items():
        try:
            layers[block] = residual_layers(block)
        except NotAlike as reason:
            left[names[0]] = str(reason)
    if model in layers:
        raise ValueError(f"model: got a block itself, {type(model).__name__}, allowed is a module that holds blocks")
    for block, where in layers.items():
        _put(model, places[block], _fused(block, where))
    return Fused([places[block][0] for block in layers], left)


def unfuse(model: nn.Module) -> list[str]:
    """Put the plain blocks back that `fuse` replaced, in place.

    They are the former modules, with what has happened to their layers and hooks in the meantime.

    Args:
        model: any module; copies of a fused model, also from a pickle, are welcome.

    Returns:
        The names of the replaced blocks, each named once. Blocks that were `HourglassResidual` from the start stay.

    Raises:
        ValueError: if ``model`` is a fused block itself. Nothing was changed.
    """
    places = _places(model, lambda module: _ORIGIN in vars(module))
    if model in places:
        raise ValueError("model: got a fused block itself, allowed is a module that holds blocks")
    for block, names in places.items():
        _put(model, names, _restored(block))
    return [names[0] for names in places.values()]


def _places(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[nn.Module, list[str]]:
    """All the names of each module that is wanted."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if wanted(module):
            places.setdefault(module, []).append(name)
    return places


def _put(model: nn.Module, names: list[str], module: nn.Module) -> None:
    for name in names:
        model.set_submodule(name, module)


def _fused(block: nn.Module, layers: dict[str, str]) -> HourglassResidual:
    modules: dict[str, Any] = {name: block.get_submodule(path) for name, path in layers.items()}
    with torch.device("meta"):
        fused = HourglassResidual(modules["bn1"].num_features, modules["conv3"].out_channels)
    fused.training = fused.skip.training = block.training
    for name, module in modules.items():
        setattr(fused, name, module)
    vars(fused).update({name: vars(block)[name] for name in _HOOKS}, **{_ORIGIN: _Origin(block, layers)})
    return fused


def _restored(fused: Any) -> nn.Module:
    origin = vars(fused)[_ORIGIN]
    block = origin.block
    for name, path in origin.layers.items():
        # Usually the same layer. Converting to SyncBatchNorm, say, makes others.
        block.set_submodule(path, getattr(fused, name))
    vars(block).update({name: vars(fused)[name] for name in _HOOKS})
    shared = set(fused.modules())
    for module in block.modules():
        if module not in shared:
            module.training = fused.training
    like = fused.conv1.weight
    for child in block.children():
        if shared.isdisjoint(child.modules()):  # a projection that is not used, and was left behind
            if not like.is_meta and any(parameter.is_meta for parameter in child.parameters()):
                child.to_empty(device=like.device)
            child.to(like.device, like.dtype)
    return block
