"""What is measured: a job on one shape, the providers that can do it, and the least that it must move and compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map

import fastpose

Inputs = tuple[Any, ...]
Function = Callable[..., Any]
Role = Literal["ours", "baseline", "floor"]

OURS = "fastpose"


@dataclass(frozen=True)
class Provider:
    """One way to do a workload's job.

    Attributes:
        prepare: makes the function of the workload's inputs; what takes long (compiling, importing a library) happens here
            or in the function's first call, and is not timed.
        role: ``"ours"``; ``"baseline"``; or ``"floor"`` for what does less than the job and bounds its time, such as a copy.
        slack: how much further from the exact result it may be, because a library's definition differs that much.
        border: rows and columns at each edge of the maps that are not compared, for the same reason.
        own_graph: whether the function replays a CUDA graph of its own on a GPU, so that it is not captured again.
        make_inputs: for a floor: its own inputs from a seed, in place of the workload's.
    """

    prepare: Callable[[], Function]
    role: Role = "baseline"
    slack: float = 0.0
    border: int = 0
    own_graph: bool = False
    make_inputs: Callable[[int], Inputs] | None = None


@dataclass(frozen=True)
class Workload:
    """A row of the table.

    Attributes:
        suite: that it belongs to.
        name: of the job, with the shape and dtype unique in its suite.
        shape: of what the job is about: the maps of an op, the input of a network.
        dtype: of the maps or activations.
        device: ``"cpu"`` or ``"cuda"``.
        make_inputs: the inputs from a seed.
        exact: the same job of inputs in float64, in plain PyTorch.
        eager: the provider whose distance from the exact result measures the others'.
        providers: by name; the one of fastpose is :data:`OURS`.
        bytes_moved: that any implementation must read and write: inputs and results, once each.
        flops: counts the floating-point operations of the job; 0 where they do not matter.
        arithmetic: the coarsest dtype in which intermediate results may be rounded.
        magnitude: of the numbers on the way to a result, where it is more than the result's own.
        terms: numbers that are summed up into one of the result, at most.
        compared: the part of a result that :attr:`exact` gives.
        tunable: makes a function of the inputs with fused layers in it whose configurations can be tuned.
        traffic: bytes that a call sends through the caches, if that is more than :attr:`bytes_moved`.
    """

    suite: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    make_inputs: Callable[[int], Inputs]
    exact: Function
    eager: str
    providers: Mapping[str, Provider]
    bytes_moved: int
    flops: Callable[[], int] = lambda: 0
    arithmetic: torch.dtype = torch.float32
    magnitude: float = 0.0
    terms: int = 1
    compared: Callable[[Any], Any] = lambda result: result
    tunable: Callable[[], Function] | None = None
    traffic: int = 0

    @property
    def title(self) -> str:
        """Such as ``render 32×16×64×64 float32``."""
        return f"{self.name} {'×'.join(map(str, self.shape))} {dtype_name(self.dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, whatever holds them."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def in_float64(inputs: Inputs) -> Inputs:
    """Inputs with every floating tensor, and every dtype among them, in float64; gradients are wanted of the same."""

    def convert(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float64
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().double().requires_grad_(value.requires_grad)
        return value

    return tree_map(convert, inputs)


def plain(function: Function) -> Function:
    """The same, always in plain PyTorch: fastpose's modules and ops run, and are traced, as their references."""

    def run(*inputs: Any) -> Any:
        with fastpose.backend("reference"):
            return function(*inputs)

    return run


def compiled(function: Function, mode: str | None = None) -> Function:
    """``torch.compile`` for these very shapes; CUDA graphs are left to the timing, which makes one of every provider."""
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
