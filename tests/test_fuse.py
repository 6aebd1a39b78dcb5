"""Plain residuals become fused ones and plain again: in whatever model, without its optimizer, hooks or modes noticing."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from published_networks import Bottleneck, Princeton, PytorchPose, Residual, with_random_statistics
from torch import nn
from torch.nn import functional

import fastpose
from fastpose.models import StackedHourglass
from fastpose.nn import HourglassResidual, fuse, unfuse

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "pytorch-pose": lambda: PytorchPose(stacks=1, joints=3, features=8, depth=1),
    "princeton-vl": lambda: Princeton(stacks=1, joints=3, features=8, depth=1),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return with_random_statistics(NETWORKS[request.param]()).double()


def images(network: nn.Module) -> torch.Tensor:
    shape = (2, 16, 24, 3) if isinstance(network, Princeton) else (2, 3, 16, 24)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_same(actual: Any, expected: Any) -> None:
    """Up to rounding: the layers are those of the plain block, in float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def plain_blocks(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if isinstance(module, (Bottleneck, Residual))}


def fused_blocks(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, HourglassResidual)]


# ---- there and back -------------------------------------------------------------------------------------------------


def test_there_and_back(network: nn.Module) -> None:
    x, blocks, tree = images(network), plain_blocks(network), list(network.named_modules())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = network(x)
    assert len(blocks) == 8

    assert fuse(network) == (list(blocks), {})
    assert fused_blocks(network) == list(blocks)
    assert not plain_blocks(network)
    assert_same(network(x), expected)
    assert fuse(network) == ([], {})

    assert unfuse(network) == list(blocks)
    assert [(name, id(module)) for name, module in network.named_modules()] == [(name, id(module)) for name, module in tree]
    assert_same(network(x), expected)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert unfuse(network) == []


def test_parameters_are_the_same_objects(network: nn.Module) -> None:
    before = set(network.parameters())
    unused = {parameter for block in plain_blocks(network).values() if isinstance(block, Residual) and not block.need_skip
              for parameter in block.skip_layer.parameters()}  # fmt: skip
    fuse(network)
    assert set(network.parameters()) == before - unused
    assert bool(unused) == isinstance(network, Princeton)


def test_names_of_the_state_are_those_of_the_fused_block(network: nn.Module) -> None:
    names = fuse(network).replaced
    projecting = network.get_submodule(names[0])
    assert list(projecting.state_dict()) == list(HourglassResidual(2, 4).state_dict())
    assert "skip.weight" in projecting.state_dict()
    assert list(network.get_submodule(names[-1]).state_dict()) == list(HourglassResidual(4, 4).state_dict())


