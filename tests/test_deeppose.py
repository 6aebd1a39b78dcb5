"""DeepPose: layers, the cascade's geometry, simulated predictions, windows from the original image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastpose.models import DeepPose, Source, View, create_model
from fastpose.models.alexnet import AlexNet
from fastpose.models.windows import Windows, cut_windows
from fastpose.skeletons import COCO, FLIC, LSP, MPII

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"input_size": 64, "width": 0.05, "fc_dims": (8,), "init": "he"}


def small(**options: object) -> DeepPose:
    torch.manual_seed(0)
    return DeepPose(**{**SMALL, **options})


def keypoints(batch: int = 3, seed: int = 1) -> torch.Tensor:
    return 10 + 44 * torch.rand(batch, 14, 2, generator=torch.Generator().manual_seed(seed))


# ---- networks -------------------------------------------------------------------------------------------------------


def test_maps_are_55_27_13_and_6_wide() -> None:
    with torch.device("meta"):
        network = AlexNet(28, 220)
        x, sizes, words = torch.empty(1, 3, 220, 220), [], []
        for layer in network.features:
            x = layer(x)
            words.append(type(layer).__name__)
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                sizes.append(tuple(x.shape[1:]))
    assert sizes == [
        (96, 55, 55),
        (96, 27, 27),
        (256, 27, 27),
        (256, 13, 13),
        (384, 13, 13),
        (384, 13, 13),
        (256, 13, 13),
        (256, 6, 6),
    ]
    normalized = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert words == [*normalized, *normalized, *["Conv2d", "ReLU"] * 3, "MaxPool2d", "Flatten"]
    head = [(layer.in_features, layer.out_features) for layer in network.head if isinstance(layer, nn.Linear)]
    assert head == [(9216, 4096), (4096, 4096), (4096, 28)]
    assert [layer.p for layer in network.head if isinstance(layer, nn.Dropout)] == [0.6, 0.6]


def test_response_normalisation_is_that_of_alexnet() -> None:
    layer = next(module for module in AlexNet(2, 64, width=0.1).modules() if isinstance(module, nn.LocalResponseNorm))
    x = torch.rand(1, 7, 2, 2) * 50
    squares = nn.functional.pad(x.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    torch.testing.assert_close(layer(x), x / (2 + 1e-4 * squares) ** 0.75)


def test_groups_see_half_of_the_channels() -> None:
    with torch.device("meta"):
        network = AlexNet(28, 220, groups=2)
    assert [layer.groups for layer in network.features if isinstance(layer, nn.Conv2d)] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize(("init", "bias"), [("alexnet", [0, 1, 0, 1, 1]), ("he", [0] * 5)])
def test_initialization(init: str, bias: list[int]) -> None:
    torch.manual_seed(0)
    network = AlexNet(4, 64, width=0.5, fc_dims=(64,), init=init)
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert [layer.bias.unique().tolist() for layer in convolutions] == [[float(value)] for value in bias]
    second = convolutions[1].weight
    expected = 0.01 if init == "alexnet" else math.sqrt(2 / second[0].numel())
    assert second.std().item() == pytest.approx(expected, rel=0.05)
    hidden, last = (layer for layer in network.head if isinstance(layer, nn.Linear))
    assert (hidden.bias == (init == "alexnet")).all()
    assert (last.bias == 0).all()
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_other_normalisations(norm: str) -> None:
    network = AlexNet(4, 59, width=0.1, fc_dims=(), norm=norm)
    assert network(torch.rand(2, 3, 59, 59)).shape == (2, 4)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == (5 if norm == "bn" else 0)
    assert not any(isinstance(layer, nn.LocalResponseNorm) for layer in network.modules())


# ---- cascade --------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Answers the same for every image."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.answer.flatten().expand(len(images), -1)


def test_stages_move_joints_within_their_windows() -> None:
    """Equations 6 to 8: y plus sigma times the diameter of the predicted torso times what the stage says."""
    model = small(sigma=1.5).eval()
    first, second, third = torch.rand(3, 14, 2, generator=torch.Generator().manual_seed(3)) - 0.5
    for stage, answer in enumerate((first, second, third)):
        model.networks[stage] = Fixed(answer)
    images = torch.rand(2, 3, 64, 64)
    stages = model.predict(images)
    expected = 31.5 + 64 * first
    torch.testing.assert_close(stages.coordinates[0, 0], expected)
    for index, answer in enumerate((second, third), start=1):
        diameter = (expected[LSP.index("left_shoulder")] - expected[LSP.index("right_hip")]).norm().clamp(min=6.4)
        expected = expected + 1.5 * diameter * answer
        torch.testing.assert_close(stages.coordinates[index, 1], expected)
    assert (stages.scores == 1).all()


@pytest.mark.parametrize("refiners", ["shared", "per_joint"])
def test_a_window_tells_about_its_own_joint_alone(refiners: str) -> None:
    model = small(refiners=refiners, stages=2).eval()
    windows = torch.rand(2, 14, 3, 64, 64)
    outputs = model(windows, 1)
    changed = windows.clone()
    changed[1, 5] = torch.rand(3, 64, 64)
    different = (model(changed, 1) != outputs).any(-1)
    assert different.nonzero().tolist() == [[1, 5]]
    if refiners == "shared":
        own = model.networks[1](model.pixels(windows[1, 5, None])).view(14, 2)[5]
        torch.testing.assert_close(outputs[1, 5], own)


def test_vectors_are_relative_to_the_crop() -> None:
    """From -1/2 at the left edge, half a pixel left of the first centre, to 1/2 (equation 2)."""
    model = small()
    points = torch.tensor([[[-0.5, 63.5], [31.5, 0.0]]]).expand(1, 2, 2)
    vectors = model.whole(points).normalize(points)
    torch.testing.assert_close(vectors[0], torch.tensor([[-0.5, 0.5], [0.0, -0.5 + 0.5 / 64]]))
    torch.testing.assert_close(model.whole(points).denormalize(vectors), points)


def test_loss_is_the_sum_over_labelled_joints() -> None:
    model = small()
    labels = keypoints(2)
    labels[0, 3] = torch.nan
    visible = torch.ones(2, 14)
    visible[1, 7] = 0
    outputs = torch.rand(2, 14, 2, requires_grad=True)
    loss = model.loss(outputs, labels, visible)
    targets = (labels - 31.5) / 64
    squares = (outputs - targets).square().sum(-1)
    squares[0, 3] = squares[1, 7] = 0
    torch.testing.assert_close(loss, squares.sum().unsqueeze(0) / 2)
    loss.sum().backward()
    assert outputs.grad[0, 3].tolist() == outputs.grad[1, 7].tolist() == [0, 0]
    assert outputs.grad.isfinite().all()
    windows = Windows(labels + 1, torch.full((2, 14), 20.0))
    torch.testing.assert_close(
        model.loss(torch.zeros(2, 14, 2), labels, windows=windows, stage=1), torch.tensor([27 * 2 / 400 / 2])
    )


@pytest.mark.parametrize("skeleton", [LSP, FLIC, MPII, COCO], ids=lambda skeleton: skeleton.name)
def test_torso_of_the_known_skeletons(skeleton) -> None:
    with torch.device("meta"):
        model = DeepPose(num_joints=skeleton.num_joints, **SMALL)
    assert model.torso == ((skeleton.index("left_shoulder"), skeleton.index("right_hip")),)


def test_diameter() -> None:
    model = small(torso=[[0, 1], [2, 3]], min_diameter=0.25)
    poses = torch.zeros(3, 14, 2)
    poses[0, 0], poses[0, 3] = torch.tensor([30.0, 40.0]), torch.tensor([20.0, 0.0])
    poses[1, 1] = 3.0
    poses[2, 2] = torch.nan
    diameters = model.diameter(poses)
    torch.testing.assert_close(diameters[:2], torch.tensor([35.0, 16.0]))  # the mean, and a quarter of 64
    assert diameters[2].isnan()


# ---- simulated predictions ------------------------------------------------------------------------------------------


def test_simulated_predictions_are_spread_like_true_ones() -> None:
    """Mean and deviation of each joint and axis, in diameters of the labelled torso, not of the predicted one."""
    model = small(stages=3)
    generator = torch.Generator().manual_seed(0)
    labels = keypoints(4000)
    mean, deviation = torch.rand(2, 14, 2, generator=generator) * torch.tensor([0.4, 0.2])[:, None, None]
    noise = torch.randn(labels.shape, generator=generator)
    poses = labels + (mean + deviation * noise) * model.diameter(labels)[:, None, None]
    labels[::5, 2] = torch.nan
    visible = torch.ones(4000, 14)
    visible[1::5, 4] = 0
    poses[1::5, 4] = 1e6
    model.fit_displacements(2, poses, labels, visible)
    assert model.displacement_mean[0].isnan().all()
    torch.testing.assert_close(model.displacement_mean[1], mean, rtol=0, atol=0.02)
    torch.testing.assert_close(model.displacement_std[1], deviation, rtol=0, atol=0.02)

    windows = model.simulate(2, labels, visible, generator)
    torch.testing.assert_close(windows.sides, (2.0 * model.diameter(labels))[:, None].expand(4000, 14), equal_nan=True)
    drawn = (windows.centers - labels) / model.diameter(labels)[:, None, None]
    torch.testing.assert_close(drawn.nanmean(0), mean, rtol=0, atol=0.02)
    assert windows.centers[1::5, 4].isnan().all()
    assert windows.centers[::5, 2].isnan().all()  # which is the torso's right hip
    assert windows.sides[::5].isnan().all()
    # The window is around the drawn point, so that the label is off its middle by the displacement, once.
    torch.testing.assert_close(windows.normalize(labels), -drawn / 2, equal_nan=True)


def test_same_generator_draws_the_same_windows() -> None:
    model = small(stages=2)
    labels = keypoints(50)
    model.fit_displacements(1, labels + torch.randn(labels.shape), labels)
    first, again, other = (model.simulate(1, labels, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.centers, again.centers)
    assert not torch.equal(first.centers, other.centers)


def test_windows_without_a_label_train_nothing() -> None:
    model = small(stages=2)
    labels = keypoints(50)
    model.fit_displacements(1, labels + torch.randn(labels.shape), labels)
    labels = labels[:2]
    labels[0] = torch.nan
    windows = model.simulate(1, labels)
    patches = model.cut(View(torch.rand(2, 3, 64, 64)), windows)
    assert patches.isfinite().all()
    outputs = model(patches, 1)
    outputs.retain_grad()
    model.loss(outputs, labels, windows=windows, stage=1).sum().backward()
    assert (outputs.grad[0] == 0).all()
    assert (outputs.grad[1] != 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in model.networks[1].parameters())


def test_displacements_are_kept_with_the_weights() -> None:
    model, other = small(stages=2), small(stages=2)
    labels = keypoints(9)
    model.fit_displacements(1, labels + torch.randn(labels.shape), labels)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.displacement_std, model.displacement_std)


def test_unfit_stages_and_labels_are_refused() -> None:
    model = small()
    labels = keypoints(5)
    with pytest.raises(ValueError, match="the displacements of stage 1 are not known; call fit_displacements"):
        model.simulate(1, labels)
    with pytest.raises(ValueError, match="stage: got 0, allowed are 1 to 2"):
        model.fit_displacements(0, labels, labels)
    with pytest.raises(ValueError, match="stage: got 3, allowed are 0 to 2"):
        model(torch.rand(1, 3, 64, 64), 3)
    with pytest.raises(ValueError, match=r"poses: got shapes \(5, 13, 2\) and, of keypoints, \(5, 14, 2\)"):
        model.fit_displacements(1, labels[:, :13], labels)
    few = labels.clone()
    few[1:, 6] = torch.nan
    with pytest.raises(ValueError, match=r"keypoints: joints \[6\] have fewer than two labels"):
        model.fit_displacements(1, labels, few)
    with pytest.raises(ValueError, match=r"images: got shape \(2, 3, 64, 64\), allowed is \(B, 14, 3, H, W\)"):
        model(torch.rand(2, 3, 64, 64), 1)
    with pytest.raises(ValueError, match="images: got 64 by 66 pixels, allowed are 64 by 64"):
        model(torch.rand(1, 3, 64, 66))


# ---- modern ---------------------------------------------------------------------------------------------------------


def test_likelihood_names_its_doubt() -> None:
    """A joint whose deviation is large scores low; places and deviations are those of the output."""
    model = create_model("deeppose", config="modern", loss="rle", input_size=64, width=0.05, layers=(1, 1, 1, 1)).eval()
    answer = torch.zeros(16, 4)
    answer[:, :2] = torch.rand(16, 2) - 0.5
    answer[3, 2:], answer[4, 2:] = 4.0, -4.0
    model.networks[0] = Fixed(answer)
    stages = model.predict(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(stages.coordinates[0, 0], 31.5 + 64 * answer[:, :2])
    torch.testing.assert_close(stages.scores[0, 0, [0, 3, 4]], 1 - torch.tensor([0.0, 4.0, -4.0]).sigmoid())


# ---- windows --------------------------------------------------------------------------------------------------------


def ramp(height: int, width: int) -> torch.Tensor:
    """An image that tells where its pixels are: (y, x) in its first two channels."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack((y, x, torch.ones_like(x)))


