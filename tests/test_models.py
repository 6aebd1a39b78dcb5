"""The model registry, the stacked hourglass and its checkpoints."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastpose.checkpoints import load_model, load_weights, save_weights
from fastpose.models import StackedHourglass, create_model, list_models
from fastpose.nn.residual import HourglassResidual


@pytest.fixture
def small() -> StackedHourglass:
    torch.manual_seed(0)
    return StackedHourglass(stacks=2, num_joints=5, features=16, depth=2)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("stem", "stacks", "parameters", "gmac"),
    [
        ("torch7", 8, 25_434_112, 27.44),
        ("torch7", 2, 6_570_400, 8.33),
        ("pytorch_pose", 8, 25_594_624, 28.09),
        ("pytorch_pose", 2, 6_730_912, 8.99),
        ("pytorch_pose", 1, 3_586_960, 5.80),
    ],
)
def test_published_sizes(stem: str, stacks: int, parameters: int, gmac: float) -> None:
    with torch.device("meta"):
        model = create_model("hourglass", stacks=stacks, stem=stem)
        with FlopCounterMode(display=False) as flops:
            outputs = model(torch.empty(1, 3, 256, 256))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert round(flops.get_total_flops() / 2e9, 2) == gmac
    assert [tuple(output.shape) for output in outputs] == [(1, 16, 64, 64)] * stacks


def test_published_layer_counts() -> None:
    with torch.device("meta"):
        modules = list(StackedHourglass().modules())
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == 378
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == 354


def test_modules_multiply_the_residuals_but_not_those_of_the_stem() -> None:
    def residuals(modules: int) -> int:
        model = StackedHourglass(stacks=1, features=8, depth=3, modules=modules)
        return sum(isinstance(module, HourglassResidual) for module in model.modules())

    # Three at each of three levels, the innermost one and the one behind the hourglass.
    assert residuals(1) == 3 + 11
    assert residuals(2) == 3 + 22


def with_random_statistics(model: nn.Module) -> nn.Module:
    """Give the batch normalisations something to do, and use it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize(("in_channels", "out_channels"), [(6, 6), (4, 8)])
def test_residual_is_the_pre_activation_bottleneck(in_channels: int, out_channels: int) -> None:
    torch.manual_seed(0)
    block = with_random_statistics(HourglassResidual(in_channels, out_channels)).double()
    x = torch.randn(2, in_channels, 5, 7, dtype=torch.float64)
    raw = x.clone()

    def normalize(bn: nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (tensor[:, None, None] for tensor in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
        return ((y - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    y = x
    for bn, conv in ((block.bn1, block.conv1), (block.bn2, block.conv2), (block.bn3, block.conv3)):
        y = conv(normalize(bn, y))
    skip = (
        x
        if in_channels == out_channels
        else torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], x) + block.skip.bias[:, None, None]
    )
    torch.testing.assert_close(block(x), y + skip)
    assert torch.equal(x, raw)


def pool(x: torch.Tensor) -> torch.Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))


def paper_hourglass(module: nn.Module, x: torch.Tensor, depth: int) -> torch.Tensor:
    low = module.low1(pool(x))
    low = paper_hourglass(module.low2, low, depth - 1) if depth > 1 else module.low2(low)
    return module.up1(x) + module.low3(low).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def paper_forward(model: StackedHourglass, images: torch.Tensor, depth: int) -> list[torch.Tensor]:
    """The forward pass as the papers' text and figures have it, over the model's layers."""
    stem = model.stem
    x = stem.residual1(stem.bn(stem.conv(images)).clamp(min=0))
    x = stem.residual3(stem.residual2(pool(x)))
    outputs = []
    for index, stack in enumerate(model.stacks):
        features = stack.residuals(paper_hourglass(stack.hourglass, x, depth))
        features = stack.bn(stack.conv(features)).clamp(min=0)
        outputs.append(stack.head(features))
        if index < len(model.merges):
            merge = model.merges[index]
            x = x + merge.from_features(features) + merge.from_heatmaps(outputs[-1])
    return outputs


@pytest.mark.parametrize("stem", ["torch7", "pytorch_pose"])
def test_forward_is_that_of_the_paper(stem: str, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = StackedHourglass(stacks=3, num_joints=5, features=16, depth=2, stem=stem).double()
    with_random_statistics(model)
    outputs = model(images.double())
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 8, 12)] * 3
    for output, expected in zip(outputs, paper_forward(model, images.double(), depth=2), strict=True):
        torch.testing.assert_close(output, expected)


