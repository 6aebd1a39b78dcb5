"""Suite ``ops``: each fused op on heatmaps, of 16 joints, 64×64, against the best plain forms and a copy of the same size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from fastpose import ops
from fastpose.benchmarking import architecture_ops, baselines
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.workload import OURS, Function, Inputs, Provider, Workload
from fastpose.cases import CASES

JOINTS, SIZE = 16, 64
CPU_BATCH, QUICK_BATCH = 32, 4
GPU_MEBIBYTES = (128, 1024, 32, 4)  # of maps; what the goals are about comes first
QUICK_MEBIBYTES = (32,)
GPU_DTYPES = ("bfloat16", "float32")
MEMORY_FACTOR = 40  # a row needs this many times its maps: plain PyTorch in float64, and what it keeps for its backward pass


@dataclass(frozen=True)
class Op:
    """A fused op and what to compare it with.

    Attributes:
        name: of the row.
        case: its name in :mod:`fastpose.cases`, where the bytes to move are.
        make_inputs: (batch, dtype, device, seed) -> inputs.
        fused: the job of those inputs by fastpose.
        exact: the job of inputs in float64.
        baselines: (device, dtype) -> providers, the first being the measure of error.
        backward: whether the job has a backward pass.
        sums: whether results are sums over all pixels of a map, or of ``"all"`` maps.
        magnitude: of the numbers that are summed.
    """

    name: str
    case: str
    make_inputs: Callable[[int, torch.dtype, str, int], Inputs]
    fused: Function
    exact: Function
    baselines: Callable[[str, torch.dtype], baselines.Baselines]
    backward: bool = False
    sums: Literal["nothing", "map", "all"] = "nothing"
    magnitude: float = 0.0

    def workload(self, batch: int, dtype: torch.dtype, device: str) -> Workload:
        shape = (batch, JOINTS, SIZE, SIZE)
        case = next(case for case in CASES if case.name == self.case)
        forward, backward = case.bytes_moved(shape, dtype)
        others = self.baselines(device, dtype)
        return Workload(
            suite="ops",
            name=self.name,
            shape=shape,
            dtype=dtype,
            device=device,
            make_inputs=partial(self.make_inputs, batch, dtype, device),
            exact=self.exact,
            eager=next(iter(others)),
            providers={OURS: Provider(lambda: self.fused, role="ours"), **others, **copies(shape, dtype, device, self.backward)},
            bytes_moved=forward + backward * self.backward,
            magnitude=self.magnitude,
            terms={"nothing": 1, "map": SIZE**2, "all": math.prod(shape)}[self.sums],
        )


def workloads(settings: Settings) -> Iterator[Workload]:
    """Every op on every batch size and dtype, the sizes that matter most first; then those of the architectures."""
    for batch, dtype in _sizes(settings):
        for op in OPS:
            yield op.workload(batch, dtype, settings.device)
    yield from architecture_ops.workloads(settings)


def _sizes(settings: Settings) -> Iterator[tuple[int, torch.dtype]]:
    if settings.device == "cpu":
        batches = settings.batches or (QUICK_BATCH if settings.quick else CPU_BATCH,)
        yield from ((batch, dtype) for dtype in settings.torch_dtypes(("float32",)) for batch in batches)
        return
    memory = torch.cuda.get_device_properties(0).total_memory
    mebibytes = QUICK_MEBIBYTES if settings.quick else GPU_MEBIBYTES
    dtypes = settings.torch_dtypes(GPU_DTYPES)
    for index in range(len(settings.batches or mebibytes)):
        for dtype in dtypes:
            sample = JOINTS * SIZE * SIZE * dtype.itemsize
            batch = settings.batches[index] if settings.batches else mebibytes[index] * 2**20 // sample
            if MEMORY_FACTOR * batch * sample <= memory:
                yield batch, dtype


# ---- floors -----------------------------------------------------------------------------------------------------------


def copies(shape: tuple[int, ...], dtype: torch.dtype, device: str, backward: bool = False) -> dict[str, Provider]:
    """A copy of maps of the same size, and on the CPU, where fresh memory has its price, one that allocates its result.

    Args:
        backward: whether the latter is the gradient that autograd gives, with autograd's own time.
    """

    def pair(seed: int) -> Inputs:
        source = torch.full(shape, 1.0 + seed, dtype=dtype, device=device)
        return source, torch.empty_like(source)

    def leaf(seed: int) -> Inputs:
        return (pair(seed)[0].requires_grad_(),)

    def copy(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target.copy_(source)

    def clone(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return source.clone()

    def gradient(source: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(_Clone.apply(source), source)

    floors = {"copy": Provider(lambda: copy, role="floor", make_inputs=pair)}
    if device == "cpu":
        function, make_inputs = (gradient, leaf) if backward else (clone, pair)
        floors["clone"] = Provider(lambda: function, role="floor", make_inputs=make_inputs)
    return floors


class _Clone(torch.autograd.Function):
    """The least that a loss does: reads maps once and writes a gradient of their size."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(source.clone())
        return source.new_empty(())

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient


