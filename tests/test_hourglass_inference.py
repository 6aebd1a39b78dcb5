"""The hourglass in evaluation: its ops, its residual block and the whole network, against the plain layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import fastpose
from fastpose import _library
from fastpose._layers import BatchNorm, Convolution, HeadParameters, ResidualParameters
from fastpose.models import create_model
from fastpose.models.hourglass import HourglassMerge, HourglassStack
from fastpose.nn import HourglassResidual, _inference
from fastpose.ops import hourglass_head, hourglass_residual


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch normalisations with something to do, and evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    return module.eval()


def residual_parameters(block: HourglassResidual) -> ResidualParameters:
    layers: list[Any] = []
    for i in "123":
        layers += [BatchNorm.of(getattr(block, f"bn{i}")), Convolution.of(getattr(block, f"conv{i}"))]
    return ResidualParameters(*layers, None if isinstance(block.skip, nn.Identity) else Convolution.of(block.skip))


def head_parameters(stack: HourglassStack, merge: HourglassMerge | None) -> HeadParameters:
    back = (Convolution.of(merge.from_features), Convolution.of(merge.from_heatmaps)) if merge else ()
    return HeadParameters(Convolution.of(stack.conv), BatchNorm.of(stack.bn), Convolution.of(stack.head), *back)


@pytest.fixture(autouse=True)
def few_pixels_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inference, "FOLDED_PIXELS", 1)


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def maps(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# On a GPU in both of its dtypes; on a CPU float64, whose error is that of rounding alone.
def dtypes(device: torch.device) -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16] if device.type == "cuda" else [torch.float64]


def assert_as_accurate(ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> None:
    """FlashAttention's rule: at most twice plain PyTorch's error in the same dtype, and a few units in the last place."""
    assert ours.shape == exact.shape
    assert ours.dtype == eager.dtype
    unit = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps * exact.abs().max()
    allowed = 2 * (eager.double() - exact).abs().max() + 64 * unit
    assert (ours.double() - exact).abs().max() <= allowed


# ---- the ops ----------------------------------------------------------------------------------------------------------

RESIDUALS = {
    "plain": (32, 32, (2, 20, 12), {}),
    "projected": (16, 48, (2, 20, 12), {}),
    "pool": (32, 32, (2, 21, 35), {"pool": True}),
    "low": (32, 32, (3, 16, 12), {"low": True}),
    "pool and low": (32, 64, (2, 24, 40), {"pool": True, "low": True}),
    "small": (32, 32, (1, 4, 4), {"low": True}),
    "one pixel": (16, 32, (1, 1, 1), {}),
    "nothing": (16, 32, (0, 8, 8), {}),
}


def residual_call(name: str, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ResidualParameters, dict[str, Any]]:
    inputs, outputs, (batch, height, width), options = RESIDUALS[name]
    torch.manual_seed(0)
    block = randomize(HourglassResidual(inputs, outputs).double())
    pool = options.get("pool", False)
    low = None
    if options.get("low"):
        low = maps(batch, outputs, height // (4 if pool else 2), width // (4 if pool else 2), seed=2).to(device, dtype)
    x = maps(batch, inputs, height, width).to(device, dtype)
    return x, residual_parameters(block.to(device, dtype)), {"pool": pool, "low": low}


def to_double(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, tuple):
        return type(value)(*map(to_double, value))
    return {name: to_double(v) for name, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", RESIDUALS)
def test_residual_is_its_reference(name: str, device: torch.device, no_grad: None) -> None:
    for dtype in dtypes(device):
        x, parameters, options = residual_call(name, device, dtype)
        ours = hourglass_residual(x, parameters, **options)
        with fastpose.backend("reference"):
            eager = hourglass_residual(x, parameters, **options)
            exact = hourglass_residual(to_double(x), to_double(parameters), **to_double(options))
        assert ours.is_contiguous(memory_format=torch.channels_last)
        if ours.numel():
            assert_as_accurate(ours, eager, exact)
        assert torch.equal(ours, hourglass_residual(x.contiguous(memory_format=torch.channels_last), parameters, **options))


@pytest.mark.parametrize("heatmaps", [True, False])
@pytest.mark.parametrize("merged", [True, False])
def test_head_is_its_reference(merged: bool, heatmaps: bool, device: torch.device, no_grad: None) -> None:
    torch.manual_seed(0)
    stack, merge = randomize(HourglassStack(14, 48, 1, 1).double()), HourglassMerge(14, 48).double() if merged else None
    for dtype in dtypes(device):
        x, skip = maps(3, 48, 11, 9).to(device, dtype), maps(3, 48, 11, 9, seed=2).to(device, dtype) if merged else None
        parameters = head_parameters(stack.to(device, dtype), merge and merge.to(device, dtype))
        if not merged and not heatmaps:
            with pytest.raises(ValueError, match="heatmaps: got False without skip, which leaves nothing to compute"):
                hourglass_head(x, parameters, skip, heatmaps=heatmaps)
            continue
        ours = hourglass_head(x, parameters, skip, heatmaps=heatmaps)
        with fastpose.backend("reference"):
            eager = hourglass_head(x, parameters, skip, heatmaps=heatmaps)
            exact = hourglass_head(to_double(x), to_double(parameters), to_double(skip), heatmaps=heatmaps)
        assert [o is None for o in ours] == [o is None for o in exact] == [not heatmaps, not merged]
        for values in zip(ours, eager, exact, strict=True):
            if values[0] is not None:
                assert values[0].is_contiguous(memory_format=torch.channels_last)
                assert_as_accurate(*values)


def flat(parameters: Any) -> tuple[list[torch.Tensor], list[float]]:
    leaves = [leaf for layer in parameters if layer is not None for leaf in layer]
    return [t for t in leaves if isinstance(t, torch.Tensor)], [v for v in leaves if isinstance(v, float)]


@pytest.mark.parametrize("name", ["plain", "projected", "pool and low", "small"])
def test_opcheck_residual(name: str, device: torch.device) -> None:
    x, parameters, options = residual_call(name, device, dtypes(device)[0])
    tensors, eps = flat(parameters)
    arguments = (x, [t.detach() for t in tensors], eps, options["pool"], options["low"])
    opcheck(torch.ops.fastpose.hourglass_residual.default, arguments)


@pytest.mark.parametrize("merged", [True, False])
def test_opcheck_head(merged: bool, device: torch.device) -> None:
    stack, merge = randomize(HourglassStack(5, 16, 1, 1)), HourglassMerge(5, 16)
    dtype = dtypes(device)[0]
    tensors, (eps,) = flat(head_parameters(stack.to(device, dtype), merge.to(device, dtype) if merged else None))
    x = maps(2, 16, 6, 7).to(device, dtype)
    arguments = (x, [t.detach() for t in tensors], eps, x.clone() if merged else None, True)
    opcheck(torch.ops.fastpose.hourglass_head.default, arguments)


def test_ops_refuse_to_be_differentiated() -> None:
    x, parameters, options = residual_call("plain", torch.device("cpu"), torch.float32)
    y = hourglass_residual(x.requires_grad_(), parameters, **options)
    with pytest.raises(RuntimeError, match=r"fastpose::hourglass_residual cannot be differentiated"):
        y.sum().backward()
    with fastpose.backend("reference"):
        hourglass_residual(x, parameters, **options).sum().backward()
    assert x.grad.any()


def wrong_residuals() -> list[Any]:
    def changed(**layers: Any) -> Callable[[ResidualParameters], ResidualParameters]:
        return lambda p: p._replace(**layers)

    conv, narrow = Convolution(torch.zeros(8, 16, 1, 1), torch.zeros(8)), Convolution(torch.zeros(8, 8, 1, 1), torch.zeros(8))
    return [
        ({"x": [1.0]}, None, TypeError, "x: got list, allowed is a torch.Tensor"),
        ({"x": torch.zeros(16, 4, 4)}, None, ValueError, "x: got shape (16, 4, 4), allowed is (B, K, H, W)"),
        ({"x": torch.zeros(1, 8, 4, 4)}, None, ValueError, "x: got shape (1, 8, 4, 4), allowed is (B, 16, H, W)"),
        ({"x": torch.zeros(1, 16, 4, 4).half()}, None, TypeError, "parameters.conv1: got weights of torch.float32, but x is"),
        ({"x": torch.zeros(1, 16, 4, 4, device="meta")}, None, ValueError, "parameters.conv1: is on cpu, but x is on meta"),
        (
            {},
            changed(conv3=Convolution(*HourglassResidual(8, 8).conv3.parameters())),
            ValueError,
            "parameters.conv3: got weights of",
        ),
        ({}, changed(conv3=narrow), ValueError, "parameters.skip: got None, which is for equal channel counts, but 16 become 8"),
        ({}, changed(conv2=conv), ValueError, "parameters.conv2: got weights of shape (8, 16, 1, 1), allowed is (8, 8, 3, 3)"),
        ({}, changed(skip=conv), ValueError, "parameters.skip: got weights of shape (8, 16, 1, 1), allowed is (16, 16, 1, 1)"),
        ({"x": torch.zeros(1, 16, 1, 4), "pool": True}, None, ValueError, "x: got shape (1, 16, 1, 4), height and width must be"),
        ({"low": torch.zeros(1, 16, 4, 4)}, None, ValueError, "low: got shape (1, 16, 4, 4), allowed is (1, 16, 2, 2) upsampled"),
        ({"x": torch.zeros(1, 16, 5, 4), "low": torch.zeros(1, 16, 2, 2)}, None, ValueError, "low: got shape (1, 16, 2, 2)"),
        ({"low": torch.zeros(1, 16, 2, 2).half()}, None, TypeError, "low: got torch.float16, but x is torch.float32"),
        ({"low": torch.zeros(1, 16, 2, 2, device="meta")}, None, ValueError, "low: is on meta, but x is on cpu"),
    ]


@pytest.mark.parametrize(("arguments", "change", "error", "message"), wrong_residuals())
def test_residual_refuses(arguments: dict[str, Any], change: Any, error: type[Exception], message: str) -> None:
    parameters = residual_parameters(HourglassResidual(16, 16))
    with pytest.raises(error) as caught:
        hourglass_residual(
            **{"x": torch.zeros(1, 16, 4, 4), "parameters": change(parameters) if change else parameters, **arguments}
        )
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "merged", "error", "message"),
    [
        ({"x": torch.zeros(1, 8, 4, 4)}, True, ValueError, "parameters.conv: got weights of shape (16, 16, 1, 1), allowed is"),
        ({"x": torch.zeros(1, 16, 4, 4).double()}, False, TypeError, "parameters.conv: got weights of torch.float32, but x is"),
        (
            {"skip": torch.zeros(1, 16, 4, 5)},
            True,
            ValueError,
            "skip: got shape (1, 16, 4, 5) and torch.float32, allowed is (1, N,",
        ),
        (
            {"skip": torch.zeros(1, 8, 4, 4)},
            True,
            ValueError,
            "parameters.from_features: got weights of shape (16, 16, 1, 1), allowed",
        ),
        (
            {"skip": torch.zeros(1, 16, 4, 4)},
            False,
            ValueError,
            "parameters.from_features: got None, which is for a head without skip",
        ),
    ],
)
def test_head_refuses(arguments: dict[str, Any], merged: bool, error: type[Exception], message: str) -> None:
    parameters = head_parameters(HourglassStack(5, 16, 1, 1), HourglassMerge(5, 16) if merged else None)
    with pytest.raises(error) as caught:
        hourglass_head(**{"x": torch.zeros(1, 16, 4, 4), "parameters": parameters, **arguments})
    assert str(caught.value).startswith(message)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_a_gpu_has_no_kernels_for() -> None:
    for (inputs, outputs), dtype, error, message in (
        ((16, 16), torch.float32, TypeError, "x: got torch.float32 on cuda:0, allowed on a GPU are float16 and bfloat16"),
        ((24, 16), torch.bfloat16, ValueError, "parameters: the block has 24, 8 and 16 channels; GPU kernels are for multiples"),
        ((16, 1040), torch.bfloat16, ValueError, "parameters: the block has 520 channels between the convolutions; GPU kernels"),
    ):
        parameters = residual_parameters(HourglassResidual(inputs, outputs).to("cuda", dtype))
        with pytest.raises(error) as caught:
            hourglass_residual(torch.zeros(1, inputs, 4, 4, device="cuda", dtype=dtype), parameters)
        assert str(caught.value).startswith(message)


# ---- the block --------------------------------------------------------------------------------------------------------


def block_on(device: torch.device) -> tuple[HourglassResidual, torch.Tensor, str]:
    """A block, an input for which it has a way of its own, and the name of that."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    block = randomize(HourglassResidual(32, 32)).to(device, dtype)
    return block, maps(2, 32, 20, 12).to(device, dtype), "fused" if device.type == "cuda" else "folded"


