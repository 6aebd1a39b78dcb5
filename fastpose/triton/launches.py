"""From tensors to kernel launches: grids, descriptors, blocks. All maps are in channels_last memory, 3×3 weights too."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from fastpose._layers import BatchNorm, Convolution
from fastpose.triton import kernels
from fastpose.triton.configs import ConvConfig, PointwiseConfig, depth


class Launch(NamedTuple):
    """A kernel with all that it is called with."""

    kernel: Any
    blocks: int
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        self.kernel[(self.blocks,)](**self.arguments, **self.options)


def bn_relu_conv1x1(
    x: torch.Tensor,
    bn1: BatchNorm,
    conv: Convolution,
    bn2: BatchNorm,
    y: torch.Tensor,
    pooled: torch.Tensor | None,
    config: PointwiseConfig,
) -> Launch:
    """Launch that computes y = relu(bn2(conv(relu(bn1(x))))), of the 2×2 max-pooling of x if it is to be left in ``pooled``.

    Args:
        x: (B, C, H, W).
        bn1, conv, bn2: parameters; the convolution is 1×1.
        y: (B, N, H, W), with pooling (B, N, H // 2, W // 2).
        pooled: (B, C, H // 2, W // 2), or None not to pool.
        config: how to cut it.
    """
    _, channels, height, width = x.shape
    batch, outputs, rows, columns = y.shape
    pixels = batch * rows * columns
    source: Any = x
    if config.tma and pooled is None:
        source = TensorDescriptor(x, [pixels, channels], [channels, 1], [config.block_m, config.block_k])
    arguments = {
        "x_at": source,
        **_batch_norm(bn1, "1"),
        "w_at": _weights(conv.weight, config.block_n, config.block_k, config.tma),
        "bias": conv.bias,
        **_batch_norm(bn2, "2"),
        "y": y,
        "pooled": pooled,
        "M": pixels,
        "H": height,
        "W": width,
        "C": channels,
        "N": outputs,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "POOL": pooled is not None,
        "TMA": config.tma,
    }
    blocks = _blocks(pixels, config.block_m) * _blocks(outputs, config.block_n)
    return Launch(kernels.bn_relu_conv1x1, blocks, arguments, _options(config))


class Sum(NamedTuple):
    """What the second convolution of :func:`conv_relu_conv1x1` is, what is added to its result, and where that goes."""

    conv: Convolution
    x: torch.Tensor  # (B, C, H, W)
    skip: Convolution | None  # 1×1, through which x goes
    low: torch.Tensor | None  # (B, N, H / 2, W / 2), added to every two by two pixels
    y: torch.Tensor  # (B, N, H, W)


class Head(NamedTuple):
    """The prediction of heatmaps, and the way they go back into the features. Both convolutions are 1×1."""

    conv: Convolution
    feedback: Convolution | None  # None if nothing is summed up
    heatmaps: torch.Tensor | None  # where to write (B, K, H, W), or None not to


def conv_relu_conv1x1(
    h: torch.Tensor,
    conv: Convolution,
    bn: BatchNorm,
    config: ConvConfig,
    total: Sum | None,
    head: Head | None = None,
    *,
    convolved: bool = False,
) -> Launch:
    """Launch that computes a = relu(bn(conv(h))) and, from the tile of it in registers,

        head.heatmaps = head.conv(a)
        total.y = total.conv(a) + total.skip(total.x) + upsample(total.low) + head.feedback(heatmaps)

    Args:
        h: (B, K, H, W).
        conv, bn: a 3×3 or 1×1 convolution and what follows it.
        config: how to cut it.
        total, head: the two results, of which one may be None.
        convolved: ``h`` is the convolution's result already, but for the bias.
    """
    batch, inputs, height, width = h.shape
    mid, _, *window = conv.weight.shape
    tile, block_mid, block_k, block_n = config.tile(height, width), depth(mid), config.block_k, config.block_n
    joints = head.conv.weight.shape[0] if head else 0
    arguments = {
        "h_at": _images(h, (*tile, block_mid if convolved else block_k), config.tma),
        "w1_at": None if convolved else _weights(conv.weight, block_mid, block_k, config.tma),
        "bias1": conv.bias,
        **_batch_norm(bn),
        **_sum(total, tile, block_mid, block_n, config.tma),
        **_head(head),
        "B": batch,
        "H": height,
        "W": width,
        "TAPS": 0 if convolved else math.prod(window),
        "K": inputs,
        "MID": mid,
        "N": total.y.shape[1] if total else 0,
        "SKIP": total.x.shape[1] if total and total.skip else 0,
        "JOINTS": joints,
        "TILE_B": tile[0],
        "TILE_H": tile[1],
        "TILE_W": tile[2],
        "BLOCK_MID": block_mid,
        "BLOCK_J": depth(joints),
        "BLOCK_K": block_k,
        "BLOCK_N": block_n,
        "NESTED": config.nested,
        "TMA": config.tma,
    }
    blocks = math.prod(map(_blocks, (batch, height, width), tile))
    return Launch(kernels.conv_relu_conv1x1, blocks, arguments, _options(config))


def _sum(total: Sum | None, tile: tuple[int, int, int], block_mid: int, block_n: int, tma: bool) -> dict[str, Any]:
    if total is None:
        return dict.fromkeys(("w2_at", "bias2", "x_at", "skip_w_at", "skip_bias", "low", "y_at"))
    return {
        "w2_at": _weights(total.conv.weight, block_n, block_mid, tma),
        "bias2": total.conv.bias,
        "x_at": _images(total.x, (*tile, block_n), tma),
        "skip_w_at": _weights(total.skip.weight, block_n, block_n, tma) if total.skip else None,
        "skip_bias": total.skip.bias if total.skip else None,
        "low": total.low,
        "y_at": _images(total.y, (*tile, block_n), tma),
    }


def _head(head: Head | None) -> dict[str, Any]:
    names = ("head_w", "head_bias", "feedback_w", "feedback_bias", "heatmaps")
    if head is None:
        return dict.fromkeys(names)
    return dict(zip(names, (*head.conv, *(head.feedback or (None, None)), head.heatmaps), strict=True))


def _batch_norm(bn: BatchNorm, number: str = "") -> dict[str, Any]:
    return {f"{name}{number}": value for name, value in zip(("gamma", "beta", "mean", "variance", "eps"), bn, strict=True)}


def _images(maps: torch.Tensor, box: tuple[int, ...], tma: bool) -> Any:
    """Maps (B, C, H, W) as a kernel's [B, H, W, C], read or written box by box."""
    if not tma:
        return maps
    batch, channels, height, width = maps.shape
    strides = [height * width * channels, width * channels, channels, 1]
    return TensorDescriptor(maps, [batch, height, width, channels], strides, list(box))


def _weights(weight: torch.Tensor, block_n: int, block_k: int, tma: bool) -> Any:
    """Weights (O, I, kh, kw) as a kernel's [O, taps, I]."""
    if not tma:
        return weight
    outputs, inputs, height, width = weight.shape
    taps = height * width
    return TensorDescriptor(weight, [outputs, taps, inputs], [taps * inputs, inputs, 1], [block_n, 1, block_k])


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _options(config: PointwiseConfig | ConvConfig) -> dict[str, Any]:
    # Whether products and sums are fused by default differs between versions of Triton.
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
