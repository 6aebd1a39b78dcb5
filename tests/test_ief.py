"""Iterative Error Feedback: GoogLeNet, the drawn pose, bounded corrections, the fixed path, the baselines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastpose.models import IEF, View, create_model
from fastpose.models.googlenet import GoogLeNet
from fastpose.models.resnet import ResNet, load_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"num_joints": 4, "width": 0.05, "input_size": 64, "max_step": 6.0, "sigma": 6.0}


def small(**options: object) -> IEF:
    torch.manual_seed(0)
    return IEF(**{**SMALL, **options})


def pictures(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def poses(*shape: int, seed: int = 2) -> torch.Tensor:
    return 64 * torch.rand(*shape, 4, 2, generator=torch.Generator().manual_seed(seed))


# ---- GoogLeNet ------------------------------------------------------------------------------------------------------


def test_sizes_of_googlenet() -> None:
    with torch.device("meta"):
        network = GoogLeNet()
        shapes = {}
        for name, inception in network.inceptions.items():
            inception.register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
            )
        network.conv2.register_forward_pre_hook(lambda module, inputs: shapes.update({"pool1": tuple(inputs[0].shape[1:])}))
        output = network(torch.empty(1, 3, 224, 224))
    assert shapes["pool1"] == (64, 56, 56)
    assert [shapes[name] for name in ("3a", "3b")] == [(256, 28, 28), (480, 28, 28)]
    fours = [512, 512, 512, 528, 832]
    assert [shapes[f"4{letter}"] for letter in "abcde"] == [(channels, 14, 14) for channels in fours]
    assert shapes["5a"] == (832, 7, 7)
    assert output.shape == (1, 1024, 7, 7)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 57
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_973_552


def test_googlenet_by_its_layers() -> None:
    """Pooling rounds up, response normalisation follows the first pooling and comes before the second."""
    torch.manual_seed(0)
    network = GoogLeNet(width=0.1).eval()
    x = torch.rand(1, 3, 64, 64)

    def pool(x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)

    def normalize(x: torch.Tensor) -> torch.Tensor:
        squares = functional.pad(x.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        return x / (1 + 1e-4 / 5 * squares) ** 0.75

    y = normalize(pool(functional.conv2d(x, network.conv1.weight, network.conv1.bias, 2, 3).clamp(min=0)))
    y = pool(normalize(network.conv2(y)))
    for name, inception in network.inceptions.items():
        if name in ("4a", "5a"):
            y = pool(y)
        around = functional.max_pool2d(y, 3, 1, 1)
        y = torch.cat([inception.branch1(y), inception.branch3(y), inception.branch5(y), inception.branch_pool(around)], 1)
    torch.testing.assert_close(network(x), y)


def test_batch_normalised_googlenet_has_no_biases() -> None:
    network = GoogLeNet(width=0.05, norm="bn")
    assert all(layer.bias is None for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == 57
    assert network(torch.rand(2, 3, 32, 32)).shape[-1] == 1


def test_pretrained_weights_leave_the_drawn_channels_alone() -> None:
    torch.manual_seed(0)
    classifier = ResNet((1, 1, 1, 1), 4)
    weights = {**classifier.state_dict(), "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    del weights["bn1.num_batches_tracked"]
    trunk = ResNet((1, 1, 1, 1), 4, 8)
    own = trunk.conv1.weight[:, 3:].clone()
    load_pretrained(trunk, weights)
    assert torch.equal(trunk.conv1.weight[:, :3], classifier.conv1.weight)
    assert torch.equal(trunk.conv1.weight[:, 3:], own)
    assert torch.equal(trunk.layer4[0].conv2.weight, classifier.layer4[0].conv2.weight)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    for name, tensor, message in (
        ("layer1.0.conv1.weight", None, r"missing are \['layer1\.0\.conv1\.weight'\]"),
        ("layer5.weight", torch.zeros(2), r"unknown are \['layer5\.weight'\]"),
        ("layer1.0.bn1.bias", torch.zeros(3), r"layer1\.0\.bn1\.bias is of shape \(3,\), the trunk's is \(4,\)"),
    ):
        wrong = {**weights, name: tensor} if tensor is not None else {key: weights[key] for key in weights if key != name}
        with pytest.raises(ValueError, match=message):
            load_pretrained(trunk, wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_names_of_resnet_are_torchvisions() -> None:
    with torch.device("meta"):
        names = set(ResNet().state_dict())
    assert len(names) == 318  # torchvision's resnet50 has fc.weight and fc.bias besides
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.1.bias",
        "layer3.5.conv3.weight",
        "layer4.2.bn3.weight",
    } <= names


# ---- the drawn pose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["paper", "modern"])
def test_first_convolution_sees_image_pose_and_marker(config: str) -> None:
    """Twenty channels in the paper: 100 exp(-d^2 / 1000) - 50 around whole pixels, the marker last and in the middle."""
    options = {"width": 0.05} if config == "paper" else {"width": 0.05, "layers": (1, 1, 1, 1)}
    torch.manual_seed(0)
    model = create_model("ief", config=config, num_joints=4, **options).eval()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    pose = 224 * torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(3))
    pose[0, 0] = torch.tensor([-30.4, 100.5])
    x, y = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="xy")
    centers = torch.cat(((pose + 0.5).floor(), torch.full((2, 1, 2), 112.0)), 1)
    square = (x - centers[..., 0, None, None]) ** 2 + (y - centers[..., 1, None, None]) ** 2
    maps = (100 * torch.exp(-0.001 * square) - 50) * (1 if config == "paper" else 1 / 58)
    conv1 = model.trunk.conv1
    assert conv1.in_channels == 3 + 4 + 1
    expected = conv1(torch.cat((model.pixels(images), maps), 1))
    seen = []
    after = model.trunk.after_conv1
    model.trunk.after_conv1 = lambda features: (seen.append(features), after(features))[1]
    model(images, pose)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_marker_follows_the_center_but_not_the_pose() -> None:
    model = small().eval()
    images = pictures()
    middle = model.show(View(images))
    torch.testing.assert_close(model.show(View(images, torch.full((2, 2), 31.5))), middle)
    assert not torch.allclose(model.show(View(images, torch.full((2, 2), 10.0))), middle)


def test_image_half_is_computed_once() -> None:
    """Several poses of a person share it: same corrections as one by one."""
    model = small().eval()
    images, several = pictures(), poses(3, 2)
    shown = []
    show = model.show
    model.show = lambda view: (shown.append(view), show(view))[1]
    together = model(images, several)
    assert len(shown) == 1
    for index in range(3):
        torch.testing.assert_close(together[index], model(images, several[index]), rtol=1e-4, atol=1e-4)
    model.predict(images)
    assert len(shown) == 5


def test_numbers_come_all_x_before_all_y() -> None:
    model = small().eval()
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.arange(8.0)
    corrections = model(pictures(), poses(2))
    expected = 6.0 * torch.tensor([[0.0, 4], [1, 5], [2, 6], [3, 7]])
    torch.testing.assert_close(corrections, expected.expand(2, 4, 2))


def test_bounded_predictions() -> None:
    model = small(bound="tanh").eval()
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([3.0, 0.1, 0, -30, 4, 0, 0, 40])
    corrections = model(pictures(), poses(2))[0]
    length = 6 * math.tanh(5.0)
    torch.testing.assert_close(corrections[0], torch.tensor([0.6, 0.8]) * length)  # the direction stays
    torch.testing.assert_close(corrections[1], torch.tensor([6 * math.tanh(0.1), 0.0]))
    assert (corrections[2] == 0).all()
    torch.testing.assert_close(corrections[3].norm(), torch.tensor(6.0))
    corrections.sum().backward()
    assert model.head.bias.grad.isfinite().all()


# ---- corrections ----------------------------------------------------------------------------------------------------


def test_corrections_are_bounded_by_their_length() -> None:
    model = small()
    moves = torch.tensor([[3.0, 4.0], [30.0, 40.0], [5.0, 5.0], [0.0, 0.0], [-100.0, 0.0]])
    expected = torch.tensor([[3.0, 4.0], [3.6, 4.8], [6 / math.sqrt(2)] * 2, [0.0, 0.0], [-6.0, 0.0]])
    torch.testing.assert_close(model.bounded(moves), expected)


def test_fixed_path_goes_straight_to_the_labels() -> None:
    model = small(steps=5)
    model.fit_seed(poses(31))
    labels = poses(2, seed=7)
    labels[0, 1] = torch.nan
    labels[1, 2] = model.seed[2] + torch.tensor([7.0, 0.0])  # two steps
    visible = torch.ones(2, 4)
    visible[1, 3] = 0
    path = model.fixed_path(labels, visible)
    assert path.shape == (5, 2, 4, 2)
    assert torch.equal(path[0], model.seed.expand(2, 4, 2))
    for unlabelled in (path[:, 0, 1], path[:, 1, 3]):
        assert (unlabelled == unlabelled[0]).all()
    steps = path.diff(dim=0)
    assert steps.norm(dim=-1).max() <= 6.0 + 1e-4
    torch.testing.assert_close(path[1, 1, 2], model.seed[2] + torch.tensor([6.0, 0.0]))
    torch.testing.assert_close(path[2, 1, 2], labels[1, 2])
    torch.testing.assert_close(path[4, 1, 2], labels[1, 2])
    distance = (labels[0, 0] - model.seed[0]).norm()
    torch.testing.assert_close((labels[0, 0] - path[3, 0, 0]).norm(), (distance - 18).clamp(min=0), rtol=1e-4, atol=1e-4)
    cross = torch.linalg.det(torch.stack((steps[0, 0, 0], labels[0, 0] - model.seed[0])))
    assert cross.abs() < 1e-3


def test_loss_wants_the_bounded_step_from_each_pose() -> None:
    model = small(steps=3)
    labels = poses(2, seed=7)
    labels[0, 1] = torch.nan
    path = model.fixed_path(labels)
    perfect = model.bounded(labels - path)
    assert model.loss(perfect, labels, poses=path).tolist() == [0, 0, 0]
    torch.testing.assert_close(path[1], torch.where(labels.isnan(), path[0], path[0] + perfect[0]))
    off = perfect + torch.tensor([3.0, 0.0])
    torch.testing.assert_close(model.loss(off, labels, poses=path), torch.full((3,), 0.25 * 7 / 2))  # in units of 6 pixels
    one = model.loss(off[0], labels, poses=path[0])
    torch.testing.assert_close(one, torch.tensor([0.25 * 7 / 2]))
    visible = torch.zeros(2, 4)
    assert model.loss(off[0], labels, visible, poses=path[0]).tolist() == [0]


@pytest.mark.parametrize("path", ["fixed", "own"])
def test_phases_add_steps_unless_all_are_learnt_at_once(path: str) -> None:
    gradual, at_once = small(steps=3, path=path).eval(), small(steps=3, path=path, consolidation=False).eval()
    assert gradual.phases == ("step 1", "step 2", "step 3")
    assert at_once.phases == ("all steps",)
    labels, view = poses(2, seed=7), View(pictures())
    losses = [model.objective(phase, view, labels, labels[:, None]) for model in (gradual, at_once) for phase in model.phases]
    assert [len(loss) for loss in losses] == [1, 2, 3, 3]
    for loss in losses:
        torch.testing.assert_close(loss, losses[-1][: len(loss)])


def test_steps_start_from_the_median_and_add_up() -> None:
    model = small(steps=3).eval()
    model.fit_seed(poses(9))
    stages = model.predict(pictures())
    assert stages.names == ("step 1", "step 2", "step 3")
    pose = model.seed.expand(2, 4, 2)
    for step in range(3):
        pose = pose + model(pictures(), pose)
        torch.testing.assert_close(stages.coordinates[step], pose, rtol=1e-4, atol=1e-3)
    own = model.rollout(View(pictures()))
    assert torch.equal(model.rollout(View(pictures()), 1), own[:2])
    assert torch.equal(own[1:], stages.coordinates)
    assert torch.equal(own[0], model.seed.expand(2, 4, 2))


def test_seed_is_the_median_of_labelled_joints() -> None:
    model = small()
    labels = torch.arange(5.0)[:, None, None].expand(5, 4, 2).clone()
    labels[4] = 1000.0
    labels[0, 0] = torch.nan
    labels[3, 0, 1] = torch.nan
    visible = torch.ones(5, 4, dtype=torch.bool)
    visible[1, 2] = False
    model.fit_seed(labels, visible)
    assert model.seed[0].tolist() == [2, 2]  # of 1, 2, 1000
    assert model.seed[1].tolist() == [2, 2]
    assert model.seed[2].tolist() == [2, 2]  # of 0, 2, 3, 1000 the lower one
    with pytest.raises(ValueError, match=r"keypoints: joints \[2\] have no label"):
        model.fit_seed(labels, torch.tensor([1, 1, 0, 1]).expand(5, 4))
    with pytest.raises(ValueError, match=r"keypoints: got shape \(5, 3, 2\), allowed is \(N, 4, 2\)"):
        model.fit_seed(labels[:, :3])


# ---- baselines ------------------------------------------------------------------------------------------------------


def test_direct_prediction_sees_no_pose() -> None:
    torch.manual_seed(0)
    model = create_model("ief", config="direct", **SMALL).eval()
    assert model.trunk.conv1.in_channels == 4
    assert model.stage_names == ("step 1",)
    images = pictures()
    first, second = poses(2), poses(2, seed=5)
    torch.testing.assert_close(first + model(images, first), second + model(images, second), rtol=1e-4, atol=1e-3)
    # From wherever it starts, the whole way is wanted.
    labels = poses(2, seed=7)
    assert model.loss(labels - first, labels, poses=first).item() < 1e-9
    torch.testing.assert_close(model.loss(labels - first + 32, labels, poses=first), torch.tensor([8.0]))


def test_iterative_direct_prediction_wants_the_whole_way() -> None:
    torch.manual_seed(0)
    model = create_model("ief", config="iterative_direct", **SMALL)
    labels = poses(2, seed=7)
    path = model.fixed_path(labels)
    assert model.loss(labels - path, labels, poses=path).max() < 1e-9
    assert model.loss(model.bounded(labels - path), labels, poses=path)[0] > 0.1
    assert (path.diff(dim=0).norm(dim=-1) <= 6.0 + 1e-4).all()


def test_only_joints_of_the_feedback_are_drawn() -> None:
    model = small(feedback=(2, 0)).eval()
    assert model.trunk.conv1.in_channels == 3 + 2 + 1
    images, pose = pictures(), poses(2)
    shown = model.show(View(images))
    seen = []
    after = model.trunk.after_conv1
    model.trunk.after_conv1 = lambda features: (seen.append(features), after(features))[1]
    for joint in range(4):
        moved = pose.clone()
        moved[:, joint] += 9
        model.correct(shown, moved)
    model.correct(shown, pose)
    changed = [not torch.allclose(features, seen[4]) for features in seen[:4]]
    assert changed == [True, False, True, False]


def test_drawn_channels_start_with_the_papers_variance() -> None:
    torch.manual_seed(0)
    weights = IEF(num_joints=16).trunk.conv1.weight
    assert weights[:, 3:].var().item() == pytest.approx(0.1, rel=0.05)
    assert weights[:, :3].var().item() == pytest.approx(1 / weights[0].numel(), rel=0.1)


def test_wrong_poses_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"poses: got shape \(3, 4, 2\), allowed is \(2, 4, 2\), or T of it"):
        model(pictures(), poses(3))
    with pytest.raises(ValueError, match="images: got 64 by 72 pixels, allowed are 64 by 64"):
        model(torch.rand(2, 3, 64, 72), poses(2))
