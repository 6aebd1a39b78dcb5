"""Published checkpoints: the networks they were saved from, written anew, predict the same as what they are read into."""

from __future__ import annotations

import collections
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_networks import Princeton, PytorchPose, with_random_statistics
from torch import nn
from typer.testing import CliRunner

from fastpose import cli
from fastpose.checkpoints import load_model, read_metadata
from fastpose.codec import HeatmapCodec
from fastpose.data.crops import CropSettings, PoseDataset
from fastpose.models import StackedHourglass
from fastpose.prediction import Predictor
from fastpose.publications import PUBLICATIONS, layer_names
from fastpose.published import SOURCE_KEY, load_published
from fastpose.skeletons import MPII

MEAN = (0.4404, 0.4440, 0.4327)

# Each takes a network and writes its weights as they were published.
Format = Callable[[nn.Module, Path], None]


def as_bearpaw(network: nn.Module, path: Path) -> None:
    """With the optimizer and the name of the network, out of DataParallel, by a PyTorch before 1.6."""
    state = collections.OrderedDict((f"module.{name}", tensor) for name, tensor in network.state_dict().items())
    optimizer = torch.optim.RMSprop(network.parameters()).state_dict()
    content = {"epoch": 217, "arch": "hg", "state_dict": state, "best_acc": torch.tensor(0.87), "optimizer": optimizer}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_anibali(network: nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path)


def as_princeton(network: nn.Module, path: Path) -> None:
    state = {f"model.module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "optimizer": torch.optim.Adam(network.parameters()).state_dict(), "epoch": 3}, path)


def run_pytorch_pose(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return network(images - torch.tensor(MEAN).to(images)[:, None, None])


def run_princeton(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return network(images.permute(0, 2, 3, 1))


def network_of(kind: type[nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return with_random_statistics(kind(**{"features": 8, "depth": 1, "stacks": 1, **options}))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


# ---- the same predictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "save", "predict", "expected"),
    [
        (PytorchPose, {"stacks": 8, "depth": 2}, as_bearpaw, run_pytorch_pose, {"stem": "pytorch_pose"}),
        (PytorchPose, {"stacks": 2, "features": 16, "depth": 3}, as_anibali, run_pytorch_pose, {"stem": "pytorch_pose"}),
        (PytorchPose, {"stacks": 1, "blocks": 3, "joints": 14}, as_bearpaw, run_pytorch_pose, {"modules": 3}),
        (PytorchPose, {"stacks": 2, "stem": "torch7"}, as_anibali, run_pytorch_pose, {"stem": "torch7"}),
        (Princeton, {"stacks": 8, "depth": 2}, as_princeton, run_princeton, {"stem": "torch7"}),
        (Princeton, {"stacks": 2, "features": 16, "depth": 3}, as_princeton, run_princeton, {"stem": "torch7"}),
        (Princeton, {"stacks": 1, "joints": 5}, as_anibali, run_princeton, {}),
    ],
)
def test_predicts_what_the_published_network_predicts(
    tmp_path: Path, kind: type[nn.Module], options: dict[str, int], save: Format, predict: Any, expected: dict[str, Any]
) -> None:
    network = network_of(kind, **options)
    save(network, tmp_path / "checkpoint.pth.tar")
    model = load_published(tmp_path / "checkpoint.pth.tar").model
    given = {"num_joints" if name == "joints" else name: value for name, value in options.items() if name != "blocks"}
    assert model.options.items() >= {**given, **expected}.items()
    # The borders count, where the stem's convolution sees its padding. Two poolings more than the stem's stride of 4.
    images = torch.rand(2, 3, 64, 32, dtype=torch.float64)
    outputs = predict(network.double(), images)
    for output, theirs in zip(model.double().eval()(images), outputs, strict=True):
        # Additions in another order, in float64.
        torch.testing.assert_close(output, theirs, rtol=1e-12, atol=1e-13 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("kind", "stacks", "stored", "used"),
    [
        (PytorchPose, 1, 3_586_960, 3_586_960),
        (PytorchPose, 2, 6_730_912, 6_730_912),
        (PytorchPose, 8, 25_594_624, 25_594_624),
        (Princeton, 8, 32_819_328, 25_434_112),
    ],
)
def test_published_sizes(kind: type[nn.Module], stacks: int, stored: int, used: int) -> None:
    with torch.device("meta"):
        network = kind(stacks=stacks, features=256, depth=4)
        published = load_published(network.state_dict())
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(sizes.values()) == stored
    assert sum(sizes[name] for name in published.dead_weights) == stored - used
    assert sum(parameter.numel() for parameter in published.model.parameters()) == used


@pytest.mark.parametrize("publication", PUBLICATIONS, ids=lambda publication: publication.name)
def test_every_layer_has_one_published_name(publication: Any) -> None:
    model = StackedHourglass(stacks=2, features=8, depth=3, stem=publication.stem)
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))}
    names = layer_names(publication, model)
    assert layers <= names.keys()
    assert len(set(names.values())) == len(names)


def test_the_state_dict_itself_will_do() -> None:
    network = network_of(PytorchPose)
    images = torch.rand(1, 3, 32, 32)
    published = load_published({f"_orig_mod.module.{name}": tensor for name, tensor in network.state_dict().items()})
    torch.testing.assert_close(published.model.eval()(images), run_pytorch_pose(network, images))
    assert published.publication.name == "pytorch-pose"
    assert published.dead_weights == ()


def test_counters_may_be_missing() -> None:
    network = network_of(Princeton)
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name}
    model = load_published(state).model.eval()
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model(images), run_princeton(network, images))
    assert model.stem.bn.num_batches_tracked == 0
    assert load_published(network.state_dict()).model.stem.bn.num_batches_tracked == 1000


