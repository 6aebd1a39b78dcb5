"""What every architecture has in common: all its predictions, in the pixels of the crop that it is given.

``forward`` is what training calls, and returns whatever the architecture's own loss needs: heatmaps, vectors, corrections.
``loss`` takes that and labels, and returns one loss for each of its parts. Both are the architecture's own; ``predict`` is
the same for all.

Images are RGB in [0, 1]; each model brings them into the form that its paper trains on. A crop's pixel i has its centre
at i, so that W pixels reach from -1/2 to W - 1/2 and are mirrored by x -> W - 1 - x.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from fastpose import _check
from fastpose.codec import HeatmapCodec


class Stages(NamedTuple):
    """All predictions of a model, from the first to the final one."""

    names: tuple[str, ...]
    """The S stages, such as ``"stage 1"``."""
    coordinates: torch.Tensor
    """(S, B, K, 2), (x, y) in crop pixels."""
    scores: torch.Tensor
    """(S, B, K): a heatmap's value at its maximum. 1 where a model has no measure of confidence."""


class Source(NamedTuple):
    """The images that crops were cut from, for models that look again, and closer: DeepPose, CPM at several scales."""

    images: torch.Tensor | Sequence[torch.Tensor]
    """(B, 3, H, W), or B of (3, H_i, W_i): RGB, floating-point in [0, 1] or uint8."""
    crop_to_source: torch.Tensor
    """(B, 2, 3): from crop pixels to pixels of these images, such as ``crop_to_image`` of a sample."""


class View(NamedTuple):
    """What a model is shown of B people. Points are (x, y) in crop pixels."""

    images: torch.Tensor
    """Crops (B, 3, H, W), RGB in [0, 1]."""
    center: torch.Tensor | None = None
    """(B, 2): where the person is; None: in the middle."""
    source: Source | None = None
    """Where the crops are from; None: nothing but the crops is at hand."""

    def middle(self) -> torch.Tensor:
        """(B, 2): where the person is, or the middle of the crop."""
        if self.center is not None:
            return self.center
        batch, _, height, width = self.images.shape
        # Filled in on the device, as copies from the host have no place in a CUDA graph.
        return torch.stack([self.images.new_full((batch,), (n - 1) / 2, dtype=torch.float32) for n in (width, height)], -1)

    def mirrored(self) -> View:
        """The same, left and right exchanged."""
        width = self.images.shape[-1]
        center = None if self.center is None else mirror_points(self.center, width)
        source = self.source
        if source is not None:
            of_x, of_y, constant = source.crop_to_source.unbind(-1)
            source = source._replace(crop_to_source=torch.stack((-of_x, of_y, constant + (width - 1) * of_x), -1))
        return View(self.images.flip(-1), center, source)


def mirror_points(points: torch.Tensor, width: int) -> torch.Tensor:
    """Points (..., 2) of a crop of that many pixels where its mirror image has them."""
    x, y = points.unbind(-1)
    return torch.stack((width - 1 - x, y), -1)


Configurations = Mapping[str, Mapping[str, Any]]
"""Sets of options of an architecture by name."""


