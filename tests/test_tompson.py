"""Tompson's coarse and fine models: banks, where shared features lie, gradients, losses."""

from __future__ import annotations

import pytest
import torch
from receptive import positive, seen_columns
from torch import nn
from torch.nn import functional

from fastpose.models import Tompson, create_model
from fastpose.models.tompson import TompsonMaps
from fastpose.models.tompson_parts import Bank, FineModel, Tap
from fastpose.ops import local_contrast_normalization

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"num_joints": 3, "features": 4, "wide": 6, "head": 5, "fine_size": 12}


def small(**options: object) -> Tompson:
    torch.manual_seed(0)
    return Tompson(**{**SMALL, **options})


def pictures(height: int = 64, width: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- coarse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "maps"), [(4, (60, 90)), (8, (30, 45)), (16, (15, 22))])
def test_maps_of_flic(pooling: int, maps: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = Tompson(pooling=pooling)
        bank, taps = model.coarse.banks[0](torch.empty(1, 3, 240, 360))
        outputs = model(torch.empty(1, 3, 240, 360))
    assert bank.shape == (1, 512, *maps)
    assert [tuple(tap.shape) for tap in taps] == [(1, 128, 120, 180), (1, 128, 60, 90)]
    assert outputs.coarse.shape == (1, 14, *maps)
    assert outputs.fine.shape == (1, 14, 36, 36)
    # 360 is no multiple of 16: the last 8 columns belong to no cell.
    assert model.default_codec((240, 360)).input_size == (maps[0] * pooling, maps[1] * pooling)
    assert model.default_codec((240, 360)).heatmap_size == maps


def test_layers_of_a_bank_and_of_the_head() -> None:
    with torch.device("meta"):
        model = Tompson(extra_convs=2)
    bank = [layer for layer in model.coarse.banks[2].modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, *layer.kernel_size) for layer in bank] == [(128, 5, 5)] * 5 + [(512, 9, 9)]
    head = [type(layer).__name__ for layer in model.coarse.head]
    assert head == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
    assert [layer.out_channels for layer in model.coarse.head if isinstance(layer, nn.Conv2d)] == [256, 256, 14]
    assert isinstance(model.coarse.dropout, nn.Dropout2d)  # whole channels
    assert len({id(parameter) for bank in model.coarse.banks for parameter in bank.parameters()}) == 3 * 2 * 6


@pytest.mark.parametrize(("pooling", "field"), [(4, 64), (8, 100), (16, 172)])
def test_receptive_field_of_a_bank(pooling: int, field: int) -> None:
    torch.manual_seed(0)
    bank = positive(Bank(pooling, 1, 1, 0, "pool").double())
    columns = seen_columns(lambda images: bank(images)[0], width=256, height=16)
    middle = len(columns) // 2
    for cell in (middle - 1, middle):
        first, last = columns[cell]
        assert last - first + 1 == field
        assert (first + last) / 2 == pooling * (cell + 0.5) - 0.5  # in the middle of its pixels


def test_banks_see_a_pyramid_of_local_contrast_and_are_summed_up() -> None:
    model = small(fine=False).eval()
    images = pictures()
    total = 0
    for level, bank in enumerate(model.coarse.banks):
        shrunk = functional.avg_pool2d(images, 2**level)
        x, _ = bank(local_contrast_normalization(shrunk, 9))
        total = total + functional.interpolate(x, scale_factor=2.0**level, mode="nearest")
    torch.testing.assert_close(model(images).coarse, model.coarse.head(total))


def test_brightness_and_contrast_do_not_matter() -> None:
    model = small(fine=False).eval()
    images = pictures()
    torch.testing.assert_close(model(images).coarse, model(0.3 + 0.5 * images).coarse, rtol=1e-3, atol=1e-4)


def test_where_poolings_leave_pixels_out_the_last_cell_stands_in() -> None:
    """72 pixels are 18 cells of the first bank, but 2 of 4 and 1 of 4 times the size in the others."""
    model = small(fine=False, pooling=8).eval()
    assert model(pictures(72, 88)).coarse.shape == (2, 3, 9, 11)


def test_images_that_leave_no_cell_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: got shape \(2, 3, 64, 60\), the least side that leaves a cell is 64"):
        small(pooling=16)(pictures(64, 60))
    with pytest.raises(ValueError, match="images: got 64 by 72 pixels, allowed are positive multiples of 32"):
        create_model("tompson", config="modern", width=2, head=4, features=4, layers=(1, 1, 1, 1))(pictures(64, 72))


