"""Human Pose Estimation with Iterative Error Feedback (Carreira, Agrawal, Fragkiadaki and Malik, CVPR 2016)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check
from fastpose.codec import HeatmapCodec
from fastpose.models.googlenet import GoogLeNet
from fastpose.models.interface import Configurations, VectorModel, View, check_images, options_of
from fastpose.models.pixels import Pixels
from fastpose.models.resnet import ResNet
from fastpose.nn.vector_loss import VectorLoss
from fastpose.ops import gaussian_conv2d

TRUNKS = ("googlenet", "resnet")
TARGETS = ("correction", "position")
BOUNDS = ("none", "tanh")
PATHS = ("fixed", "own")

_AMPLITUDE, _OFFSET = 100.0, -50.0  # of the rendered pose, which ranges like the image less its mean
_SMALLEST_NORM = 1e-12  # squared, so that the slope of a norm is finite


class IEF(VectorModel):
    """Iterative Error Feedback: a network sees the image with a pose drawn onto it and says how to correct the pose.

    Step t draws the pose y_t as one Gaussian a joint, and a marker at the person, into channels beside the image. The network
    predicts corrections of at most ``max_step`` pixels, so that from the median pose it goes toward the person step by step.

    It learns by Fixed Path Consolidation (`phases`): from poses on the straight way from the median pose to the labels, not
    from its own; in phase t from the first t poses of the way::

        model.fit_seed(keypoints_of_all)  # once
        poses = model.fixed_path(keypoints)[:t]
        loss = model.loss(model(images, poses), keypoints, poses=poses).sum()

    Args:
        num_joints: K.
        steps: T, 4 in the paper.
        trunk: ``"googlenet"``: the one without batch normalisation; ``"resnet"``: ResNet-50.
        input_size: pixels a side of the crop, square.
        max_step: L, the longest correction of a joint in crop pixels, by its length and not on each axis: 20 of 224.
        sigma: standard deviation of the drawn Gaussians in crop pixels. The released layer draws 100 exp(-d^2 / 1000) - 50, of
            22.4 pixels; a configuration file says 5, but the log says that the former was validated.
        target: what the network predicts: ``"correction"``, bounded by ``max_step``; or ``"position"``, the pose itself, for
            the paper's baselines: direct prediction with one step and no feedback, and iterative direct prediction.
        path: which poses it learns to correct: ``"fixed"``, those on the straight way, or ``"own"``, those that it reaches
            itself, which the paper compares with and finds to drift.
        consolidation: whether each phase adds one step to those that are learnt from, as in the paper; else one phase learns
            from all T from the start.
        feedback: joints that are drawn, in the paper's ablation; None: all. The marker always is.
        bound: of predicted corrections. ``"none"``: only the targets are bounded, as in the paper; ``"tanh"``: predictions too.
        dropout: share of the last features that training leaves out.
        norm, width: of GoogLeNet, see :class:`fastpose.models.googlenet.GoogLeNet`; ``width`` of ResNet's channels too.
        layers: of the ResNet, see :class:`fastpose.models.resnet.ResNet`.
        pixels: what the network sees, see :class:`fastpose.models.pixels.Pixels`.
        render_scale: factor of the drawn channels, for pixels that do not range over +-128: 1/58 for ``"imagenet"``.
        render_init: variance of the normal distribution that the weights of the drawn channels start from; 0.1 in the paper.
            None: as for those of the image.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    configurations: ClassVar[Configurations] = {
        "paper": {},
        "direct": {"steps": 1, "target": "position", "feedback": ()},
        "iterative_direct": {"target": "position"},
        "resnet": {"trunk": "resnet"},
        "modern": {
            "trunk": "resnet",
            "bound": "tanh",
            "dropout": 0.0,
            "pixels": "imagenet",
            "render_scale": 1 / 58,
            "render_init": None,
        },
    }

    seed: torch.Tensor

    def __init__(
        self,
        num_joints: int = 16,
        steps: int = 4,
        *,
        trunk: str = "googlenet",
        input_size: int = 224,
        max_step: float = 20.0,
        sigma: float = math.sqrt(500.0),
        target: str = "correction",
        path: str = "fixed",
        consolidation: bool = True,
        feedback: Sequence[int] | None = None,
        bound: str = "none",
        dropout: float = 0.4,
        norm: str = "lrn",
        width: float = 1.0,
        layers: Sequence[int] = (3, 4, 6, 3),
        pixels: str = "ief",
        render_scale: float = 1.0,
        render_init: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.options = options_of(locals())
        for name, count in (("num_joints", num_joints), ("steps", steps), ("input_size", input_size)):
            _check.positive_int(name, count)
        for name, number in (("max_step", max_step), ("sigma", sigma), ("render_scale", render_scale)):
            _check.number(name, number, positive=True)
        _check.option("trunk", trunk, TRUNKS)
        _check.option("target", target, TARGETS)
        _check.option("bound", bound, BOUNDS)
        _check.option("path", path, PATHS)
        self.feedback = _feedback(feedback, num_joints)
        self.num_joints, self.steps = num_joints, steps
        self.input_size = (input_size, input_size)
        self.stage_names = tuple(f"step {step}" for step in range(1, steps + 1))
        self.phases = self.stage_names if consolidation else ("all steps",)
        self.max_step, self.sigma, self.render_scale = max_step, sigma, render_scale
        self.target, self.bound, self.path = target, bound, path
        # Crop pixels of a prediction of 1: positions reach half a crop from its middle.
        self.unit = max_step if target == "correction" else input_size / 2
        channels = 3 + len(self.feedback) + 1
        self.pixels = Pixels(pixels)
        self.trunk: GoogLeNet | ResNet
        if trunk == "resnet":
            self.trunk = ResNet(layers, round(64 * width), channels)
        else:
            self.trunk = GoogLeNet(channels, width, norm)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.trunk.out_channels, 2 * num_joints)
        self.criterion = VectorLoss("l2")
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        if render_init is not None:
            deviation = math.sqrt(_check.number("render_init", render_init, positive=True))
            nn.init.normal_(self.trunk.conv1.weight[:, 3:], std=deviation)
        # The median pose, in crop pixels; until it is fitted, all joints are in the middle of the crop.
        self.register_buffer("seed", torch.full((num_joints, 2), (input_size - 1) / 2))

    def forward(self, images: torch.Tensor, poses: torch.Tensor, center: torch.Tensor | None = None) -> torch.Tensor:
        """Predict how poses have to be corrected.

        Args:
            images: RGB in [0, 1], (B, 3, H, W); H and W are ``input_size``.
            poses: (B, K, 2), or (T, B, K, 2) for several of each person, (x, y) in crop pixels.
            center: (B, 2), where the marker is; None: in the middle, where the paper's crops have it.

        Returns:
            Corrections of the same shape, in crop pixels.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        several = poses if poses.dim() == 4 else poses.unsqueeze(0)
        if several.dim() != 4 or several.shape[1:] != (len(images), self.num_joints, 2):
            allowed = f"({len(images)}, {self.num_joints}, 2), or T of it"
            raise ValueError(f"poses: got shape {_check.shape(poses)}, allowed is {allowed}")
        shown = self.show(View(images, center))
        shown = shown.expand(len(several), *shown.shape).flatten(0, 1)
        return self.correct(shown, several.flatten(0, 1)).view_as(poses)

    def show(self, view: View) -> torch.Tensor:
        """What the first convolution makes of the image and the marker, (B, C, h, w); all steps share it."""
        check_images(view.images)
        height, width = view.images.shape[-2:]
        if (height, width) != self.input_size:
            raise ValueError(f"images: got {height} by {width} pixels, allowed are {self.input_size[0]} by {self.input_size[1]}")
        conv1 = self.trunk.conv1
        of_image = functional.conv2d(self.pixels(view.images), conv1.weight[:, :3], conv1.bias, conv1.stride, conv1.padding)
        return self._draw(of_image, view.middle().unsqueeze(1), conv1.weight[:, -1:])

    def correct(self, shown: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
        """Corrections (B, K, 2) of poses (B, K, 2), both in crop pixels; ``shown`` is what :meth:`show` made of the images."""
        if self.feedback:
            weight = self.trunk.conv1.weight[:, 3:-1]
            shown = self._draw(shown, poses.detach()[:, self.feedback], weight)
        features = self.trunk.after_conv1(shown)
        last = features if isinstance(features, torch.Tensor) else features[-1]
        outputs = self.head(self.dropout(last.mean((-2, -1)))).float()
        vectors = outputs.unflatten(1, (2, self.num_joints)).transpose(1, 2)  # all x come before all y
        if self.bound == "tanh":
            norm = vectors.square().sum(-1, keepdim=True).clamp(min=_SMALLEST_NORM).sqrt()
            vectors = vectors * (torch.tanh(norm) / norm)
        moves = self.unit * vectors
        return moves if self.target == "correction" else self.seed + moves - poses

    def loss(
        self, outputs: torch.Tensor, keypoints: torch.Tensor, visible: torch.Tensor | None = None, *, poses: torch.Tensor
    ) -> torch.Tensor:
        """Compare predicted corrections with those that lead to the labels.

        Args:
            outputs: of ``forward``.
            keypoints: (B, K, 2) in crop pixels; NaN: no label.
            visible: (B, K), bool or number; 0 means "no label".
            poses: those that were corrected, as given to ``forward``.

        Returns:
            Losses (T,), or (1,) for poses (B, K, 2): the sum over labelled joints of squared distances, in units of
            ``max_step``, divided by B.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        targets = self.wanted(poses, keypoints) / self.unit
        pairs = zip(outputs / self.unit, targets, strict=True) if outputs.dim() == 4 else [(outputs / self.unit, targets)]
        return torch.stack([self.criterion(predicted, target, visible) for predicted, target in pairs])

    def wanted(self, poses: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
        """The corrections that the network shall predict for poses (..., B, K, 2); NaN where keypoints (B, K, 2) are."""
        return self.bounded(keypoints - poses) if self.target == "correction" else keypoints - poses

    def bounded(self, moves: torch.Tensor) -> torch.Tensor:
        """Moves (..., 2) in crop pixels, those longer than ``max_step`` shortened to it (section 2.1)."""
        length = moves.square().sum(-1, keepdim=True).sqrt()
        return moves * (self.max_step / length.clamp(min=self.max_step))

    def fixed_path(self, keypoints: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """The poses from the seed toward the labels, each one bounded correction on from the one before.

        Args:
            keypoints: (B, K, 2) in crop pixels; NaN: no label.
            visible: (B, K), bool or number; 0 means "no label".

        Returns:
            (T, B, K, 2), the seed first. Joints without a label stay where the seed has them.
        """
        pose = self.seed.to(keypoints.dtype).expand_as(keypoints)
        labelled = keypoints.isfinite().all(-1, keepdim=True)
        if visible is not None:
            labelled = labelled & (visible > 0).unsqueeze(-1)
        path = [pose]
        for _ in range(self.steps - 1):
            pose = torch.where(labelled, pose + self.bounded(keypoints - pose), pose)
            path.append(pose)
        return torch.stack(path)

    @torch.no_grad()
    def fit_seed(self, keypoints: torch.Tensor, visible: torch.Tensor | None = None) -> None:
        """Set the pose that all begin with: the median of each coordinate over labelled poses.

        Args:
            keypoints: (N, K, 2) in crop pixels; NaN: no label.
            visible: (N, K), bool or number; 0 means "no label".

        Raises:
            ValueError: an argument is not as above, or a joint has no label at all.
        """
        if keypoints.dim() != 3 or keypoints.shape[1:] != (self.num_joints, 2):
            raise ValueError(f"keypoints: got shape {_check.shape(keypoints)}, allowed is (N, {self.num_joints}, 2)")
        known = keypoints.isfinite().all(-1)
        if visible is not None:
            known &= visible > 0
        missing = (~known.any(0)).nonzero().flatten().tolist()
        if missing:
            raise ValueError(f"keypoints: joints {missing} have no label")
        self.seed.copy_(torch.where(known.unsqueeze(-1), keypoints, torch.nan).nanmedian(0).values)

    def needs_people(self, phase: str) -> bool:
        return self.phases.index(phase) == 0

    def prepare(self, phase: str, people: Iterable[tuple[View, torch.Tensor]]) -> None:
        """Fit the seed, before the first phase."""
        self.fit_seed(torch.cat([keypoints for _, keypoints in people]))

    def objective(
        self, phase: str, view: View, keypoints: torch.Tensor, everyone: torch.Tensor, codec: HeatmapCodec | None = None
    ) -> torch.Tensor:
        steps = self.stage_names.index(phase) + 1 if phase in self.stage_names else self.steps
        poses = self.fixed_path(keypoints)[:steps] if self.path == "fixed" else self.rollout(view, steps - 1)
        return self.loss(self(view.images, poses, view.center), keypoints, poses=poses)

    @torch.no_grad()
    def rollout(self, view: View, steps: int | None = None) -> torch.Tensor:
        """The model's own poses (steps + 1, B, K, 2) in crop pixels, from the seed on, after so many steps; None: after all T.

        Training on them is what Fixed Path Consolidation is compared with in the paper; mixing them in later on is scheduled
        sampling.
        """
        shown = self.show(view)
        poses = [self.seed.float().expand(len(view.images), -1, -1)]
        for _ in range(self.steps if steps is None else steps):
            poses.append(poses[-1] + self.correct(shown, poses[-1]))
        return torch.stack(poses)

    def poses(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        coordinates = self.rollout(view)[1:]
        return coordinates, torch.ones_like(coordinates[..., 0])

    def _draw(self, base: torch.Tensor, points: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``base`` plus what the first convolution makes of Gaussians at points (B, N, 2), in its N input channels."""
        conv1 = self.trunk.conv1
        return gaussian_conv2d(
            base,
            points,
            weight.to(base.dtype),
            self.input_size,
            self.sigma,
            stride=conv1.stride[0],
            padding=int(conv1.padding[0]),
            rounding="nearest",
            amplitude=_AMPLITUDE * self.render_scale,
            offset=_OFFSET * self.render_scale,
        )


def _feedback(feedback: Sequence[int] | None, num_joints: int) -> list[int]:
    joints = list(range(num_joints)) if feedback is None else list(feedback)
    if len(set(joints)) != len(joints) or any(joint not in range(num_joints) for joint in joints):
        raise ValueError(f"feedback: got {feedback}, allowed are different ones of the joints 0 to {num_joints - 1}")
    return joints
