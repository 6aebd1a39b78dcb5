"""DeepPose: Human Pose Estimation via Deep Neural Networks (Toshev and Szegedy, CVPR 2014)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from fastpose import _check
from fastpose.codec import HeatmapCodec
from fastpose.models.alexnet import AlexNet
from fastpose.models.interface import Configurations, VectorModel, View, check_images, options_of
from fastpose.models.pixels import Pixels
from fastpose.models.resnet import ResNet
from fastpose.models.windows import Windows, cut_windows
from fastpose.nn.vector_loss import ResidualLogLikelihood, VectorLoss
from fastpose.skeletons import SKELETONS

TRUNKS = ("alexnet", "resnet")
LOSSES = ("l2", "smooth_l1", "rle")
REFINERS = ("shared", "per_joint")


class DeepPose(VectorModel):
    """DeepPose: a network sees the whole crop and names all joints; each later stage looks again around each of them.

    Coordinates are relative to the box that a network sees, from -1/2 to 1/2 (equation 2). Stage 1 sees the crop. A later one
    sees, for each joint, a square around the joint as predicted so far, with sigma times the diameter of the predicted torso as
    its side, cut from the original image (equations 5 to 8).

    Training goes stage by stage (`phases`). The first one compares ``loss(model(images), keypoints)``. A later one learns
    from simulated predictions, so that it sees many for each label::

        model.fit_displacements(stage, poses_before, keypoints_of_them)  # once, on people that were held out
        windows = model.simulate(stage, keypoints)
        outputs = model(model.cut(View(images, source=source), windows), stage)
        loss = model.loss(outputs, keypoints, windows=windows, stage=stage)

    Args:
        num_joints: K; 14 for LSP.
        stages: S, each with its own weights; 3 in the paper.
        trunk: ``"alexnet"``, or ``"resnet"`` with the mean over the last maps and one linear layer.
        input_size: pixels a side of the crop and of the windows. The crop is square.
        groups, fc_dims, dropout, norm, lrn_alpha: of AlexNet, see :class:`fastpose.models.alexnet.AlexNet`. The paper counts
            40 million parameters, while its layers have 58.4 million, or 57.0 million in two groups. One hidden layer less and
            two groups would give 40.2 million and the seven layers of the text; the figure shows what is default here.
        width: factor of AlexNet's convolutions; of ResNet's channels too.
        layers: bottlenecks of the ResNet, see :class:`fastpose.models.resnet.ResNet`.
        loss: ``"l2"``: the sum over labelled joints of squared distances (equation 4); ``"smooth_l1"``; ``"rle"``: residual
            log-likelihood (Li et al., ICCV 2021), for which the networks predict deviations too.
        refiners: ``"shared"``: one network for all joints in each later stage, whose answer for the joint that the window is
            around counts; the paper's notation reads so. ``"per_joint"``: a network for every joint, as some ports have it,
            with ten times the parameters.
        sigma: side of the windows in diameters of the torso: the paper tuned it to 2 on LSP and to 1 on FLIC.
        torso: pairs of joints, opposite to each other on the torso, whose mean distance is its diameter; None: left shoulder
            and right hip in the order of the package's skeleton with K joints.
        min_diameter: least diameter, as a share of the crop's side: people seen from the side have hardly any.
        pixels: what the networks see, see :class:`fastpose.models.pixels.Pixels`. The paper does not say; ports standardise
            each image.
        init: of AlexNet; the paper does not say, and AlexNet's own is the default.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    configurations: ClassVar[Configurations] = {
        "paper": {},
        "flic": {"num_joints": 11, "sigma": 1.0},
        "modern": {
            "num_joints": 16,
            "stages": 1,
            "trunk": "resnet",
            "input_size": 256,
            "loss": "smooth_l1",
            "pixels": "imagenet",
        },
    }

    displacement_mean: torch.Tensor
    displacement_std: torch.Tensor

    def __init__(
        self,
        num_joints: int = 14,
        stages: int = 3,
        *,
        trunk: str = "alexnet",
        input_size: int = 220,
        groups: int = 1,
        fc_dims: Sequence[int] = (4096, 4096),
        dropout: float = 0.6,
        norm: str = "lrn",
        lrn_alpha: float = 1e-4,
        width: float = 1.0,
        layers: Sequence[int] = (3, 4, 6, 3),
        loss: str = "l2",
        refiners: str = "shared",
        sigma: float = 2.0,
        torso: Sequence[Sequence[int]] | None = None,
        min_diameter: float = 0.1,
        pixels: str = "standardized",
        init: str = "alexnet",
    ) -> None:
        super().__init__()
        self.options = options_of(locals())
        for name, count in (("num_joints", num_joints), ("stages", stages), ("input_size", input_size)):
            _check.positive_int(name, count)
        for name, number in (("sigma", sigma), ("min_diameter", min_diameter)):
            _check.number(name, number, positive=True)
        _check.option("trunk", trunk, TRUNKS)
        _check.option("loss", loss, LOSSES)
        _check.option("refiners", refiners, REFINERS)
        self.num_joints = num_joints
        self.input_size = (input_size, input_size)
        self.stage_names = tuple(f"stage {stage}" for stage in range(1, stages + 1))
        self.phases = self.stage_names
        self.looks_again = stages > 1
        self.sigma, self.min_diameter = sigma, min_diameter
        self.torso = _torso(torso, num_joints) if stages > 1 or torso is not None else ()
        numbers = 4 if loss == "rle" else 2  # x and y, and perhaps their deviations

        def network(joints: int) -> nn.Module:
            if trunk == "resnet":
                return _ResNetRegressor(joints * numbers, layers, round(64 * width))
            return AlexNet(
                joints * numbers,
                input_size,
                groups=groups,
                fc_dims=fc_dims,
                dropout=dropout,
                norm=norm,
                lrn_alpha=lrn_alpha,
                width=width,
                init=init,
            )

        def refiner() -> nn.Module:
            return network(num_joints) if refiners == "shared" else nn.ModuleList(network(1) for _ in range(num_joints))

        self.pixels = Pixels(pixels)
        self.networks = nn.ModuleList((network(num_joints), *(refiner() for _ in range(stages - 1))))
        self.criteria = nn.ModuleList(_criterion(loss) for _ in range(stages))
        # Of predictions from labels, in diameters of the labelled torso; NaN until they are fitted.
        for name in ("displacement_mean", "displacement_std"):
            self.register_buffer(name, torch.full((stages - 1, num_joints, 2), torch.nan))

    def forward(self, images: torch.Tensor, stage: int = 0) -> torch.Tensor:
        """Predict relative to what the network of a stage sees.

        Args:
            images: RGB in [0, 1], for stage 0 (B, 3, H, W), the crops; for a later one (B, K, 3, H, W), the windows of `cut`.
                H and W are ``input_size``.
            stage: 0 to S - 1.

        Returns:
            (B, K, 2) coordinates; with the loss ``"rle"`` (B, K, 4), followed by what the sigmoid makes the deviations of.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        self._check_stage(stage, first=0)
        if stage == 0:
            self._check_size(images)
            return self._joints(self.networks[0](self.pixels(images)))
        if images.dim() != 5 or images.shape[1] != self.num_joints:
            raise ValueError(f"images: got shape {_check.shape(images)}, allowed is (B, {self.num_joints}, 3, H, W)")
        self._check_size(images.flatten(0, 1))
        images, networks = self.pixels(images), self.networks[stage]
        if isinstance(networks, nn.ModuleList):
            outputs = [network(windows) for network, windows in zip(networks, images.unbind(1), strict=True)]
            return torch.stack(outputs, 1)
        every = self._joints(networks(images.flatten(0, 1))).unflatten(0, images.shape[:2])
        return every.diagonal(dim1=1, dim2=2).transpose(1, 2)  # each window's own joint

    def loss(
        self,
        outputs: torch.Tensor,
        keypoints: torch.Tensor,
        visible: torch.Tensor | None = None,
        *,
        windows: Windows | None = None,
        stage: int = 0,
    ) -> torch.Tensor:
        """Compare what the network of a stage predicts with labels.

        Args:
            outputs: of ``forward``.
            keypoints: (B, K, 2) in crop pixels; NaN: no label.
            visible: (B, K), bool or number; 0 means "no label".
            windows: what it saw; None: the crops.
            stage: which it was; matters for the loss ``"rle"``, whose flows are the stages' own.

        Returns:
            The loss (1,).

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        self._check_stage(stage, first=0)
        windows = windows or self.whole(keypoints)
        return self.criteria[stage](outputs, windows.normalize(keypoints), visible).unsqueeze(0)

    def phase_modules(self, phase: str) -> list[nn.Module]:
        _check.option("phase", phase, self.phases)
        stage = self.phases.index(phase)
        return [self.networks[stage], self.criteria[stage]]

    def trained_stages(self, phase: str) -> int:
        return self.phases.index(phase) + 1

    def needs_people(self, phase: str) -> bool:
        return self.phases.index(phase) > 0

    @torch.no_grad()
    def prepare(self, phase: str, people: Iterable[tuple[View, torch.Tensor]]) -> None:
        """Fit the displacements that the stage of a phase learns from to the stage before it."""
        stage = self.phases.index(phase)
        found = [(self.poses(view, stage)[0][-1], keypoints) for view, keypoints in people]
        poses, keypoints = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        self.fit_displacements(stage, poses, keypoints)

    def objective(
        self, phase: str, view: View, keypoints: torch.Tensor, everyone: torch.Tensor, codec: HeatmapCodec | None = None
    ) -> torch.Tensor:
        stage = self.phases.index(phase)
        if not stage:
            return self.loss(self(view.images), keypoints)
        windows = self.simulate(stage, keypoints)
        return self.loss(self(self.cut(view, windows), stage), keypoints, windows=windows, stage=stage)

    def whole(self, keypoints: torch.Tensor) -> Windows:
        """The windows (B, K) that stage 1 sees: the crops, for keypoints (B, K, 2)."""
        side = self.input_size[0]
        centers = torch.full_like(keypoints, (side - 1) / 2)
        return Windows(centers, torch.full_like(keypoints[..., 0], side))

    def diameter(self, poses: torch.Tensor) -> torch.Tensor:
        """Diameters (B,) of the torsos of poses (B, K, 2) in crop pixels; NaN where a joint of the torso is."""
        first, second = (list(joints) for joints in zip(*self.torso, strict=True))
        distance = (poses[:, first] - poses[:, second]).square().sum(-1).sqrt().mean(-1)
        return distance.clamp(min=self.min_diameter * self.input_size[0])

    def around(self, centers: torch.Tensor, poses: torch.Tensor) -> Windows:
        """The windows that a later stage sees around points (B, K, 2) of poses (B, K, 2)."""
        return Windows(centers, (self.sigma * self.diameter(poses))[:, None].expand(centers.shape[:2]))

    def cut(self, view: View, windows: Windows) -> torch.Tensor:
        """Cut windows, for ``forward``, from where the crops are from, or from the crops: (B, K, 3, H, W)."""
        return cut_windows(view, windows, self.input_size)

    @torch.no_grad()
    def fit_displacements(
        self, stage: int, poses: torch.Tensor, keypoints: torch.Tensor, visible: torch.Tensor | None = None
    ) -> None:
        """Learn how far the predictions of the stage before are off, for `simulate`: a mean and a variance for each joint.

        Predictions for people whom that stage was trained on are better than it will be: hold people out.

        Args:
            stage: that will learn from it, 1 to S - 1.
            poses: (N, K, 2) in crop pixels, predicted by the stage before.
            keypoints: (N, K, 2), the labels; NaN: no label.
            visible: (N, K), bool or number; 0 means "no label".

        Raises:
            ValueError: an argument is not as above, or a joint has fewer than two labels of people whose torsos have labels.
        """
        self._check_stage(stage, first=1)
        if poses.shape != keypoints.shape or keypoints.dim() != 3 or keypoints.shape[1:] != (self.num_joints, 2):
            raise ValueError(
                f"poses: got shapes {_check.shape(poses)} and, of keypoints, {_check.shape(keypoints)}, allowed is "
                f"(N, {self.num_joints}, 2) for both"
            )
        displacements = (poses - keypoints).double() / self.diameter(keypoints)[:, None, None]
        known = displacements.isfinite().all(-1)
        if visible is not None:
            known &= visible > 0
        counts = known.sum(0)
        if bool((counts < 2).any()):
            few = (counts < 2).nonzero().flatten().tolist()
            raise ValueError(f"keypoints: joints {few} have fewer than two labels of people whose torso is labelled")
        known, counts = known.unsqueeze(-1), counts.unsqueeze(-1)
        mean = torch.where(known, displacements, 0).sum(0) / counts
        variance = torch.where(known, displacements - mean, 0).square().sum(0) / (counts - 1)
        self.displacement_mean[stage - 1] = mean
        self.displacement_std[stage - 1] = variance.sqrt()

    def simulate(
        self, stage: int, keypoints: torch.Tensor, visible: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> Windows:
        """Draw where the stage before might have put each joint, and the windows around there (section 3.2).

        Args:
            stage: that is to learn from them, 1 to S - 1.
            keypoints: (B, K, 2) in crop pixels; NaN: no label.
            visible: (B, K), bool or number; 0 means "no label".
            generator: of the random numbers; None: the default one of its device.

        Returns:
            Windows whose sides follow the labelled torso; none for joints without a label, and of people without a torso.

        Raises:
            ValueError: an argument is not as above, or `fit_displacements` has not been called.
        """
        self._check_stage(stage, first=1)
        mean, deviation = self.displacement_mean[stage - 1], self.displacement_std[stage - 1]
        if not bool(deviation.isfinite().all()):
            raise ValueError(f"stage: the displacements of stage {stage} are not known; call fit_displacements first")
        device = keypoints.device if generator is None else generator.device
        noise = torch.randn(keypoints.shape, generator=generator, device=device).to(keypoints.device)
        offset = (mean + deviation * noise) * self.diameter(keypoints)[:, None, None]
        centers = keypoints + offset
        if visible is not None:
            centers = torch.where((visible > 0).unsqueeze(-1), centers, torch.nan)
        return self.around(centers, keypoints)

    def poses(self, view: View, stages: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (S, B, K, 2) in crop pixels and scores (S, B, K) of the first so many stages; None: of all."""
        outputs = self(view.images)
        windows = self.whole(outputs[..., :2])
        predictions: list[torch.Tensor] = []
        scores: list[torch.Tensor] = []
        for stage in range(stages or len(self.networks)):
            if stage:
                windows = self.around(predictions[-1], predictions[-1])
                outputs = self(self.cut(view, windows), stage)
            predictions.append(windows.denormalize(outputs[..., :2].float()))
            scores.append(_scores(outputs))
        return torch.stack(predictions), torch.stack(scores)

    def _joints(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.unflatten(1, (self.num_joints, -1))

    def _check_stage(self, stage: int, first: int) -> None:
        if isinstance(stage, bool) or not isinstance(stage, int) or not first <= stage < len(self.networks):
            raise ValueError(f"stage: got {stage!r}, allowed are {first} to {len(self.networks) - 1}")

    def _check_size(self, images: torch.Tensor) -> None:
        check_images(images)
        height, width = images.shape[2:]
        if (height, width) != self.input_size:
            raise ValueError(f"images: got {height} by {width} pixels, allowed are {self.input_size[0]} by {self.input_size[1]}")


class _ResNetRegressor(nn.Module):
    def __init__(self, outputs: int, layers: Sequence[int], width: int) -> None:
        super().__init__()
        self.trunk = ResNet(layers, width)
        self.head = nn.Linear(self.trunk.out_channels, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images)[-1].mean((-2, -1)))


def _criterion(loss: str) -> nn.Module:
    if loss == "rle":
        return ResidualLogLikelihood()
    # A mean is what the published learning rates of smooth L1 go with, a sum over joints that of equation 4.
    return VectorLoss(loss, "batchmean" if loss == "l2" else "mean")


def _scores(outputs: torch.Tensor) -> torch.Tensor:
    """1 less the mean deviation; 1 where none is predicted."""
    if outputs.shape[-1] == 2:
        return torch.ones_like(outputs[..., 0], dtype=torch.float32)
    return 1 - outputs[..., 2:].float().sigmoid().mean(-1)


def _torso(torso: Any, num_joints: int) -> tuple[tuple[int, int], ...]:
    if torso is None:
        known = [skeleton for skeleton in SKELETONS.values() if skeleton.num_joints == num_joints]
        if not known:
            raise ValueError(f"torso: must be given for {num_joints} joints, as the package has no skeleton with so many")
        return ((known[0].index("left_shoulder"), known[0].index("right_hip")),)
    pairs = tuple(tuple(pair) for pair in torso)
    joints = range(num_joints)
    if not pairs or any(len(pair) != 2 or pair[0] == pair[1] or not all(joint in joints for joint in pair) for pair in pairs):
        raise ValueError(f"torso: got {torso}, allowed are pairs of two of the joints 0 to {num_joints - 1}")
    return pairs
