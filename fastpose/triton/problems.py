"""What the kernels are asked to compute, as far as it matters for how to cut it, with random examples to try that on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from fastpose._layers import BatchNorm, Convolution
from fastpose.triton import configs
from fastpose.triton.configs import ConvConfig, PointwiseConfig
from fastpose.triton.launches import Head, Launch, Sum, bn_relu_conv1x1, conv_relu_conv1x1


class Example(NamedTuple):
    """One call of a kernel."""

    launch: Callable[[Any], Launch]
    """Makes the launch of a configuration."""
    inputs: list[torch.Tensor]
    """The maps that it reads first."""
    outputs: list[torch.Tensor]
    """Where it writes, full of NaN before."""
    reference: Callable[[torch.dtype], list[torch.Tensor]]
    """The same computed by PyTorch in a given dtype."""


@dataclass(frozen=True)
class Pointwise:
    """Of ``bn_relu_conv1x1``; height and width of its input."""

    channels: int
    outputs: int
    batch: int
    height: int
    width: int
    pool: bool
    dtype: torch.dtype

    def configs(self, family: str, aligned: bool = True) -> list[PointwiseConfig]:
        """What may be tried, from large tiles to small ones."""
        return configs.pointwise_configs(family, self.channels, self.outputs, self.pool, aligned)

    def blocks(self, config: PointwiseConfig) -> int:
        """How many blocks of threads are launched."""
        pixels = self.batch * self.height * self.width // (4 if self.pool else 1)
        return -(-pixels // config.block_m) * -(-self.outputs // config.block_n)

    def with_batch(self, batch: int) -> Pointwise:
        return replace(self, batch=batch)

    def example(self, device: str | torch.device) -> Example:
        """Random numbers of this problem; the same every time."""
        random = _Random(device, self.dtype)
        x = random.maps(self.batch, self.channels, self.height, self.width)
        bn1, conv, bn2 = random.bn(self.channels), random.conv(self.outputs, self.channels), random.bn(self.outputs)
        pixels = (self.height // 2, self.width // 2) if self.pool else (self.height, self.width)
        y = random.unwritten(self.batch, self.outputs, *pixels)
        pooled = random.unwritten(self.batch, self.channels, *pixels) if self.pool else None

        def reference(dtype: torch.dtype) -> list[torch.Tensor]:
            first, between, second = (_to(layer, dtype) for layer in (bn1, conv, bn2))
            raw = functional.max_pool2d(x.to(dtype), 2) if self.pool else x.to(dtype)
            result = functional.relu(second(between(functional.relu(first(raw)))))
            return [result, raw] if self.pool else [result]

        outputs = [y] if pooled is None else [y, pooled]
        return Example(lambda config: bn_relu_conv1x1(x, bn1, conv, bn2, y, pooled, config), [x], outputs, reference)


@dataclass(frozen=True)
class Conv:
    """Of ``conv_relu_conv1x1``."""

    window: int
    """1 or 3, of the first convolution."""
    inputs: int
    mid: int
    outputs: int
    """0: no sum."""
    skip: int
    """Channels that are projected; 0: the input is added as it is."""
    low: bool
    joints: int
    """0: no head."""
    heatmaps: bool
    convolved: bool
    batch: int
    height: int
    width: int
    dtype: torch.dtype

    def configs(self, family: str, aligned: bool = True) -> list[ConvConfig]:
        """What may be tried, from large tiles to small ones."""
        return configs.conv_configs(family, self.inputs, self.mid, self.outputs, self.convolved, aligned)

    def blocks(self, config: ConvConfig) -> int:
        """How many blocks of threads are launched."""
        images, rows, columns = config.tile(self.height, self.width)
        return -(-self.batch // images) * -(-self.height // rows) * -(-self.width // columns)

    def with_batch(self, batch: int) -> Conv:
        return replace(self, batch=batch)

    def after_convolution(self) -> Conv:
        """What is left of it when others have computed the first convolution."""
        return replace(self, convolved=True, inputs=self.mid)

    def example(self, device: str | torch.device) -> Example:
        """Random numbers of this problem; the same every time."""
        random = _Random(device, self.dtype)
        size = (self.height, self.width)
        h = random.maps(self.batch, self.inputs, *size)
        conv, bn = random.conv(self.mid, self.inputs, self.window), random.bn(self.mid)
        total, head = None, None
        if self.outputs:
            skip = random.conv(self.outputs, self.skip) if self.skip else None
            low = random.maps(self.batch, self.outputs, *(side // 2 for side in size)) if self.low else None
            x = random.maps(self.batch, self.skip or self.outputs, *size)
            y = random.unwritten(self.batch, self.outputs, *size)
            total = Sum(random.conv(self.outputs, self.mid), x, skip, low, y)
        if self.joints:
            feedback = random.conv(self.outputs, self.joints) if self.outputs else None
            heatmaps = random.unwritten(self.batch, self.joints, *size) if self.heatmaps else None
            head = Head(random.conv(self.joints, self.mid), feedback, heatmaps)

        def reference(dtype: torch.dtype) -> list[torch.Tensor]:
            first = _to(conv, dtype)
            a = h.to(dtype) + first.bias.view(-1, 1, 1) if self.convolved else first(h.to(dtype))
            return _second_half(functional.relu(_to(bn, dtype)(a)), total, head, dtype)

        outputs = [t for t in (total and total.y, head and head.heatmaps) if t is not None]
        launch = lambda config: conv_relu_conv1x1(h, conv, bn, config, total, head, convolved=self.convolved)  # noqa: E731
        return Example(launch, [h], outputs, reference)


def _second_half(a: torch.Tensor, total: Sum | None, head: Head | None, dtype: torch.dtype) -> list[torch.Tensor]:
    y: Any = None
    if total:
        x = total.x.to(dtype)
        y = _to(total.conv, dtype)(a) + (_to(total.skip, dtype)(x) if total.skip else x)
        if total.low is not None:
            y = y + functional.interpolate(total.low.to(dtype), scale_factor=2)
    heatmaps: Any = None
    if head:
        heatmaps = _to(head.conv, dtype)(a)
        if head.feedback:
            y = y + _to(head.feedback, dtype)(heatmaps)
    return [y] * (total is not None) + [heatmaps] * (head is not None and head.heatmaps is not None)


def _to(layer: Any, dtype: torch.dtype) -> Any:
    return type(layer)(*(t.to(dtype) if isinstance(t, torch.Tensor) else t for t in layer))


class _Random:
    """Tensors as they are in a trained network: sums of about unit variance, scales of both signs."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype) -> None:
        self.generator = torch.Generator(device).manual_seed(0)
        self.device, self.dtype = device, dtype

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def maps(self, *shape: int) -> torch.Tensor:
        return self.normal(*shape).to(self.dtype).contiguous(memory_format=torch.channels_last)

    def unwritten(self, *shape: int) -> torch.Tensor:
        memory_format = torch.channels_last
        return torch.full(shape, torch.nan, dtype=self.dtype, device=self.device).contiguous(memory_format=memory_format)

    def conv(self, outputs: int, inputs: int, window: int = 1) -> Convolution:
        weight = self.normal(outputs, inputs, window, window) / (inputs * window**2) ** 0.5
        return Convolution(weight.to(self.dtype).contiguous(memory_format=torch.channels_last), 0.3 * self.normal(outputs))

    def bn(self, channels: int) -> BatchNorm:
        weight, bias, mean = 1 + 0.7 * self.normal(channels), 0.3 * self.normal(channels), 0.3 * self.normal(channels)
        return BatchNorm(weight, bias, mean, 0.5 + self.normal(channels).square(), 1e-5)
