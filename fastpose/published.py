"""Checkpoints of stacked hourglasses as their authors published them, read into ours."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpose.checkpoints import CODEC_KEY, SKELETON_KEY, misfit, save_weights
from fastpose.codec import HeatmapCodec
from fastpose.models import StackedHourglass
from fastpose.publications import PUBLICATIONS, Publication, layer_names
from fastpose.skeletons import SKELETONS, Skeleton, get_skeleton

SOURCE_KEY = "fastpose.source"
"""Metadata key of the name of the publication that converted weights come from."""

_COUNTER = "num_batches_tracked"  # PyTorch before 0.4.1 had none, and only momentum=None reads it
_PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, a wrapper's attribute, torch.compile


@dataclass(frozen=True, eq=False)
class PublishedModel:
    """A published network with what its predictions depend on, as `fastpose.prediction.Predictor` takes them.

    Attributes:
        model: with the published weights, in training mode, in float32 on the default device. Like every network here
            it takes RGB in [0, 1]: what else the publication does to images is part of it.
        codec: convention of its heatmaps, with the size of its input.
        skeleton: its joints; None if the publication is not known to have weights for that many.
        publication: where the weights come from.
        dead_weights: names of weights in the checkpoint that its network does not use, which were left out.
    """

    model: StackedHourglass
    codec: HeatmapCodec
    skeleton: Skeleton | None
    publication: Publication
    dead_weights: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to a safetensors file that `fastpose.prediction.Predictor.load` and `fastpose predict` read.

        Args:
            path: file to write or replace; its folder must exist.

        Raises:
            ValueError: if the skeleton is not known.
            FileNotFoundError: if the folder does not exist.
        """
        if self.skeleton is None:
            joints = self.model.options["num_joints"]
            fitting = [name for name, skeleton in SKELETONS.items() if skeleton.num_joints == joints]
            raise ValueError(
                f"skeleton: it is not known which {joints} joints the network has, and must be given; "
                f"known skeletons with as many: {', '.join(fitting) or 'none'}"
            )
        metadata = {
            CODEC_KEY: json.dumps(self.codec.to_dict()),
            SKELETON_KEY: self.skeleton.name,
            SOURCE_KEY: self.publication.name,
        }
        save_weights(self.model, path, metadata=metadata)


def load_published(
    checkpoint: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    *,
    skeleton: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    image_mean: Sequence[float] | None = None,
) -> PublishedModel:
    """Read a published checkpoint, recognising by its names and shapes which network it belongs to.

    The last three arguments are for weights that others trained with the same code on other data; by default they are
    those of the published ones.

    Args:
        checkpoint: file that ``torch.save`` wrote, of a state dict or of a dictionary with a ``state_dict``; or the
            state dict itself. Names may begin with ``module.`` or ``model.``.
        skeleton: name of the skeleton of its joints.
        input_size: (height, width) of the crops that the network was trained with, or one number for a square.
        image_mean: red, green and blue that were subtracted from images in [0, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, needs more than tensors to be read, or is of no known publication; if
            weights are missing, unexpected or of another shape, which are named as in the checkpoint; or if an argument
            does not fit the network.
        TypeError: if ``image_mean`` holds anything but numbers.
    """
    if isinstance(checkpoint, Mapping):
        origin, tensors = "the state dict", checkpoint
    else:
        origin, tensors = str(checkpoint), _read(checkpoint)
    others = [repr(name) for name, tensor in tensors.items() if not isinstance(name, str) or not isinstance(tensor, torch.Tensor)]
    if others or not tensors:
        raise ValueError(f"{origin} must hold weights, by name, and nothing else; got {', '.join(others[:8]) or 'nothing'}")
    prefix = _prefix(tensors)
    tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    publication = _recognise(tensors, origin)
    options = _measure(publication, tensors, origin)
    options["image_mean"] = publication.image_mean if image_mean is None else image_mean
    try:
        model = StackedHourglass(**options)
    except ValueError as error:
        raise ValueError(f"{origin} looks like {publication.name}, but such a network cannot be built: {error}") from error
    codec = HeatmapCodec.preset(
        publication.codec, publication.input_size if input_size is None else input_size, **publication.codec_options
    )
    if any(side % model.size_divisor for side in codec.input_size):
        raise ValueError(f"input_size: got {codec.input_size}, allowed are multiples of {model.size_divisor}")
    joints = _skeleton(publication, skeleton, options["num_joints"])
    dead = _copy_weights(publication, tensors, model, prefix, origin)
    return PublishedModel(model, codec, joints, publication, dead)


