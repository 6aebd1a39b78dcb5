"""Convolutional Pose Machines (Wei, Ramakrishna, Kanade and Sheikh, CVPR 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check
from fastpose.models.interface import Configurations, HeatmapModel, View, check_images, options_of
from fastpose.models.pixels import Pixels
from fastpose.ops import gaussian_heatmap

TRUNKS = ("cpm", "vgg")
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "pad": lambda: nn.MaxPool2d(3, 2, padding=1),
    "half": lambda: nn.MaxPool2d(2),
}
POOLINGS = tuple(_POOLS)
NORMS = ("none", "bn")
INITS = ("gauss", "he")

_STRIDE = 8
_CUT = math.sqrt(2 * math.log(100))  # sigmas from the centre to where a Gaussian is 1 %

# (channels, kernel side) of each convolution, by the paper's figure 2 and the released networks. "P" halves the maps, "D" is
# a dropout of a half.
Layers = Sequence[tuple[int, int] | str]
_STAGE1 = ((128, 9), "P", (128, 9), "P", (128, 9), "P", (32, 5), (512, 9), "D", (512, 1), "D")
_FEATURES = ((32, 5),)
_TRUNK = ((128, 9), "P", (128, 9), "P", (128, 9), "P")
_VGG19 = ((64, 3), (64, 3), "P", (128, 3), (128, 3), "P", (256, 3), (256, 3), (256, 3), (256, 3), "P", (512, 3), (512, 3))
_VGG_TRUNK = (*_VGG19, (256, 3), (256, 3), (256, 3), (256, 3), (128, 3))
_VGG_STAGE1 = ((512, 1),)
_LATER = {"cpm": ((128, 11), (128, 11), (128, 11), (128, 1)), "vgg": (*((128, 7),) * 5, (128, 1))}


class CPM(HeatmapModel):
    """Convolutional Pose Machine: each stage predicts all maps anew from the image's features and the stage before.

    Stage 1 sees the image alone (figure 2c). The stages after it see features of the image, the maps of the stage before
    and a Gaussian at the person they shall find; their 11x11 convolutions look far enough to infer a joint from the others.
    All stages are supervised, the first with everyone in the crop and the later ones with that person alone.

    Args:
        num_joints: K; 14 for the paper's MPII and LSP networks, 9 for FLIC's.
        stages: T, at least 1; 6 in the paper, 4 for FLIC.
        input_size: (height, width) of the crops in pixels, or one number for a square, multiples of 8. The model takes others
            too.
        trunk: ``"cpm"``: 9x9 convolutions, those of stage 1 apart from those that the later stages share (the released MPII
            and LSP networks). ``"vgg"``: the first ten convolutions of VGG-19 and five more, shared by all (the release's
            second network, which pretrained weights fit).
        width: factor of all channel counts but those of the input and of the maps.
        background: whether a last channel learns where no joint is. In the release it does.
        center_map: whether the later stages see the Gaussian at the person.
        center_sigma: its standard deviation in crop pixels. In training it is cut off at 1 %, as in the release.
        pooling: of the 9x9 trunk, each of which puts the cells at other pixels, so that weights do not carry over.
            ``"ceil"``: 3x3, without padding, rounded up (the release; cell g sees the pixels around 8 g + 7); ``"pad"``:
            3x3, padded by 1 (most ports, mmpose among them; 8 g); ``"half"``: 2x2 (the paper's figure; 8 g + 3.5, where
            the targets are).
        norm: ``"none"`` or ``"bn"``: batch normalisation after every convolution but the predictions.
        pixels: what the network sees, see :class:`fastpose.models.pixels.Pixels`.
        init: ``"gauss"``: N(0, 0.01) and biases 0, the release's; ``"he"``: for widths and depths that that leaves without a
            signal.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    configurations: ClassVar[Configurations] = {
        "paper": {},
        "vgg": {"trunk": "vgg"},
        "flic": {"num_joints": 9, "stages": 4},
        # As mmpose trains it: no person to point at, since crops are of boxes, and no background.
        "modern": {
            "num_joints": 16,
            "background": False,
            "center_map": False,
            "pooling": "pad",
            "norm": "bn",
            "pixels": "imagenet",
            "init": "he",
        },
    }
    padding = 128 / 255

    def __init__(
        self,
        num_joints: int = 14,
        stages: int = 6,
        *,
        input_size: int | Sequence[int] = 368,
        trunk: str = "cpm",
        width: float = 1.0,
        background: bool = True,
        center_map: bool = True,
        center_sigma: float = 21.0,
        pooling: str = "ceil",
        norm: str = "none",
        pixels: str = "cpm",
        init: str = "gauss",
    ) -> None:
        super().__init__()
        self.options = options_of(locals())
        for name, count in (("num_joints", num_joints), ("stages", stages)):
            _check.positive_int(name, count)
        for name, number in (("width", width), ("center_sigma", center_sigma)):
            _check.number(name, number, positive=True)
        _check.option("trunk", trunk, TRUNKS)
        _check.option("pooling", pooling, POOLINGS)
        _check.option("norm", norm, NORMS)
        _check.option("init", init, INITS)
        self.input_size = _check.size("input_size", input_size)
        self.stride = _STRIDE
        self.codec_preset = "cpm" if background else "udp"
        self.stage_names = tuple(f"stage {stage}" for stage in range(1, stages + 1))
        self.stage_targets = ("everyone", *("person",) * (stages - 1))
        self.center_map, self.center_sigma = center_map, center_sigma

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        def convolutions(channels: int, layers: Layers, maps: int = 0) -> nn.Sequential:
            return _convolutions(channels, layers, scaled, maps, _POOLS["half" if trunk == "vgg" else pooling], norm == "bn")

        maps = num_joints + background
        beside = maps + center_map  # what a later stage sees next to features of the image
        self.pixels = Pixels(pixels)
        self.features = nn.ModuleList()
        if trunk == "vgg":
            self.trunk = convolutions(3, _VGG_TRUNK)
            self.stage1 = convolutions(scaled(128), _VGG_STAGE1, maps)
            seen = scaled(128) + beside
        else:
            self.trunk = convolutions(3, _TRUNK if stages > 1 else ())
            self.stage1 = convolutions(3, _STAGE1, maps)
            self.features.extend(convolutions(scaled(128), _FEATURES) for _ in range(stages - 1))
            seen = scaled(32) + beside
        self.stages = nn.ModuleList(convolutions(seen, _LATER[trunk], maps) for _ in range(stages - 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialize(module, init)

    def forward(self, images: torch.Tensor, center: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Predict belief maps.

        Args:
            images: RGB in [0, 1], (B, 3, H, W), H and W multiples of 8; the paper takes 368x368.
            center: (B, 2), (x, y) of the person in crop pixels; None: the middle of the crop.

        Returns:
            One tensor (B, K, H/8, W/8) of maps for each stage, with a background (B, K + 1, H/8, W/8), background last.

        Raises:
            TypeError, ValueError: ``images`` is not as above.
        """
        check_images(images, _STRIDE)
        x = self.pixels(images)
        features = self.trunk(x)
        maps = self.stage1(features if self.options["trunk"] == "vgg" else x)
        predictions = [maps]
        person = [self._person(View(images, center)).to(maps)] if self.center_map and len(self.stages) else []
        for index, stage in enumerate(self.stages):
            # In the order of the released networks, whose weights depend on it.
            seen = [maps, features] if self.options["trunk"] == "vgg" else [self.features[index](features), maps]
            maps = stage(torch.cat(seen + person, 1))
            predictions.append(maps)
        return predictions

    def heatmaps(self, view: View) -> list[torch.Tensor]:
        return self(view.images, view.center)

    def _person(self, view: View) -> torch.Tensor:
        """(B, 1, H/8, W/8): the Gaussian at the person."""
        radius = _CUT * self.center_sigma if self.training else None
        height, width = view.images.shape[-2:]
        gaussian = gaussian_heatmap(view.middle().unsqueeze(1), (height, width), self.center_sigma, radius=radius, window="disc")
        return functional.avg_pool2d(gaussian, 9, _STRIDE, ceil_mode=True)

    def parameter_groups(self, lr: float, weight_decay: float = 0.0, phase: str | None = None) -> list[dict[str, Any]]:
        """Groups with the released networks' multipliers: biases learn twice as fast as weights and do not decay; stage 1
        learns five times as fast as the others, or with a VGG trunk, which starts from pretrained weights, a quarter."""
        if phase is not None:
            _check.option("phase", phase, self.phases)
        groups = []
        first = [*self.stage1.modules(), *(self.trunk.modules() if self.options["trunk"] == "vgg" else ())]
        others = [module for module in self.modules() if not any(module is known for known in first)]
        factors = (1, 4) if self.options["trunk"] == "vgg" else (5, 1)
        for factor, modules in zip(factors, (first, others), strict=True):
            named = [entry for module in modules for entry in module.named_parameters(recurse=False)]
            weights = [parameter for name, parameter in named if name == "weight"]
            biases = [parameter for name, parameter in named if name == "bias"]
            groups.append({"params": weights, "lr": factor * lr, "weight_decay": weight_decay})
            groups.append({"params": biases, "lr": 2 * factor * lr, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]


def _convolutions(
    channels: int, layers: Layers, scaled: Callable[[int], int], maps: int, pool: Callable[[], nn.Module], normalized: bool
) -> nn.Sequential:
    """The layers in a row; with ``maps``, a last 1x1 convolution that predicts them."""
    modules: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            modules.append(pool() if layer == "P" else nn.Dropout(0.5))
        else:
            out, side = scaled(layer[0]), layer[1]
            modules.append(nn.Conv2d(channels, out, side, padding=side // 2, bias=not normalized))
            modules += [nn.BatchNorm2d(out)] if normalized else []
            modules.append(nn.ReLU(inplace=True))
            channels = out
    if maps:
        modules.append(nn.Conv2d(channels, maps, 1))
    return nn.Sequential(*modules)


def _initialize(convolution: nn.Conv2d, init: str) -> None:
    if init == "gauss":
        nn.init.normal_(convolution.weight, std=0.01)
    else:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
