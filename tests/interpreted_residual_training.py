"""The residual block's training kernels in Triton's interpreter, against plain PyTorch in float64.

Run by test_residual_triton.py with TRITON_INTERPRET=1, which must be set before Triton is imported. The interpreter's bfloat16
products are wrong, so that float16 stands for 16 bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from residual_blocks import check_not_finite_is_seen, make_block, make_maps, relative_error, take_step
from torch import distributed
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from fastpose.models import StackedHourglass
from fastpose.nn import HourglassResidual, _residual_training
from fastpose.nn._residual_training import TrainingPath
from fastpose.ops import _residual_plain as plain
from fastpose.ops._residual_steps import Norm, Running
from fastpose.triton import residual_training as fused

# One rounding to the dtype of the activation and one of the result, each off by at most half a unit in the last place, and by
# half of that on average of the squares: below one unit in all. In float32 the sums' order adds to it.
TOLERANCES = {torch.float16: 2**-11, torch.float32: 2e-6}
SUMS = 2e-6  # of statistics and sums over pixels, in float32 whatever the maps are

MAPS = {  # batch, height, width
    "64": (1, 64, 64),
    "32": (1, 32, 32),
    "16": (2, 16, 16),
    "8": (3, 8, 8),
    "4": (5, 4, 4),
    "odd": (2, 5, 7),
    "one pixel": (1, 1, 1),
}


_prepared = set()


def _call(self: InterpretedFunction, *args: object, **kwargs: object) -> object:
    """Of one kernel's function by another. The interpreter prepares the language anew for each, which is most of its time."""
    if self.fn.__module__ not in _prepared:
        interpreter._patch_lang(self.fn)
        _prepared.add(self.fn.__module__)
    return self.rewrite()(*args, **kwargs)