def test_hint_tells_who_is_meant() -> None:
    model = small(fine=False, hint_sigma=8.0).eval()
    images = pictures()
    here, there = (model(images, torch.tensor([[x, 20.0]] * 2)).coarse for x in (10.0, 50.0))
    assert not torch.allclose(here, there)
    torch.testing.assert_close(model(images).coarse, model(images, torch.full((2, 2), 31.5)).coarse)
    seen = []
    model.coarse.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, -1]))
    model(images, torch.tensor([[21.5, 9.5]] * 2))  # the middles of cells 5 and 2
    assert seen[0][0].argmax() == 2 * 16 + 5
    assert seen[0].max() == 1


# ---- fine -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"fine_tap": "pool"}, {"fine_tap": "conv"}, {"trunk": "resnet", "width": 1}])
def test_shared_features_lie_where_the_taps_say(options: dict) -> None:
    """What a cell sees is symmetric about its place."""
    torch.manual_seed(0)
    model = Tompson(num_joints=1, features=1, wide=1, head=1, fine_size=4, **{"layers": (1, 1, 1, 1), **options})
    positive(model.coarse.double())
    if "trunk" in options:
        trunk = model.coarse.trunk

        def features(images: torch.Tensor) -> list[torch.Tensor]:
            return trunk(images)[:2]

        strides, origins = [2, 4], [0.0, 0.0]
    else:
        banks = model.coarse.banks

        def features(images: torch.Tensor) -> list[torch.Tensor]:
            levels = [functional.avg_pool2d(images, 2**level) if level else images for level in range(3)]
            return [tap for level, bank in zip(levels, banks, strict=True) for tap in bank(level)[1]]

        first = 2 if options["fine_tap"] == "pool" else 1
        strides = [first, 2 * first, 2 * first, 4 * first, 4 * first, 8 * first]
        origins = [(stride - 1) / 2 for stride in strides]
    taps = model.coarse(torch.rand(1, 3, 32, 128, dtype=torch.float64), None)[1]
    assert [tap.stride for tap in taps] == model.coarse.strides == strides
    assert [tap.origin for tap in taps] == origins
    for index, tap in enumerate(taps):
        columns = seen_columns(lambda images, index=index: features(images)[index], width=128, height=16)
        cell = len(columns) // 2
        assert sum(columns[cell]) / 2 == tap.origin + tap.stride * cell


def test_windows_of_all_taps_show_the_same_pixels() -> None:
    torch.manual_seed(0)
    fine = FineModel(2, 36, [1] * 6, [2, 4, 4, 8, 8, 16], 1, 1, 1)
    assert fine.side == 72
    seen = []
    for path in fine.paths:
        path.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    taps = []
    for stride in (2, 4, 4, 8, 8, 16):  # each cell tells its own place in pixels
        origin = (stride - 1) / 2
        place = origin + stride * torch.arange(512.0 / stride)
        taps.append(Tap(place.expand(1, 1, len(place), len(place)).contiguous(), stride, origin))
    maps = fine(taps, torch.tensor([[[200.0, 220.0], [250.0, 300.0]]]))
    assert maps.shape == (1, 2, 36, 36)
    assert [windows.shape[-1] for windows in seen] == [36, 18, 18, 9, 9, 5]
    for windows in seen:
        cells = windows.shape[-1]
        expected = 200 + 72 * ((torch.arange(cells) + 0.5) / cells - 0.5)
        torch.testing.assert_close(windows[0, 0, 0], expected)


def test_joints_share_all_weights_but_the_last() -> None:
    """Same window, same hidden features; each joint reads them in its own way."""
    model = small().eval()
    outputs = model.fine(model.coarse(pictures(), None)[1], torch.full((2, 3, 2), 30.0))
    assert not torch.allclose(outputs[:, 0], outputs[:, 1])
    weight, bias = model.fine.joints.weight, model.fine.joints.bias
    assert weight.shape == (3, 5, 1)
    weight.data[1], bias.data[1] = weight.data[0], bias.data[0]
    outputs = model.fine(model.coarse(pictures(), None)[1], torch.full((2, 3, 2), 30.0))
    torch.testing.assert_close(outputs[:, 0], outputs[:, 1])