def test_dead_weights_are_left_out_and_named() -> None:
    network = network_of(Princeton)
    state = {f"model.module.{name}": tensor for name, tensor in network.state_dict().items()}
    dead = [name for name in state if "skip_layer" in name and "pre.1." not in name and "pre.4." not in name]
    assert len(dead) == 2 * (1 + 4 + 1)
    assert load_published(state).dead_weights == tuple(dead)
    assert load_published({name: tensor for name, tensor in state.items() if name not in dead}).dead_weights == ()


# ---- conventions ----------------------------------------------------------------------------------------------------


def test_conventions() -> None:
    pytorch_pose = load_published(network_of(PytorchPose).state_dict())
    assert pytorch_pose.codec == HeatmapCodec.preset("pytorch_pose", 256)
    assert pytorch_pose.skeleton is MPII
    assert pytorch_pose.model.options["image_mean"] == list(MEAN)
    princeton = load_published(network_of(Princeton).state_dict())
    assert princeton.codec == HeatmapCodec.preset("torch7_hourglass", 256, sigma=1.0, radius=4.0)
    assert princeton.skeleton is MPII
    assert princeton.model.options["image_mean"] == [0, 0, 0]
    assert princeton.model.stem.image_mean is None


def test_conventions_of_other_trainings() -> None:
    published = load_published(
        network_of(PytorchPose, joints=14).state_dict(), skeleton="lsp", input_size=(128, 96), image_mean=(0.5, 0.25, 0.125)
    )
    assert published.skeleton.name == "lsp"
    assert published.codec == HeatmapCodec.preset("pytorch_pose", (128, 96))
    assert published.model.options["image_mean"] == [0.5, 0.25, 0.125]
    assert published.model.stem.image_mean.flatten().tolist() == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skeleton": "mantis"}, "name must be one of mpii, lsp, flic, coco, got 'mantis'"),
        ({"skeleton": "lsp"}, "skeleton: got 'lsp' of 14 joints, but the network has 16"),
        ({"input_size": 100}, "input_size: got (100, 100), allowed are multiples of 8"),
        ({"input_size": 0}, "input_size"),
        ({"image_mean": (0.5, 0.5)}, "image_mean must be three numbers, got (0.5, 0.5)"),
    ],
)
def test_refuses_conventions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_published(network_of(PytorchPose).state_dict(), **arguments)


# ---- files that cannot be read --------------------------------------------------------------------------------------


