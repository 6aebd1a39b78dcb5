"""Training of the residual block with recomputation is training of its layers in turn, in half of the memory."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from residual_blocks import Step, check_not_finite_is_seen, make_block, make_maps, relative_error, take_step
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fastpose
from fastpose.models import StackedHourglass
from fastpose.nn import HourglassResidual
from fastpose.nn._residual_training import _parameters
from fastpose.ops import _residual_order, _residual_plain, hourglass_residual_training

CHANNELS = {"identity": (16, 16), "projection": (8, 16)}
NORMS = ("bn1", "bn2", "bn3")


@pytest.fixture(params=CHANNELS)
def channels(request: pytest.FixtureRequest) -> tuple[int, int]:
    return CHANNELS[request.param]


def _cumulative(block: HourglassResidual) -> None:
    for name in NORMS:
        getattr(block, name).momentum = None


def _untracked(block: HourglassResidual) -> None:
    for name in NORMS:
        bn = getattr(block, name)
        setattr(block, name, nn.BatchNorm2d(bn.num_features, track_running_stats=False, dtype=bn.weight.dtype))


def _tracking_switched_off(block: HourglassResidual) -> None:
    block.bn2.track_running_stats = False


def _cumulative_without_count(block: HourglassResidual) -> None:
    block.bn3.momentum, block.bn3.num_batches_tracked = None, None


def _not_affine(block: HourglassResidual) -> None:
    for name in ("bn1", "bn3"):
        bn = getattr(block, name)
        setattr(block, name, nn.BatchNorm2d(bn.num_features, affine=False, dtype=bn.weight.dtype))


def _without_biases(block: HourglassResidual) -> None:
    for conv in (block.conv1, block.conv2, block.conv3, block.skip):
        conv.bias = None


def _frozen(*names: str) -> Callable[[HourglassResidual], None]:
    def freeze(block: HourglassResidual) -> None:
        for name in names:
            getattr(block, name).eval()

    return freeze


def _constants_differ(block: HourglassResidual) -> None:
    for name, momentum, eps in zip(NORMS, (0.01, 0.5, 1.0), (1e-3, 1e-5, 0.1), strict=True):
        getattr(block, name).momentum, getattr(block, name).eps = momentum, eps


CHANGES: dict[str, Callable[[HourglassResidual], object]] = {
    "as it is": lambda block: None,
    "other momentum and eps": _constants_differ,
    "momentum=None": _cumulative,
    "momentum=None, no count": _cumulative_without_count,
    "track_running_stats=False": _untracked,
    "tracking switched off": _tracking_switched_off,
    "affine=False": _not_affine,
    "no biases": _without_biases,
    "bn1.eval()": _frozen("bn1"),
    "bn2.eval()": _frozen("bn2"),
    "bn3.eval()": _frozen("bn3"),
    "all eval()": _frozen(*NORMS),
    "eval mode": lambda block: block.eval(),
}


def _assert_steps_equal(ours: Step, theirs: Step, tolerance: float) -> None:
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, theirs_of_name in theirs.gradients.items():
        assert (ours.gradients[name] is None) == (theirs_of_name is None), name
    scale = max([1.0, *(g.abs().max().item() for g in theirs.gradients.values() if g is not None)])
    for name, tensor in theirs.tensors().items():
        mine = ours.tensors()[name]
        assert mine.dtype == tensor.dtype, name
        torch.testing.assert_close(mine, tensor, rtol=tolerance, atol=tolerance * scale, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("change", CHANGES)
def test_equals_the_layers_in_turn(channels: tuple[int, int], change: str) -> None:
    block = make_block(*channels).double()
    CHANGES[change](block)
    x, dy = make_maps(2, channels[0], 6, 5).double(), make_maps(2, channels[1], 6, 5, seed=2).double()
    assert block.training_path(x).name == "recompute"
    _assert_steps_equal(take_step(block, x, dy), take_step(block, x, dy, reference=True), 1e-12)


@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=2)), ids=str)
def test_biases_before_a_batch_normalisation_have_a_gradient_of_exactly_zero(frozen: tuple[bool, bool]) -> None:
    block = make_block(16, 16)
    block.bn2.train(not frozen[0])
    block.bn3.train(not frozen[1])
    gradients = take_step(block, make_maps(2, 16, 4, 4), make_maps(2, 16, 4, 4)).gradients
    assert gradients["conv1.bias"].any().item() == frozen[0]
    assert gradients["conv2.bias"].any().item() == frozen[1]


# ---- precision ------------------------------------------------------------------------------------------------------


def _autocast(dtype: torch.dtype) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype):
            assert block.training_path(x).name != "plain" or fastpose._library.current_backend() == "reference"
            return block(x)

    return run


PRECISIONS = {
    "float32": (torch.float32, torch.float32, None),
    "bfloat16": (torch.bfloat16, torch.bfloat16, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16, torch.bfloat16),
    "bfloat16 autocast of float32": (torch.float32, torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16, torch.float16),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_error_is_at_most_twice_that_of_the_layers_in_turn(channels: tuple[int, int], precision: str) -> None:
    of_parameters, of_x, autocast = PRECISIONS[precision]
    block = make_block(*channels).to(of_parameters)
    # Many pixels: an element of z near 0 that rounding moves across it costs its whole gradient, in ours and in theirs.
    x, dy = make_maps(8, channels[0], 32, 32, dtype=of_x), make_maps(8, channels[1], 32, 32, seed=2)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))  # in which PyTorch's 3×3 is another algorithm
    run = _autocast(autocast) if autocast else lambda block, x: block(x)
    dy = dy.to(take_step(block, x, dy, run=lambda block, x: run(block, x).detach(), reference=True).y.dtype)
    exact = take_step(block.double(), x.double(), dy.double(), reference=True).tensors()
    block.to(of_parameters)
    ours = take_step(block, x, dy, run=run)
    theirs = take_step(block, x, dy, run=run, reference=True)
    assert {name: (t.dtype, t.shape) for name, t in ours.tensors().items()} == {
        name: (t.dtype, t.shape) for name, t in theirs.tensors().items()
    }
    for name, tensor in theirs.tensors().items():
        if name in (
            "conv1.bias",
            "conv2.bias",
            *(f"buffer {bn}.num_batches_tracked" for bn in NORMS),
        ):  # 0, and rounding noise around it
            continue
        error, allowed = relative_error(ours.tensors()[name], exact[name]), relative_error(tensor, exact[name])
        assert error <= 2 * allowed + 1e-7, (name, error, allowed)


def test_large_upstream_gradients_of_a_loss_scaler(channels: tuple[int, int]) -> None:
    """A factor of 2^16 changes nothing but the exponents, and what overflows in float16 is seen in the gradients."""
    block = make_block(*channels)
    x, dy = make_maps(2, channels[0], 8, 8).half(), 2**-12 * make_maps(2, channels[1], 8, 8, seed=2).half()
    run = _autocast(torch.float16)
    one, scaled = (take_step(block, x, dy * factor, run=run) for factor in (1, 2**16))
    assert scaled.dx.isfinite().all()
    torch.testing.assert_close(scaled.dx / 2**16, one.dx, rtol=2e-2, atol=2e-3 * one.dx.abs().max().item())
    too_large = take_step(block, x, torch.full_like(dy, math.inf), run=run)
    assert not any(g.isfinite().all() for name, g in too_large.gradients.items() if name not in ("conv1.bias", "conv2.bias"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_no_number_is_seen_where_pytorch_shows_it(value: float, frozen: bool) -> None:
    check_not_finite_is_seen(value, frozen=frozen)


# ---- layouts --------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second": lambda t: torch.stack((t, t.new_full(t.shape, math.nan)), -1)[..., 0],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_input_and_of_the_upstream_gradient(layout: str) -> None:
    block = make_block(16, 16)
    x, dy = make_maps(2, 16, 4, 6), make_maps(2, 16, 4, 6, seed=2)
    expected = take_step(block, x, dy)
    got = take_step(block, LAYOUTS[layout](x), LAYOUTS[layout](dy))
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(got.tensors()[name], tensor, rtol=0, atol=0, msg=name)


def test_upstream_gradient_and_input_without_strides() -> None:
    block = make_block(16, 16).double()
    x = make_maps(1, 16, 4, 6).double().expand(3, -1, -1, -1)
    dy = torch.ones(1, dtype=torch.float64).expand(3, 16, 4, 6)
    _assert_steps_equal(take_step(block, x, dy), take_step(block, x, dy, reference=True), 1e-12)


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_parameters_strides(weights: torch.memory_format) -> None:
    block = make_block(8, 16).to(memory_format=weights)
    block(make_maps(2, 8, 4, 4)).sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


# ---- which gradients ------------------------------------------------------------------------------------------------


class Spy:
    """The plain steps, and which of them were taken."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., object]:
        self.taken.append(name)
        return getattr(_residual_plain, name)