def test_image_mean_is_subtracted_before_anything_is_padded(tmp_path, images: torch.Tensor) -> None:
    mean = (0.5, 0.25, 0.125)
    options = {"stacks": 1, "features": 8, "depth": 1}
    model, plain = StackedHourglass(**options, image_mean=mean).eval(), StackedHourglass(**options).eval()
    assert set(model.state_dict()) - set(plain.state_dict()) == {"stem.image_mean"}
    plain.load_state_dict(model.state_dict(), strict=False)
    expected = plain(images - torch.tensor(mean)[:, None, None])[0]
    assert torch.equal(model(images)[0], expected)
    save_weights(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors").eval()
    assert loaded.options == model.options
    assert torch.equal(loaded(images)[0], expected)


def test_every_parameter_is_trained(small: StackedHourglass, images: torch.Tensor) -> None:
    torch.stack(small(images)).square().mean().backward()
    assert [name for name, parameter in small.named_parameters() if parameter.grad is None] == []


def test_initialization() -> None:
    torch.manual_seed(0)
    model = StackedHourglass(stacks=1, features=32, depth=1, init="torch7")
    batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    scales = torch.cat([bn.weight for bn in batch_norms])
    assert scales.min() >= 0
    assert scales.max() <= 1
    assert scales.mean().item() == pytest.approx(0.5, abs=0.05)
    assert all((bn.bias == 0).all() for bn in batch_norms)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            bound = (module.in_channels * module.kernel_size[0] * module.kernel_size[1]) ** -0.5
            assert module.weight.abs().max() <= bound
            assert module.bias.abs().max() <= bound
    plain = StackedHourglass(stacks=1, features=32, depth=1)
    assert all((bn.weight == 1).all() for bn in plain.modules() if isinstance(bn, nn.BatchNorm2d))


def test_compiles_and_exports_as_one_graph(images: torch.Tensor) -> None:
    model = StackedHourglass(stacks=2, features=8, depth=1).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    exported = torch.export.export(model, (images,)).module()(images)
    for outputs in (compiled, exported):
        for output, expected in zip(outputs, model(images), strict=True):
            torch.testing.assert_close(output, expected)


def test_memory_format_and_autocast(small: StackedHourglass, images: torch.Tensor) -> None:
    small.eval()
    expected = small(images)[-1]
    channels_last = small.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))[-1]
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert small(images)[-1].dtype == torch.bfloat16


def test_copies_and_pickles(small: StackedHourglass, images: torch.Tensor) -> None:
    small.eval()
    expected = small(images)[-1]
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(twin(images)[-1], expected)


@pytest.mark.parametrize("shape", [(1, 3, 256, 250), (1, 3, 32, 64), (3, 64, 64), (1, 1, 64, 64)])
def test_refuses_images_it_cannot_pool(shape: tuple[int, ...]) -> None:
    model = StackedHourglass(stacks=1, features=8)
    with pytest.raises(ValueError, match=r"images must be|multiples of 64"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"stacks": 0}, "stacks"),
        ({"num_joints": 0}, "num_joints"),
        ({"features": 6}, "features"),
        ({"depth": 0}, "depth"),
        ({"modules": 0}, "modules"),
        ({"stem": "torch"}, "stem"),
        ({"init": "zeros"}, "init"),
        ({"image_mean": (0.5, 0.5)}, "image_mean"),
        ({"image_mean": (0.5, 0.5, float("nan"))}, "image_mean"),
    ],
)
def test_refuses_bad_options(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        create_model("hourglass", **options)


def test_registry_names_what_it_knows() -> None:
    assert "hourglass" in list_models()
    with pytest.raises(ValueError, match=r"'hourglas'.*hourglass"):
        create_model("hourglas")
    with pytest.raises(TypeError, match="no option stack; it has stacks"):
        create_model("hourglass", stack=2)


def test_checkpoint_rebuilds_the_model(tmp_path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = create_model("hourglass", stacks=2, features=8, depth=1, stem="pytorch_pose", num_joints=3)
    model(images)  # moves the batch normalisations' statistics
    model.eval().to(memory_format=torch.channels_last)
    path = tmp_path / "model.safetensors"
    save_weights(model, path)
    assert list(tmp_path.iterdir()) == [path]

    loaded = load_model(path).eval()
    assert loaded.options == model.options
    expected = model.to(memory_format=torch.contiguous_format)(images)
    for output, reference in zip(loaded(images), expected, strict=True):
        assert torch.equal(output, reference)


def test_failed_save_leaves_the_old_file(tmp_path, small: StackedHourglass, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(small, path)
    before = path.read_bytes()

    def full_disk(self, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_weights(small, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path, small: StackedHourglass) -> None:
    tensors = {name: tensor + 1 for name, tensor in small.state_dict().items()}
    tensors["stem.extra"] = tensors.pop("stem.conv.weight")
    tensors["stem.bn.bias"] = torch.zeros(3)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(
        ValueError,
        match=r"missing: stem\.conv\.weight; unexpected: stem\.extra; "
        r"of another shape: stem\.bn\.bias \(3,\) instead of \(4,\)",
    ):
        load_weights(small, path)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_without_metadata_load_into_a_model_only(tmp_path, small: StackedHourglass) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({name: torch.ones_like(tensor) for name, tensor in small.state_dict().items()}, path)
    load_weights(small, path)
    assert (small.stem.conv.weight == 1).all()
    with pytest.raises(ValueError, match="does not name its model"):
        load_model(path)


def test_damaged_missing_and_foreign_checkpoints(tmp_path, small: StackedHourglass) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_model(path)
    save_weights(small, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        load_weights(small, path)
    with pytest.raises(TypeError, match=r"StackedHourglass.*, got Linear"):
        save_weights(nn.Linear(1, 1), path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_weights(small, tmp_path / "nowhere" / "model.safetensors")

    save_file(load_tensors(small), path, {"fastpose.architecture": "perceptron", "fastpose.options": "{}"})
    with pytest.raises(ValueError, match=r"cannot be built.*perceptron"):
        load_model(path)


def load_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
