"""What is known of published checkpoints: the names of their layers and the convention they were trained with, as data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastpose.models import StackedHourglass
from fastpose.nn.residual import HourglassResidual
from fastpose.skeletons import MPII, Skeleton


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A code base whose checkpoints are known.

    Attributes:
        name: short name, for messages and metadata.
        source: whose code and weights.
        marker: regular expression of the beginning of names that only this publication has.
        layers: published name of each layer or residual of a `StackedHourglass`, both as format strings of ``s``
            (stack), ``m`` (residual in a row), ``level`` (of the hourglass, 0 for the lowest resolution) and ``low``
            (``low2.`` once for each level above). Names that a network of given options lacks do not count.
        residual: likewise for the layers inside a `HourglassResidual`.
        dead_skips: whether residuals that add their input unprojected have a projection nevertheless, never used.
        counts: for options of the network regular expressions; an option is the number of different first groups.
        stem: the stem's kind in the published weights, if a damaged file does not show it.
        image_mean: red, green, blue that are subtracted from images in [0, 1] first.
        codec: name of the preset that heatmaps are encoded and decoded by.
        codec_options: fields of the codec that are set otherwise.
        input_size: height and width of the crops.
        skeleton: joints of the heatmaps.
    """

    name: str
    source: str
    marker: str
    layers: Mapping[str, str]
    residual: Mapping[str, str]
    dead_skips: bool = False
    counts: Mapping[str, str]
    stem: str
    image_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    codec: str
    codec_options: Mapping[str, Any] = field(default_factory=dict)
    input_size: int = 256
    skeleton: Skeleton = MPII


PUBLICATIONS = (
    Publication(
        name="pytorch-pose",
        source="bearpaw/pytorch-pose, and anibali/pytorch-stacked-hourglass made of it",
        marker=r"hg\.\d+\.hg\.",
        layers={
            "stem.conv": "conv1",
            "stem.bn": "bn1",
            "stem.residual1": "layer1.0",
            "stem.residual2": "layer2.0",
            "stem.residual3": "layer3.0",
            "stacks.{s}.hourglass.{low}up1.{m}": "hg.{s}.hg.{level}.0.{m}",
            "stacks.{s}.hourglass.{low}low1.{m}": "hg.{s}.hg.{level}.1.{m}",
            "stacks.{s}.hourglass.{low}low2.{m}": "hg.{s}.hg.{level}.3.{m}",
            "stacks.{s}.hourglass.{low}low3.{m}": "hg.{s}.hg.{level}.2.{m}",
            "stacks.{s}.residuals.{m}": "res.{s}.{m}",
            "stacks.{s}.conv": "fc.{s}.0",
            "stacks.{s}.bn": "fc.{s}.1",
            "stacks.{s}.head": "score.{s}",
            "merges.{s}.from_features": "fc_.{s}",
            "merges.{s}.from_heatmaps": "score_.{s}",
        },
        residual={**{name: name for name in ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3")}, "skip": "downsample.0"},
        counts={
            "stacks": r"(?:hg|res|fc|score)\.(\d+)\.",
            "depth": r"hg\.\d+\.hg\.(\d+)\.",
            "modules": r"(?:res\.\d+|hg\.\d+\.hg\.\d+\.\d+)\.(\d+)\.",
        },
        stem="pytorch_pose",
        image_mean=(0.4404, 0.4440, 0.4327),
        codec="pytorch_pose",
    ),
    Publication(
        name="princeton-vl",
        source="princeton-vl/pytorch_stacked_hourglass",
        marker=r"hgs\.\d+\.0\.",
        layers={
            "stem.conv": "pre.0.conv",
            "stem.bn": "pre.0.bn",
            "stem.residual1": "pre.1",
            "stem.residual2": "pre.3",
            "stem.residual3": "pre.4",
            "stacks.{s}.hourglass.{low}up1.0": "hgs.{s}.0.{low}up1",
            "stacks.{s}.hourglass.{low}low1.0": "hgs.{s}.0.{low}low1",
            "stacks.{s}.hourglass.{low}low2.0": "hgs.{s}.0.{low}low2",
            "stacks.{s}.hourglass.{low}low3.0": "hgs.{s}.0.{low}low3",
            "stacks.{s}.residuals.0": "features.{s}.0",
            "stacks.{s}.conv": "features.{s}.1.conv",
            "stacks.{s}.bn": "features.{s}.1.bn",
            "stacks.{s}.head": "outs.{s}.conv",
            "merges.{s}.from_features": "merge_features.{s}.conv.conv",
            "merges.{s}.from_heatmaps": "merge_preds.{s}.conv.conv",
        },
        residual={
            **{name: name for name in ("bn1", "bn2", "bn3")},
            **{name: f"{name}.conv" for name in ("conv1", "conv2", "conv3")},
            "skip": "skip_layer.conv",
        },
        dead_skips=True,
        counts={
            "stacks": r"(?:hgs|features|outs)\.(\d+)\.",
            "depth": r"hgs\.\d+\.0\.((?:low2\.)*)(?:up1|low1|low3)\.",
        },
        stem="torch7",
        codec="torch7_hourglass",
        codec_options={"sigma": 1.0, "radius": 4.0},  # drawn in patches of 9 by 9 cells
    ),
)
"""The publications, in the order in which they are tried."""


def layer_names(publication: Publication, model: StackedHourglass) -> dict[str, str]:
    """The published name of every layer of a network, by its name in it."""
    options, modules = model.options, dict(model.named_modules())
    names = {}
    for s, m, level in itertools.product(*map(range, (options["stacks"], options["modules"], options["depth"]))):
        place = {"s": s, "m": m, "level": level, "low": "low2." * (options["depth"] - 1 - level)}
        for ours, theirs in publication.layers.items():
            ours, theirs = ours.format(**place), theirs.format(**place)
            if not isinstance(modules.get(ours), HourglassResidual):
                names[ours] = theirs
                continue
            names.update({f"{ours}.{part}": f"{theirs}.{name}" for part, name in publication.residual.items()})
    return {ours: theirs for ours, theirs in names.items() if ours in modules}