PARTS = ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3", "skip", "x")


@pytest.mark.parametrize(
    "wanted", [("x",), ("conv1",), ("bn1", "bn3"), ("conv2",), ("conv3",), ("skip",), ("bn2", "skip"), PARTS]
)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_some(wanted: tuple[str, ...], frozen: bool) -> None:
    block = make_block(8, 16).double().train(not frozen)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in wanted)
    x, dy = make_maps(2, 8, 4, 4).double(), make_maps(2, 16, 4, 4, seed=2).double()
    ours, theirs = (take_step(block, x, dy, x_needs_gradient="x" in wanted, reference=reference) for reference in (False, True))
    assert (ours.dx is None) == ("x" not in wanted)
    _assert_steps_equal(ours, theirs, 1e-12)


@pytest.mark.parametrize("only", ["weight", "bias"])
def test_gradients_of_all_weights_or_all_biases(only: str) -> None:
    block = make_block(8, 16).double()
    block.bn2.eval()
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name.endswith(only))
    x, dy = make_maps(2, 8, 4, 4).double(), make_maps(2, 16, 4, 4, seed=2).double()
    steps = (take_step(block, x, dy, x_needs_gradient=False, reference=reference) for reference in (False, True))
    _assert_steps_equal(*steps, 1e-12)


