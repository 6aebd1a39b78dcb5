"""The fused layers of the hourglass in inference: allocation, choice of configurations, launches."""

from __future__ import annotations

import contextlib

import torch

from fastpose._layers import BatchNorm, Convolution, HeadParameters, ResidualParameters, empty_maps
from fastpose.triton.choice import choose
from fastpose.triton.launches import Head, Sum, bn_relu_conv1x1, conv_relu_conv1x1
from fastpose.triton.problems import Conv, Pointwise

_CHANNELS_LAST = torch.channels_last


def hourglass_residual(x: torch.Tensor, p: ResidualParameters, pool: bool, low: torch.Tensor | None) -> torch.Tensor:
    """The op ``fastpose::hourglass_residual`` on a GPU; the result is in channels_last memory."""
    x, low = x.contiguous(memory_format=_CHANNELS_LAST), low if low is None else low.contiguous(memory_format=_CHANNELS_LAST)
    conv1, conv2, conv3 = (_ready(conv, x.dtype) for conv in (p.conv1, p.conv2, p.conv3))
    skip = p.skip and _ready(p.skip, x.dtype)
    batch, channels, height, width = x.shape
    size = (height // 2, width // 2) if pool else (height, width)
    mid, outputs = conv1.weight.shape[0], conv3.weight.shape[0]
    y = empty_maps(x, outputs, *size)
    if not y.numel():
        return y
    with _on(x.device):
        h = empty_maps(x, mid, *size)
        pooled = empty_maps(x, channels, *size) if pool else None
        first = Pointwise(channels, mid, batch, height, width, pool, x.dtype)
        config = choose(first, x.device, _aligned(x, conv1.weight))
        bn_relu_conv1x1(x, p.bn1, conv1, p.bn2, h, pooled, config).run()
        _second(h, conv2, p.bn3, Sum(conv3, x if pooled is None else pooled, skip, low, y))
    return y


def hourglass_head(
    x: torch.Tensor, p: HeadParameters, skip: torch.Tensor | None, heatmaps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op ``fastpose::hourglass_head`` on a GPU; the results are in channels_last memory."""
    x = x.contiguous(memory_format=_CHANNELS_LAST)
    size = (x.shape[2], x.shape[3])
    conv, head = _ready(p.conv, x.dtype), _ready(p.head, x.dtype)
    maps = empty_maps(x, head.weight.shape[0], *size) if heatmaps else None
    total, feedback = None, None
    if skip is not None and p.from_features and p.from_heatmaps:
        merged = empty_maps(x, skip.shape[1], *size)
        total = Sum(_ready(p.from_features, x.dtype), skip.contiguous(memory_format=_CHANNELS_LAST), None, None, merged)
        feedback = _ready(p.from_heatmaps, x.dtype)
    if x.numel():
        with _on(x.device):
            _second(x, conv, p.bn, total, Head(head, feedback, maps))
    return x.new_empty(0) if maps is None else maps, total.y if total else x.new_empty(0)


def _second(h: torch.Tensor, conv: Convolution, bn: BatchNorm, total: Sum | None, head: Head | None = None) -> None:
    batch, inputs, height, width = h.shape
    mid, window = conv.weight.shape[0], conv.weight.shape[-1]
    problem = Conv(
        window,
        inputs,
        mid,
        outputs=total.y.shape[1] if total else 0,
        skip=total.x.shape[1] if total and total.skip else 0,
        low=total is not None and total.low is not None,
        joints=head.conv.weight.shape[0] if head else 0,
        heatmaps=head is not None and head.heatmaps is not None,
        convolved=False,
        batch=batch,
        height=height,
        width=width,
        dtype=h.dtype,
    )
    through_descriptors = [h, conv.weight, *((total.conv.weight, total.x) if total else ())]
    aligned = _aligned(*through_descriptors, *((total.skip.weight,) if total and total.skip else ()))
    config = choose(problem, h.device, aligned)
    if config is not None:
        conv_relu_conv1x1(h, conv, bn, config, total, head).run()
        return
    h = torch.conv2d(h, conv.weight, padding=window // 2).contiguous(memory_format=_CHANNELS_LAST)
    config = choose(problem.after_convolution(), h.device, aligned)
    conv_relu_conv1x1(h, conv, bn, config, total, head, convolved=True).run()


def _ready(conv: Convolution, dtype: torch.dtype) -> Convolution:
    """The weights as the kernels read them; usually they are that already."""
    return Convolution(conv.weight.to(dtype).contiguous(memory_format=_CHANNELS_LAST), conv.bias)


def _aligned(*tensors: torch.Tensor) -> bool:
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current GPU. Its interpreter, in tests, runs on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