def test_windows_lie_around_their_centres() -> None:
    windows = Windows(torch.tensor([[[20.0, 30.0]]]), torch.tensor([[8.0]]))
    cut = cut_windows(View(ramp(50, 60)[None]), windows, 16)
    steps = (torch.arange(16) + 0.5) / 16 * 8 - 4
    torch.testing.assert_close(cut[0, 0, 1], (20 + steps).expand(16, 16))
    torch.testing.assert_close(cut[0, 0, 0], (30 + steps)[:, None].expand(16, 16))


def test_windows_are_padded_never_clamped() -> None:
    windows = Windows(torch.tensor([[[0.0, 25.0]]]), torch.tensor([[16.0]]))
    cut = cut_windows(View(ramp(50, 60)[None]), windows, 16, fill=0.5)
    assert (cut[0, 0, 2, :, :7] == 0.5).all()
    assert (cut[0, 0, 2, :, 9:] == 1).all()
    torch.testing.assert_close(cut[0, 0, 1, 3, 9:], torch.arange(7.0) + 1.5)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_windows_come_from_the_source(mirrored: bool, several: bool) -> None:
    """At the source's resolution, which is three times the crop's, and mirrored as the crop is."""
    crop_to_source = torch.tensor([[[-3.0 if mirrored else 3.0, 0, 170 if mirrored else 10], [0, 3, 20]]])
    source = ramp(200, 220)
    view = View(torch.zeros(1, 3, 64, 64), source=Source([source] if several else source[None], crop_to_source))
    # With whole source pixels to a cell or none, so that a ramp stays one whatever the filter.
    windows = Windows(torch.tensor([[[20.0, 30.0], [5.0, 40.0]]]), torch.tensor([[8.0, 4.0]]))
    cut = cut_windows(view, windows, (12, 24))
    for window in range(2):
        x = windows.centers[0, window, 0] + ((torch.arange(24) + 0.5) / 24 - 0.5) * windows.sides[0, window]
        y = windows.centers[0, window, 1] + ((torch.arange(12) + 0.5) / 12 - 0.5) * windows.sides[0, window]
        expected = crop_to_source[0, 0, 0] * x + crop_to_source[0, 0, 2]
        inside = (expected > 3) & (expected < 216)
        torch.testing.assert_close(cut[0, window, 1, 0, inside], expected[inside])
        torch.testing.assert_close(cut[0, window, 0, :, inside][:, 0], 3 * y + 20)


