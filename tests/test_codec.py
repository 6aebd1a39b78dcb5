"""HeatmapCodec: the presets against the formulas of their papers, loss against encode, decode against encode."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

from fastpose.codec import PRESETS, HeatmapCodec
from fastpose.ops import decode_heatmaps

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_ROUNDED = ("torch7_hourglass", "pytorch_pose", "msra", "ief", "tompson")
_EDGE_BASED = ("torch7_hourglass", "pytorch_pose", "msra")  # take keypoints from the left edge of pixel 0
_SIZES = {"cpm": (128, 96), "ief": (32, 24)}


def codec_of(name: str, **overrides: Any) -> HeatmapCodec:
    """Small and not square."""
    return HeatmapCodec.preset(name, _SIZES.get(name, (64, 48)), **overrides)


def random_keypoints(codec: HeatmapCodec, *shape: int, seed: int = 0) -> torch.Tensor:
    """Float64, inside the input and a little outside; one of them without a label."""
    unit = torch.rand(*shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    keypoints = (1.2 * unit - 0.1) * torch.tensor(codec.input_size[::-1])
    keypoints.view(-1, 2)[1] = math.nan
    return keypoints


def cells(codec: HeatmapCodec) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, x) of all cells, float64."""
    height, width = codec.heatmap_size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return y.double(), x.double()


presets = pytest.mark.parametrize("name", PRESETS)


# ---- targets: the formulas of the papers, point by point ----------------------------------------------------------


def test_torch7_target_is_the_published_patch() -> None:
    codec = codec_of("torch7_hourglass")
    keypoint = torch.tensor([[[21.9, 33.0]]], dtype=torch.float64)  # cell (5, 8)
    target = codec.encode(keypoint)[0, 0]
    sigma = 0.25 * 7  # image.gaussian(7): a quarter of the side
    assert target[8, 2:9].tolist() == pytest.approx([math.exp(-0.5 * (d / sigma) ** 2) for d in range(-3, 4)])
    assert target.nonzero().amin(0).tolist() == [5, 2]
    assert target.nonzero().amax(0).tolist() == [11, 8]


@pytest.mark.parametrize(("name", "sigma"), [("pytorch_pose", 1), ("msra", 2), ("udp", 2)])
def test_patch_presets_draw_what_their_code_pastes(name: str, sigma: int) -> None:
    codec = codec_of(name)
    keypoint = torch.tensor([29.3, 37.1], dtype=torch.float64)
    stride = 4.0 if name != "udp" else torch.tensor([47 / 11, 63 / 15], dtype=torch.float64)
    point = keypoint / stride
    corner = (point if name == "pytorch_pose" else point + 0.5).int()
    centre = point if name == "udp" else corner.double()
    side = torch.arange(6 * sigma + 1) - 3 * sigma
    patch_x, patch_y = (torch.exp(-((corner[i] + side - centre[i]) ** 2) / (2 * sigma**2)) for i in (0, 1))
    expected = torch.zeros(100, 100, dtype=torch.float64)  # a map with a frame of 40 cells, from which nothing is cut
    rows, columns = 40 + corner[1] + side, 40 + corner[0] + side
    expected[rows[:, None], columns] = patch_y[:, None] * patch_x
    height, width = codec.heatmap_size
    torch.testing.assert_close(codec.encode(keypoint.view(1, 1, 2))[0, 0], expected[40 : 40 + height, 40 : 40 + width])


def test_cpm_target_is_that_of_the_caffe_layer() -> None:
    codec = codec_of("cpm")
    people = torch.tensor([[[40.0, 50.0], [47.0, 52.0]], [[45.5, 61.0], [90.0, 1.0]]], dtype=torch.float64)
    y, x = cells(codec)
    expected = torch.zeros(3, *codec.heatmap_size, dtype=torch.float64)
    for person in people:
        for joint, (px, py) in enumerate(person):
            exponent = ((8 * x + 3.5 - px) ** 2 + (8 * y + 3.5 - py) ** 2) / (2 * 7**2)
            expected[joint] += torch.where(exponent > 4.6052, 0, torch.exp(-exponent))
    expected = expected.clamp(max=1)
    expected[2] = (1 - expected[:2].amax(0)).clamp(min=0)
    torch.testing.assert_close(codec.encode(people[None])[0], expected)