def test_no_work_for_gradients_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = {}
    for wanted in PARTS:
        block = make_block(8, 16)
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] == wanted)
        x = make_maps(2, 8, 4, 4).requires_grad_(wanted == "x")
        y = block(x)
        spy = Spy()
        monkeypatch.setattr(hourglass_residual_training, "_steps", lambda fused, spy=spy: spy)
        y.sum().backward()
        monkeypatch.undo()
        backward[wanted] = spy.taken
    input_gradient, weight_gradient, sums = "pointwise_input_gradient", "pointwise_weight_gradient", "masked_sums"
    of_norm, activation, of_block = "norm_input_gradient", "activation", "block_input_gradient"
    assert backward == {
        "conv3": [weight_gradient],
        "skip": [weight_gradient],
        "bn3": [input_gradient],
        "conv2": [input_gradient, of_norm, activation],
        "bn2": [input_gradient, of_norm, sums],
        "conv1": [input_gradient, of_norm, sums, of_norm, weight_gradient],
        "bn1": [input_gradient, of_norm, sums, of_norm, input_gradient],
        "x": [input_gradient, of_norm, sums, of_norm, input_gradient, of_block],
    }


def test_without_gradients_running_statistics_still_move() -> None:
    block = make_block(16, 16)
    x = make_maps(2, 16, 4, 4)
    with torch.no_grad():
        assert not block(x).requires_grad
    expected = take_step(make_block(16, 16), x, x).buffers
    torch.testing.assert_close(dict(block.named_buffers()), expected, rtol=0, atol=0)


# ---- autograd -------------------------------------------------------------------------------------------------------