def test_sources_of_several_sizes_and_of_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, size, size + 5), generator=generator, dtype=torch.uint8) for size in (40, 50)]
    affine = torch.tensor([[[0.5, 0, 1], [0, 0.5, 2]], [[0.6, 0, 3], [0, 0.6, 1]]])
    windows = Windows(torch.full((2, 1, 2), 30.0), torch.full((2, 1), 20.0))
    both = cut_windows(View(torch.zeros(2, 3, 64, 64), source=Source(images, affine)), windows, 10)
    for index, image in enumerate(images):
        one = Source((image[None] / 255), affine[index, None])
        single = Windows(windows.centers[:1], windows.sides[:1])
        alone = cut_windows(View(torch.zeros(1, 3, 64, 64), source=one), single, 10)
        torch.testing.assert_close(both[index], alone[0])


def test_rotated_sources_are_refused() -> None:
    windows = Windows(torch.zeros(1, 1, 2), torch.ones(1, 1))
    for matrix in ([[0.0, -1, 9], [1, 0, 0]], [[0.9, 0.1, 0], [-0.1, 0.9, 0]], [[1.0, 0, 0], [0, -1, 9]]):
        view = View(torch.zeros(1, 3, 8, 8), source=Source(torch.zeros(1, 3, 9, 9), torch.tensor([matrix])))
        with pytest.raises(ValueError, match=r"source\.crop_to_source: got a rotation"):
            cut_windows(view, windows, 4)