# ---- inputs -----------------------------------------------------------------------------------------------------------


def _generator(device: str, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _keypoints(batch: int, device: str, generator: torch.Generator) -> torch.Tensor:
    """(B, K, 2) in heatmap pixels, at least 8 away from the border."""
    return torch.rand(batch, JOINTS, 2, generator=generator, device=device) * (SIZE - 17) + 8


def peaks(batch: int, dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    """Heatmaps as a network gives them, a Gaussian a joint and noise; the maximum stands out, so that no dtype makes it a tie."""
    generator = _generator(device, seed)
    maps = baselines.render_separable(_keypoints(batch, device, generator), SIZE, torch.float32)
    maps += 0.03 * torch.rand(maps.shape, generator=generator, device=device)
    highest = maps.flatten(2).max(-1, keepdim=True)
    maps.flatten(2).scatter_(-1, highest.indices, 1.25 * highest.values)
    return maps.to(dtype)


def _render_inputs(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    return _keypoints(batch, device, _generator(device, seed)), SIZE, dtype


def _loss_inputs(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    predictions = peaks(batch, dtype, device, seed).requires_grad_()
    return [predictions], _keypoints(batch, device, _generator(device, seed + 1))


def _maps(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    return (peaks(batch, dtype, device, seed),)


def _logits(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    return ((10 * peaks(batch, dtype, device, seed)).requires_grad_(),)


# ---- the ops ----------------------------------------------------------------------------------------------------------


def _render(keypoints: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    return ops.gaussian_heatmap(keypoints, size, baselines.SIGMA, dtype=dtype)


def _loss(predictions: list[torch.Tensor], keypoints: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = ops.heatmap_mse_loss(predictions, keypoints, baselines.SIGMA).sum()
    return loss.detach(), *torch.autograd.grad(loss, predictions)


def _soft_argmax(heatmaps: torch.Tensor) -> torch.Tensor:
    return ops.soft_argmax2d(heatmaps, baselines.TEMPERATURE).coordinates


def _decode(method: str, heatmaps: torch.Tensor) -> torch.Tensor:
    return ops.decode_heatmaps(heatmaps, method).coordinates


def _forward(function: Function) -> Function:
    return torch.no_grad()(function)


def _backward(function: Function) -> Function:
    def run(heatmaps: torch.Tensor) -> Any:
        coordinates = function(heatmaps)
        return torch.autograd.grad(coordinates, heatmaps, torch.ones_like(coordinates))

    return run


def _exact_dark(heatmaps: torch.Tensor) -> torch.Tensor:
    return baselines.dark_torch(baselines.blur_kernel(heatmaps.dtype, heatmaps.device.type), heatmaps)


OPS = (
    Op(
        "render",
        "gaussian_heatmap",
        _render_inputs,
        _render,
        baselines.render_separable,
        lambda device, dtype: baselines.render_baselines(device),
    ),
    Op(
        "loss forward+backward",
        "heatmap_mse_loss",
        _loss_inputs,
        _loss,
        baselines.loss_separable,
        lambda device, dtype: baselines.loss_baselines(device),
        backward=True,
        sums="all",
    ),
    Op(
        "soft-argmax forward",
        "soft_argmax2d",
        _logits,
        _forward(_soft_argmax),
        _forward(baselines.soft_argmax_marginals),
        lambda device, dtype: baselines.soft_argmax_baselines(device, _forward),
        sums="map",
        magnitude=SIZE,
    ),
    Op(
        "soft-argmax forward+backward",
        "soft_argmax2d",
        _logits,
        _backward(_soft_argmax),
        _backward(baselines.soft_argmax_marginals),
        lambda device, dtype: baselines.soft_argmax_baselines(device, _backward),
        backward=True,
        sums="map",
        magnitude=SIZE,
    ),
    Op(
        "decode quarter",
        "decode_heatmaps",
        _maps,
        partial(_decode, "quarter"),
        baselines.quarter_torch,
        lambda device, dtype: baselines.quarter_baselines(device),
    ),
    Op(
        "decode DARK",
        "decode_heatmaps",
        _maps,
        partial(_decode, "dark"),
        _exact_dark,
        baselines.dark_baselines,
    ),
)