def test_backward_twice_through_a_retained_graph_and_not_through_a_freed_one() -> None:
    block = make_block(16, 16)
    y = block(make_maps(2, 16, 4, 4)).sum()
    y.backward(retain_graph=True)
    first = {name: p.grad.clone() for name, p in block.named_parameters()}
    y.backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * first[name], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_double_backward_is_refused_aloud() -> None:
    block = make_block(16, 16)
    x = make_maps(2, 16, 4, 4).requires_grad_()
    (dx,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        dx.sum().backward()


def test_one_block_twice_in_a_graph(channels: tuple[int, int]) -> None:
    block = make_block(channels[1], channels[1]).double()
    x = make_maps(2, channels[1], 4, 4).double()

    def twice(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return block(block(x))

    steps = (take_step(block, x, x, run=twice, reference=reference) for reference in (False, True))
    _assert_steps_equal(*steps, 1e-11)


def test_a_parameter_changed_before_backward_is_noticed() -> None:
    block = make_block(16, 16)
    y = block(make_maps(2, 16, 4, 4))
    with torch.no_grad():
        block.conv3.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_around_it(use_reentrant: bool) -> None:
    """Which runs the forward pass twice, and moves running statistics twice, as it does for any batch normalisation."""
    block = make_block(8, 16).double()
    x, dy = make_maps(2, 8, 4, 4).double(), make_maps(2, 16, 4, 4, seed=2).double()

    def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=use_reentrant)

    ours, theirs = (take_step(block, x, dy, run=run, reference=reference) for reference in (False, True))
    assert ours.buffers["bn1.num_batches_tracked"] == 5
    _assert_steps_equal(ours, theirs, 1e-12)


def test_functional_transforms_and_calls() -> None:
    """torch.func reaches the layers in turn, functional_call the op."""
    block = make_block(16, 16).eval()
    x = make_maps(2, 16, 4, 4)
    gradient = torch.func.grad(lambda x: block(x).sum())(x)
    torch.testing.assert_close(gradient, take_step(block, x, torch.ones_like(x)).dx, rtol=1e-4, atol=1e-4)
    parameters = {name: 2 * p for name, p in block.named_parameters()}
    doubled = copy.deepcopy(block)
    doubled.load_state_dict(parameters, strict=False)
    torch.testing.assert_close(torch.func.functional_call(block, parameters, x), doubled(x), rtol=0, atol=0)


# ---- which way ------------------------------------------------------------------------------------------------------


def _replaced(name: str, module: nn.Module) -> Callable[[HourglassResidual], object]:
    return lambda block: setattr(block, name, module)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: setattr(block, "recompute", False), "kernels for cuda, not for cpu, and recompute=False"),
        (lambda block: block.bn2.register_forward_hook(lambda *_: None), "bn2 has hooks"),
        (lambda block: block.conv1.register_full_backward_hook(lambda *_: None), "conv1 has hooks"),
        (_replaced("bn1", nn.GroupNorm(2, 16)), "bn1 is a GroupNorm"),
        (_replaced("conv1", nn.Sequential(nn.Conv2d(16, 8, 1))), "conv1 is a Sequential"),
        (_replaced("conv2", nn.Conv2d(8, 8, 3, padding=1, groups=2)), "conv2 is another convolution"),
        (_replaced("conv2", nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), "conv2 is another convolution"),
        (_replaced("skip", nn.Dropout()), "skip is a Dropout"),
        (lambda block: setattr(block.bn2, "weight", nn.Parameter(torch.ones(1).expand(8))), "bn2_weight is not contiguous"),
        (lambda block: setattr(block.bn3, "running_var", torch.ones(16)[::2]), "bn3.running_var is not contiguous"),
    ],
)
def test_a_changed_block_calls_its_layers_and_says_why(change: Callable[[HourglassResidual], object], reason: str) -> None:
    block = make_block(16, 16)
    change(block)
    x = make_maps(2, 16, 4, 4)
    path = block.training_path(x)
    assert path.name == "plain"
    assert reason in path.reason
    assert block(x).shape == x.shape


def test_the_other_ways_and_their_reasons() -> None:
    block, x = make_block(16, 16), make_maps(2, 16, 4, 4)
    assert block.training_path(x) == ("recompute", "recompute=True, and there are kernels for cuda, not for cpu")
    with fastpose.backend("reference"):
        assert block.training_path(x) == ("plain", 'fastpose.backend("reference") is in force')
    assert "empty" in block.training_path(x[:0]).reason
    assert not HourglassResidual(16, 16).recompute


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: setattr(block.bn2, "running_mean", torch.zeros(7)), r"bn2.running_mean is \(7,\) on cpu"),
        (lambda block: setattr(block, "bn3", nn.BatchNorm2d(16)), r"bn3_weight is \(16,\) on cpu"),
        (lambda block: setattr(block, "conv3", nn.Conv2d(8, 24, 1)), "adds 16 channels to 24"),
        (lambda block: block.conv2.double(), "x is torch.float32, and a convolution's weight is torch.float64"),
    ],
)
def test_tensors_that_do_not_fit_are_left_to_torch(change: Callable[[HourglassResidual], object], reason: str) -> None:
    block, x = make_block(16, 16), make_maps(2, 16, 4, 4)
    change(block)
    path = block.training_path(x)
    assert path.name == "plain"
    assert re.search(reason, path.reason)
    with pytest.raises((RuntimeError, NotImplementedError)):
        block(x)


