"""The residual block's training kernels on a GPU, if there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from residual_blocks import Step, make_block, make_maps, relative_error, take_step
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastpose
from fastpose.models import StackedHourglass
from fastpose.nn import HourglassResidual

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU of architecture sm_80 or newer"
)

CHANNELS = [(256, 256), (128, 256), (48, 96)]
LEVELS = [64, 32, 16, 8, 4]
PRECISIONS = {  # of the parameters, of x, of autocast
    "bfloat16": (torch.bfloat16, torch.bfloat16, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16, torch.bfloat16),
    "bfloat16 autocast of float32": (torch.float32, torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16, torch.float16),
    "float32": (torch.float32, torch.float32, None),
}
ZERO = ("conv1.bias", "conv2.bias")  # exactly, where PyTorch has rounding noise


def _maps(channels: int, size: int, seed: int, dtype: torch.dtype, batch: int = 4) -> torch.Tensor:
    maps = make_maps(batch, channels, size, size, seed=seed).to("cuda", dtype)
    return maps.contiguous(memory_format=torch.channels_last)


def _block(channels: tuple[int, int], dtype: torch.dtype = torch.float32) -> HourglassResidual:
    block = make_block(*channels).to("cuda", dtype, memory_format=torch.channels_last)
    block.recompute = False
    return block


def _run(autocast: torch.dtype | None) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            if fastpose._library.current_backend() == "fused":
                assert block.training_path(x).name == "fused"
            return block(x)

    return run


def _floats(step: Step) -> dict[str, torch.Tensor]:
    return {name: t for name, t in step.tensors().items() if t.is_floating_point()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("size", LEVELS)
def test_error_is_at_most_twice_that_of_the_layers_in_turn(size: int, channels: tuple[int, int], precision: str) -> None:
    of_parameters, of_x, autocast = PRECISIONS[precision]
    block, run = _block(channels, of_parameters), _run(autocast)
    batch = max(4, 4096 // size**2)  # an element that changes sides of a ReLU costs its whole gradient, in ours and in theirs
    x = _maps(channels[0], size, 1, of_x, batch)
    of_y = take_step(block, x, x, run=lambda block, x: run(block, x).detach(), reference=True).y.dtype
    dy = _maps(channels[1], size, 2, of_y, batch)
    ours, theirs = take_step(block, x, dy, run=run), take_step(block, x, dy, run=run, reference=True)
    with torch.backends.cudnn.flags(enabled=False):  # in float64 on the GPU
        exact = take_step(block.double(), x.double(), dy.double(), reference=True).tensors()
    for name, tensor in _floats(theirs).items():
        mine = ours.tensors()[name]
        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape), name
        if name in ZERO:
            assert not mine.any(), name
            continue
        error, allowed = (relative_error(t.cpu(), exact[name].cpu()) for t in (mine, tensor))
        assert error <= 2 * allowed + 2e-6, (name, error, allowed)
    for name, buffer in theirs.buffers.items():
        if not buffer.is_floating_point():
            assert torch.equal(ours.buffers[name], buffer), name


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.bn1.eval(),
        lambda block: block.bn2.eval(),
        lambda block: block.bn3.eval(),
        lambda block: block.eval(),
        lambda block: [setattr(bn, "momentum", None) for bn in (block.bn1, block.bn2, block.bn3)],
        lambda block: [setattr(conv, "bias", None) for conv in (block.conv1, block.conv2, block.conv3)],
    ],
    ids=["bn1.eval()", "bn2.eval()", "bn3.eval()", "eval()", "momentum=None", "no biases"],
)
def test_variants(change: Callable[[HourglassResidual], object]) -> None:
    block = _block((64, 64))
    change(block)
    x, dy = _maps(64, 16, 1, torch.float32), _maps(64, 16, 2, torch.float32)
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours, theirs = take_step(block, x, dy, run=_run(None)), take_step(block, x, dy, reference=True)
    for name, tensor in _floats(theirs).items():
        if name not in ZERO or ours.tensors()[name].any():
            assert relative_error(ours.tensors()[name].cpu(), tensor.double().cpu()) <= 1e-4, name


@pytest.mark.parametrize("channels", CHANNELS[:2], ids=str)
def test_the_same_bit_for_bit_from_run_to_run(channels: tuple[int, int]) -> None:
    block, run = _block(channels), _run(torch.bfloat16)
    x, dy = _maps(channels[0], 64, 1, torch.bfloat16, 8), _maps(channels[1], 64, 2, torch.bfloat16, 8)
    first = take_step(block, x, dy, run=run).tensors()
    for _ in range(5):
        again = take_step(block, x, dy, run=run).tensors()
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not torch.backends.cudnn.deterministic


@pytest.mark.sanitize
def test_allowed_where_only_deterministic_algorithms_are() -> None:
    """Which also fills uninitialised memory with NaN, so that nothing is read that was not written."""
    block, x, dy = _block((48, 96)), _maps(48, 17, 1, torch.bfloat16), _maps(96, 17, 2, torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    try:
        step = take_step(block, x, dy, run=_run(torch.bfloat16))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in step.tensors().values())


def test_input_that_is_not_aligned() -> None:
    block, dy = _block((32, 32)), _maps(32, 8, 2, torch.bfloat16)
    x = _maps(32, 8, 1, torch.bfloat16)
    apart = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].as_strided(x.shape, x.stride()).copy_(x)
    ours, expected = (take_step(block, maps, dy, run=_run(torch.bfloat16)).tensors() for maps in (apart, x))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_in_a_cuda_graph() -> None:
    block, x, dy = _block((64, 64)), _maps(64, 16, 1, torch.bfloat16), _maps(64, 16, 2, torch.bfloat16)
    expected = take_step(block, x, dy, run=_run(torch.bfloat16))
    block, x = copy.deepcopy(block), x.requires_grad_()

    def step() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            y = block(x)
        y.backward(dy)
        return y

    state = copy.deepcopy(block.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    block.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    block.load_state_dict(state)
    graph.replay()
    assert torch.equal(y, expected.y)
    assert torch.equal(x.grad, expected.dx)
    assert all(torch.equal(p.grad, expected.gradients[name]) for name, p in block.named_parameters())
    assert all(torch.equal(buffer, expected.buffers[name]) for name, buffer in block.named_buffers())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    block, x, dy = _block((64, 64)), _maps(64, 16, 1, torch.bfloat16), _maps(64, 16, 2, torch.bfloat16)
    expected = take_step(block, x, dy, run=_run(torch.bfloat16)).tensors()

    def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return torch.compile(block, fullgraph=True, mode=mode)(x).clone()

    torch.compiler.reset()
    got = take_step(block, x, dy, run=run).tensors()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, msg=name)


def test_checkpointing() -> None:
    block, x, dy = _block((64, 64)), _maps(64, 16, 1, torch.bfloat16), _maps(64, 16, 2, torch.bfloat16)

    def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return checkpoint(block, x, use_reentrant=False)

    step, expected = take_step(block, x, dy, run=run), take_step(block, x, dy, run=_run(torch.bfloat16))
    assert torch.equal(step.dx, expected.dx)
    assert step.buffers["bn1.num_batches_tracked"] == expected.buffers["bn1.num_batches_tracked"] + 1


def test_half_of_the_memory() -> None:
    block, x = _block((256, 256)), _maps(256, 64, 1, torch.bfloat16, 8).requires_grad_()

    def kept() -> int:
        with torch.autocast("cuda", torch.bfloat16):
            block(x)  # compiles
            before = torch.cuda.memory_allocated()
            y = block(x)
        return torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()

    ours = kept()
    with fastpose.backend("reference"):
        theirs = kept()
    # Beside x, which both keep: z1 and z2 of 3 times as much, and a little for statistics.
    assert ours <= 0.34 * theirs


def test_training_step_of_the_network() -> None:
    torch.manual_seed(0)
    model = StackedHourglass(stacks=1, num_joints=4).to("cuda", memory_format=torch.channels_last)
    images = torch.rand(4, 3, 128, 128, device="cuda").contiguous(memory_format=torch.channels_last)

    def step(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return sum(heatmaps.float().square().mean() for heatmaps in model(images))

    one = torch.tensor(1.0, device="cuda")
    ours, theirs = take_step(model, images, one, run=step), take_step(model, images, one, run=step, reference=True)
    exact = take_step(model.double(), images.double(), one.double(), run=lambda m, x: step_in_float64(m, x), reference=True)
    for name, tensor in _floats(theirs).items():
        error, allowed = (relative_error(t.cpu(), exact.tensors()[name].cpu()) for t in (ours.tensors()[name], tensor))
        if allowed < 0.5:  # else it is a bias before a normalisation
            assert error <= 2 * allowed + 1e-5, (name, error, allowed)


def step_in_float64(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return sum(heatmaps.square().mean() for heatmaps in model(images))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    block, x, dy = _block((32, 32)), _maps(32, 8, 1, torch.float32), _maps(32, 8, 2, torch.float32)
    expected = take_step(block, x, dy).tensors()
    got = take_step(block.to("cuda:1"), x.to("cuda:1"), dy.to("cuda:1")).tensors()
    assert all(torch.equal(got[name].to("cuda:0"), tensor) for name, tensor in expected.items())
