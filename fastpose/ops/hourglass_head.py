"""The hourglass's prediction head and the way back into its features, in inference: the whole op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from fastpose import _check, _library
from fastpose._layers import BatchNorm, Convolution, HeadParameters, empty_maps
from fastpose._library import define, library
from fastpose.ops.hourglass_residual import FUSED_DTYPES

MAX_CHANNELS = 256
"""Between the convolutions, in a GPU kernel."""


class HeadOutput(NamedTuple):
    """What :func:`hourglass_head` returns, in channels_last memory."""

    heatmaps: torch.Tensor | None
    """(B, K, H, W), or None if not asked for."""
    merged: torch.Tensor | None
    """(B, N, H, W), or None if nothing was to be merged."""


def hourglass_head(
    x: torch.Tensor, parameters: HeadParameters, skip: torch.Tensor | None = None, *, heatmaps: bool = True
) -> HeadOutput:
    r"""Heatmaps of one stack, and the input of the next one, with fixed statistics.

    .. math:: f = \max(0, n(W x)), \qquad h = W_h f, \qquad m = s + W_f f + W_p h

    On a GPU one kernel, in which neither f nor, unless asked for, h reaches memory. On a CPU, :math:`W_f + W_p W_h` is one
    convolution.

    Args:
        x: (B, C, H, W) of any strides. On a GPU float16 or bfloat16.
        parameters: C and N must be multiples of 16 on a GPU, 256 at most; weights are of x's dtype.
        skip: s (B, N, H, W), the features that the stack had as input; None if nothing is to be merged.
        heatmaps: whether h is wanted.

    Returns:
        h and m. Not differentiable: run in plain PyTorch for that.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for x's device.

    Source: Newell et al. 2016, section 3.2 and figure 4.
    """
    _check_arguments(x, parameters, skip, heatmaps)
    p = parameters
    if _library.current_backend() == "reference":
        maps, merged = hourglass_head_reference(x, p, skip, heatmaps)
    else:
        check_for_gpu(x, p)
        maps, merged = run_op(x, p, skip, heatmaps)
    return HeadOutput(maps if heatmaps else None, merged if skip is not None else None)


def hourglass_head_reference(
    x: torch.Tensor, parameters: HeadParameters, skip: torch.Tensor | None, heatmaps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain PyTorch, and differentiable; results that are not asked for may be anything."""
    p = parameters
    features = functional.relu(p.bn(p.conv(x)))
    maps = p.head(features)
    if skip is None or p.from_features is None or p.from_heatmaps is None:
        return maps, x.new_empty(0)
    return maps, skip + p.from_features(features) + p.from_heatmaps(maps)