def test_tensors_on_different_devices_are_left_to_torch() -> None:
    block = make_block(16, 16)
    block.conv2.to("meta")
    path = block.training_path(make_maps(2, 16, 4, 4))
    assert path == ("plain", "x is (2, 16, 4, 4) on cpu, and conv2_weight is (8, 8, 3, 3) on meta")


@pytest.mark.parametrize("recompute", [True, False])
def test_parametrised_weights_are_computed_once(recompute: bool) -> None:
    """Spectral normalisation moves its own state on each time."""
    block = make_block(16, 16)
    parametrizations.spectral_norm(block.conv2)
    block.recompute = recompute
    other = copy.deepcopy(block)
    x = make_maps(2, 16, 4, 4)
    block(x)
    with fastpose.backend("reference"):
        other(x)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(block.named_buffers())[name], buffer, msg=name)


def test_hooks_run() -> None:
    block, seen = make_block(16, 16), []
    block.bn2.register_forward_hook(lambda *_: seen.append("bn2"))
    block(make_maps(2, 16, 4, 4))
    assert seen == ["bn2"]


def test_parametrised_weights_are_seen() -> None:
    block = make_block(16, 16).double()
    parametrizations.weight_norm(block.conv2)
    x = make_maps(2, 16, 4, 4).double()
    assert block.training_path(x).name == "recompute"
    steps = (take_step(block, x, x, reference=reference) for reference in (False, True))
    _assert_steps_equal(*steps, 1e-12)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 16, 1, 1), torch.zeros(2, 15, 4, 4), torch.zeros(16, 4), torch.zeros(2, 16, 4, 4, dtype=torch.bfloat16)],
    ids=["one pixel", "channels", "dimensions", "dtype"],
)
def test_what_torch_refuses_is_refused_in_its_words(x: torch.Tensor) -> None:
    block = make_block(16, 16)
    with fastpose.backend("reference"), pytest.raises((ValueError, RuntimeError)) as theirs:
        block(x)
    with pytest.raises(theirs.type) as ours:
        block(x)
    assert str(ours.value) == str(theirs.value)


def test_one_pixel_is_fine_for_frozen_statistics_alone() -> None:
    block, x = make_block(16, 16), make_maps(1, 16, 1, 1)
    block.bn1.eval()
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel.*\[1, 8, 1, 1\]"):
        block(x)
    block.eval()
    assert take_step(block, x, x).dx.shape == x.shape


def test_copies_pickles_and_state_dicts() -> None:
    block, x = make_block(8, 16), make_maps(2, 8, 4, 4)
    dy = make_maps(2, 16, 4, 4)
    expected = take_step(block, x, dy)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other.recompute
        assert all(torch.equal(t, expected.tensors()[name]) for name, t in take_step(other, x, dy).tensors().items())
    assert HourglassResidual(8, 16).state_dict().keys() == block.state_dict().keys()
    old = HourglassResidual(8, 16)
    del old.__dict__["recompute"]  # pickled before there was a choice
    assert not pickle.loads(pickle.dumps(old)).recompute


# ---- compilers ------------------------------------------------------------------------------------------------------


def test_op_is_registered_as_it_should_be() -> None:
    block = make_block(8, 16)
    x = make_maps(2, 8, 4, 4).requires_grad_()
    calls: dict[object, tuple[object, ...]] = {}
    forward = torch.ops.fastpose.hourglass_residual_training.default
    backward = torch.ops.fastpose.hourglass_residual_training_backward.default

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, function: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
        ) -> object:
            if function in (forward, backward):
                calls[function] = args
            return function(*args, **(kwargs or {}))

    with Record():
        block(x).sum().backward()
    torch.library.opcheck(forward, (x, list(_parameters(block)), *calls[forward][2:]))
    torch.library.opcheck(backward, calls[backward], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    block = make_block(16, 16)
    x, dy = make_maps(2, 16, 4, 4), make_maps(2, 16, 4, 4, seed=2)

    def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        compiled = torch.compile(block, fullgraph=True, backend=backend)
        return compiled(x)

    torch.compiler.reset()
    ours, theirs = take_step(block, x, dy, run=run), take_step(block, x, dy)
    for name, tensor in theirs.tensors().items():
        torch.testing.assert_close(ours.tensors()[name], tensor, rtol=0, atol=0, msg=name)


def test_compiled_for_any_size() -> None:
    block = make_block(16, 16).double()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 16, 4, 6), (3, 16, 8, 8)):
        x = make_maps(*shape).double()
        before = copy.deepcopy(block)
        torch.testing.assert_close(compiled(x), before(x), rtol=0, atol=0)