class Calls(TorchDispatchMode):
    """Collects the names of fastpose's ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastpose":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def ops_called(function: Callable[[], Any]) -> list[str]:
    with Calls() as calls:
        function()
    return calls.names


def test_block_takes_its_way(device: torch.device) -> None:
    block, x, name = block_on(device)
    with torch.no_grad():
        assert block.inference_path(x).name == name
        assert ops_called(lambda: block(x)) == ["hourglass_residual"]
    with torch.inference_mode():
        assert ops_called(lambda: block(x)) == ["hourglass_residual"]


WAYS: dict[str, tuple[Callable[[HourglassResidual], Any], str]] = {
    "training": (lambda block: block.train(), "it is in training mode"),
    "hooks": (lambda block: block.conv2.register_forward_hook(lambda *_: None), "conv2 has hooks, which only a call of it runs"),
    "another layer": (lambda block: setattr(block, "conv3", nn.Sequential(block.conv3)), "conv3 is a Sequential"),
    "batch statistics": (lambda block: block.bn3.train(), "bn3 uses the statistics of the batch"),
    "no statistics": (
        lambda block: setattr(block, "bn1", nn.BatchNorm2d(32, track_running_stats=False)),
        "bn1 uses the statistics",
    ),
    "no affine": (lambda block: setattr(block, "bn1", nn.BatchNorm2d(32, affine=False).eval()), "bn1 has no scale and shift"),
    "dilated": (lambda block: setattr(block.conv2, "dilation", (2, 2)), "conv2 is another convolution"),
    "no bias": (lambda block: setattr(block.conv1, "bias", None), "conv1 has no bias"),
    "other dtype": (lambda block: block.half(), "x is torch.float32 on cpu, and the weights are torch.float16 on cpu"),
}


@pytest.mark.parametrize("change", WAYS)
def test_why_block_is_plain(change: str, no_grad: None) -> None:
    block, x, _ = block_on(torch.device("cpu"))
    make, reason = WAYS[change]
    make(block)
    name, found = block.inference_path(x)
    assert name == "plain"
    assert found.startswith(reason)


def test_why_calls_are_plain(no_grad: None) -> None:
    block, x, _ = block_on(torch.device("cpu"))
    with fastpose.backend("reference"):
        assert block.inference_path(x) == ("plain", 'fastpose.backend("reference") is in force')
        assert ops_called(lambda: block(x)) == []
    assert block.inference_path(x[:0]) == ("plain", "x has shape (0, 32, 20, 12)")
    assert block.inference_path(x[0]) == ("plain", "x has shape (32, 20, 12)")
    assert block.inference_path(x[:, :8]) == ("plain", "x has shape (2, 8, 20, 12)")
    assert block.bfloat16().inference_path(x.bfloat16()) == ("plain", "on a CPU torch.bfloat16 is left to PyTorch")
    assert block.to("meta").inference_path(x.bfloat16().to("meta"))[1] == "there are kernels for cuda and cpu, not for meta"
    with torch.enable_grad():
        assert block.inference_path(x) == ("plain", "gradients are needed")
    with pytest.raises(RuntimeError, match="running_mean should contain"):
        block(x[:, :8])


def test_few_pixels_are_not_worth_folding(monkeypatch: pytest.MonkeyPatch, no_grad: None) -> None:
    block, x, _ = block_on(torch.device("cpu"))
    monkeypatch.setattr(_inference, "FOLDED_PIXELS", 480)
    assert block.inference_path(x) == ("folded", "x is torch.float32 on a CPU")
    assert block.inference_path(x[:1]) == ("plain", "folding does not pay for 240 pixels, but from 480 on")


def test_gradients_in_evaluation_are_autograds() -> None:
    block, x, _ = block_on(torch.device("cpu"))
    block(x.requires_grad_()).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert x.grad.any()
    block.requires_grad_(False)
    assert ops_called(lambda: block(x)) == []
    assert ops_called(lambda: block(x.detach())) == ["hourglass_residual"]


def test_derivatives_in_forward_mode_are_the_layers() -> None:
    block, x = randomize(HourglassResidual(8, 8).double()).requires_grad_(False), maps(2, 8, 4, 4)
    assert block.inference_path(x).name == "folded"
    with fastpose.backend("reference"):
        _, expected = torch.func.jvp(block, (x,), (x,))
    with forward_ad.dual_level():
        assert "forward mode" in block.inference_path(x).reason
        assert "forward mode" in block.training_path(x).reason
        tangent = forward_ad.unpack_dual(block(forward_ad.make_dual(x, x))).tangent
    torch.testing.assert_close(tangent, expected, rtol=0, atol=0)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_pool_and_low_are_pooling_and_upsampling(pool: bool, low: bool, training: bool, device: torch.device) -> None:
    block, x, _ = block_on(device)
    block.train(training)
    half = torch.randn_like(x[:, :, ::4, ::4] if pool else x[:, :, ::2, ::2]) if low else None
    with torch.no_grad(), fastpose.backend("reference"):
        expected = copy.deepcopy(block)(functional.max_pool2d(x, 2) if pool else x)
        expected = expected if half is None else expected + functional.interpolate(half, scale_factor=2)
    with torch.no_grad():
        result = block(x, pool=pool, low=half)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if device.type == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(result, expected, **tolerance)


def test_low_that_does_not_fit_is_left_to_pytorch(no_grad: None) -> None:
    block, x, _ = block_on(torch.device("cpu"))
    assert block(x, low=torch.zeros(2, 32, 10, 6, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(RuntimeError, match="must match the size"):
        block(x, low=torch.zeros(2, 32, 5, 6))
    with pytest.raises(RuntimeError, match="too small"):
        block(x[:, :, :1], pool=True)


def replace_parameter(block: HourglassResidual) -> None:
    block.conv1.weight = nn.Parameter(2 * block.conv1.weight.detach())


def fused_adam(block: HourglassResidual) -> None:
    """It counts no versions of what it changes."""
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1, fused=True)
    for parameter in block.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def train_a_step(block: HourglassResidual) -> None:
    with torch.no_grad():
        block.train()(3 + torch.zeros_like(block.conv2.weight[:1, :1]).expand(2, 32, 3, 3))
    block.eval()


CHANGES: dict[str, Callable[[HourglassResidual], Any]] = {
    "in place": lambda block: nn.init.constant_(block.conv2.weight, 0.1),
    "through data": lambda block: block.conv2.weight.data.mul_(2),
    "through detach": lambda block: block.bn3.bias.detach().add_(1),
    "exchanged data": lambda block: setattr(block.conv3.bias, "data", block.conv3.bias.data + 1),
    "replaced": replace_parameter,
    "load_state_dict": lambda block: block.load_state_dict({n: t + 1 if t.ndim else t for n, t in block.state_dict().items()}),
    "statistics": lambda block: block.bn2.running_var.mul_(4),
    "statistics of training": train_a_step,
    "eps": lambda block: setattr(block.bn1, "eps", 1.0),
    "optimizer": fused_adam,
    "to and fro": lambda block: block.to(torch.float8_e5m2).to(torch.bfloat16 if block.conv1.weight.is_cuda else torch.float32),
    "tied": lambda block: setattr(block.bn2, "weight", block.bn3.weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change: str, device: torch.device) -> None:
    block, x, _ = block_on(device)
    with torch.no_grad():
        before = block(x)
    CHANGES[change](block)
    with torch.no_grad():
        after = block(x)
        with fastpose.backend("reference"):
            expected = block(x)
    tolerance = {"rtol": 2e-2, "atol": 0.1} if device.type == "cuda" else {"rtol": 1e-4, "atol": 1e-3}
    assert not torch.allclose(before, expected, **tolerance), "nothing changed"
    torch.testing.assert_close(after, expected, **tolerance)


def test_block_made_in_inference_mode() -> None:
    """Its tensors have no versions."""
    with torch.inference_mode():
        block, x, _ = block_on(torch.device("cpu"))
        first = block(x)
        block.bn1.weight.mul_(2)
        second = block(x)
        with fastpose.backend("reference"):
            torch.testing.assert_close(second, block(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, second)


def test_copies_and_pickles(device: torch.device) -> None:
    block, x, _ = block_on(device)
    with torch.no_grad():
        expected = block(x)
        for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(twin(x), expected)


def test_state_is_that_of_the_plain_block() -> None:
    names = [
        f"{layer}.{name}" for i in "123" for layer, name in ((f"bn{i}", "weight"), (f"bn{i}", "bias"), (f"conv{i}", "weight"))
    ]
    block = HourglassResidual(16, 32)
    assert set(names) < set(block.state_dict())
    assert len(block.state_dict()) == 3 * 5 + 3 * 2 + 2
    with torch.no_grad():
        block.eval()(torch.randn(2, 16, 16, 16))
    assert len(block.state_dict()) == 3 * 5 + 3 * 2 + 2
    assert sum(p.numel() for p in HourglassResidual(256, 256).parameters()) == 214_528


def test_autocast_on_a_cpu_is_plain(no_grad: None) -> None:
    block, x, _ = block_on(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        result = block(x)
        assert block.inference_path(x) == ("plain", "on a CPU torch.bfloat16 is left to PyTorch")
        with fastpose.backend("reference"):
            assert torch.equal(result, block(x))
        # The op takes the dtypes that it gets.
        assert hourglass_residual(x, residual_parameters(block)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_autocast_on_a_gpu(no_grad: None) -> None:
    block = randomize(HourglassResidual(32, 32)).cuda()
    x = maps(2, 32, 16, 16).cuda().float()
    for half in (x.bfloat16(), x.half()):
        with torch.autocast("cuda", half.dtype):
            assert block.inference_path(x).name == "plain"  # it would keep the float32 of x in the sum
            assert ops_called(lambda half=half: block(half)) == ["hourglass_residual"]
            result = block(half)
            with fastpose.backend("reference"):
                torch.testing.assert_close(result, block(half), rtol=2e-2, atol=5e-2)


def targets_compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, list[str]]:
    """The result of a function that is compiled as one graph, and what the graph calls."""
    targets = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=backend))(*arguments, **options), targets


def test_block_compiles_as_one_graph(device: torch.device, no_grad: None) -> None:
    block, x, _ = block_on(device)
    half = x[:, :, ::2, ::2].contiguous()
    compiled, targets = targets_compiled(block, x, low=half)
    torch.testing.assert_close(compiled, block(x, low=half), rtol=1e-4, atol=1e-4)
    assert ("fastpose.hourglass_residual.default" in targets) == (device.type == "cuda")


def test_ops_compile_as_one_graph(device: torch.device, no_grad: None) -> None:
    x, parameters, options = residual_call("pool and low", device, dtypes(device)[0])
    compiled, targets = targets_compiled(hourglass_residual, x, parameters, **options)
    assert torch.equal(compiled, hourglass_residual(x, parameters, **options))
    assert "fastpose.hourglass_residual.default" in targets
    stack, merge = randomize(HourglassStack(5, 32, 1, 1)).to(x), HourglassMerge(5, 32).to(x)
    compiled, targets = targets_compiled(hourglass_head, x, head_parameters(stack, merge), x, heatmaps=False)
    assert compiled.heatmaps is None
    assert torch.equal(compiled.merged, hourglass_head(x, head_parameters(stack, merge), x, heatmaps=False).merged)
    assert "fastpose.hourglass_head.default" in targets


def test_exports(device: torch.device, no_grad: None) -> None:
    block, x, _ = block_on(device)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(block, (x,), dynamic_shapes={"x": dynamic})
    more = torch.cat([x, x])
    torch.testing.assert_close(program.module()(more), block(more), rtol=1e-4, atol=1e-4)
    targets = [str(node.target) for node in program.graph.nodes]
    assert ("fastpose.hourglass_residual.default" in targets) == (device.type == "cuda")


def pretend_on_gpu(module: nn.Module, dtype: torch.dtype) -> None:
    """Exchanges parameters and buffers for fake ones."""
    for layer in module.modules():
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, device="cuda", dtype=dtype if tensor.is_floating_point() else tensor.dtype)
                    tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, no_grad: None) -> Iterator[FakeTensorMode]:
    """Tensors that only pretend to be on a GPU, one with kernels."""
    monkeypatch.setattr(_library, "why_no_triton", lambda index: "")
    with FakeTensorMode() as mode:
        yield mode


def test_what_runs_on_a_gpu(fake_gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    block = HourglassResidual(16, 16).eval()
    x = torch.empty(1, 16, 8, 8, device="cuda")
    half, brain = x.half(), x.bfloat16()
    pretend_on_gpu(block, torch.bfloat16)
    assert block.inference_path(brain) == ("fused", "there are kernels for torch.bfloat16 on cuda:0")
    pretend_on_gpu(block, torch.float32)
    assert block.inference_path(x)[1].startswith("x is torch.float32; GPU kernels are for float16, bfloat16, and")
    assert block.inference_path(half)[1].startswith("x is torch.float16 on cuda:0, and the weights are torch.float32")
    monkeypatch.setattr(_inference, "autocast_dtype", lambda x: torch.float16)  # torch.autocast looks for a real GPU
    assert block.inference_path(half).name == "fused"
    assert block.inference_path(brain).name == block.inference_path(x).name == "plain"
    odd = HourglassResidual(24, 40).eval()
    pretend_on_gpu(odd, torch.float16)
    assert odd.inference_path(half.new_empty(1, 24, 8, 8))[1].startswith("the block has 24, 20 and 40 channels; GPU kernels")


def test_network_on_a_gpu_calls_the_ops(fake_gpu: FakeTensorMode) -> None:
    model = create_model("hourglass", stacks=2, features=64, depth=2).eval()
    pretend_on_gpu(model, torch.bfloat16)
    images = torch.empty(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
    with Calls() as calls:
        (output,) = model(images, last_only=True)
    assert (output.shape, output.dtype, output.device.type) == ((2, 16, 16, 16), torch.bfloat16, "cuda")
    assert calls.names.count("hourglass_residual") == sum(isinstance(module, HourglassResidual) for module in model.modules())
    assert calls.names.count("hourglass_head") == 2


def test_block_on_a_gpu_compiles_and_exports(fake_gpu: FakeTensorMode) -> None:
    block = HourglassResidual(32, 32).eval()
    pretend_on_gpu(block, torch.bfloat16)
    x = torch.empty(2, 32, 8, 8, device="cuda", dtype=torch.bfloat16)
    targets = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    torch.compiler.reset()
    torch.compile(block, fullgraph=True, backend=backend)(x)
    assert targets.count("fastpose.hourglass_residual.default") == 1
    for strict in (False, True):
        graph = torch.export.export(block, (x,), strict=strict).graph
        called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert called == ["fastpose.hourglass_residual.default"]


# ---- the network ------------------------------------------------------------------------------------------------------


def network(device: torch.device, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model("hourglass", **{"stacks": 3, "num_joints": 5, "features": 64, "depth": 2, **options})
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return randomize(model.double()).to(device, dtype), images.to(device, dtype)


@pytest.mark.parametrize("options", [{}, {"modules": 2, "stacks": 2}, {"stem": "pytorch_pose", "stacks": 1}], ids=str)
def test_network_is_the_plain_one(options: dict[str, Any], device: torch.device, no_grad: None) -> None:
    for dtype in dtypes(device):
        model, images = network(device, dtype, **options)
        called = ops_called(lambda model=model, images=images: model(images))
        assert called.count("hourglass_head") == len(model.stacks)
        assert called.count("hourglass_residual") == sum(isinstance(module, HourglassResidual) for module in model.modules())
        ours, last = model(images), model(images, last_only=True)
        with fastpose.backend("reference"):
            eager = model(images)
            exact = copy.deepcopy(model).double()(images.double())
        for values in zip(ours, eager, exact, strict=True):
            assert_as_accurate(*values)
        assert len(last) == 1
        assert_as_accurate(last[0], eager[-1], exact[-1])


def test_last_only_in_training_is_the_last() -> None:
    model, images = network(torch.device("cpu"), torch.float32)
    model.train()
    state = copy.deepcopy(model.state_dict())
    everything = model(images)
    model.load_state_dict(state)
    (last,) = model(images, last_only=True)
    assert torch.equal(last, everything[-1])
    last.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_hooks_of_layers_are_run(no_grad: None) -> None:
    model, images = network(torch.device("cpu"), torch.float32)
    expected = model(images)
    seen = []
    layers = [model.merges[0], model.merges[1].from_heatmaps, model.stacks[2].head, model.stacks[0].hourglass.up1]
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: seen.append(layer))
    result = model(images)
    assert set(seen) == set(layers)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_blocks_of_other_kinds_are_welcome(no_grad: None) -> None:
    """They know nothing of pooling and upsampling."""

    class Plain(nn.Module):
        def __init__(self, block: HourglassResidual) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)

    model, images = network(torch.device("cpu"), torch.float64)
    expected = model(images)
    for name, module in list(model.named_modules()):
        if isinstance(module, HourglassResidual):
            model.set_submodule(name, Plain(module))
    for ours, theirs in zip(model(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; on a CPU they see the plain layers")
def test_network_compiles_and_exports(no_grad: None) -> None:
    model, images = network(torch.device("cuda"), torch.bfloat16, features=64, stacks=2, depth=1)
    expected = model(images, last_only=True)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images, last_only=True)[0]
    exported = torch.export.export(model, (images,), {"last_only": True}).module()(images, last_only=True)[0]
    for result in (compiled, exported):
        torch.testing.assert_close(result, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_graph_sees_changes_in_place(no_grad: None) -> None:
    model, images = network(torch.device("cuda"), torch.bfloat16)
    model.to(memory_format=torch.channels_last)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        model(images)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(images)
    for _ in range(2):
        graph.replay()
        for ours, theirs in zip(captured, model(images), strict=True):
            assert torch.equal(ours, theirs)
        for parameter in model.parameters():
            parameter.mul_(0.9)
