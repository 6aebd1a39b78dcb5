"""How :class:`fastpose.nn.HourglassResidual` is trained: which of three ways a call goes, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from fastpose import _library
from fastpose.nn._unchanged import autocast_dtype, why_changed
from fastpose.ops._residual_steps import Parameters
from fastpose.ops.hourglass_residual_training import hourglass_residual_training

if TYPE_CHECKING:
    from fastpose.nn.residual import HourglassResidual

_NORMS = ("bn1", "bn2", "bn3")
_CONVOLUTIONS = ("conv1", "conv2", "conv3", "skip")
_KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CHANNEL_MULTIPLE = 16  # of the kernels' matrix products


class TrainingPath(NamedTuple):
    """Which way a call with gradients or batch statistics goes."""

    name: str
    """``"fused"``: kernels; ``"recompute"``: what they do in plain PyTorch; ``"plain"``: the layers in turn."""
    reason: str


def forward(block: HourglassResidual, x: torch.Tensor) -> torch.Tensor:
    """The block in training mode or with gradients; else its layers in turn."""
    if not (block.training or _needs_gradient(block, x)):
        return block._layers_in_turn(x)
    path, parameters = _choose(block, x)
    if parameters is None:
        return block._layers_in_turn(x)
    norms = [getattr(block, bn) for bn in _NORMS]
    batch = [_uses_batch(bn) for bn in norms]
    groups = [_group(bn) for bn in norms]
    for bn, of_batch, group in zip(norms, batch, groups, strict=True):
        if of_batch and not group:
            _refuse_one_value(x, bn.num_features)
    return hourglass_residual_training(
        x,
        parameters,
        [tensor for bn in norms for tensor in _running(bn)],
        batch=batch,
        cumulative=[bn.momentum is None for bn in norms],
        momentum=[0.0 if bn.momentum is None else bn.momentum for bn in norms],
        eps=[bn.eps for bn in norms],
        groups=groups,
        dtype=_dtype(x),
        fused=path.name == "fused",
    )


def training_path(block: HourglassResidual, x: torch.Tensor) -> TrainingPath:
    """Which way ``block`` goes for ``x`` (B, in_channels, H, W) in training, or in evaluation with gradients."""
    return _choose(block, x)[0]


def _choose(block: HourglassResidual, x: torch.Tensor) -> tuple[TrainingPath, Parameters | None]:
    """The way, and unless it is plain the parameters, which are read once: a parametrisation computes them anew each time."""
    why_plain = _why_not_as_one(block, x)
    if why_plain:
        return TrainingPath("plain", why_plain), None
    why_not_fused = _why_not_fused(block, x)
    # Ranks that share statistics must agree on how, also one that has no samples for the kernels.
    keeps_step = not why_not_fused and not x.numel()
    if why_not_fused and not block.recompute:
        return TrainingPath("plain", f"{why_not_fused}, and recompute=False"), None
    parameters = _parameters(block)
    why_plain = _why_not_together(block, parameters, x)
    if why_plain:
        return TrainingPath("plain", why_plain), None
    if why_not_fused or keeps_step:
        reason = "x is empty, and other ranks' need not be" if keeps_step else f"recompute=True, and {why_not_fused}"
        return TrainingPath("recompute", reason), parameters
    return TrainingPath("fused", f"there are kernels for {_dtype(x)} on {x.device}"), parameters


def _needs_gradient(block: HourglassResidual, x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in block.parameters()))


def _why_not_as_one(block: HourglassResidual, x: torch.Tensor) -> str:
    """Why the layers must be called in turn, or nothing."""
    if _library.current_backend() == "reference":
        return 'fastpose.backend("reference") is in force'
    if torch.compiler.is_exporting() and not block.training:
        return "it is exported for evaluation, where a graph of PyTorch's own operations runs anywhere"
    if _library.transformed():
        return "the op has no rules for the transforms of torch.func and for forward mode"
    for name in (*_NORMS, *_CONVOLUTIONS):
        changed = why_changed(name, getattr(block, name))
        if changed:
            return changed
    if x.ndim != 4:
        return f"x has shape {tuple(x.shape)}"  # of which torch complains
    if not x.numel() and not any(_group(getattr(block, name)) for name in _NORMS):
        return "x is empty"
    return ""


def _why_not_together(block: HourglassResidual, p: Parameters, x: torch.Tensor) -> str:
    """What is wrong with the tensors, or nothing. Torch has its say when the layers are called in turn."""
    channels, inner, middle, out = x.shape[1], p.conv1_weight.shape[0], p.conv2_weight.shape[0], p.conv3_weight.shape[0]
    sizes = (channels, inner, middle)
    shapes = Parameters(
        *((channels,), (channels,), (inner, channels, 1, 1), (inner,)),
        *((inner,), (inner,), (middle, inner, 3, 3), (middle,)),
        *((middle,), (middle,), (out, middle, 1, 1), (out,)),
        *((out, channels, 1, 1), (out,)),
    )
    tensors = list(zip(Parameters._fields, p, shapes, strict=True))
    for name, size in zip(_NORMS, sizes, strict=True):
        mean, variance, batches = _running(getattr(block, name))
        tensors += [(f"{name}.running_mean", mean, (size,)), (f"{name}.running_var", variance, (size,))]
        tensors.append((f"{name}.num_batches_tracked", batches, ()))
    for name, tensor, shape in tensors:
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.device != x.device:
            return f"x is {tuple(x.shape)} on {x.device}, and {name} is {tuple(tensor.shape)} on {tensor.device}"
        if len(shape) == 1 and not tensor.is_contiguous():
            return f"{name} is not contiguous"
    if p.skip_weight is None and channels != out:
        return f"the block adds {channels} channels to {out}"
    autocasts = x.dtype != torch.float64 and autocast_dtype(x) is not None
    for weight in (p.conv1_weight, p.conv2_weight, p.conv3_weight, p.skip_weight):
        if weight is not None and weight.dtype != x.dtype and not (autocasts and weight.dtype != torch.float64):
            return f"x is {x.dtype}, and a convolution's weight is {weight.dtype}"
    return ""


def _why_not_fused(block: HourglassResidual, x: torch.Tensor) -> str:
    """Why there are no kernels for this call, or nothing."""
    if x.device.type != "cuda":
        return f"there are kernels for cuda, not for {x.device.type}"
    if _dtype(x) not in _KERNEL_DTYPES or x.dtype not in _KERNEL_DTYPES:
        return f"there are no kernels for {_dtype(x)}"
    channels = (block.conv1.in_channels, block.conv1.out_channels, block.conv3.out_channels)
    if any(c % _CHANNEL_MULTIPLE for c in channels):
        return f"the kernels take multiples of {_CHANNEL_MULTIPLE} channels, the block has {', '.join(map(str, channels))}"
    return _library.why_no_triton(x.device)


def _dtype(x: torch.Tensor) -> torch.dtype:
    """In which the convolutions work. Autocast leaves float64 alone."""
    return x.dtype if x.dtype == torch.float64 else autocast_dtype(x) or x.dtype


def _parameters(block: HourglassResidual) -> Parameters:
    tensors: list[torch.Tensor | None] = []
    for bn, conv in zip(_NORMS, ("conv1", "conv2", "conv3"), strict=True):
        for module in (getattr(block, bn), getattr(block, conv)):
            tensors += [module.weight, module.bias]
    skip = block.skip
    return Parameters(*tensors, *((None, None) if isinstance(skip, nn.Identity) else (skip.weight, skip.bias)))


def _uses_batch(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> bool:
    return bn.training or bn.running_mean is None


def _running(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[torch.Tensor | None, ...]:
    """Running mean and variance, to be read or moved on, and the number of batches, to be moved on."""
    moved = bn.training and bn.track_running_stats
    if not moved and _uses_batch(bn):
        return None, None, None
    return bn.running_mean, bn.running_var, bn.num_batches_tracked if moved else None


def _group(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> str:
    """The name of the process group over which it shares statistics, or nothing."""
    distributed = torch.distributed
    if not (isinstance(bn, nn.SyncBatchNorm) and bn.training and distributed.is_available() and distributed.is_initialized()):
        return ""
    group = bn.process_group or distributed.group.WORLD
    assert group is not None  # there is a world once the default group is initialised
    return group.group_name if distributed.get_world_size(group) > 1 else ""


def _refuse_one_value(x: torch.Tensor, channels: int) -> None:
    """As torch does, in its words."""
    size = torch.Size((x.shape[0], channels, *x.shape[2:]))
    if x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
