"""How the kernels of :mod:`fastpose.triton.kernels` are cut into tiles. Nothing here changes what they compute.

All configurations are compiled ahead of time in the tests: none spills registers, and all fit the shared memory of their family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

MAX_MID_ON_TILE = 256
"""Channels between the two convolutions of one kernel, whose sums a block keeps in registers."""
MAX_MID = 512
"""The same where the first convolution is left to cuDNN."""


@dataclass(frozen=True)
class PointwiseConfig:
    """Of ``bn_relu_conv1x1``: pixels, outputs and inputs in a tile."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    tma: bool = False

    @property
    def rows(self) -> int:
        """Pixels in a tile."""
        return self.block_m


@dataclass(frozen=True)
class ConvConfig:
    """Of ``conv_relu_conv1x1``: pixels in a tile; inputs and outputs at a time; the form of the main loop."""

    rows: int
    block_k: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False
    nested: bool = False

    def tile(self, height: int, width: int) -> tuple[int, int, int]:
        """Images, rows and columns of a tile: of maps that are smaller than it, several are taken at once."""
        columns = min(16, self.rows, power_of_two(width))
        rows = min(self.rows // columns, power_of_two(height))
        return self.rows // (columns * rows), rows, columns


Config = TypeVar("Config", PointwiseConfig, ConvConfig)


def power_of_two(size: int) -> int:
    """The smallest that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def depth(channels: int) -> int:
    """The smallest power of two that covers the channels and that a matrix product may be deep."""
    return max(16, power_of_two(channels))


def family(capability: tuple[int, int]) -> str:
    """Whose configurations a GPU uses: sm_86 stands for all that have 99 KiB of shared memory for a block (sm_89, sm_120)."""
    if capability in ((8, 0), (8, 7)):
        return "sm_80"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(capability[0], "sm_86")


def pointwise_configs(family: str, channels: int, outputs: int, pool: bool, aligned: bool = True) -> list[PointwiseConfig]:
    """What may be tried for ``bn_relu_conv1x1``, from large tiles to small ones.

    Args:
        family: see :func:`family`.
        channels, outputs: of the convolution.
        pool: whether its input is pooled.
        aligned: whether all tensors begin at multiples of 16 bytes, as descriptors need.
    """
    small = family == "sm_86"
    configs = (_POOLING_86 if small else _POOLING) if pool else (_POINTWISE_86 if small else _POINTWISE)
    tma = aligned and family in ("sm_90", "sm_100")
    return _unique(
        replace(c, block_n=min(c.block_n, depth(outputs)), block_k=min(c.block_k, depth(channels)), tma=tma) for c in configs
    )


def conv_configs(
    family: str, inputs: int, mid: int, outputs: int, convolved: bool = False, aligned: bool = True
) -> list[ConvConfig]:
    """What may be tried for ``conv_relu_conv1x1``, from large tiles to small ones; nothing where ``mid`` is too large.

    Args:
        family: see :func:`family`.
        inputs, mid, outputs: channels in front of the first convolution, between the two, and behind the second.
        convolved: the first convolution is left to others.
        aligned: whether all tensors begin at multiples of 16 bytes, as descriptors need.
    """
    if not aligned and family in ("sm_90", "sm_100"):
        family = "sm_80"
    table = (_CONVOLVED if convolved else _CONV)[family]
    configs = next((configs for largest, configs in table.items() if depth(mid) <= largest), [])
    block_n = depth(outputs)
    return _unique(replace(c, block_n=min(c.block_n, block_n), block_k=min(c.block_k, depth(inputs))) for c in configs)


def _unique(configs: Iterable[Config]) -> list[Config]:
    return list(dict.fromkeys(configs))


_POINTWISE = [
    PointwiseConfig(128, 128, 64, 8, 3),
    PointwiseConfig(128, 128, 64, 8, 4),
    PointwiseConfig(128, 128, 32, 8, 3),
    PointwiseConfig(64, 128, 64, 8, 3),
    PointwiseConfig(64, 128, 64, 4, 3),
    PointwiseConfig(64, 128, 32, 4, 4),
    PointwiseConfig(64, 64, 64, 4, 3),
]
_POINTWISE_86 = [config for config in _POINTWISE if config != PointwiseConfig(128, 128, 64, 8, 4)]
_POOLING = [  # four times the loads
    PointwiseConfig(128, 128, 32, 8, 3),
    PointwiseConfig(64, 128, 64, 8, 3),
    PointwiseConfig(64, 128, 64, 4, 3),
    PointwiseConfig(64, 128, 32, 4, 4),
    PointwiseConfig(64, 64, 64, 4, 3),
]
_POOLING_86 = [
    PointwiseConfig(128, 128, 32, 8, 3),
    PointwiseConfig(64, 128, 32, 4, 4),
    PointwiseConfig(64, 64, 64, 4, 3),
]

# By family, and by how many channels there are between the convolutions at most.
_CONV = {
    "sm_80": {
        128: [
            ConvConfig(128, 64, 64, 8, 3),
            ConvConfig(128, 32, 64, 8, 4),
            ConvConfig(128, 64, 64, 8, 3, nested=True),
            ConvConfig(64, 64, 64, 8, 3),
            ConvConfig(64, 64, 64, 4, 3),
            ConvConfig(64, 64, 64, 4, 4),
            ConvConfig(64, 64, 64, 4, 3, nested=True),
            ConvConfig(32, 64, 64, 4, 3),
        ],
        256: [
            ConvConfig(64, 64, 64, 8, 3),
            ConvConfig(64, 64, 64, 8, 3, nested=True),
            ConvConfig(32, 64, 64, 4, 3),
        ],
    },
    "sm_86": {
        128: [
            ConvConfig(128, 32, 64, 8, 3),
            ConvConfig(128, 32, 64, 8, 3, nested=True),
            ConvConfig(64, 64, 64, 8, 3),
            ConvConfig(64, 64, 64, 4, 3),
            ConvConfig(64, 64, 64, 4, 3, nested=True),
            ConvConfig(32, 64, 64, 4, 3),
        ],
        256: [
            ConvConfig(64, 32, 32, 8, 3),
            ConvConfig(64, 32, 32, 8, 3, nested=True),
            ConvConfig(32, 32, 32, 4, 3),
        ],
    },
    "sm_90": {
        128: [
            ConvConfig(256, 64, 64, 8, 4, tma=True),
            ConvConfig(256, 64, 64, 8, 3, tma=True),
            ConvConfig(128, 64, 64, 8, 4, tma=True),
            ConvConfig(128, 64, 64, 4, 4, tma=True),
            ConvConfig(128, 128, 64, 8, 3, tma=True),
            ConvConfig(128, 64, 128, 8, 3, tma=True),
            ConvConfig(128, 64, 64, 8, 4, tma=True, nested=True),
            ConvConfig(128, 64, 64, 8, 4),
            ConvConfig(128, 64, 64, 8, 4, nested=True),
            ConvConfig(64, 64, 64, 4, 4, tma=True),
            ConvConfig(64, 128, 64, 4, 3, tma=True),
            ConvConfig(64, 64, 64, 4, 4, tma=True, nested=True),
        ],
        256: [
            ConvConfig(128, 64, 64, 8, 4, tma=True),
            ConvConfig(128, 64, 64, 8, 4, tma=True, nested=True),
            ConvConfig(64, 64, 64, 8, 4, tma=True),
            ConvConfig(64, 64, 64, 8, 4, tma=True, nested=True),
            ConvConfig(64, 64, 64, 4, 4, tma=True),
        ],
    },
    "sm_100": {
        128: [
            ConvConfig(128, 64, 64, 8, 4, tma=True),
            ConvConfig(128, 64, 64, 8, 3, tma=True),
            ConvConfig(128, 64, 64, 8, 4, tma=True, nested=True),
            ConvConfig(64, 64, 64, 8, 4, tma=True),
            ConvConfig(64, 64, 64, 4, 4, tma=True),
            ConvConfig(64, 64, 64, 4, 4, tma=True, nested=True),
        ],
        256: [
            ConvConfig(64, 64, 64, 8, 4, tma=True),
            ConvConfig(64, 64, 64, 8, 4, tma=True, nested=True),
        ],
    },
}
_CONVOLVED = {
    "sm_80": {
        256: [ConvConfig(128, 64, 64, 8, 3), ConvConfig(64, 64, 64, 8, 3), ConvConfig(32, 64, 32, 4, 2)],
        512: [ConvConfig(64, 64, 32, 8, 2), ConvConfig(32, 64, 32, 8, 2)],
    },
    "sm_86": {
        128: [ConvConfig(128, 64, 64, 8, 3), ConvConfig(64, 64, 64, 8, 3), ConvConfig(32, 64, 32, 4, 2)],
        256: [ConvConfig(64, 64, 32, 8, 2), ConvConfig(32, 64, 32, 4, 2)],
        512: [ConvConfig(32, 64, 32, 8, 2)],
    },
    "sm_90": {
        256: [ConvConfig(128, 64, 64, 8, 3, tma=True), ConvConfig(64, 64, 64, 8, 3, tma=True)],
        512: [ConvConfig(64, 64, 32, 8, 2), ConvConfig(32, 64, 32, 8, 2)],
    },
    "sm_100": {
        256: [ConvConfig(128, 64, 64, 8, 3, tma=True), ConvConfig(64, 64, 64, 8, 3, tma=True)],
        512: [ConvConfig(64, 64, 32, 8, 2), ConvConfig(32, 64, 32, 8, 2)],
    },
}
