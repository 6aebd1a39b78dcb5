"""Suite ``networks``: stacked hourglasses on 256×256 images, inference and training step, from one image to large batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastpose import compile_for_inference, ops
from fastpose.benchmarking import baselines, modules
from fastpose.benchmarking.modules import Form
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.workload import Function, Inputs, Provider, Workload
from fastpose.models import StackedHourglass

JOINTS, SIZE, STRIDE = 16, 256, 4
STACKS = {"cpu": (1, 2, 8), "cuda": (2, 8, 1)}  # what the goals are about comes first, before time runs out
BATCHES = {"cpu": (1, 4), "cuda": (32, 1, 8, 128)}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
_TERMS = 9 * 128  # in a convolution; in the gradient of the first one's weights as many as pixels
CPU_STACKS_AND_IMAGES = 8  # what takes longer than so many stacks times images is left out
CHECKED_IMAGES = 2  # of an inference, in which images do not depend on each other
_TRAFFIC = 20 * 256 * (SIZE // STRIDE) ** 2  # elements that one stack writes of one image: about 20 maps of 256 channels


def workloads(settings: Settings) -> Iterator[Workload]:
    """Inference and training step of every number of stacks, for one batch size after the other."""
    device = settings.device
    stacks = (1,) if settings.quick else STACKS[device]
    batches = settings.batches or ((1,) if settings.quick else BATCHES[device])
    for dtype in settings.torch_dtypes((DTYPES[device],)):
        for batch in batches:
            for count in stacks:
                if device == "cpu" and count * batch > CPU_STACKS_AND_IMAGES:
                    continue
                yield _inference(count, batch, dtype, settings)
                yield _training(count, batch, dtype, settings)


def _modes(settings: Settings) -> tuple[str, ...]:
    """On a CPU max-autotune only where it is asked for: it compiles for minutes, and tunes matrix products alone."""
    return tuple(modules.MODES) if settings.device == "cuda" or settings.providers else ("compile",)


def _inference(stacks: int, batch: int, dtype: torch.dtype, settings: Settings) -> Workload:
    device = settings.device

    def copied(dtype: torch.dtype = dtype) -> nn.Module:
        return modules.own_copy(_network(stacks).eval(), dtype, device)

    def make(dtype: torch.dtype = dtype) -> Form:
        network = copied(dtype)
        return Form(lambda images: network(images, last_only=True), list(network.parameters()))

    def fused() -> Function:
        return compile_for_inference(copied(), *_images(batch, dtype, device, 0), last_only=True)

    own_graph = device == "cuda"
    outputs = stacks * batch * JOINTS * (SIZE // STRIDE) ** 2
    return Workload(
        suite="networks",
        name=f"hourglass-{stacks} inference",
        shape=(batch, 3, SIZE, SIZE),
        dtype=dtype,
        device=device,
        make_inputs=partial(_images, batch, dtype, device),
        exact=lambda images: _last(modules.inference(make(torch.float64))(images[:CHECKED_IMAGES])),
        eager="eager",
        providers=modules.providers(make, modules.inference, Provider(fused, role="ours", own_graph=own_graph), _modes(settings)),
        bytes_moved=(batch * 3 * SIZE**2 + outputs + _parameters(stacks)) * dtype.itemsize,
        flops=partial(_flops, stacks, batch, training=False),
        arithmetic=dtype,
        # More stacks have no layers of other shapes than two.
        tunable=(lambda: modules.inference(make())) if stacks == 2 else None,
        terms=_TERMS,
        compared=lambda result: _last(result)[:CHECKED_IMAGES],
        traffic=stacks * batch * _TRAFFIC * dtype.itemsize,
    )


def _training(stacks: int, batch: int, dtype: torch.dtype, settings: Settings) -> Workload:
    device = settings.device

    def make(loss: Function = baselines.mse_separable) -> Form:
        return _with_loss(modules.own_copy(_network(stacks).train(), torch.float32, device), loss)

    def exact(images: torch.Tensor, keypoints: torch.Tensor) -> Any:
        network = modules.own_copy(_network(stacks).train(), torch.float64, device)
        _save_memory(network)
        return _training_step(torch.float64, device, _with_loss(network, baselines.mse_separable))(images, keypoints)

    job = partial(_training_step, dtype, device)
    return Workload(
        suite="networks",
        name=f"hourglass-{stacks} training step",
        shape=(batch, 3, SIZE, SIZE),
        dtype=dtype,
        device=device,
        make_inputs=partial(_labelled_images, batch, device),
        exact=exact,
        eager="eager",
        providers=modules.providers(make, job, Provider(lambda: job(make(_fused_loss)), role="ours"), _modes(settings)),
        # Weights are read forward and backward, and their gradients written, all in float32.
        bytes_moved=4 * (batch * 3 * SIZE**2 + 3 * _parameters(stacks)),
        flops=partial(_flops, stacks, batch, training=True),
        arithmetic=dtype,
        terms=max(_TERMS, batch * (SIZE // 2) ** 2),
        traffic=stacks * batch * _TRAFFIC * dtype.itemsize,
    )


def _with_loss(network: nn.Module, loss: Function) -> Form:
    return Form(lambda images, keypoints: loss(network(images), keypoints), list(network.parameters()))


def _training_step(dtype: torch.dtype, device: str, form: Form) -> Function:
    """Forward, loss of all stacks, backward; no optimizer, whose time is the same for all."""

    def step(images: torch.Tensor, keypoints: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with modules.autocast(dtype, device):
            loss = form.forward(images, keypoints)
        return loss.detach(), *torch.autograd.grad(loss, form.parameters)

    return step


def _fused_loss(heatmaps: list[torch.Tensor], keypoints: torch.Tensor) -> torch.Tensor:
    return ops.heatmap_mse_loss(heatmaps, keypoints, baselines.SIGMA).sum()


def _save_memory(network: nn.Module) -> None:
    """Recompute each stack in the backward pass: in float64 the activations of a large batch would not fit otherwise."""
    for stack in network.stacks:  # type: ignore[union-attr]
        stack.forward = partial(checkpoint, stack.forward, use_reentrant=False)


def _last(result: Any) -> torch.Tensor:
    """The final prediction, whether or not the others come with it."""
    return result if isinstance(result, torch.Tensor) else result[-1]


# ---- inputs and counts ------------------------------------------------------------------------------------------------


def _images(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    images = torch.rand(batch, 3, SIZE, SIZE, generator=generator, device=device).to(dtype)
    return (images.contiguous(memory_format=torch.channels_last),)


def _labelled_images(batch: int, device: str, seed: int) -> Inputs:
    """Images in float32, which autocast rounds, and keypoints in heatmap pixels."""
    generator = torch.Generator(device).manual_seed(seed)
    keypoints = torch.rand(batch, JOINTS, 2, generator=generator, device=device) * (SIZE // STRIDE - 1)
    return *_images(batch, torch.float32, device, seed), keypoints


@functools.cache
def _network(stacks: int) -> nn.Module:
    torch.manual_seed(0)
    return StackedHourglass(stacks, JOINTS)


@functools.cache
def _parameters(stacks: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in StackedHourglass(stacks, JOINTS).parameters())


@functools.cache
def _flops_of_one(stacks: int, training: bool) -> int:
    return modules.count_flops(_network(stacks), (1, 3, SIZE, SIZE), training=training)


def _flops(stacks: int, batch: int, *, training: bool) -> int:
    return batch * _flops_of_one(stacks, training)