InterpretedFunction.__call__ = _call


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # which fills it
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[torch.float16, torch.float32], ids=["float16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


class Case:
    """Maps of a size in a dtype and the same in float64, with what a step takes beside them."""

    def __init__(self, size: str, channels: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.batch, self.height, self.width = MAPS[size]
        self.z, self.z64 = self.maps(channels, 1)
        generator = torch.Generator().manual_seed(3)
        self.generator = generator
        mean, weight, bias = torch.randn(3, channels, generator=generator)
        rstd = 0.5 + torch.rand(channels, generator=generator)
        self.norm = Norm(0.3 * mean, rstd, rstd * weight, 0.5 * bias, weight, batch=True, group="")
        self.norm64 = Norm(*(t.double() for t in self.norm[:5]), batch=True, group="")

    def maps(self, channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        maps = make_maps(self.batch, channels, self.height, self.width, seed=seed, dtype=self.dtype)
        maps = maps.contiguous(memory_format=torch.channels_last)
        return maps, maps.double()

    def matrix(self, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = (torch.randn(n, k, 1, 1, generator=self.generator) / k**0.5).to(self.dtype)
        return weight, weight.double()

    def vector(self, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        vector = torch.randn(channels, generator=self.generator)
        return vector, vector.double()

    def close(self, ours: torch.Tensor, exact: torch.Tensor) -> None:
        assert ours.dtype == self.dtype
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(ours, exact) <= TOLERANCES[self.dtype]


def _empty_norm(channels: int, dtype: torch.dtype, group: str = "") -> Norm:
    mean, rstd, scale, bias = torch.full((4, channels), torch.nan, dtype=dtype)
    return Norm(mean, rstd, scale, bias, torch.linspace(-1, 1, channels).to(dtype), batch=True, group=group)


def _running(channels: int, dtype: torch.dtype, cumulative: bool = False) -> Running:
    mean, variance = torch.rand(2, channels, generator=torch.Generator().manual_seed(5)).to(dtype)
    offset = torch.linspace(-1, 1, channels).to(dtype)
    return Running(mean, variance, torch.tensor(4), momentum=0.2, cumulative=cumulative, eps=1e-3, offset=offset)


def _assert_statistics(ours: tuple[Norm, Running], exact: tuple[Norm, Running]) -> None:
    for norm_of, running_of in (ours, exact):
        assert norm_of.mean.isfinite().all()
        assert running_of.mean.isfinite().all()
    # The mean beside the deviation, which is what it is subtracted for.
    assert ((ours[0].mean - exact[0].mean) * exact[0].rstd).abs().max() <= SUMS
    assert relative_error(ours[0].rstd, exact[0].rstd) <= SUMS
    assert relative_error(ours[0].scale, exact[0].scale) <= SUMS
    assert relative_error(ours[1].mean, exact[1].mean) <= SUMS
    assert relative_error(ours[1].variance, exact[1].variance) <= SUMS


@pytest.mark.parametrize("size", [size for size in MAPS if size != "one pixel"])
def test_statistics(size: str, dtype: torch.dtype) -> None:
    channels = 16 if size in ("64", "32") else 48
    case = Case(size, channels, dtype)
    got = _empty_norm(channels, torch.float32), _running(channels, torch.float32)
    expected = _empty_norm(channels, torch.float64), _running(channels, torch.float64)
    fused.batch_statistics(case.z, *got)
    plain.batch_statistics(case.z64, *expected)
    _assert_statistics(got, expected)


def test_statistics_of_channels_far_from_zero_and_far_apart() -> None:
    case = Case("16", 32, torch.float32)
    case.z[:, ::2] = 1e-3 * case.z[:, ::2] + 1000
    case.z[0] *= 1.5  # images differ
    got = _empty_norm(32, torch.float32), _running(32, torch.float32)
    expected = _empty_norm(32, torch.float64), _running(32, torch.float64)
    fused.batch_statistics(case.z, *got)
    plain.batch_statistics(case.z.double(), *expected)
    _assert_statistics(got, expected)


def test_cumulative_and_absent_running_statistics() -> None:
    case = Case("8", 16, torch.float32)
    got = _empty_norm(16, torch.float32), _running(16, torch.float32, cumulative=True)
    expected = _empty_norm(16, torch.float64), _running(16, torch.float64, cumulative=True)
    fused.batch_statistics(case.z, *got)
    plain.batch_statistics(case.z64, *expected)
    _assert_statistics(got, expected)
    without = _empty_norm(16, torch.float32)
    fused.batch_statistics(case.z, without, Running(None, None, None, 0.1, False, 1e-3, None))
    torch.testing.assert_close(without.rstd, got[0].rstd, rtol=0, atol=0)


def test_statistics_shared_between_ranks() -> None:
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{Path(folder) / 'rendezvous'}", rank=0, world_size=1)
        case = Case("8", 16, torch.float32)
        got = _empty_norm(16, torch.float32, distributed.group.WORLD.group_name), _running(16, torch.float32)
        expected = _empty_norm(16, torch.float64), _running(16, torch.float64)
        fused.batch_statistics(case.z, *got)
        distributed.destroy_process_group()
    plain.batch_statistics(case.z64, *expected)
    _assert_statistics(got, expected)


def test_frozen_statistics() -> None:
    got, expected = _empty_norm(48, torch.float32), _empty_norm(48, torch.float64)
    fused.frozen_statistics(got, _running(48, torch.float32))
    plain.frozen_statistics(expected, _running(48, torch.float64))
    for name in ("mean", "rstd", "scale"):
        assert relative_error(getattr(got, name), getattr(expected, name)) <= SUMS


@pytest.mark.parametrize("size", ["16", "4", "odd", "one pixel"])
def test_activation(size: str, dtype: torch.dtype) -> None:
    case = Case(size, 48, dtype)
    case.close(fused.activation(case.z, case.norm, dtype), plain.activation(case.z64, case.norm64, torch.float64))


@pytest.mark.parametrize(("n", "k"), [(16, 32), (48, 80)])
@pytest.mark.parametrize("size", ["16", "odd"])
def test_first(size: str, n: int, k: int, dtype: torch.dtype) -> None:
    """And the statistics of what it stored."""
    case = Case(size, k, dtype)
    weight, weight64 = case.matrix(n, k)
    got = _empty_norm(n, torch.float32), _running(n, torch.float32)
    expected = _empty_norm(n, torch.float64), _running(n, torch.float64)
    z = fused.first(case.z, case.norm, weight, *got)
    case.close(z, plain.first(case.z64, case.norm64, weight64, *expected))
    plain.batch_statistics(z.double(), expected[0], _running(n, torch.float64))
    _assert_statistics((got[0], got[1]), (expected[0], expected[1]._replace(mean=got[1].mean, variance=got[1].variance)))
    frozen = fused.first(case.z, case.norm, weight, got[0]._replace(batch=False), got[1])
    assert torch.equal(frozen, z)


@pytest.mark.parametrize(("n", "k", "skip"), [(32, 16, 0), (96, 48, 0), (96, 48, 80)])
@pytest.mark.parametrize("size", ["8", "odd"])
@pytest.mark.parametrize("biased", [True, False])
def test_last(size: str, n: int, k: int, skip: int, biased: bool, dtype: torch.dtype) -> None:
    case = Case(size, k, dtype)
    (weight, weight64), (bias, bias64) = case.matrix(n, k), case.vector(n)
    x, x64 = case.maps(skip or n, 4)
    skip_weight, skip_weight64 = case.matrix(n, skip) if skip else (None, None)
    skip_bias, skip_bias64 = case.vector(n) if skip and biased else (None, None)
    y = fused.last(case.z, case.norm, weight, bias if biased else None, x, skip_weight, skip_bias)
    y64 = plain.last(case.z64, case.norm64, weight64, bias64 if biased else None, x64, skip_weight64, skip_bias64)
    case.close(y, y64)


def test_last_added_to_a_wider_skip() -> None:
    case = Case("8", 16, torch.float16)
    weight, weight64 = case.matrix(32, 16)
    x = make_maps(case.batch, 32, 8, 8, seed=4).contiguous(memory_format=torch.channels_last)
    y = fused.last(case.z, case.norm, weight, None, x, None, None)
    assert y.dtype == torch.float32
    assert (
        relative_error(y, plain.last(case.z64, case.norm64, weight64, None, x.double(), None, None)) <= TOLERANCES[torch.float16]
    )


@pytest.mark.parametrize(("n", "k"), [(16, 32), (80, 48)])
@pytest.mark.parametrize("size", ["16", "odd"])
def test_pointwise_input_gradient(size: str, n: int, k: int, dtype: torch.dtype) -> None:
    case = Case(size, n, dtype)
    (weight, weight64), (dy, dy64) = case.matrix(k, n), case.maps(k, 2)
    g, sums = fused.pointwise_input_gradient(dy, weight, case.z, case.norm)
    g64, _ = plain.pointwise_input_gradient(dy64, weight64, case.z64, case.norm64)
    case.close(g, g64)
    assert torch.equal(g == 0, g64 == 0)
    for ours, exact in zip(sums, plain._sums(g.double(), case.z64, case.norm64), strict=True):
        assert relative_error(ours, exact) <= SUMS


@pytest.mark.parametrize(("n", "k"), [(16, 32), (80, 48)])
@pytest.mark.parametrize("size", ["32", "4", "odd"])
@pytest.mark.parametrize("activated", [True, False])
def test_pointwise_weight_gradient(size: str, n: int, k: int, activated: bool, dtype: torch.dtype) -> None:
    case = Case(size, k, dtype)
    (weight, weight64), (dy, dy64), (bias, bias64) = case.matrix(n, k), case.maps(n, 2), case.vector(n)
    norm, norm64 = (case.norm, case.norm64) if activated else (None, None)
    of_weight, of_bias = fused.pointwise_weight_gradient(dy, case.z, norm, weight.float(), bias)
    of_weight64, of_bias64 = plain.pointwise_weight_gradient(dy64, case.z64, norm64, weight64, bias64)
    assert of_weight.dtype == torch.float32
    assert relative_error(of_weight, of_weight64) <= (TOLERANCES[dtype] if activated else SUMS)
    assert relative_error(of_bias, of_bias64) <= SUMS
    rounded, none = fused.pointwise_weight_gradient(dy, case.z, norm, weight, None)
    assert none is None
    torch.testing.assert_close(rounded, of_weight.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("size", MAPS)
def test_gradients_of_a_normalisation(size: str, dtype: torch.dtype) -> None:
    channels = 16 if size in ("64", "32") else 48  # wider ones would take the interpreter long
    case = Case(size, channels, dtype)
    d, d64 = case.maps(channels, 2)
    sums, sums64 = fused.masked_sums(d, case.z, case.norm), plain.masked_sums(d64, case.z64, case.norm64)
    for ours, exact in zip(sums, sums64, strict=True):
        assert relative_error(ours, exact) <= SUMS
    count = case.batch * case.height * case.width
    for masked, means, means64 in ((False, sums, sums64), (True, sums, sums64), (False, None, None), (True, None, None)):
        dz = fused.norm_input_gradient(d, case.z, case.norm, means, count, masked)
        case.close(dz, plain.norm_input_gradient(d64, case.z64, case.norm64, means64, count, masked))


@pytest.mark.parametrize("size", ["8", "odd"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("skip", [0, 96])
def test_gradient_of_the_input(size: str, frozen: bool, skip: int, dtype: torch.dtype) -> None:
    case = Case(size, 48, dtype)
    (g, g64), (dy, dy64) = case.maps(48, 2), case.maps(skip or 48, 4)
    skip_weight, skip_weight64 = case.matrix(skip, 48) if skip else (None, None)
    sums, sums64 = plain._sums(g, case.z, case.norm), plain._sums(g64, case.z64, case.norm64)
    means, means64 = (None, None) if frozen else (sums, sums64)
    count = case.batch * case.height * case.width
    dx = fused.block_input_gradient(g, case.z, case.norm, means, count, dy, skip_weight)
    case.close(dx, plain.block_input_gradient(g64, case.z64, case.norm64, means64, count, dy64, skip_weight64))


# ---- the whole block ------------------------------------------------------------------------------------------------


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for the CPU, which is where the interpreter works."""
    choose, launch, launched = _residual_training._choose, fused.launch, []

    def fuse_what_is_recomputed(block: HourglassResidual, x: torch.Tensor) -> tuple[TrainingPath, Any]:
        path, parameters = choose(block, x)
        return TrainingPath("fused", "") if path.name == "recompute" else path, parameters

    def record(kernel: Any, *args: Any, **options: Any) -> None:
        launched.append(kernel.__name__)
        launch(kernel, *args, **options)

    monkeypatch.setattr(_residual_training, "_choose", fuse_what_is_recomputed)
    monkeypatch.setattr(fused, "launch", record)
    yield
    assert {"first", "last", "input_gradient", "weight_gradient"} <= set(launched)


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("channels", [(32, 32), (16, 32)], ids=["identity", "projection"])
@pytest.mark.parametrize("size", ["8", "odd"])
def test_block(size: str, channels: tuple[int, int]) -> None:
    block = make_block(*channels)
    batch, height, width = MAPS[size]
    x, dy = make_maps(batch, channels[0], height, width), make_maps(batch, channels[1], height, width, seed=2)
    exact = take_step(block.double(), x.double(), dy.double(), reference=True).tensors()
    block.float()
    ours, theirs = take_step(block, x, dy).tensors(), take_step(block, x, dy, reference=True).tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.is_floating_point() and name not in ("conv1.bias", "conv2.bias"):
            assert relative_error(ours[name], exact[name]) <= 2 * relative_error(tensor, exact[name]) + 1e-6, name
    for name in ("conv1.bias", "conv2.bias"):
        assert not ours[name].any()
    again = take_step(block, x, dy).tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_no_number_is_seen_where_pytorch_shows_it(value: float, frozen: bool) -> None:
    check_not_finite_is_seen(value, frozen=frozen)


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("frozen", [("bn1",), ("bn2",), ("bn3",), ("bn1", "bn2", "bn3")], ids=str)
def test_block_with_frozen_statistics(frozen: tuple[str, ...]) -> None:
    block = make_block(32, 32)
    for name in frozen:
        getattr(block, name).eval()
    x, dy = make_maps(2, 32, 4, 4), make_maps(2, 32, 4, 4, seed=2)
    expected = take_step(block.double(), x.double(), dy.double(), reference=True).tensors()
    for name, tensor in take_step(block.float(), x, dy).tensors().items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(tensor.to(expected[name]), expected[name], rtol=1e-4, atol=1e-5 * max(scale, 1), msg=name)


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("size", ["64", "16", "4"])
def test_block_of_every_level(size: str) -> None:
    """In float16; gradients beside the largest of their tensor, as one element may change sides of the ReLU."""
    block = make_block(16, 32)
    batch, height, width = MAPS[size]
    x, dy = make_maps(batch, 16, height, width).half(), make_maps(batch, 32, height, width, seed=2).half()

    def run(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            return block(x)

    ours, theirs = take_step(block, x, dy, run=run), take_step(block, x, dy, run=run, reference=True)
    for name, tensor in theirs.tensors().items():
        if tensor.is_floating_point() and name not in ("conv1.bias", "conv2.bias"):
            assert relative_error(ours.tensors()[name], tensor.double()) <= 0.1, name


@pytest.mark.usefixtures("fuse")
def test_the_papers_block() -> None:
    block = make_block(256, 256)
    x, dy = make_maps(2, 256, 4, 4), make_maps(2, 256, 4, 4, seed=2)
    exact = take_step(block.double(), x.double(), dy.double(), reference=True).tensors()
    for name, tensor in take_step(block.float(), x, dy).tensors().items():
        if tensor.is_floating_point() and name not in ("conv1.bias", "conv2.bias"):
            assert relative_error(tensor, exact[name]) <= 2e-5, name


@pytest.mark.usefixtures("fuse")
def test_network() -> None:
    torch.manual_seed(2)  # one with which no element is so near to 0 that roundings put it on either side of a ReLU
    model = StackedHourglass(stacks=1, num_joints=2, features=32, depth=1)
    for module in model.modules():
        if isinstance(module, HourglassResidual):
            module.recompute = True
    model.to(memory_format=torch.channels_last)  # in which PyTorch's own convolutions round differently
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)

    def step(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        return sum(heatmaps.square().mean() for heatmaps in model(images))

    one = torch.tensor(1.0)
    ours = take_step(model, images, one, run=step).tensors()
    theirs = take_step(model, images, one, run=step, reference=True).tensors()
    exact = take_step(model.double(), images.double(), one.double(), run=step, reference=True).tensors()
    errors = []
    for name, tensor in theirs.items():
        if tensor.is_floating_point() and relative_error(tensor, exact[name]) < 1e-2:  # else a bias before a normalisation
            errors.append((relative_error(ours[name], exact[name]), relative_error(tensor, exact[name])))
    assert len(errors) > 100
    mine, allowed = torch.tensor(errors).square().mean(0).sqrt()
    assert mine <= 2 * allowed