def test_ief_target_is_that_of_the_released_layer() -> None:
    codec = codec_of("ief")
    y, x = cells(codec)
    expected = 100 * torch.exp(-0.001 * ((x - 12) ** 2 + (y - 7) ** 2)) - 50
    keypoints = torch.tensor([[[11.6, 7.4], [math.nan, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(codec.encode(keypoints)[0, 0], expected)
    assert (codec.encode(keypoints)[0, 1] == -50).all()


def test_tompson_target_is_sub_pixel() -> None:
    codec = codec_of("tompson")
    y, x = cells(codec)
    expected = torch.exp(-((4 * x + 1.5 - 20) ** 2 + (4 * y + 1.5 - 31) ** 2) / (2 * (4 * 1.5) ** 2))
    torch.testing.assert_close(codec.encode(torch.tensor([[[20.0, 31.0]]]).double())[0, 0], expected)


@presets
def test_background_of_one_person_is_what_is_left_by_the_joints(name: str) -> None:
    codec = codec_of(name)
    keypoints = random_keypoints(codec, 3, 4)
    maps = codec.encode(keypoints)
    assert maps.shape == (3, codec.num_channels(4), *codec.heatmap_size)
    assert codec.num_channels(4) == (5 if name == "cpm" else 4)
    if name == "cpm":
        torch.testing.assert_close(maps[:, 4], 1 - maps[:, :4].amax(1))


def test_sigma_in_input_pixels_follows_the_stride() -> None:
    fine = HeatmapCodec.preset("cpm", 368, 92)
    assert (fine.sigma, fine.radius) == pytest.approx((7 / 4, 7 / 4 * math.sqrt(2 * 4.6052)))
    assert HeatmapCodec.preset("cpm", 368, sigma=2.0).sigma == 2.0
    assert HeatmapCodec.preset("msra", 384, sigma=3.0).radius == 9.0
    assert HeatmapCodec.preset("torch7_hourglass", 256, sigma=3.25).radius == 6.0  # a patch of 13 cells


# ---- coordinates ----------------------------------------------------------------------------------------------------


def test_mappings_put_cells_where_they_say() -> None:
    def input_of(mapping: str, x: float, y: float) -> list[float]:
        codec = HeatmapCodec(input_size=(120, 80), heatmap_size=(30, 10), sigma=1.0, mapping=mapping)
        return codec.to_input(torch.tensor([x, y], dtype=torch.float64)).tolist()

    assert input_of("corner", 0, 0) == [0, 0]
    assert input_of("corner", 10, 30) == pytest.approx([80, 120])
    assert input_of("centre", 0, 0) == [3.5, 1.5]  # of 8 and of 4 pixels
    assert input_of("centre", 9, 29) == pytest.approx([75.5, 117.5])
    assert input_of("udp", 0, 0) == [0, 0]
    assert input_of("udp", 9, 29) == pytest.approx([79, 119])


@presets
def test_points_go_there_and_back(name: str) -> None:
    codec = codec_of(name)
    points = random_keypoints(codec, 5, 3)
    torch.testing.assert_close(codec.to_input(codec.to_heatmap(points)), points, equal_nan=True)


@pytest.mark.parametrize("mapping", ["centre", "udp", "corner"])
def test_only_centre_and_udp_commute_with_mirroring(mapping: str) -> None:
    codec = HeatmapCodec(input_size=(120, 80), heatmap_size=(30, 10), sigma=1.0, mapping=mapping)
    points = torch.tensor([[10.0, 5.0], [33.3, 70.0]], dtype=torch.float64)
    mirror = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    in_input = codec.to_heatmap(points * mirror + torch.tensor([79.0, 0.0]))
    in_heatmap = codec.to_heatmap(points) * mirror + torch.tensor([9.0, 0.0])
    assert torch.allclose(in_input, in_heatmap) == (mapping != "corner")


def test_half_precision_keypoints_keep_their_place() -> None:
    codec = HeatmapCodec.preset("udp", 1024)
    points = torch.tensor([[[800.0, 404.0]]], dtype=torch.bfloat16)
    assert codec.to_heatmap(points).dtype == torch.float32
    assert torch.equal(codec.encode(points, dtype=torch.float32), codec.encode(points.float()))
    assert codec.encode(points).dtype == torch.bfloat16


@presets
@pytest.mark.parametrize("method", ["argmax", "quarter", "dark", "soft_window"])
def test_decode_with_affine_is_decode_then_affine(name: str, method: str) -> None:
    codec = codec_of(name)
    maps = codec.encode(torch.tensor([[[21.0, 17.5], [11.0, 13.2]], [[14.1, 19.9], [18.0, 9.5]]], dtype=torch.float64))
    affine = torch.tensor([[[0.5, 2, 3], [-4, 1, 0]], [[1, 0, -7], [0.2, 3, 9]]], dtype=torch.float64)
    if name == "ief" and method == "dark":  # its blur would be 113 cells wide
        with pytest.raises(ValueError, match="blur_size"):
            codec.decode(maps, method=method)
        return
    plain = codec.decode(maps, method=method)
    mapped = codec.decode(maps, method=method, affine=affine)
    expected = torch.einsum("bij,bkj->bki", affine[:, :, :2], plain.coordinates) + affine[:, None, :, 2]
    torch.testing.assert_close(mapped.coordinates, expected)
    assert torch.equal(mapped.scores, plain.scores)
    assert plain.scores.shape == (2, 2)  # without CPM's background


@pytest.mark.parametrize("mapping", ["centre", "corner", "udp"])
def test_axes_are_not_confused(mapping: str) -> None:
    codec = HeatmapCodec(
        input_size=(120, 80), heatmap_size=(30, 10), sigma=1.0, mapping=mapping, method="argmax", decode_offset=0.25
    )
    maps = torch.zeros(1, 1, 30, 10, dtype=torch.float64)
    maps[0, 0, 20, 3] = 1
    expected = codec.to_input(torch.tensor([3.25, 20.25], dtype=torch.float64))
    torch.testing.assert_close(codec.decode(maps).coordinates[0, 0], expected)
    twice = torch.tensor([[[2.0, 0, 5], [0, 2, -1]]], dtype=torch.float64)
    torch.testing.assert_close(codec.decode(maps, affine=twice).coordinates[0, 0], 2 * expected + torch.tensor([5.0, -1.0]))


@pytest.mark.parametrize(("sigma", "size"), [(2.0, 11), (3.0, 17)])
def test_dark_blurs_with_the_published_kernels(sigma: float, size: int) -> None:
    codec = HeatmapCodec.preset("udp", 128, sigma=sigma)
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = codec.encode(torch.tensor([[[60.0, 70.0]] * 3] * 2)) + 0.5 * noise
    expected = decode_heatmaps(maps, "dark", blur_sigma=sigma, blur_size=size).coordinates
    assert torch.equal(codec.decode(maps).coordinates, codec.to_input(expected))


@pytest.mark.parametrize(("name", "first", "last"), [("torch7_hourglass", 1, 10), ("pytorch_pose", 1, 10), ("msra", 2, 10)])
def test_quarter_offset_stops_where_its_code_does(name: str, first: int, last: int) -> None:
    """Of 12 columns: 1 <= x <= W - 2 in the hourglass code, 1 < x < W - 1 in SimpleBaseline."""
    codec = codec_of(name)
    maps = torch.zeros(12, 1, 16, 12)
    column = torch.arange(12)
    maps[column, 0, 8, column] = 1
    maps[column[1:], 0, 8, column[:-1]] = 0.5  # pulls to the left
    x = codec.to_heatmap(codec.decode(maps).coordinates)[:, 0, 0] - codec.decode_offset
    moved = (x - column).abs() > 0.1
    assert moved.nonzero().flatten().tolist() == list(range(first, last + 1))


def test_decode_is_differentiable_where_the_method_is() -> None:
    codec = codec_of("udp", method="soft_window", soft_temperature=0.1)
    maps = codec.encode(torch.tensor([[[21.0, 17.5]]], dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(codec.decode(maps).coordinates[0, 0, 0], maps)
    _, x = cells(codec)
    moved = maps.detach() + 1e-6 * x  # tilts the map to the right
    assert (gradient * x).sum().item() > 0
    change = (codec.decode(moved).coordinates - codec.decode(maps).coordinates)[0, 0, 0] / 1e-6
    torch.testing.assert_close((gradient * x).sum(), change.detach(), rtol=1e-4, atol=0)


# ---- loss -----------------------------------------------------------------------------------------------------------


def loss_by_definition(
    codec: HeatmapCodec,
    prediction: torch.Tensor,
    keypoints: torch.Tensor,
    labelled: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The weighted mean squared error against encode(), with the codec's rules spelt out; ``labelled`` (B, K)."""
    target = codec.encode(keypoints)
    batch = len(target)
    factor = weights.expand(batch, -1)
    if codec.unlabelled == "ignore":
        factor = factor * labelled
    if codec.background:
        factor = torch.cat((factor, factor.new_ones(batch, 1)), 1)
    total = (factor[..., None, None] * (prediction - target) ** 2).sum()
    divisor = {"mean": target.numel(), "batchmean": batch, "half_batchmean": 2 * batch}[codec.reduction]
    return codec.loss_scale * total / divisor


@presets
@pytest.mark.parametrize("people", [0, 1, 3], ids=["one", "list of one", "three people"])
def test_loss_is_the_squared_error_to_encode(name: str, people: int) -> None:
    codec = codec_of(name)
    keypoints = random_keypoints(codec, 3, *[people] * (people > 0), 4)
    visible = torch.rand(keypoints.shape[:-1], generator=torch.Generator().manual_seed(1)) > 0.3
    visible[0, ..., 2] = False  # nobody's
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    stacks = [
        torch.randn(3, codec.num_channels(4), *codec.heatmap_size, dtype=torch.float64, generator=generator) for _ in range(2)
    ]
    ours = [stack.clone().requires_grad_() for stack in stacks]
    theirs = [stack.clone().requires_grad_() for stack in stacks]

    seen = torch.where(visible[..., None], keypoints, math.nan)
    labelled = seen.isfinite().all(-1)
    if codec.ignore_outside:
        labelled &= codec.encode(seen.view(-1, 1, 2)).amax((1, 2, 3)).view(labelled.shape) > 0
    labelled = labelled.any(1) if people else labelled
    assert not labelled.all()
    expected = torch.stack([loss_by_definition(codec, p, seen, labelled, weights) for p in theirs])
    expected.sum().backward()

    losses = codec.loss(ours, keypoints, visible, weights)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    losses.sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-12, atol=1e-15)
    single = codec.loss(stacks[0], keypoints, visible, weights)
    assert single.shape == ()
    torch.testing.assert_close(single, losses[0].detach(), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "half_batchmean"])
def test_background_shares_the_reduction(reduction: str) -> None:
    codec = codec_of("cpm", reduction=reduction)
    keypoints = random_keypoints(codec, 2, 3)
    prediction = torch.rand(2, 4, *codec.heatmap_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares = (prediction - codec.encode(keypoints)).square()
    divisor = {"mean": squares.numel(), "sum": 1, "batchmean": 2, "half_batchmean": 4}[reduction]
    torch.testing.assert_close(codec.loss(prediction, keypoints), squares.sum() / divisor, rtol=1e-12, atol=0)


def test_scaled_loss_leaves_the_upstream_gradient_alone() -> None:
    """The factor 1/2 is in the weights: were it outside, backward would write each gradient a second time."""
    codec = codec_of("msra")
    prediction = torch.rand(2, 3, *codec.heatmap_size).requires_grad_()
    loss = codec.loss(prediction, random_keypoints(codec, 2, 3).float())
    node, upstream = loss.grad_fn, []
    while "Loss" not in node.name():
        node = node.next_functions[0][0]
    node.register_prehook(lambda gradients: upstream.append(gradients[0].tolist()))
    loss.backward()
    assert upstream == [[1.0]]


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("pytorch_pose", -12, 60),  # cells -3 to 14 of 12, truncated
        ("msra", -26, 70),  # cells -6 to 17, rounded
        ("udp", -6.5 * 47 / 11, 17.5 * 47 / 11),
    ],
)
def test_keypoints_whose_patch_misses_the_map_are_ignored(name: str, lowest: float, highest: float) -> None:
    codec = codec_of(name)
    ones = torch.ones(1, 1, *codec.heatmap_size, dtype=torch.float64)
    for x, counts in [(lowest - 0.1, False), (lowest + 0.1, True), (highest - 0.1, True), (highest + 0.1, False)]:
        keypoint = torch.tensor([[[x, 20.0]]], dtype=torch.float64)
        assert (codec.loss(ones, keypoint) > 0) == counts
        assert (codec.encode(keypoint).amax() > 0) == counts


@pytest.mark.parametrize("name", ["torch7_hourglass", "cpm"])
def test_others_learn_that_there_is_nothing(name: str) -> None:
    codec = codec_of(name)
    keypoint = torch.tensor([[[-500.0, 20.0]]], dtype=torch.float64)
    target = codec.encode(keypoint)
    assert not target[:, 0].any()
    torch.testing.assert_close(codec.loss(target, keypoint).item(), 0.0)
    assert codec.loss(target + 1, keypoint) > 0


@presets
def test_loss_is_that_of_the_paper(name: str) -> None:
    codec = codec_of(name)
    keypoints = random_keypoints(codec, 2, 3)
    keypoints[0] = torch.tensor([[20.0, 12.0], [math.nan, math.nan], [9.0, 21.0]])
    target = codec.encode(keypoints)
    prediction = torch.rand(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labelled = (target != codec.offset).any(-1).any(-1)[:, :, None, None]
    masked = functional.mse_loss(prediction * labelled, target * labelled)
    summed = functional.mse_loss(prediction, target, reduction="sum")
    expected = {
        "torch7_hourglass": functional.mse_loss(prediction, target),
        "pytorch_pose": 0.5 * masked,
        "msra": 0.5 * masked,
        "udp": 0.5 * masked,
        "cpm": summed / (2 * len(target)),
        "ief": masked,
        "tompson": masked * target.numel() / len(target),
    }
    torch.testing.assert_close(codec.loss(prediction, keypoints), expected[name], rtol=1e-12, atol=0)


@presets
def test_predictions_in_half_precision(name: str) -> None:
    codec = codec_of(name)
    keypoints = random_keypoints(codec, 2, 4).float()
    prediction = torch.rand(2, codec.num_channels(4), *codec.heatmap_size, generator=torch.Generator().manual_seed(0))
    half = prediction.bfloat16().requires_grad_()
    loss = codec.loss(half, keypoints)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, codec.loss(half.detach().float(), keypoints))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.loss(prediction, keypoints), codec.loss(prediction, keypoints))
        torch.testing.assert_close(codec.loss(half.detach(), keypoints), loss.detach(), rtol=0, atol=0)


@presets
def test_nothing_in_the_batch(name: str) -> None:
    codec = codec_of(name)
    maps = codec.encode(torch.empty(0, 4, 2))
    assert maps.shape == (0, codec.num_channels(4), *codec.heatmap_size)
    assert codec.loss([maps, maps], torch.empty(0, 4, 2)).tolist() == [0, 0]
    assert codec.decode(maps).coordinates.shape == (0, 4, 2)


# ---- round trip -----------------------------------------------------------------------------------------------------


@functools.cache
def measurements() -> ModuleType:
    spec = importlib.util.spec_from_file_location("codec_table", _DOCS / "codec_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def round_trip(name: str, flip: bool) -> torch.Tensor:
    """(10000, 2) errors in cells."""
    return measurements().round_trip(measurements().codec_of(name), flip=flip).double()


def standard_error(values: torch.Tensor) -> torch.Tensor:
    return values.std(0) / len(values) ** 0.5


@presets
@pytest.mark.parametrize("flip", [False, True], ids=["plain", "flip test"])
def test_round_trip_without_bias(name: str, flip: bool) -> None:
    errors = round_trip(name, flip)
    bias = torch.zeros(2, dtype=torch.float64)
    if flip and name in _EDGE_BASED:
        # Half an input pixel, 1/8 cell, separates the two edges: for a quarter of the keypoints the mirrored cell is
        # the next one. There the first of two equal maxima wins and moves a quarter: -1/8, for the others +1/8.
        bias[0] = 1 / 4 * -1 / 8 + 3 / 4 * 1 / 8
    # DARK's remainder is a function of the place in the cell, symmetric up to the rounding of float32.
    assert ((errors.mean(0) - bias).abs() < 5 * standard_error(errors) + 1e-5).all()


@pytest.mark.parametrize("name", _EDGE_BASED)
def test_flip_bias_of_maps_without_ties(name: str) -> None:
    tables = measurements()
    errors = tables.round_trip(tables.codec_of(name), flip=True, noise=tables.NOISE).double()
    bias = torch.tensor([1 / 8, 0], dtype=torch.float64)  # half an input pixel
    assert ((errors.mean(0) - bias).abs() < 5 * standard_error(errors)).all()


@pytest.mark.parametrize("name", _ROUNDED)
def test_error_of_rounding_presets_is_that_of_a_cell(name: str) -> None:
    distance = round_trip(name, False).norm(dim=1)
    # Mean distance from the middle of a unit square, and its corner.
    expected = (math.sqrt(2) + math.asinh(1)) / 6
    assert (distance.mean() - expected).abs() < 5 * standard_error(distance)
    assert distance.max() < math.sqrt(0.5) + 1e-4


@pytest.mark.parametrize(("name", "most"), [("udp", 1e-3), ("cpm", 5e-3)])
@pytest.mark.parametrize("flip", [False, True], ids=["plain", "flip test"])
def test_sub_pixel_presets_lose_next_to_nothing(name: str, most: float, flip: bool) -> None:
    """What they lose is the part of the window that is cut off where the Gaussian is at 1 %."""
    assert round_trip(name, flip).norm(dim=1).max() < most


@pytest.mark.parametrize("name", _EDGE_BASED)
def test_centre_mapping_frees_the_published_conventions_of_their_flip_bias(name: str) -> None:
    codec = HeatmapCodec.preset(name, 256, **measurements().UNBIASED)
    errors = measurements().round_trip(codec, flip=True).double()
    assert (errors.mean(0).abs() < 5 * standard_error(errors)).all()
    assert errors.norm(dim=1).max() < math.sqrt(0.5) + 1e-4


def test_msra_needs_its_flip_shift() -> None:
    """Without it the mirrored maps lie 3/4 cell to the left."""
    codec = HeatmapCodec.preset("msra", 256, flip_shift=0)
    assert measurements().round_trip(codec, flip=True)[:, 0].mean() < -0.3


def test_documented_presets_are_the_presets() -> None:
    assert measurements().preset_table() in (_DOCS / "codec.md").read_text(encoding="utf-8")


# ---- a plain value --------------------------------------------------------------------------------------------------


@presets
def test_copies_are_equal(name: str) -> None:
    codec = codec_of(name)
    copies = [
        pickle.loads(pickle.dumps(codec)),
        copy.deepcopy(codec),
        HeatmapCodec.from_dict(codec.to_dict()),
        HeatmapCodec.from_dict(json.loads(json.dumps(codec.to_dict()))),
    ]
    assert {codec, *copies} == {codec}
    assert codec != codec_of(name, sigma=codec.sigma + 1)


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        codec_of("udp").sigma = 3.0  # type: ignore[misc]


class _EncodeLossDecode(torch.nn.Module):
    def __init__(self, codec: HeatmapCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, stacks: list[torch.Tensor], keypoints: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codec = self.codec
        decoded = codec.decode(stacks[-1], flipped=stacks[0], flip_permutation=[1, 0, 2], affine=affine)
        return codec.encode(keypoints), codec.loss(stacks, keypoints), decoded.coordinates, decoded.scores


def _example(codec: HeatmapCodec, batch: int = 2) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    shape = batch, codec.num_channels(3), *codec.heatmap_size
    stacks = [torch.rand(shape, generator=generator) for _ in range(2)]
    return stacks, random_keypoints(codec, batch, 3).float(), torch.rand(batch, 2, 3, generator=generator)


@presets
def test_compiles_in_one_graph(name: str) -> None:
    module = _EncodeLossDecode(codec_of(name))
    stacks, keypoints, affine = _example(module.codec)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for stack in stacks:
        stack.requires_grad_()
    results = compiled(stacks, keypoints, affine)
    expected = module(stacks, keypoints, affine)
    torch.testing.assert_close(results, expected)
    torch.testing.assert_close(torch.autograd.grad(results[1].sum(), stacks), torch.autograd.grad(expected[1].sum(), stacks))


@pytest.mark.parametrize("name", ["torch7_hourglass", "cpm"])
def test_exports_for_any_batch(name: str) -> None:
    module = _EncodeLossDecode(codec_of(name))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(module, _example(module.codec), dynamic_shapes=([batch, batch], batch, batch))
    inputs = _example(module.codec, batch=5)
    torch.testing.assert_close(exported.module()(*inputs), module(*inputs))


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input_size": (0, 64)}, ValueError, r"input_size\[0\]: got 0"),
        ({"heatmap_size": 1.5}, TypeError, r"heatmap_size: got 1\.5"),
        ({"sigma": 0.0}, ValueError, r"sigma: got 0\.0, allowed is a positive"),
        ({"sigma": (1.0, 2.0)}, TypeError, "sigma: got tuple"),
        ({"mapping": "pixel"}, ValueError, "mapping: got 'pixel', allowed are 'centre', 'corner', 'udp'"),
        ({"rounding": "up"}, ValueError, "rounding: got 'up'"),
        ({"radius": -1.0}, ValueError, r"radius: got -1\.0"),
        ({"window": "round"}, ValueError, "window: got 'round'"),
        ({"combine": "mean"}, ValueError, "combine: got 'mean'"),
        ({"amplitude": math.inf}, ValueError, "amplitude: got inf"),
        ({"offset": "0"}, TypeError, "offset: got str"),
        ({"background": 1}, TypeError, "background: got 1, allowed are True and False"),
        ({"background": True, "amplitude": 2.0}, ValueError, r"background: .* got 2\.0 and 0\.0"),
        ({"ignore_outside": None}, TypeError, "ignore_outside: got None"),
        ({"unlabelled": "skip"}, ValueError, "unlabelled: got 'skip'"),
        ({"reduction": "none"}, ValueError, "reduction: got 'none'"),
        ({"loss_scale": -0.5}, ValueError, r"loss_scale: got -0\.5"),
        ({"method": "taylor"}, ValueError, "method: got 'taylor'"),
        ({"border": "zero"}, ValueError, "border: got 'zero'"),
        ({"decode_offset": math.nan}, ValueError, "decode_offset: got nan"),
        ({"flip_shift": 0.5}, TypeError, r"flip_shift: got 0\.5, allowed is an integer"),
        ({"flip_shift": -1}, ValueError, "flip_shift: got -1"),
        ({"soft_radius": 0}, ValueError, "soft_radius: got 0"),
        ({"soft_temperature": 0.0}, ValueError, r"soft_temperature: got 0\.0"),
        ({"mapping": "udp", "heatmap_size": (1, 16)}, ValueError, "mapping: 'udp' needs sizes of at least 2"),
    ],
)
def test_wrong_fields_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    values = {"input_size": (64, 64), "heatmap_size": (16, 16), "sigma": 2.0}
    HeatmapCodec(**values)
    with pytest.raises(error, match=message):
        HeatmapCodec(**values | changes)


def test_wrong_presets_are_refused() -> None:
    with pytest.raises(ValueError, match="name: got 'hrnet', allowed are 'torch7_hourglass', 'pytorch_pose'"):
        HeatmapCodec.preset("hrnet", 256)
    with pytest.raises(ValueError, match=r"input_size: got \(100, 98\), which is no multiple of msra's stride 4"):
        HeatmapCodec.preset("msra", (100, 98))
    with pytest.raises(ValueError, match=r"heatmap_size: got \(46, 23\) for the input \(368, 368\)"):
        HeatmapCodec.preset("cpm", 368, (46, 23))
    with pytest.raises(TypeError, match="sigmas: a codec has no such field, allowed are input_size"):
        HeatmapCodec.preset("msra", 256, sigmas=3.0)
    with pytest.raises(TypeError, match="blur: a codec has no such field"):
        HeatmapCodec.from_dict({**codec_of("msra").to_dict(), "blur": 3})
    with pytest.raises(TypeError, match="sigma"):
        HeatmapCodec.from_dict({"input_size": (64, 64), "heatmap_size": (16, 16)})


def test_wrong_arguments_are_refused() -> None:
    codec = codec_of("cpm")  # maps of 16 x 12
    maps, keypoints = torch.zeros(2, 4, 16, 12), torch.zeros(2, 3, 2)

    def refused(error: type[Exception], message: str, call: Any, *args: Any, **options: Any) -> None:
        with pytest.raises(error, match=message):
            call(*args, **options)

    refused(TypeError, "keypoints: got dtype torch.int64", codec.encode, keypoints.long())
    refused(ValueError, r"keypoints: got shape \(2, 3, 3\)", codec.encode, torch.zeros(2, 3, 3))
    refused(ValueError, r"visible: got shape \(2, 1\)", codec.encode, keypoints, torch.ones(2, 1))
    refused(ValueError, r"points: got shape \(3,\)", codec.to_input, torch.zeros(3))
    refused(TypeError, "predictions: got NoneType", codec.loss, None, keypoints)
    refused(ValueError, "predictions: got an empty list", codec.loss, [], keypoints)
    refused(ValueError, r"predictions\[1\]: got maps of \(12, 16\)", codec.loss, [maps, maps.mT], keypoints)
    refused(
        ValueError,
        "predictions: got 3 channels, allowed are 4 for 3 joints and the background",
        codec.loss,
        maps[:, :3],
        keypoints,
    )
    refused(ValueError, r"visible: got shape \(2, 1\)", codec.loss, maps, keypoints, torch.ones(2, 1))
    refused(TypeError, "weights: got list", codec_of("msra").loss, maps[:, :3], keypoints, None, [1, 1, 1])
    refused(ValueError, "heatmaps: got maps of", codec.decode, maps[..., 1:])
    refused(ValueError, "flipped: got maps of", codec.decode, maps, flipped=maps[..., 1:])
    refused(ValueError, "flip_permutation: got", codec.decode, maps, flipped=maps, flip_permutation=[0, 1, 2, 3])
    refused(ValueError, "method: got 'taylor'", codec.decode, maps, method="taylor")
    refused(TypeError, "affine: got list", codec.decode, maps, affine=[1, 0, 0])
    refused(ValueError, r"affine: got shape \(2, 3\)", codec.decode, maps, affine=torch.eye(2, 3))
    refused(ValueError, r"affine: got shape \(1, 2, 3\)", codec.decode, maps, affine=torch.zeros(1, 2, 3))