def run_op(
    x: torch.Tensor, parameters: HeadParameters, skip: torch.Tensor | None, heatmaps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op itself, whose arguments have been checked."""
    p = parameters
    merge = [*(p.from_features or ()), *(p.from_heatmaps or ())] if skip is not None else []
    return _op(x, [*p.conv, *p.bn[:4], *p.head, *merge], p.bn.eps, skip, heatmaps)


def _parameters(tensors: list[torch.Tensor], eps: float) -> HeadParameters:
    weight, bias, mean, variance = tensors[2:6]
    merge = (Convolution(*tensors[8:10]), Convolution(*tensors[10:])) if tensors[8:] else ()
    bn = BatchNorm(weight, bias, mean, variance, eps)
    return HeadParameters(Convolution(*tensors[:2]), bn, Convolution(*tensors[6:8]), *merge)


def check_for_gpu(x: torch.Tensor, parameters: HeadParameters) -> None:
    """Raises what keeps the fused op from running on x's device."""
    _library.require_triton(x.device)
    if x.device.type != "cuda":
        return
    if x.dtype not in FUSED_DTYPES:
        raise TypeError(f"x: got {x.dtype} on {x.device}, allowed on a GPU are float16 and bfloat16")
    convolutions = [conv for conv in (parameters.conv, parameters.from_features) if conv]
    reason = why_not_these_channels(*(size for conv in convolutions for size in conv.weight.shape[:2]))
    if reason:
        raise ValueError(f"parameters: {reason}")


def why_not_these_channels(*channels: int) -> str:
    """Why there is no GPU kernel for a head, or nothing."""
    wrong = [c for c in channels if c % 16 or c > MAX_CHANNELS]
    return f"the head has {wrong[0]} channels; GPU kernels are for multiples of 16 up to {MAX_CHANNELS}" if wrong else ""


def _check_arguments(x: torch.Tensor, parameters: HeadParameters, skip: torch.Tensor | None, heatmaps: bool) -> None:
    _check.maps("x", x)
    p = parameters
    channels, joints = x.shape[1], p.head.weight.shape[0]
    shapes: dict[str, tuple[Convolution | None, int, int]] = {
        "conv": (p.conv, p.conv.weight.shape[0], channels),
        "head": (p.head, joints, p.conv.weight.shape[0]),
    }
    if skip is None:
        if not heatmaps:
            raise ValueError("heatmaps: got False without skip, which leaves nothing to compute")
    else:
        _check.maps("skip", skip)
        if skip.shape[0] != x.shape[0] or skip.shape[2:] != x.shape[2:] or skip.dtype != x.dtype:
            raise ValueError(
                f"skip: got shape {_check.shape(skip)} and {skip.dtype}, "
                f"allowed is ({x.shape[0]}, N, {x.shape[2]}, {x.shape[3]}) and {x.dtype}"
            )
        _check.same_device("skip", skip, "x", x)
        shapes["from_features"] = (p.from_features, skip.shape[1], p.conv.weight.shape[0])
        shapes["from_heatmaps"] = (p.from_heatmaps, skip.shape[1], joints)
    for name, (conv, outputs, inputs) in shapes.items():
        if conv is None:
            raise ValueError(f"parameters.{name}: got None, which is for a head without skip")
        if conv.weight.shape != (outputs, inputs, 1, 1):
            allowed = (outputs, inputs, 1, 1)
            raise ValueError(f"parameters.{name}: got weights of shape {_check.shape(conv.weight)}, allowed is {allowed}")
        if conv.weight.dtype != x.dtype:
            raise TypeError(f"parameters.{name}: got weights of {conv.weight.dtype}, but x is {x.dtype}")
        _check.same_device(f"parameters.{name}", conv.weight, "x", x)


def _fake(
    x: torch.Tensor, parameters: list[torch.Tensor], eps: float, skip: torch.Tensor | None, heatmaps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    size = x.shape[2:]
    maps = empty_maps(x, parameters[6].shape[0], *size) if heatmaps else x.new_empty(0)
    return maps, x.new_empty(0) if skip is None else empty_maps(x, skip.shape[1], *size)


def _channels_last(maps: torch.Tensor) -> torch.Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _cuda(
    x: torch.Tensor, parameters: list[torch.Tensor], eps: float, skip: torch.Tensor | None, heatmaps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    _library.require_triton(x.device)  # graphs were compiled without asking
    from fastpose.triton import residual  # takes time

    return residual.hourglass_head(x, _parameters(parameters, eps), skip, heatmaps)


def _cpu(
    x: torch.Tensor, parameters: list[torch.Tensor], eps: float, skip: torch.Tensor | None, heatmaps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    p = _parameters(parameters, eps)
    with torch.autocast("cpu", enabled=False):
        features = functional.relu_(p.conv.followed_by(p.bn)(_channels_last(x)))
        maps = _channels_last(p.head(features)) if heatmaps else x.new_empty(0)
        if skip is None:
            return maps, x.new_empty(0)
        merged = _channels_last(_merge_convolution(p)(features))
    merged += skip
    return maps, merged


def _merge_convolution(parameters: HeadParameters) -> Convolution:
    """From the features into the next stack's input, directly and by way of the heatmaps, as one convolution."""
    p = parameters
    assert p.from_features
    assert p.from_heatmaps
    through = p.from_heatmaps.weight.flatten(1)
    weight = p.from_features.weight + (through @ p.head.weight.flatten(1))[:, :, None, None]
    return Convolution(weight, p.from_features.bias + p.from_heatmaps.bias + through @ p.head.bias)


_op = define(
    "hourglass_head",
    "(Tensor x, Tensor[] parameters, float eps, Tensor? skip, bool heatmaps) -> (Tensor, Tensor)",
    fake=_fake,
)
library.impl("hourglass_head", _cuda, "CUDA")
library.impl("hourglass_head", _cpu, "CPU")