class PoseModel(nn.Module):
    """An architecture. A subclass sets what follows, and says in the first line of its module which paper it is from.

    Attributes:
        configurations: sets of options by name, for :func:`fastpose.models.create_model`; ``"paper"`` and ``"modern"``.
        options: all arguments of the class, as JSON has them, with which a checkpoint rebuilds the model.
        input_size: (height, width) of the crops in pixels, as the paper takes them.
        padding: grey value in [0, 1] of what lies beyond the image in a crop.
        stride: crop pixels a heatmap cell; None: no heatmaps.
        codec_preset: convention of the heatmaps, see :meth:`default_codec`; None: no heatmaps.
        codec_options: fields of the preset that are otherwise in this model.
        stage_names: the predictions, in order.
        phases: parts of the training, in order, each of which trains :meth:`phase_modules` by :meth:`objective`.
        looks_again: whether it makes use of `View.source`.
    """

    configurations: ClassVar[Configurations] = {"paper": {}}
    padding: ClassVar[float] = 0.0

    options: dict[str, Any]
    input_size: tuple[int, int]
    stride: int | None = None
    codec_preset: str | None = None
    codec_options: Mapping[str, Any] = {}
    stage_names: tuple[str, ...]
    phases: tuple[str, ...] = ("all",)
    looks_again: bool = False

    def default_codec(
        self, input_size: int | tuple[int, int] | None = None, *, preset: str | None = None, **overrides: Any
    ) -> HeatmapCodec:
        """The convention of the model's heatmaps.

        Args:
            input_size: (height, width) of the crops; None: ``self.input_size``. Where it is no multiple of the stride, the
                codec is that of the pixels that the cells cover.
            preset: another convention than the model's own.
            **overrides: fields of the codec to set otherwise.

        Raises:
            ValueError: the model has no heatmaps, or a value is not allowed.
        """
        if self.codec_preset is None or self.stride is None:
            raise ValueError(f"{type(self).__name__} predicts coordinates, not heatmaps; it has no codec")
        height, width = _check.size("input_size", self.input_size if input_size is None else input_size)
        cells = height // self.stride, width // self.stride
        covered = cells[0] * self.stride, cells[1] * self.stride
        own = self.codec_options if preset in (None, self.codec_preset) else {}
        return HeatmapCodec.preset(preset or self.codec_preset, covered, cells, **{**own, **overrides})

    def codec_of(self, heatmaps: torch.Tensor) -> HeatmapCodec:
        """The same for the crops of which these heatmaps (B, C, h, w) are."""
        height, width = heatmaps.shape[-2:]
        stride = self.stride or 1
        return self.default_codec((height * stride, width * stride))

    def phase_modules(self, phase: str) -> list[nn.Module]:
        """The parts of the model that a phase of the training changes; the others keep their weights.

        Raises:
            ValueError: there is no such phase.
        """
        _check.option("phase", phase, self.phases)
        return [self]

    def trained_stages(self, phase: str) -> int:
        """How many of the stages, from the first on, have been trained when a phase has."""
        _check.option("phase", phase, self.phases)
        return len(self.stage_names)

    def needs_people(self, phase: str) -> bool:
        """Whether a phase begins with :meth:`prepare`."""
        _check.option("phase", phase, self.phases)
        return False

    def prepare(self, phase: str, people: Iterable[tuple[View, torch.Tensor]]) -> None:
        """Learn beforehand what a phase takes from labels, or from predictions of the phases before; nothing in most models.

        Args:
            phase: of :attr:`phases`.
            people: views, and keypoints (B, K, 2) in crop pixels, of people whom the phases before were not trained on.
        """

    def objective(
        self, phase: str, view: View, keypoints: torch.Tensor, everyone: torch.Tensor, codec: HeatmapCodec | None = None
    ) -> torch.Tensor:
        """What a phase minimises: the sum of these losses.

        Args:
            phase: of :attr:`phases`.
            view: what the model is shown.
            keypoints: (B, K, 2) in crop pixels; NaN: no label.
            everyone: (B, P, K, 2): the same, and then those of other people in the crops.
            codec: convention of the heatmaps; None: :meth:`default_codec` for these crops.

        Returns:
            Losses (n,), one for each part.
        """
        raise NotImplementedError

    def parameter_groups(self, lr: float, weight_decay: float = 0.0, phase: str | None = None) -> list[dict[str, Any]]:
        """Parameters for an optimizer of ``torch.optim``, with their learning rates.

        Args:
            lr: the base learning rate.
            weight_decay: of those parameters that the paper's training decays.
            phase: of :attr:`phases`; None: all parameters.
        """
        modules = [self] if phase is None else self.phase_modules(phase)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return [{"params": parameters, "lr": lr, "weight_decay": weight_decay}]

    @torch.no_grad()
    def predict(
        self,
        images: torch.Tensor,
        *,
        codec: HeatmapCodec | None = None,
        flip_permutation: Sequence[int] | None = None,
        center: torch.Tensor | None = None,
        source: Source | None = None,
    ) -> Stages:
        """Predict poses, stage by stage. Call ``eval()`` before, as for any module.

        Args:
            images: crops (B, 3, H, W), RGB in [0, 1].
            codec: how heatmaps are read; None: :meth:`default_codec` for these crops. Models without heatmaps have no use
                for it.
            flip_permutation: for each joint the one it becomes in the mirror, `Skeleton.flip_permutation`: predict from
                the mirrored crops too, and take the mean. None: no flip test.
            center: (B, 2), (x, y) in crop pixels: where the person is, for models that are told; None: in the middle.
            source: where the crops are from, for models that look again; None: they look at the crop itself.

        Returns:
            The coordinates and scores of all stages, without gradient.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        view = View(images, center, source)
        check_view(view)
        if flip_permutation is not None:
            flip_permutation = tuple(flip_permutation)
        return Stages(self.stage_names, *self._predict(view, codec, flip_permutation))

    def _predict(
        self, view: View, codec: HeatmapCodec | None, flip_permutation: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (S, B, K, 2) and scores (S, B, K); arguments as of `predict`."""
        raise NotImplementedError


