"""Convolutional Pose Machines: layers, receptive fields, targets, and prediction at several scales."""

from __future__ import annotations

import math

import pytest
import torch
from receptive import positive, seen_columns
from torch import nn

from fastpose.codec import HeatmapCodec
from fastpose.models import CPM, HeatmapModel, Source, create_model, predict_multiscale
from fastpose.models.pixels import Pixels

pytestmark = pytest.mark.usefixtures("one_thread")


def convolutions(module: nn.Module) -> list[str]:
    """The convolutions and poolings in order, as the paper writes them."""
    words = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            words.append(f"{layer.out_channels},{layer.kernel_size[0]}")
        elif isinstance(layer, nn.MaxPool2d):
            words.append("P")
    return words


def test_layers_are_those_of_the_release() -> None:
    with torch.device("meta"):
        model = CPM()
    nine = ["128,9", "P"] * 3
    assert convolutions(model.trunk) == nine
    assert convolutions(model.stage1) == [*nine, "32,5", "512,9", "512,1", "15,1"]
    assert [convolutions(features) for features in model.features] == [["32,5"]] * 5
    assert [convolutions(stage) for stage in model.stages] == [["128,11"] * 3 + ["128,1", "15,1"]] * 5
    assert {stage[0].in_channels for stage in model.stages} == {32 + 15 + 1}
    # Every convolution but the predictions is followed by a ReLU; two of stage 1 by a dropout as well.
    for part in (model.trunk, model.stage1, *model.features, *model.stages):
        kinds = [type(layer).__name__ for layer in part]
        last = len(kinds) - 1
        assert all(kinds[i + 1] == "ReLU" for i, kind in enumerate(kinds) if kind == "Conv2d" and i < last)
    assert sum(isinstance(layer, nn.Dropout) for layer in model.stage1) == 2
    assert all(convolution.bias is not None for convolution in model.modules() if isinstance(convolution, nn.Conv2d))


def test_layers_of_the_vgg_variant() -> None:
    with torch.device("meta"):
        model = create_model("cpm", config="vgg")
    ten = ["64,3"] * 2 + ["P"] + ["128,3"] * 2 + ["P"] + ["256,3"] * 4 + ["P"] + ["512,3"] * 2
    assert convolutions(model.trunk) == [*ten, "256,3", "256,3", "256,3", "256,3", "128,3"]
    assert convolutions(model.stage1) == ["512,1", "15,1"]
    assert [convolutions(stage) for stage in model.stages] == [["128,7"] * 5 + ["128,1", "15,1"]] * 5
    assert {stage[0].in_channels for stage in model.stages} == {15 + 128 + 1}


@pytest.mark.parametrize(
    ("pooling", "field", "first_center"),
    [("ceil", 167, 7.0), ("pad", 167, 0.0), ("half", 160, 3.5)],
)
def test_receptive_field_of_stage_1(pooling: str, field: int, first_center: float) -> None:
    torch.manual_seed(0)
    model = CPM(num_joints=1, width=1 / 512, background=False, pooling=pooling, stages=1)
    columns = seen_columns(positive(model.stage1.double()), width=256, height=8)
    assert len(columns) == 32
    for cell in range(12, 20):  # away from the border
        first, last = columns[cell]
        assert last - first + 1 == field
        assert (first + last) / 2 == 8 * cell + first_center


def test_receptive_fields_of_later_stages() -> None:
    """Through the maps of the stage before; 31 of its cells a stage."""
    with torch.device("meta"):
        model = CPM()
    field, fields = 167, []
    for stage in model.stages:
        for convolution in stage:
            if isinstance(convolution, nn.Conv2d):
                field += 8 * (convolution.kernel_size[0] - 1)
                fields.append(field)
    assert fields[:3] == [247, 327, 407]
    assert field == 1367
    assert 1 + sum(convolution.kernel_size[0] - 1 for convolution in model.stages[0] if isinstance(convolution, nn.Conv2d)) == 31