def test_exported_for_evaluation_it_is_plain_pytorch() -> None:
    block, x = make_block(16, 16).eval(), make_maps(2, 16, 4, 4)
    program = torch.export.export(block, (x,))
    assert not any("fastpose" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), block(x))


def test_exported_training_graph_moves_the_running_statistics() -> None:
    block, x = make_block(16, 16), make_maps(2, 16, 4, 4)
    program = torch.export.export(block, (x,)).run_decompositions()
    assert set(program.graph_signature.buffers_to_mutate.values()) == {name for name, _ in block.named_buffers()}
    module, expected = program.module(), take_step(block, x, x)
    torch.testing.assert_close(module(x), expected.y, rtol=0, atol=0)
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, expected.buffers[name], rtol=0, atol=0)


# ---- memory ---------------------------------------------------------------------------------------------------------


def _activation_bytes(run: Callable[[], object], model: nn.Module) -> int:
    """Of the pixels kept for the backward pass, each memory once. What is per channel or a parameter does not count."""
    kept: dict[int, torch.UntypedStorage] = {}
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.ndim == 4 and storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def test_half_of_the_activations_are_kept(channels: tuple[int, int]) -> None:
    block = make_block(*channels)
    x = make_maps(2, channels[0], 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = _activation_bytes(lambda: block(x), block)
    with fastpose.backend("reference"):
        theirs = _activation_bytes(lambda: block(x), block)
    assert ours == (channels[0] + channels[1]) * 2 * 8 * 8 * 4
    assert ours <= 0.5 * theirs


# ---- the network ----------------------------------------------------------------------------------------------------


def _hourglass(recompute: bool) -> StackedHourglass:
    torch.manual_seed(0)
    model = StackedHourglass(stacks=2, num_joints=3, features=8, depth=1, init="torch7").double()
    for module in model.modules():
        if isinstance(module, HourglassResidual):
            module.recompute = recompute
    return model


def test_training_step_of_the_network() -> None:
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses, gradients, buffers = [], [], []
    for recompute in (True, False):
        model = _hourglass(recompute)
        loss = sum(heatmaps.square().mean() for heatmaps in model(images))
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        buffers.append(dict(model.named_buffers()))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(buffers[0], buffers[1], rtol=1e-10, atol=1e-12)


def test_activations_kept_by_the_network() -> None:
    """Two thirds: the rest is pooling's indices and the 1×1 convolutions between the blocks."""
    kept = {}
    with torch.device("meta"):
        for recompute in (True, False):
            model = StackedHourglass(stacks=2).to(torch.bfloat16)
            for module in model.modules():
                if isinstance(module, HourglassResidual):
                    module.recompute = recompute
            images = torch.empty(1, 3, 256, 256, dtype=torch.bfloat16)
            kept[recompute] = _activation_bytes(lambda model=model, images=images: model(images), model)
    assert kept[True] <= 0.67 * kept[False]


# ---- cuDNN ----------------------------------------------------------------------------------------------------------


def test_cudnn_is_deterministic_while_anybody_needs_it() -> None:
    cudnn, inside = torch.backends.cudnn, _residual_order.deterministic_cudnn
    assert not cudnn.deterministic
    one, other = inside(), inside()  # of two threads
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert cudnn.deterministic
    other.__exit__(None, None, None)
    assert not cudnn.deterministic
    with pytest.raises(RuntimeError), inside():
        raise RuntimeError
    assert not cudnn.deterministic
    with cudnn.flags(deterministic=True):
        with inside():
            pass
        assert cudnn.deterministic