class HeatmapModel(PoseModel):
    """An architecture whose stages all predict heatmaps of one size.

    Attributes:
        stage_targets: for each stage the people that it shall find: ``"person"``, the one the crop is around, or
            ``"everyone"`` in the crop. Empty: ``"person"`` for all.
    """

    stage_targets: tuple[str, ...] = ()

    def heatmaps(self, view: View) -> list[torch.Tensor]:
        """The heatmaps (B, C, h, w) of each stage."""
        return self(view.images)

    def loss(
        self,
        outputs: Sequence[torch.Tensor],
        keypoints: torch.Tensor,
        visible: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        *,
        codec: HeatmapCodec | None = None,
    ) -> torch.Tensor:
        """Compare the heatmaps of each stage with what it shall find.

        Args:
            outputs: S heatmaps (B, C, h, w), of ``forward``.
            keypoints: (B, K, 2) in crop pixels, or (B, P, K, 2) with the person that the crop is around first. NaN: no label.
            visible: (B, K) or (B, P, K), see :meth:`HeatmapCodec.loss`, as for ``weights`` (K,) or (B, K).
            codec: convention of the targets; None: :meth:`default_codec` for these crops.

        Returns:
            Losses (S,), of which training takes the sum.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        codec = codec or self.codec_of(outputs[0])
        targets = self.stage_targets or ("person",) * len(outputs)
        several = keypoints.dim() == 4
        losses = []
        for target, stages in itertools.groupby(zip(targets, outputs, strict=True), key=lambda pair: pair[0]):
            one = several and target == "person"
            points = keypoints[:, 0] if one else keypoints
            seen = visible[:, 0] if one and visible is not None else visible
            losses.append(codec.loss([maps for _, maps in stages], points, seen, weights))
        return torch.cat(losses)

    def objective(
        self, phase: str, view: View, keypoints: torch.Tensor, everyone: torch.Tensor, codec: HeatmapCodec | None = None
    ) -> torch.Tensor:
        points = everyone if "everyone" in self.stage_targets else keypoints
        return self.loss(self.heatmaps(view), points, codec=codec)

    def _predict(
        self, view: View, codec: HeatmapCodec | None, flip_permutation: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stages = self.heatmaps(view)
        codec = codec or self.codec_of(stages[0])
        mirrored: Sequence[torch.Tensor | None] = [None] * len(stages)
        if flip_permutation is not None:
            mirrored = self.heatmaps(view.mirrored())
        decoded = [
            codec.decode(maps, flipped=flipped, flip_permutation=flip_permutation)
            for maps, flipped in zip(stages, mirrored, strict=True)
        ]
        return torch.stack([d.coordinates for d in decoded]), torch.stack([d.scores for d in decoded])


class VectorModel(PoseModel):
    """An architecture whose stages all predict coordinates."""

    def poses(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (S, B, K, 2) in crop pixels and scores (S, B, K)."""
        raise NotImplementedError

    def _predict(
        self, view: View, codec: HeatmapCodec | None, flip_permutation: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        coordinates, scores = self.poses(view)
        if flip_permutation is None:
            return coordinates, scores
        of_mirrored, mirrored_scores = self.poses(view.mirrored())
        order = list(flip_permutation)
        mirrored = mirror_points(of_mirrored[..., order, :], view.images.shape[-1])
        return (coordinates + mirrored) / 2, (scores + mirrored_scores[..., order]) / 2


def options_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class, from ``locals()`` at the start of its ``__init__``, in the types that JSON has."""
    names = arguments.keys() - {"self", "__class__"}
    return {name: _plain(value) for name, value in arguments.items() if name in names}


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def check_images(images: torch.Tensor, divisor: int = 1) -> None:
    """Refuses what is no batch of crops (B, 3, H, W), or has sides that are no multiples of ``divisor``."""
    _check.floating("images", images)
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: got shape {_check.shape(images)}, allowed is (B, 3, H, W)")
    height, width = images.shape[2:]
    if height == 0 or width == 0 or height % divisor or width % divisor:
        raise ValueError(f"images: got {height} by {width} pixels, allowed are positive multiples of {divisor}")


def check_view(view: View) -> None:
    """Refuses what is not as `View` and `Source` say."""
    images, center, source = view
    check_images(images)
    batch = len(images)
    if center is not None and center.shape != (batch, 2):
        raise ValueError(f"center: got shape {_check.shape(center)}, allowed is ({batch}, 2)")
    if source is None:
        return
    if len(source.images) != batch:
        raise ValueError(f"source.images: got {len(source.images)} images, allowed is one for each of {batch} crops")
    for index, image in enumerate(source.images):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"source.images[{index}]: got shape {_check.shape(image)}, allowed is (3, H, W)")
    if source.crop_to_source.shape != (batch, 2, 3):
        raise ValueError(f"source.crop_to_source: got shape {_check.shape(source.crop_to_source)}, allowed is ({batch}, 2, 3)")
