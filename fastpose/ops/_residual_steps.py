"""The words in which training of the hourglass's residual block is written: its parameters, its normalisations, its steps."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

Sums = tuple[torch.Tensor, torch.Tensor]  # over the pixels, each (C,): of g, of g (z - mean) / std


class Parameters(NamedTuple):
    """Of the block, in the order in which the op takes them; the same fields hold flags and gradients."""

    bn1_weight: Any
    bn1_bias: Any
    conv1_weight: Any
    conv1_bias: Any
    bn2_weight: Any
    bn2_bias: Any
    conv2_weight: Any
    conv2_bias: Any
    bn3_weight: Any
    bn3_bias: Any
    conv3_weight: Any
    conv3_bias: Any
    skip_weight: Any
    skip_bias: Any


class Running(NamedTuple):
    """Running statistics of a normalisation and how they move on. Tensors may be None, as in torch.nn.BatchNorm2d."""

    mean: torch.Tensor | None
    variance: torch.Tensor | None
    batches: torch.Tensor | None  # counted, this one included, before any statistics are computed
    momentum: float
    cumulative: bool  # the average of all batches, for which momentum is not read
    eps: float
    offset: torch.Tensor | None  # bias of the convolution in front, which the normalised tensor lacks


class Norm(NamedTuple):
    """A batch normalisation: z -> (z - mean) * scale + bias, every one (C,)."""

    mean: torch.Tensor  # this and the two below are filled in by a step
    rstd: torch.Tensor  # 1 / std
    scale: torch.Tensor  # rstd * weight
    bias: torch.Tensor
    weight: torch.Tensor
    batch: bool  # statistics of the batch, through which gradients flow; else the running ones
    group: str  # name of the process group that shares the statistics, "" for none


class Steps(Protocol):
    """What touches pixels. Tensors are channels_last; g is a gradient behind the ReLU's mask, d one in front of it."""

    def batch_statistics(self, z: torch.Tensor, norm: Norm, running: Running) -> None:
        """Fills in ``norm`` from z, and moves the running statistics on."""

    def frozen_statistics(self, norm: Norm, running: Running) -> None:
        """Fills in ``norm`` from the running statistics."""

    def activation(self, z: torch.Tensor, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
        """a(z)."""

    def first(self, x: torch.Tensor, norm: Norm, weight: torch.Tensor, next_norm: Norm, running: Running) -> torch.Tensor:
        """W a(x), and the statistics of it if ``next_norm`` wants those of the batch."""

    def last(
        self,
        z: torch.Tensor,
        norm: Norm,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        x: torch.Tensor,
        skip_weight: torch.Tensor | None,
        skip_bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """W a(z) + bias + x, or the projection of x."""

    def pointwise_input_gradient(
        self, dy: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, Sums]:
        """g of y = W a(z), and its sums."""

    def pointwise_weight_gradient(
        self, dy: torch.Tensor, z: torch.Tensor, norm: Norm | None, like: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of W and of the bias in y = W a(z) + bias, or W z + bias without ``norm``; in the dtypes of ``like`` and ``bias``."""

    def masked_sums(self, d: torch.Tensor, z: torch.Tensor, norm: Norm) -> Sums:
        """Of g = d where a(z) > 0."""

    def norm_input_gradient(
        self, g: torch.Tensor, z: torch.Tensor, norm: Norm, means: Sums | None, count: int, masked: bool
    ) -> torch.Tensor:
        """Gradient in z from g, or from d if not yet ``masked``. ``means`` / ``count`` are the pixels' means, None if frozen."""

    def block_input_gradient(
        self,
        g: torch.Tensor,
        x: torch.Tensor,
        norm: Norm,
        means: Sums | None,
        count: int,
        dy: torch.Tensor,
        skip_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same plus the gradient that comes through the skip."""


def pixels(z: torch.Tensor) -> int:
    return z.shape[0] * z.shape[2] * z.shape[3]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """In which statistics and sums of a tensor of ``dtype`` are."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def new_maps(like: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised, channels_last, with the batch, height and width of ``like``."""
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)