def _read(path: str | os.PathLike[str]) -> Mapping[str, torch.Tensor]:
    """The state dict in a file of ``torch.save``, read without running anything that the file says."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        needed = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if isinstance(error, pickle.UnpicklingError) and needed:
            raise ValueError(
                f"{path} holds more than tensors: reading it would run {needed[1]}. If you trust where it comes from, "
                "read it with torch.load(path, weights_only=False) and save its state dict alone with torch.save"
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a complete PyTorch checkpoint: {reason}") from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, allowed is a state dict, or a dictionary with one")
    return content


def _prefix(names: Iterable[str]) -> str:
    """What wrappers of a network put before all the names."""
    prefix = ""
    while part := next((part for part in _PREFIXES if all(name.startswith(prefix + part) for name in names)), ""):
        prefix += part
    return prefix


def _recognise(tensors: Mapping[str, torch.Tensor], origin: str) -> Publication:
    for publication in PUBLICATIONS:
        if any(re.match(publication.marker, name) for name in tensors):
            return publication
    heads = {publication.name: _heads(publication, 1)[0] for publication in PUBLICATIONS}
    known = " and ".join(f"{name} (with {head}, ...)" for name, head in heads.items())
    found = ", ".join(itertools.islice(tensors, 3)) + (", ..." if len(tensors) > 3 else "")
    raise ValueError(f"{origin} is of no known publication, which are {known}; its names are {found}")


def _measure(publication: Publication, tensors: Mapping[str, torch.Tensor], origin: str) -> dict[str, Any]:
    """The options of the network, from names and shapes."""
    options: dict[str, Any] = {}
    for option, pattern in publication.counts.items():
        options[option] = max(1, len({found[1] for name in tensors if (found := re.match(pattern, name))}))
    heads = _heads(publication, options["stacks"])
    shapes = [tensors[name].shape for name in heads if name in tensors and tensors[name].dim() == 4]
    if not shapes:
        raise ValueError(f"{origin} lacks {' and '.join(heads)}, which would say how many joints and features there are")
    options["num_joints"], options["features"] = shapes[0][:2]
    options["stem"] = publication.stem
    widening = f"{publication.layers['stem.residual2']}.{publication.residual['conv3']}.weight"
    if widening in tensors and tensors[widening].dim() == 4:
        options["stem"] = "pytorch_pose" if tensors[widening].shape[0] == options["features"] else "torch7"
    return options


def _heads(publication: Publication, stacks: int) -> list[str]:
    return [publication.layers["stacks.{s}.head"].format(s=s) + ".weight" for s in range(stacks)]


def _skeleton(publication: Publication, name: str | None, joints: int) -> Skeleton | None:
    if name is None:
        return publication.skeleton if publication.skeleton.num_joints == joints else None
    skeleton = get_skeleton(name)
    if skeleton.num_joints != joints:
        raise ValueError(f"skeleton: got {name!r} of {skeleton.num_joints} joints, but the network has {joints}")
    return skeleton


def _copy_weights(
    publication: Publication, tensors: dict[str, torch.Tensor], model: StackedHourglass, prefix: str, origin: str
) -> tuple[str, ...]:
    """Copy the weights into the network; the names of those that it has no use for."""
    layers = layer_names(publication, model)
    own = model.state_dict()
    names = {name: f"{layers[layer]}.{kind}" for name in own for layer, _, kind in [name.rpartition(".")] if layer in layers}
    used = set(names.values())
    dead = []
    if publication.dead_skips:
        unprojected = {theirs for ours, theirs in layers.items() if isinstance(model.get_submodule(ours), nn.Identity)}
        dead = [name for name in tensors if name not in used and name.rpartition(".")[0] in unprojected]
    expected = {prefix + theirs: own[ours] for ours, theirs in names.items()}
    found = {prefix + name: tensor for name, tensor in tensors.items() if name not in dead}
    for name, tensor in expected.items():
        if name.endswith(_COUNTER):
            found.setdefault(name, tensor)
    problems = misfit(found, expected)
    if problems:
        size = f"{publication.name} with {model.options['stacks']} stack(s)"
        raise ValueError(f"{origin} looks like {size}, but its weights do not fit: {problems}")
    model.load_state_dict({**own, **{ours: found[prefix + theirs] for ours, theirs in names.items()}})
    return tuple(prefix + name for name in dead)