def test_training_goes_on_with_the_old_optimizer(network: nn.Module) -> None:
    plain = copy.deepcopy(network)
    x = images(network)
    for model, switch in ((plain, lambda _: None), (network, fuse)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        model.train()
        for step in range(3):
            if step == 1:
                switch(model)
            optimizer.zero_grad()
            torch.stack(model(x)).square().mean().backward()
            optimizer.step()
    assert fused_blocks(network)
    unfuse(network)
    assert_same(network.state_dict(), plain.state_dict())
    assert int(network.get_submodule(next(iter(plain_blocks(network)))).bn2.num_batches_tracked) == 1003


def test_copies_are_independent(network: nn.Module) -> None:
    x, expected = images(network), network(images(network))
    names = fuse(network).replaced
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for twin in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        assert not set(twin.parameters()) & set(network.parameters())
        assert unfuse(twin) == names
        assert list(plain_blocks(twin)) == names
        assert_same(twin(x), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    assert fused_blocks(network) == names
    assert_same(network(x), expected)


# ---- what must stay as it is ----------------------------------------------------------------------------------------


def small(outputs: int = 8, block: type[nn.Module] = Bottleneck) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(block(4, outputs), nn.ReLU(), block(outputs, outputs))


def test_modes_gradients_and_dtypes_stay() -> None:
    model = small()
    model[0].bn2.eval()
    model[2].eval()
    model[2].conv1.weight.requires_grad_(False)
    model.bfloat16()
    modes = {name: module.training for name, module in model.named_modules()}
    assert fuse(model).replaced == ["0", "2"]
    assert (model[0].training, model[0].skip.training, model[2].training, model[2].skip.training) == (True, True, False, False)
    assert not model[0].bn2.training
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["2.conv1.weight"]
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    unfuse(model)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_what_happens_to_the_fused_blocks_happens_to_the_plain_ones() -> None:
    model = small(block=Residual)
    unused = model[2].skip_layer.conv.weight
    fuse(model)
    model.double().eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    norm = model[2].bn3
    unfuse(model)
    assert model[2].bn3 is norm
    assert isinstance(norm, nn.SyncBatchNorm)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model[2].skip_layer.conv.weight is unused
    assert not any(module.training for module in model.modules())
    # SyncBatchNorm is recognised too.
    assert fuse(model) == (["0", "2"], {})


def test_loaded_weights_reach_the_plain_block() -> None:
    model, other = small(), small()
    fuse(model)
    with_random_statistics(fuse(other) and other)
    model.load_state_dict(other.state_dict(), assign=True)
    unfuse(model), unfuse(other)
    for (name, tensor), (_, expected) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(tensor, expected), name


def test_hooks_stay() -> None:
    model = small()
    calls: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    removed = model[0].register_forward_hook(hook("removed"))
    model[0].register_forward_pre_hook(hook("before"))
    model[0].register_full_backward_hook(hook("backward"))
    x = torch.rand(2, 4, 5, 5, requires_grad=True)
    assert fuse(model).replaced == ["0", "2"]
    assert calls == []
    removed.remove()
    added = model[0].register_forward_hook(hook("added"))
    model(x).sum().backward()
    assert calls == ["before", "added", "backward"]
    unfuse(model)
    calls.clear()
    model(x).sum().backward()
    assert calls == ["before", "added", "backward"]
    added.remove()
    calls.clear()
    model(x)
    assert calls == ["before"]


def test_shared_blocks_are_replaced_everywhere_and_named_once() -> None:
    block = Bottleneck(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(block, block), "b": block})
    assert fuse(model).replaced == ["a.0"]
    assert model["a"][0] is model["a"][1] is model["b"]
    assert isinstance(model["b"], HourglassResidual)
    assert unfuse(model) == ["a.0"]
    assert model["a"][0] is model["a"][1] is model["b"] is block


def test_random_numbers_and_running_statistics_stay() -> None:
    model = small()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fuse(model)
    unfuse(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same(model.state_dict(), state)


@pytest.mark.parametrize("block", [Bottleneck, Residual])
def test_models_without_values_are_switched_too(block: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = small(block=block)
        assert fuse(model).replaced == ["0", "2"]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    unfuse(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert fuse(model).replaced == ["0", "2"]


def test_our_own_networks_have_nothing_to_switch() -> None:
    model = StackedHourglass(stacks=1, features=8, depth=1)
    assert fuse(model) == ([], {})
    assert unfuse(model) == []


def test_under_the_reference_backend() -> None:
    model, x = small().double().eval(), torch.rand(2, 4, 5, 5).double()
    expected = model(x)
    fuse(model)
    with fastpose.backend("reference"):
        assert_same(model(x), expected)


@pytest.mark.parametrize("block", [Bottleneck(4, 8), Residual(4, 4)])
def test_refuses_a_block_itself(block: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"got a block itself, {type(block).__name__}"):
        fuse(block)
    model = nn.Sequential(block)
    fuse(model)
    with pytest.raises(ValueError, match="got a fused block itself"):
        unfuse(model[0])


# ---- what only looks alike ------------------------------------------------------------------------------------------


class PostActivation(Bottleneck):
    """ResNet's order: each normalisation behind its convolution."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.bn1, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (x + self.bn3(self.conv3(y))).relu()


class NormalizedSkip(Bottleneck):
    """The projection of ResNet v2 reads what the first ReLU writes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - self.downsample(x) + self.downsample(self.bn1(x).relu())


class LeakyInside(Bottleneck):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.leaky_relu(self.bn1(x), 0.01))
        return x + self.conv3(self.bn3(self.conv2(self.bn2(y).relu())).relu())


class DropoutInside(Bottleneck):
    """The same in evaluation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(super().forward(x), 0.5, self.training)


class Frozen(Bottleneck):
    """Does not let `train` reach its normalisations."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.bn1.eval()
        return self


class Scaled(Bottleneck):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.gamma = nn.Parameter(torch.ones(()))


class AnotherInput(Bottleneck):
    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + style


Make = Callable[[], nn.Module]


def equal() -> nn.Module:
    return Bottleneck(8, 8)


def projecting() -> nn.Module:
    return Bottleneck(4, 8)


def changed(change: Callable[[Any], object], block: Make = equal) -> Make:
    def make() -> nn.Module:
        made = block()
        change(made)
        return made

    return make


def having(name: str, module: nn.Module | None, block: Make = equal) -> Make:
    return changed(lambda made: setattr(made, name, module), block)


def wide() -> nn.Module:
    block = Bottleneck(8, 16)
    block.conv3, block.downsample = nn.Conv2d(8, 8, 1), None
    return block


ALIKE: dict[str, tuple[Make, str]] = {
    "stride": (having("conv2", nn.Conv2d(4, 4, 3, stride=2, padding=1)), "conv2 has stride (2, 2), not (1, 1)"),
    "groups": (having("conv2", nn.Conv2d(4, 4, 3, padding=1, groups=2)), "conv2 has groups 2, not 1"),
    "dilation": (having("conv2", nn.Conv2d(4, 4, 3, padding=1, dilation=2)), "conv2 has dilation (2, 2), not (1, 1)"),
    "circular": (
        having("conv2", nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
        "conv2 has padding_mode circular, not zeros",
    ),
    "kernel": (having("conv1", nn.Conv2d(8, 4, 3, padding=1)), "conv1 has kernel_size (3, 3), not (1, 1)"),
    "bias": (having("conv3", nn.Conv2d(4, 8, 1, bias=False)), "conv3 has no bias"),
    "wide": (wide, "bn2 has num_features 8, not 4"),
    "odd": (having("conv3", nn.Conv2d(4, 9, 1)), "it has 9 output channels, an odd number"),
    "eps": (having("bn2", nn.BatchNorm2d(4, eps=1e-3)), "bn2 has eps 0.001, not 1e-05"),
    "affine": (having("bn2", nn.BatchNorm2d(4, affine=False)), "bn2 has affine False, not True"),
    "statistics": (
        having("bn2", nn.BatchNorm2d(4, track_running_stats=False)),
        "bn2 has track_running_stats False, not True",
    ),
    "instance": (having("bn1", nn.InstanceNorm2d(8)), "bn1 is InstanceNorm2d, not BatchNorm2d"),
    "linear": (having("conv1", nn.Linear(8, 4)), "conv1 is Linear, not Conv2d or a wrapper of one"),
    "leaky": (having("relu", nn.LeakyReLU()), "it also has relu (LeakyReLU)"),
    "dropout": (having("drop", nn.Dropout(0.1)), "it also has drop (Dropout)"),
    "projections": (having("again", nn.Conv2d(4, 8, 1), projecting), "it has more than one projection: downsample.0, again"),
    "no projection": (having("downsample", None, projecting), "it has no projection from 4 to 8 channels"),
    "projects": (
        having("downsample", nn.Sequential(nn.Conv2d(8, 8, 1))),
        "it projects its input although the channels are equal",
    ),
    "normalised projection": (
        having("downsample", nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)), projecting),
        "it also has downsample (Sequential)",
    ),
    "dtypes": (changed(lambda made: made.conv2.half()), "its parameters are torch.float16 on cpu and torch.float32 on cpu"),
    "inner hook": (
        changed(lambda made: made.conv2.register_forward_hook(lambda *_: None)),
        "conv2 has hooks, which a fused block does not run",
    ),
    "state hook": (
        changed(lambda made: made.register_load_state_dict_post_hook(lambda *_: None)),
        "it has hooks of its state_dict, whose names change",
    ),
    "parametrized": (
        changed(lambda made: nn.utils.parametrizations.weight_norm(made.conv1)),
        "conv1 is ParametrizedConv2d, not Conv2d or a wrapper of one",
    ),
    "own tensor": (Scaled, "it has tensors of its own: gamma"),
    "lock": (changed(lambda made: setattr(made, "lock", threading.Lock())), "a trial of it failed: TypeError: cannot pickle"),
    "post-activation": (PostActivation, "bn1 has num_features 4, not 8"),
    "ResNet v2": (lambda: NormalizedSkip(4, 8), "its forward computes something else in evaluation"),
    "leaky inside": (lambda: LeakyInside(8, 8), "its forward computes something else in evaluation"),
    "dropout inside": (lambda: DropoutInside(8, 8), "its forward computes something else in training"),
    "frozen": (lambda: Frozen(8, 8), "its forward computes something else in training"),
    "two inputs": (lambda: AnotherInput(8, 8), "a trial of it failed: TypeError: AnotherInput.forward() missing 1"),
}


@pytest.mark.parametrize(("make", "reason"), ALIKE.values(), ids=ALIKE)
def test_what_only_looks_alike_is_left_with_the_reason(make: Make, reason: str) -> None:
    block = make()
    model = nn.Sequential(Bottleneck(4, 4), block)
    switched = fuse(model)
    assert switched.replaced == ["0"]
    assert list(switched.left) == ["1"]
    assert reason in switched.left["1"]
    assert model[1] is block


def test_names_do_not_matter() -> None:
    """Another class, a projection under another name, wrappers in wrappers."""

    class Anything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 1)))
            for name, module in Bottleneck(4, 8).named_children():
                if name != "downsample":
                    setattr(self, name, module)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv3(self.relu(self.bn3(self.conv2(self.relu(self.bn2(self.conv1(self.relu(self.bn1(x)))))))))
            return self.shortcut(x) + y

    model, x = nn.Sequential(Anything()).eval(), torch.rand(2, 4, 5, 5)
    expected = model(x)
    assert fuse(model) == (["0"], {})
    torch.testing.assert_close(model(x), expected)
    assert list(model[0].skip.state_dict()) == ["weight", "bias"]
    unfuse(model)
    assert type(model[0]).__name__ == "Anything"
