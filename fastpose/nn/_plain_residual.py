"""Which modules of others compute what `HourglassResidual` computes: told by their layers and by a trial, not by their name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastpose.nn._unchanged import has_call_hooks
from fastpose.nn.residual import HourglassResidual

_PAIRS = (("bn1", "conv1"), ("bn2", "conv2"), ("bn3", "conv3"))
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_CONV_FIELDS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_NORM_FIELDS = ("num_features", "eps", "affine", "track_running_stats")
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


class NotAlike(Exception):  # noqa: N818
    """Why a module is not a plain residual, in words that go on from "was left because"."""


def looks_alike(module: nn.Module) -> bool:
    """Whether a module has three batch normalisations and convolutions under the names that plain residuals give them."""
    names = {name for name, _ in module.named_children()}
    return names.issuperset(name for pair in _PAIRS for name in pair) and not isinstance(module, HourglassResidual)


def residual_layers(block: nn.Module) -> dict[str, str]:
    """Where a plain residual keeps the layers of a `HourglassResidual`.

    Args:
        block: a module that `looks_alike`.

    Returns:
        For each layer of the `HourglassResidual`, by its name there, the name of the same layer in the block, such as
        ``downsample.0`` for ``skip``; without ``skip`` where the input is added unprojected.

    Raises:
        NotAlike: if the block computes anything else, or it cannot be told.
    """
    layers = {bn: bn for bn, _ in _PAIRS}
    for _, conv in _PAIRS:
        layers[conv] = _convolution(block, conv) or ""
        if not layers[conv]:
            raise NotAlike(f"{conv} is {type(block.get_submodule(conv)).__name__}, not Conv2d or a wrapper of one")
    for bn, _ in _PAIRS:
        if type(block.get_submodule(bn)) not in _NORMS:
            raise NotAlike(f"{bn} is {type(block.get_submodule(bn)).__name__}, not BatchNorm2d")
    _refuse_hooks(block)
    skip = _skip(block)
    modules: dict[str, Any] = {name: block.get_submodule(path) for name, path in layers.items()}
    inputs, outputs = modules["conv1"].in_channels, modules["conv3"].out_channels
    if outputs % 2:
        raise NotAlike(f"it has {outputs} output channels, an odd number")
    if inputs != outputs:
        if not skip:
            raise NotAlike(f"it has no projection from {inputs} to {outputs} channels")
        layers["skip"], modules["skip"] = skip, block.get_submodule(skip)
    with torch.device("meta"):
        model = HourglassResidual(inputs, outputs)
    for name, module in modules.items():
        _compare(name, module, getattr(model, name))
    places = {f"{tensor.dtype} on {tensor.device}" for module in modules.values() for tensor in module.parameters()}
    if len(places) > 1:
        raise NotAlike(f"its parameters are {' and '.join(sorted(places))}")
    _try_out(block, modules, block.get_submodule(skip) if skip and inputs == outputs else None)
    return layers


def _convolution(block: nn.Module, name: str) -> str | None:
    """The name of the convolution that a child is or wraps; None if it is anything else."""
    module = block.get_submodule(name)
    while type(module) is not nn.Conv2d:
        children = list(module.named_children())
        if len(children) != 1 or _own_tensors(module):
            return None
        name, module = f"{name}.{children[0][0]}", children[0][1]
    return name


def _skip(block: nn.Module) -> str | None:
    """The name of the projection, if there is one; whatever else the block has must be a ReLU."""
    own = _own_tensors(block)
    if own:
        raise NotAlike(f"it has tensors of its own: {', '.join(own)}")
    skips = []
    for name, child in block.named_children():
        if any(name in pair for pair in _PAIRS) or type(child) in (nn.ReLU, nn.Identity):
            continue
        convolution = _convolution(block, name)
        if convolution is None:
            raise NotAlike(f"it also has {name} ({type(child).__name__})")
        skips.append(convolution)
    if len(skips) > 1:
        raise NotAlike(f"it has more than one projection: {', '.join(skips)}")
    return skips[0] if skips else None


def _own_tensors(module: nn.Module) -> list[str]:
    named = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [name for name, _ in named]


def _refuse_hooks(block: nn.Module) -> None:
    for name, module in block.named_modules():
        if name and has_call_hooks(module):
            raise NotAlike(f"{name} has hooks, which a fused block does not run")
    if any(getattr(block, hooks) for hooks in _STATE_HOOKS):
        raise NotAlike("it has hooks of its state_dict, whose names change")


def _compare(name: str, module: Any, model: nn.Module) -> None:
    for field in _CONV_FIELDS if isinstance(model, nn.Conv2d) else _NORM_FIELDS:
        given, allowed = getattr(module, field), getattr(model, field)
        if given != allowed:
            raise NotAlike(f"{name} has {field} {given}, not {allowed}")
    if module.bias is None:
        raise NotAlike(f"{name} has no bias")


def _try_out(block: nn.Module, modules: dict[str, Any], unused_skip: nn.Module | None) -> None:
    """Compare what the block's own forward computes with what it should, on a copy with random layers in float64."""
    inputs, outputs = modules["conv1"].in_channels, modules["conv3"].out_channels
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        right = _random_block(inputs, outputs)
        copied = {id(module): getattr(right, name) for name, module in modules.items()}
        projection = nn.Conv2d(inputs, outputs, 1, dtype=torch.float64)
        if unused_skip is not None:
            copied[id(unused_skip)] = projection
        with _trial():
            twin = copy.deepcopy(block, copied)
        x = torch.randn(2, inputs, 3, 4, dtype=torch.float64)
        for training in (False, True):
            with _trial():
                result = twin.train(training).forward(x.clone())
            expected = right.train(training)(x)
            if _close(result, expected):
                continue
            if unused_skip is not None and _close(result, expected - x + projection(x)):
                raise NotAlike("it projects its input although the channels are equal")
            raise NotAlike(f"its forward computes something else in {'training' if training else 'evaluation'}")


@contextmanager
def _trial() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of code that is not known
        reason = str(error).strip().partition("\n")[0]
        raise NotAlike(f"a trial of it failed: {type(error).__name__}: {reason}") from error


def _random_block(inputs: int, outputs: int) -> HourglassResidual:
    block = HourglassResidual(inputs, outputs).double()
    for bn, _ in _PAIRS:
        for name, tensor in block.get_submodule(bn).state_dict().items():
            if name == "running_var":
                nn.init.uniform_(tensor, 0.5, 2.0)
            elif tensor.is_floating_point():
                nn.init.normal_(tensor)
    return block


def _close(result: Any, expected: torch.Tensor) -> bool:
    """Up to the rounding of float64, some 1e-14 of sums of thousands of numbers about 1."""
    same_shape = isinstance(result, torch.Tensor) and result.shape == expected.shape
    return same_shape and torch.allclose(result, expected, rtol=1e-9, atol=1e-9)