def test_fine_gradient_goes_through_the_features_but_not_through_the_maxima() -> None:
    model = small(jitter=0.0)
    outputs = model(pictures())
    assert not outputs.centers.requires_grad
    outputs.fine.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.coarse.head.parameters())
    for bank in model.coarse.banks:
        assert bank.conv1.weight.grad.abs().sum() > 0
        assert bank.conv2.weight.grad.abs().sum() > 0
        assert bank.conv4.weight.grad is None


def test_windows_are_jittered_in_training_alone() -> None:
    model = small(jitter=0.5).train()
    images = pictures(batch=16)
    model.coarse.dropout.p = 0.0
    outputs = model(images)
    maxima = model.codec_of(outputs.coarse).decode(outputs.coarse.detach(), method="argmax").coordinates
    shift = outputs.centers - maxima
    assert shift.abs().max() <= 2.0  # half a cell of 4 pixels
    assert shift.abs().max() > 1.5
    outputs = model.eval()(images)
    assert torch.equal(outputs.centers, model.codec_of(outputs.coarse).decode(outputs.coarse, method="argmax").coordinates)


def test_fine_prediction_is_the_maximum_in_the_window() -> None:
    """Cells of the window are 2 pixels; its middle is between the two middle ones."""
    model = small().eval()
    images = pictures()
    maps = torch.zeros(2, 3, 12, 12)
    maps[..., 3, 8] = 0.7  # y, x
    model.fine.forward = lambda taps, centers: maps
    stages = model.predict(images)
    assert stages.names == ("coarse", "fine")
    shift = torch.tensor([2 * (8 - 5.5), 2 * (3 - 5.5)])
    torch.testing.assert_close(stages.coordinates[1], stages.coordinates[0] + shift)
    torch.testing.assert_close(stages.scores[1], torch.full((2, 3), 0.7))


def test_losses_are_those_of_the_maps_and_of_the_windows() -> None:
    model = small(fine_weight=0.1)
    labels = torch.tensor([[[20.0, 30.0], [41.0, 17.0], [50.0, 9.0]]])
    centers = labels + torch.tensor([[3.0, -2.0], [40.0, 0.0], [-4.0, 5.0]])  # the second is not in its window
    coarse = model.default_codec(64).encode(labels)
    x, y = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="xy")
    fine = torch.rand(1, 3, 12, 12)
    outputs = TompsonMaps(coarse, fine, centers)
    losses = model.loss(outputs, labels)
    expected = 0.0
    for joint in (0, 2):
        place = (labels - centers)[0, joint] / 2 + 5.5
        target = torch.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 1.5**2))
        expected = expected + (fine[0, joint] - target).square().sum()
    torch.testing.assert_close(losses, torch.stack((torch.tensor(0.0), 0.1 * expected)))
    assert model.loss(TompsonMaps(coarse, None, None), labels).shape == (1,)
    # A joint without a label has no loss in either.
    visible = torch.tensor([[0, 1, 0]])
    torch.testing.assert_close(model.loss(outputs, labels, visible), torch.zeros(2))
    hidden = torch.where(visible.bool().unsqueeze(-1), labels, torch.nan)
    torch.testing.assert_close(model.loss(outputs, hidden), torch.zeros(2))
    several = torch.stack((labels, labels + 5), 1)
    torch.testing.assert_close(model.loss(outputs, several, torch.ones(1, 2, 3)), losses)


def test_phases() -> None:
    model = small()
    assert model.phases == ("coarse", "fine", "joint")
    assert model.phase_modules("coarse") == [model.coarse]
    assert model.phase_modules("fine") == [model.fine]
    assert model.phase_modules("joint") == [model.coarse, model.fine]
    assert model(pictures(), fine=False).fine is None
    alone = small(fine=False)
    assert alone.phases == alone.stage_names == ("coarse",)
    assert alone(pictures()).fine is None


def test_initialization_is_torchs() -> None:
    model = small(features=32)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.abs().max() <= layer.weight[0].numel() ** -0.5


def test_modern_trunk_has_cells_of_four_pixels() -> None:
    model = create_model("tompson", config="modern", width=2, head=4, features=4, layers=(1, 1, 1, 1)).eval()
    outputs = model(pictures())
    assert outputs.coarse.shape == (2, 16, 16, 16)
    assert model.default_codec().mapping == "udp"