def test_later_stages_see_the_maps_the_features_and_the_person() -> None:
    torch.manual_seed(0)
    model = CPM(num_joints=3, stages=2, width=0.05, init="he").eval()
    seen = []
    model.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(1, 3, 64, 64)
    first, _ = model(images, torch.tensor([[20.0, 30.0]]))
    features = model.features[0](model.trunk(model.pixels(images)))
    assert torch.equal(seen[0][:, :-5], features)
    assert torch.equal(seen[0][:, -5:-1], first)
    x, y = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy")
    gaussian = torch.exp(-((x - 20) ** 2 + (y - 30) ** 2) / (2 * 21**2))
    patches = [gaussian[8 * row : 8 * row + 9, 8 * column : 8 * column + 9].mean() for row in range(8) for column in range(8)]
    torch.testing.assert_close(seen[0][0, -1].flatten(), torch.stack(patches))
    model.train()(images, torch.tensor([[0.0, 0.0]]))
    assert seen[1][0, -1, -1, -1] < seen[1][0, -1].max() * 0.1
    model.eval()(images)
    assert seen[2][0, -1].argmax() in (27, 28, 35, 36)  # the middle


def test_everyone_is_the_target_of_the_first_stage_alone() -> None:
    torch.manual_seed(0)
    model = CPM(num_joints=2, stages=3, width=0.02)
    assert model.stage_targets == ("everyone", "person", "person")
    codec = model.default_codec(64)
    people = torch.tensor([[[[12.0, 15.0], [40.0, 44.0]], [[33.0, 20.0], [torch.nan, 0.0]]]])  # (1, 2, 2, 2)
    everyone, person = codec.encode(people), codec.encode(people[:, 0])
    assert not torch.equal(everyone, person)
    perfect = model.loss([everyone, person, person], people)
    assert perfect.shape == (3,)
    assert perfect.max() < 1e-9
    swapped = model.loss([person, everyone, person], people)
    assert (swapped[:2] > 0.1).all()
    assert torch.equal(model.loss([person] * 3, people[:, 0]), codec.loss([person] * 3, people[:, 0]))
    # Half the sum of squares, divided by the batch.
    zeros = torch.zeros_like(person)
    torch.testing.assert_close(model.loss([zeros] * 3, people[:, 0])[0], person.square().sum() / 2)


def test_visible_goes_with_the_people() -> None:
    model = CPM(num_joints=2, stages=2, width=0.02)
    people = torch.tensor([[[[12.0, 15.0], [40.0, 44.0]], [[33.0, 20.0], [50.0, 50.0]]]])
    visible = torch.tensor([[[1, 0], [1, 1]]])
    codec = model.default_codec(64)
    targets = [codec.encode(people, visible), codec.encode(people[:, 0], visible[:, 0])]
    assert model.loss(targets, people, visible).max() < 1e-9


