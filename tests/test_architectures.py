"""What all architectures have in common: sizes as published, one interface, checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastpose.checkpoints import load_model, save_weights
from fastpose.models import (
    HeatmapModel,
    PoseModel,
    Source,
    Stages,
    VectorModel,
    View,
    create_model,
    list_configurations,
    list_models,
)
from fastpose.models.interface import mirror_points
from fastpose.skeletons import LSP

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURES = ("cpm", "deeppose", "ief", "tompson")


def meta_model(name: str, **options: Any) -> PoseModel:
    with torch.device("meta"):
        return create_model(name, **options).eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cpm", {}, 31_219_866),
        ("cpm", {"config": "vgg"}, 29_852_058),
        ("cpm", {"config": "flic"}, 21_323_816),
        ("cpm", {"config": "modern"}, 31_225_568),  # as mmpose's
        ("deeppose", {"stages": 1}, 58_396_060),
        ("deeppose", {"stages": 1, "groups": 2}, 56_982_940),
        ("deeppose", {"stages": 1, "groups": 2, "fc_dims": (4096,)}, 40_201_628),  # the paper's 40 million?
        ("deeppose", {}, 3 * 58_396_060),
        ("deeppose", {"config": "modern"}, 23_508_032 + 2049 * 32),
        ("tompson", {"fine": False}, 18_615_054),
        ("tompson", {}, 18_615_054 + 7_477_518),
        ("tompson", {"pooling": 16}, 18_615_054 + 7_477_518),
        ("tompson", {"banks": 2}, 18_615_054 - 6_138_112 + 5_019_150),
        ("tompson", {"config": "flic", "fine": False}, 18_615_054 - 3 * 257),
        ("tompson", {"config": "modern", "fine": False}, 33_999_440),
        ("ief", {}, 6_059_664),
        ("ief", {"config": "direct"}, 6_059_664 - 16 * 64 * 49),
        ("ief", {"config": "resnet"}, 23_626_912),
        ("ief", {"config": "modern"}, 23_626_912),
    ],
)
def test_published_parameters(name: str, options: dict[str, Any], expected: int) -> None:
    assert parameters(meta_model(name, **options)) == expected


@pytest.mark.parametrize(("config", "gmac", "maps"), [("paper", 175.44, 15), ("vgg", 88.42, 15), ("flic", 154.50, 10)])
def test_published_cost_of_cpm(config: str, gmac: float, maps: int) -> None:
    model = meta_model("cpm", config=config)
    with FlopCounterMode(display=False) as flops:
        outputs = model(torch.empty(1, 3, 368, 368, device="meta"))
    assert round(flops.get_total_flops() / 2e9, 2) == gmac
    assert {tuple(output.shape) for output in outputs} == {(1, maps, 46, 46)}
    assert len(outputs) == len(model.stage_names)


# ---- small instances, alike but for their size ----------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    name: str
    options: dict[str, Any]
    size: tuple[int, int] = (64, 64)
    joints: int = 14
    config: str = "paper"

    def build(self) -> PoseModel:
        torch.manual_seed(0)
        return create_model(self.name, num_joints=self.joints, config=self.config, **self.options)


_RESNET = {"layers": (1, 1, 1, 1)}
SMALL = {
    "cpm": Small("cpm", {"width": 0.05, "stages": 3, "init": "he"}, (64, 80)),
    "cpm-vgg": Small("cpm", {"width": 0.05, "stages": 2, "init": "he"}, config="vgg"),
    "cpm-modern": Small("cpm", {"width": 0.05, "stages": 2}, config="modern"),
    "deeppose": Small("deeppose", {"width": 0.05, "input_size": 64, "fc_dims": (16,), "init": "he"}),
    "deeppose-per-joint": Small(
        "deeppose", {"width": 0.05, "input_size": 64, "fc_dims": (16,), "init": "he", "refiners": "per_joint", "stages": 2}
    ),
    "deeppose-rle": Small("deeppose", {"width": 0.1, "input_size": 64, "loss": "rle", "stages": 2, **_RESNET}, config="modern"),
    "tompson": Small(
        "tompson", {"input_size": (64, 96), "features": 4, "wide": 6, "head": 5, "fine_size": 12, "hint_sigma": 8.0}, (64, 96)
    ),
    "tompson-16": Small(
        "tompson", {"input_size": 64, "features": 4, "wide": 6, "head": 5, "fine_size": 12, "pooling": 16, "fine_tap": "conv"}
    ),
    "tompson-modern": Small(
        "tompson",
        {"input_size": 64, "width": 4, "features": 4, "head": 5, "fine_size": 12, "hint_sigma": 8.0, **_RESNET},
        config="modern",
    ),
    "ief": Small("ief", {"width": 0.05, "input_size": 64, "max_step": 6.0, "sigma": 6.0, "steps": 3}),
    "ief-modern": Small("ief", {"width": 0.1, "input_size": 64, "max_step": 6.0, "steps": 2, **_RESNET}, config="modern"),
    "ief-direct": Small("ief", {"width": 0.05, "input_size": 64}, config="direct"),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Small:
    return SMALL[request.param]


def pictures(small: Small, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *small.size, generator=torch.Generator().manual_seed(1))


def labels(small: Small, batch: int = 2) -> torch.Tensor:
    extent = torch.tensor(small.size[::-1])
    return torch.rand(batch, small.joints, 2, generator=torch.Generator().manual_seed(2)) * (extent - 1)


def test_all_stages_are_predicted(small: Small) -> None:
    model = small.build().eval()
    stages = model.predict(pictures(small))
    assert isinstance(stages, Stages)
    assert stages.names == model.stage_names
    assert stages.coordinates.shape == (len(stages.names), 2, small.joints, 2)
    assert stages.scores.shape == (len(stages.names), 2, small.joints)
    assert stages.coordinates.dtype == torch.float32
    assert stages.coordinates.isfinite().all()
    assert not stages.coordinates.requires_grad
    again = model.predict(pictures(small))
    assert torch.equal(stages.coordinates, again.coordinates)


def test_flip_test_commutes_with_mirroring(small: Small) -> None:
    """Mirrored crops, centres and sources give the mirrored pose, left and right exchanged."""
    model = small.build().eval().double()
    images = pictures(small).double()
    images = images[..., :, :1].expand_as(images) * 0.3 + images  # not symmetric on average
    permutation = list(LSP.flip_permutation)
    width = small.size[1]
    center = torch.tensor([[20.0, 30.0], [40.0, 25.0]], dtype=torch.float64)
    to_source = torch.tensor([[[0.5, 0, 3], [0, 0.5, 5]], [[0.7, 0, -4], [0, 0.7, 2]]], dtype=torch.float64)
    source = Source([torch.rand(3, 50, 70).double(), torch.rand(3, 60, 64).double()], to_source)
    view = View(images, center, source)
    assert all(torch.equal(a, b) for a, b in zip(view.mirrored().mirrored()[:2], view[:2], strict=True))
    stages = model.predict(images, center=center, source=source, flip_permutation=permutation)
    other = view.mirrored()
    mirrored = model.predict(other.images, center=other.center, source=other.source, flip_permutation=permutation)
    back = mirror_points(mirrored.coordinates[:, :, permutation], width)
    torch.testing.assert_close(back, stages.coordinates, rtol=0, atol=1e-3)
    torch.testing.assert_close(mirrored.scores[..., permutation], stages.scores, rtol=1e-5, atol=1e-5)


def phase_loss(model: PoseModel, phase: str, small: Small) -> torch.Tensor:
    images, keypoints = pictures(small), labels(small)
    if small.name == "deeppose":
        stage = model.phases.index(phase)
        if not stage:
            return model.loss(model(images), keypoints)
        people = keypoints[:1].expand(50, -1, -1)
        generator = torch.Generator().manual_seed(0)
        model.fit_displacements(stage, people + torch.randn(people.shape, generator=generator), people)
        windows = model.simulate(stage, keypoints, generator=generator)
        return model.loss(model(model.cut(View(images), windows), stage), keypoints, windows=windows, stage=stage)
    if small.name == "ief":
        poses = model.fixed_path(keypoints)[: model.phases.index(phase) + 1]
        return model.loss(model(images, poses), keypoints, poses=poses)
    if small.name == "tompson":
        return model.loss(model(images, fine=phase != "coarse"), keypoints)
    return model.loss(model(images), keypoints)


def test_each_phase_trains_its_modules(small: Small) -> None:
    """The loss of a phase reaches every parameter of the phase, and together the phases train all of the model."""
    model = small.build()
    trained: set[str] = set()
    for phase in model.phases:
        model.zero_grad()
        losses = phase_loss(model, phase, small)
        assert losses.dim() == 1
        assert losses.isfinite().all()
        losses.sum().backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        chosen = {id(parameter) for module in model.phase_modules(phase) for parameter in module.parameters()}
        names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
        assert names <= reached
        trained |= names
    assert trained == {name for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match="phase: got 'none', allowed are"):
        model.phase_modules("none")


def test_optimizer_groups_hold_every_parameter_once(small: Small) -> None:
    model = small.build()
    for phase in (None, *model.phases):
        groups = model.parameter_groups(0.1, 1e-4, phase)
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        modules = [model] if phase is None else model.phase_modules(phase)
        assert sorted(grouped) == sorted(id(parameter) for module in modules for parameter in module.parameters())
        torch.optim.SGD(groups, lr=1.0)


def test_options_rebuild_the_model(small: Small, tmp_path: Any) -> None:
    model = small.build().eval()
    assert json.loads(json.dumps(model.options)) == model.options
    save_weights(model, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors").eval()
    assert loaded.options == model.options
    assert torch.equal(loaded.predict(pictures(small)).coordinates, model.predict(pictures(small)).coordinates)


def test_bf16_autocast_keeps_coordinates_precise(small: Small) -> None:
    model = small.build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        stages = model.predict(pictures(small))
    assert stages.coordinates.dtype == torch.float32
    assert stages.coordinates.isfinite().all()


@pytest.mark.parametrize("name", ["cpm", "deeppose", "ief", "tompson"])
def test_compiles_as_one_graph(name: str) -> None:
    small = SMALL[name]
    model = small.build().eval()
    inputs = (pictures(small), labels(small)) if name == "ief" else (pictures(small),)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(compiled, model(*inputs), rtol=1e-3, atol=1e-4)


def test_codec_belongs_to_the_maps(small: Small) -> None:
    model = small.build()
    if isinstance(model, VectorModel):
        assert model.stride is None
        with pytest.raises(ValueError, match="predicts coordinates, not heatmaps"):
            model.default_codec()
        return
    codec = model.default_codec(small.size)
    outputs = model(pictures(small))
    maps = outputs[-1] if isinstance(model, HeatmapModel) else outputs.coarse
    assert maps.shape == (2, codec.num_channels(small.joints), *codec.heatmap_size)
    assert codec.input_size == small.size
    assert model.codec_of(maps) == codec
    assert model.default_codec(small.size, sigma=0.7).sigma == 0.7


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (2, 3, 0, 64)])
def test_wrong_images_are_refused(small: Small, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images: got"):
        small.build().predict(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"images: got dtype torch\.uint8"):
        small.build().predict(torch.zeros(2, 3, *small.size, dtype=torch.uint8))


def test_wrong_centers_and_sources_are_refused() -> None:
    small = SMALL["cpm"]
    model, images = small.build(), pictures(small)
    affine = torch.eye(3)[:2].expand(2, 2, 3)
    with pytest.raises(ValueError, match=r"center: got shape \(2, 3\), allowed is \(2, 2\)"):
        model.predict(images, center=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"source\.images: got 1 images, allowed is one for each of 2 crops"):
        model.predict(images, source=Source([images[0]], affine))
    with pytest.raises(ValueError, match=r"source\.images\[1\]: got shape \(64, 80\), allowed is \(3, H, W\)"):
        model.predict(images, source=Source([images[0], images[1, 0]], affine))
    with pytest.raises(ValueError, match=r"source\.crop_to_source: got shape \(2, 3\), allowed is \(2, 2, 3\)"):
        model.predict(images, source=Source(images, affine[0]))


# ---- registry -------------------------------------------------------------------------------------------------------


def test_registry_knows_the_five() -> None:
    assert list_models() == ["cpm", "deeppose", "hourglass", "ief", "tompson"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_paper_and_a_modern_configuration(name: str) -> None:
    configurations = list_configurations(name)
    assert configurations[0] == "paper"
    assert "modern" in configurations
    assert meta_model(name).options == meta_model(name, config="paper").options
    assert meta_model(name, config="modern", num_joints=11).options["num_joints"] == 11


def test_unknown_configurations_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown config 'old' of model 'cpm'; it has paper, vgg, flic, modern"):
        create_model("cpm", config="old")
    with pytest.raises(TypeError, match="model 'ief' has no option stages; it has num_joints, steps"):
        create_model("ief", stages=2)
    with pytest.raises(ValueError, match="unknown model 'pose'"):
        list_configurations("pose")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cpm", {"stages": 0}, ValueError, "stages: got 0"),
        ("cpm", {"width": -1.0}, ValueError, r"width: got -1\.0"),
        ("cpm", {"trunk": "resnet"}, ValueError, "trunk: got 'resnet', allowed are 'cpm', 'vgg'"),
        ("cpm", {"pooling": "floor"}, ValueError, "pooling: got 'floor'"),
        ("cpm", {"norm": "gn"}, ValueError, "norm: got 'gn'"),
        ("cpm", {"pixels": "unit"}, ValueError, "pixels: got 'unit'"),
        ("cpm", {"num_joints": "14"}, TypeError, "num_joints: got str"),
        ("deeppose", {"groups": 3}, ValueError, "groups: got 3, allowed are 1 and 2"),
        ("deeppose", {"input_size": 58}, ValueError, "input_size: got 58, .* 59 is the least"),
        ("deeppose", {"loss": "l1"}, ValueError, "loss: got 'l1'"),
        ("deeppose", {"refiners": "none"}, ValueError, "refiners: got 'none'"),
        ("deeppose", {"num_joints": 5}, ValueError, "torso: must be given for 5 joints"),
        ("deeppose", {"torso": [[0, 0]]}, ValueError, r"torso: got \[\[0, 0\]\]"),
        ("deeppose", {"torso": []}, ValueError, r"torso: got \[\]"),
        ("deeppose", {"torso": [[0, 14]]}, ValueError, "allowed are pairs of two of the joints 0 to 13"),
        ("deeppose", {"sigma": 0.0}, ValueError, "sigma: got 0"),
        ("tompson", {"pooling": 2}, ValueError, "pooling: got 2, allowed are 4, 8, 16"),
        ("tompson", {"trunk": "resnet", "pooling": 8}, ValueError, "pooling: got 8, allowed is 4"),
        ("tompson", {"lcn_border": "zero"}, ValueError, "lcn_border: got 'zero'"),
        ("tompson", {"fine_tap": "none"}, ValueError, "fine_tap: got 'none'"),
        ("tompson", {"extra_convs": -1}, ValueError, "extra_convs: got -1"),
        ("tompson", {"jitter": -0.5}, ValueError, r"jitter: got -0\.5"),
        ("tompson", {"hint_sigma": 0}, ValueError, "hint_sigma: got 0"),
        ("ief", {"steps": 0}, ValueError, "steps: got 0"),
        ("ief", {"max_step": -3}, ValueError, "max_step: got -3"),
        ("ief", {"target": "both"}, ValueError, "target: got 'both'"),
        ("ief", {"feedback": [3, 3]}, ValueError, r"feedback: got \[3, 3\]"),
        ("ief", {"feedback": [16]}, ValueError, "allowed are different ones of the joints 0 to 15"),
        ("ief", {"bound": "clip"}, ValueError, "bound: got 'clip'"),
        ("ief", {"render_init": 0.0}, ValueError, "render_init: got 0"),
        ("ief", {"trunk": "resnet", "layers": (3, 4, 6)}, ValueError, r"layers: got \(3, 4, 6\), allowed are 4"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        meta_model(name, **options)