def test_names_what_does_not_fit() -> None:
    state = {f"module.{name}": tensor for name, tensor in network_of(PytorchPose, stacks=2).state_dict().items()}
    state["module.extra.weight"] = state.pop("module.hg.1.hg.0.3.0.conv2.bias")
    state["module.score_.0.weight"] = torch.zeros(8, 17, 1, 1)
    message = (
        "the state dict looks like pytorch-pose with 2 stack(s), but its weights do not fit: "
        "missing: module.hg.1.hg.0.3.0.conv2.bias; unexpected: module.extra.weight; "
        "of another shape: module.score_.0.weight (8, 17, 1, 1) instead of (8, 16, 1, 1)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_published(state)


def without(*beginnings: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def with_entry(name: Any, value: Any) -> Callable[[dict[str, torch.Tensor]], dict[str, Any]]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (PytorchPose, without("score.0."), "missing: score.0.bias, score.0.weight"),
        (PytorchPose, without("layer2."), "missing: layer2.0.bn1.bias, "),
        (PytorchPose, without("hg.1.", "res.1.", "fc.1."), "missing: fc.1.0.bias, fc.1.0.weight, fc.1.1.bias"),
        (PytorchPose, without("score.1."), "missing: score.1.bias, score.1.weight"),
        (PytorchPose, without("score."), "the state dict lacks score.0.weight and score.1.weight, which would say"),
        (PytorchPose, with_entry("res.0.0.downsample.0.bias", torch.ones(8)), "unexpected: res.0.0.downsample.0.bias"),
        (Princeton, without("pre.4.skip_layer."), "missing: pre.4.skip_layer.conv.bias, pre.4.skip_layer.conv.weight"),
        (Princeton, with_entry("pre.0.skip_layer.conv.bias", torch.zeros(8)), "unexpected: pre.0.skip_layer.conv.bias"),
        (Princeton, with_entry("outs.0.conv.weight", torch.zeros(16, 9, 1, 1)), "such a network cannot be built: features"),
        (Princeton, with_entry("epoch", 3), "must hold weights, by name, and nothing else; got 'epoch'"),
        (Princeton, with_entry(3, torch.zeros(1)), "must hold weights, by name, and nothing else; got 3"),
        (Princeton, lambda _: {}, "must hold weights, by name, and nothing else; got nothing"),
        # A ResNet has layers of the names conv1, bn1, layer1.0.conv1 as well.
        (PytorchPose, without("hg.", "res.", "fc", "score"), "is of no known publication, which are pytorch-pose (with score.0"),
    ],
)  # fmt: skip
def test_refuses_partial_and_foreign_weights(kind: type[nn.Module], change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_published(change(network_of(kind, stacks=2).state_dict()))


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a complete PyTorch checkpoint: EOFError"),
        (b"<!doctype html><title>Quota exceeded</title>", "is not a complete PyTorch checkpoint: Unsupported operand"),
        (saved({"state_dict": {"conv1.weight": torch.zeros(100)}})[:-100], "is not a complete PyTorch checkpoint"),
        (pickle.dumps({"a": 1}, protocol=2), "is not a complete PyTorch checkpoint"),
        (saved(nn.Linear(1, 1)), "holds more than tensors: reading it would run torch.nn.modules.linear.Linear. If you trust"),
        (saved({"state_dict": {}, "best": np.float64(0.9)}), "holds more than tensors: reading it would run numpy."),
        (saved(torch.zeros(3)), "holds a Tensor, allowed is a state dict"),
        (saved({"state_dict": [torch.zeros(3)]}), "holds a list, allowed is a state dict"),
        (saved({"weight": torch.zeros(3)}), "is of no known publication"),
    ],
)
def test_refuses_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {re.escape(message)}"):
        load_published(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nowhere\.pth"):
        load_published(tmp_path / "nowhere.pth")


# ---- the command, and what predict makes of it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "save", "predict", "codec"),
    [
        (PytorchPose, as_bearpaw, run_pytorch_pose, HeatmapCodec.preset("pytorch_pose", 64)),
        (Princeton, as_princeton, run_princeton, HeatmapCodec.preset("torch7_hourglass", 64, sigma=1.0, radius=4.0)),
    ],
)
def test_predictions_of_converted_weights(
    tmp_path: Path, kind: type[nn.Module], save: Format, predict: Any, codec: HeatmapCodec
) -> None:
    network = network_of(kind, stacks=2)
    checkpoint, weights = tmp_path / "checkpoint.pth.tar", tmp_path / "weights.safetensors"
    save(network, checkpoint)
    result = run("convert", checkpoint, "--out", weights, "--input-size", 64)
    assert result.exit_code == 0, result.output
    predictor = Predictor.load(weights, "cpu")
    person = predictor.person_in_box(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    (pose,) = predictor.predict([person])

    sample = PoseDataset([person], MPII, CropSettings(size=(64, 64)))[0]
    image = sample["image"][None]
    with torch.no_grad():
        maps, mirrored = (predict(network, images)[-1] for images in (image, image.flip(-1)))
    expected = codec.decode(maps, flipped=mirrored, flip_permutation=MPII.flip_permutation, affine=sample["crop_to_image"][None])
    np.testing.assert_allclose(pose.keypoints, expected.coordinates[0], rtol=1e-5)
    np.testing.assert_allclose(pose.scores, expected.scores[0], rtol=1e-4)


def test_convert_says_what_it_recognised(tmp_path: Path) -> None:
    checkpoint, weights = tmp_path / "checkpoint.pth.tar", tmp_path / "weights.safetensors"
    as_princeton(network_of(Princeton, stacks=2), checkpoint)
    result = run("convert", checkpoint, "--out", weights)
    assert result.exit_code == 0, result.output
    for words in (
        "recognised as princeton-vl",
        "hourglass of 2 stack(s), 8 features, depth 1, 1 residual(s) in a row, stem of torch7",
        "22 tensors that the network does not use",
        "16, mpii",
        "256 x 256 pixels",
        "torch7_hourglass, sigma 1",
        f"weights: {weights}",
    ):
        assert words in result.output
    metadata = read_metadata(weights)
    assert metadata[SOURCE_KEY] == "princeton-vl"
    assert json.loads(metadata["fastpose.codec"])["sigma"] == 1
    assert sorted(tmp_path.iterdir()) == [checkpoint, weights]


def test_convert_takes_other_conventions(tmp_path: Path) -> None:
    checkpoint, weights = tmp_path / "checkpoint.pth.tar", tmp_path / "weights.safetensors"
    as_bearpaw(network_of(PytorchPose, joints=14), checkpoint)
    options = ("--skeleton", "lsp", "--input-size", 128, "--image-mean", "0.5,0.25,0.125")
    result = run("convert", checkpoint, "--out", weights, *options)
    assert result.exit_code == 0, result.output
    assert "RGB in 0..1, less 0.5, 0.25, 0.125" in result.output
    predictor = Predictor.load(weights, "cpu")
    assert (predictor.skeleton.name, predictor.codec.input_size) == ("lsp", (128, 128))
    assert load_model(weights).options["image_mean"] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.pth", "--out", "{out}"), "no checkpoint nowhere.pth"),
        (("{checkpoint}", "--out", "{checkpoint}"), "--out must not be the checkpoint"),
        (
            ("{checkpoint}", "--out", "{out}"),
            "which 14 joints the network has, and must be given; known skeletons with as many: lsp",
        ),
        (("{checkpoint}", "--out", "{out}", "--image-mean", "1,2"), "--image-mean must be R,G,B in numbers, got '1,2'"),
        (("{checkpoint}", "--out", "{nowhere}", "--skeleton", "lsp"), "no such folder to write out to"),
    ],
)
def test_complaints_of_convert(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    checkpoint = tmp_path / "checkpoint.pth.tar"
    as_anibali(network_of(PytorchPose, joints=14), checkpoint)
    before = checkpoint.read_bytes()
    paths = {"checkpoint": checkpoint, "out": tmp_path / "out", "nowhere": tmp_path / "nowhere" / "out"}
    result = run("convert", *(argument.format(**paths) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert checkpoint.read_bytes() == before