def test_learning_rates_by_group() -> None:
    model = CPM(num_joints=2, stages=2, width=0.02)
    groups = model.parameter_groups(8e-5, 5e-4)
    rate_of = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        factor = (5 if name.startswith("stage1.") else 1) * (2 if name.endswith("bias") else 1)
        lr, decay = rate_of[id(parameter)]
        assert lr == pytest.approx(8e-5 * factor)
        assert decay == (0 if name.endswith("bias") else 5e-4)
    vgg = create_model("cpm", config="vgg", num_joints=2, stages=2, width=0.02)
    rates = {
        name: group["lr"]
        for group in vgg.parameter_groups(1.0)
        for name, parameter in vgg.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert rates["trunk.0.weight"] == rates["stage1.0.weight"] == 1
    assert rates["stages.0.0.weight"] == 4
    assert rates["stages.0.0.bias"] == 8


def test_initialization() -> None:
    torch.manual_seed(0)
    model = CPM(num_joints=2, stages=2, width=0.2)
    weights = torch.cat([layer.weight.flatten() for layer in model.modules() if isinstance(layer, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert all((layer.bias == 0).all() for layer in model.modules() if isinstance(layer, nn.Conv2d))
    he = CPM(num_joints=2, stages=2, width=0.2, init="he").trunk[3]
    assert he.weight.std().item() == pytest.approx(math.sqrt(2 / (he.in_channels * 81)), rel=0.05)


def test_pixels_are_those_of_the_release() -> None:
    images = torch.rand(1, 3, 2, 2)
    bgr = images.flip(1) * 255
    torch.testing.assert_close(Pixels("cpm")(images), bgr / 256 - 0.5)
    assert CPM.padding * 255 / 256 - 0.5 == 0
    mean = torch.tensor((117.3785, 117.6438, 110.1771)).view(3, 1, 1)
    torch.testing.assert_close(Pixels("ief")(images), images * 255 - mean)
    standard = Pixels("standardized")(images)
    torch.testing.assert_close(standard.mean((-2, -1)), torch.zeros(1, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(standard.std((-2, -1), correction=0), torch.ones(1, 3))
    assert Pixels("standardized")(torch.full((1, 3, 2, 2), 0.3)).abs().max() < 1e-3


class Spotter(HeatmapModel):
    """Finds the brightest spot in each channel; its second stage ignores what is right of the person."""

    stride = 8
    codec_preset = "tompson"
    stage_names = ("all", "left")
    padding = 0.25
    seen: torch.Tensor

    def heatmaps(self, view):
        self.seen = view.images
        maps = nn.functional.avg_pool2d(view.images - self.padding, 8)
        columns = 8 * torch.arange(maps.shape[-1]) + 3.5
        return [maps, maps * (columns < view.middle()[:, 0, None, None, None])]


def spots(points: list[tuple[float, float]], size: int, sigma: float = 6.0) -> torch.Tensor:
    grid = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="xy")
    return torch.stack([torch.exp(-((grid[0] - x) ** 2 + (grid[1] - y) ** 2) / (2 * sigma**2)) for x, y in points])[None]


def test_scales_are_averaged_on_the_pixels_of_the_crop() -> None:
    points = [(40.0, 90.0), (47.0, 33.0), (100.0, 70.0)]
    images = 0.25 + 0.5 * spots(points, 128)
    model = Spotter()
    stages = predict_multiscale(model, images)
    assert stages.names == ("all", "left")
    assert stages.coordinates.shape == (2, 1, 3, 2)
    # An eighth of the distance between cells.
    torch.testing.assert_close(stages.coordinates[0, 0], torch.tensor(points), rtol=0, atol=1.0)
    torch.testing.assert_close(stages.coordinates[1, 0, :2], torch.tensor(points[:2]), rtol=0, atol=1.0)
    one = predict_multiscale(model, images, scales=(1.0,))
    assert torch.equal(model.seen, images)
    torch.testing.assert_close(one.coordinates[0], stages.coordinates[0], rtol=0, atol=1.0)
    # The person is elsewhere, at every scale.
    other = predict_multiscale(model, images, center=torch.tensor([[80.0, 64.0]]))
    torch.testing.assert_close(other.coordinates[1, 0, :2], torch.tensor(points[:2]), rtol=0, atol=1.0)
    assert predict_multiscale(model, images, center=torch.tensor([[20.0, 64.0]])).scores[1, 0, 1] < 0.1 * other.scores[1, 0, 1]


def test_small_scales_see_more_of_the_source() -> None:
    """A spot outside of the crop is seen, but has no place in it."""
    source = 0.25 + 0.5 * spots([(30.0, 64.0)], 128)
    affine = torch.tensor([[[1.0, 0, 32], [0, 1, 32]]])  # the crop is the middle of the source
    images = source.expand(1, 3, -1, -1)[:, :, 32:96, 32:96].contiguous()
    model = Spotter()
    stages = predict_multiscale(model, images, scales=(0.5,), source=Source(source.expand(1, 3, -1, -1), affine))
    assert model.seen[0, 0, :, 15].argmax() == 32
    assert stages.coordinates[0, 0, 0, 0] <= 4  # the nearest that the crop has
    alone = predict_multiscale(model, images, scales=(0.5,))
    assert (model.seen[0, 0, :, :8] - 0.25).abs().max() < 1e-6
    assert alone.scores.max() < stages.scores.max()


def test_scales_are_checked() -> None:
    model = CPM(num_joints=2, stages=1, width=0.02).eval()
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="scales: got none"):
        predict_multiscale(model, images, scales=())
    with pytest.raises(ValueError, match="scales: got 0"):
        predict_multiscale(model, images, scales=(1, 0))
    with pytest.raises(ValueError, match=r"images: got shape \(1, 3, 64, 80\), allowed are squares"):
        predict_multiscale(model, torch.rand(1, 3, 64, 80))


def test_cpm_predicts_at_several_scales() -> None:
    """Maps of all joints without the background, by the codec of the model."""
    torch.manual_seed(0)
    model = CPM(num_joints=2, stages=2, width=0.05, init="he").eval()
    images = torch.rand(2, 3, 64, 64)
    stages = predict_multiscale(model, images, scales=(0.8, 1.0))
    assert stages.coordinates.shape == (2, 2, 2, 2)
    codec = HeatmapCodec.preset("cpm", 64)
    assert predict_multiscale(model, images, scales=(1.0,), codec=codec).scores.isfinite().all()
