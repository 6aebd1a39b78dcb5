"""Efficient Object Localization Using Convolutional Networks (Tompson, Goroshin, Jain, LeCun and Bregler, CVPR 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from fastpose import _check
from fastpose.codec import HeatmapCodec
from fastpose.models.interface import Configurations, PoseModel, View, mirror_points, options_of
from fastpose.models.tompson_parts import POOLINGS, TAPS, FineModel, PyramidTrunk, ResNetTrunk, Tap
from fastpose.ops import CONTRAST_BORDERS, Decoded, gaussian_heatmap

TRUNKS = ("pyramid", "resnet")


class TompsonMaps(NamedTuple):
    """What :meth:`Tompson.forward` returns."""

    coarse: torch.Tensor
    """(B, K, H/p, W/p), p being the pooling."""
    fine: torch.Tensor | None
    """(B, K, n, n): maps of windows around the maxima of the coarse maps; None: not asked for."""
    centers: torch.Tensor | None
    """(B, K, 2), (x, y) in crop pixels: the middle of these windows."""


class Tompson(PoseModel):
    """Tompson's efficient object localization: a coarse heatmap for each joint, and a fine one around its maximum.

    Training has three phases (`phases`): the coarse model; the fine model, the coarse one kept as it is; both. In each,
    ``model.loss(model(images, fine=phase != "coarse"), keypoints).sum()``.

    Args:
        num_joints: K.
        input_size: (height, width) of the crops in pixels, or one number for a square; the paper takes 240x360 for FLIC and
            256x256 for MPII. The model takes others too, but not when it is compiled.
        trunk: ``"pyramid"``: the paper's banks over images of local contrast; ``"resnet"``: ResNet and deconvolutions, with
            cells of 4 pixels. The options from ``pooling`` to ``lcn_border`` are the former's, ``layers`` is the latter's.
        pooling: pixels a cell of the coarse maps: 4, 8 or 16, the paper's ablation.
        banks: resolutions of the image, each half of the one before.
        features: channels of all 5x5 convolutions.
        wide: channels of the 9x9 convolutions.
        head: channels of the 1x1 convolutions, or of the deconvolutions.
        extra_convs: more 5x5 convolutions in each bank. The paper has four more layers for MPII than the seven for FLIC, but
            does not say which.
        dropout: share of the channels that SpatialDropout takes away, before the first 1x1 convolution.
        lcn_window, lcn_border: of the local contrast normalisation, see :func:`fastpose.ops.local_contrast_normalization`.
            The paper does not give its window; 9x9 is Torch's.
        hint_sigma: standard deviation in crop pixels of a Gaussian at the person, which the 1x1 convolutions (of the ResNet:
            the first convolution) see as one more channel: which of several people is meant. None: without. The paper has it
            for FLIC and for MPII; its own way, a star-shaped graphical model, is :class:`fastpose.nn.TreeMaxSum`.
        fine: whether there is a fine model.
        fine_size: cells a side of its maps and of the window of the finest features that it shares; coarser ones have smaller
            windows, of the same pixels.
        fine_tap: whether it shares what the first two poolings give, ``"pool"``, or what goes into them, ``"conv"``. The
            paper's windows, 36 cells of the first and 18 of the second layer, fit both; the former's are twice as wide, 72
            pixels, and find joints that the coarse model missed by more.
        fine_convs: convolutions between the windows and their sum; not in the paper's text.
        jitter: in training, windows are shifted by up to this many coarse cells from the maximum, each way, on both axes, so
            that the joint is not in the middle too often.
        fine_weight: of the fine model's loss, beside the coarse model's.
        fine_sigma: standard deviation of its targets in cells.
        layers, width: of the ResNet, see :class:`fastpose.models.resnet.ResNet`.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    configurations: ClassVar[Configurations] = {
        "paper": {},
        "flic": {"num_joints": 11, "input_size": (240, 360)},
        "modern": {"num_joints": 16, "trunk": "resnet"},
    }

    def __init__(
        self,
        num_joints: int = 14,
        *,
        input_size: int | Sequence[int] = 256,
        trunk: str = "pyramid",
        pooling: int = 4,
        banks: int = 3,
        features: int = 128,
        wide: int = 512,
        head: int = 256,
        extra_convs: int = 0,
        dropout: float = 0.5,
        lcn_window: int = 9,
        lcn_border: str = "torch7",
        hint_sigma: float | None = None,
        fine: bool = True,
        fine_size: int = 36,
        fine_tap: str = "pool",
        fine_convs: int = 3,
        jitter: float = 0.5,
        fine_weight: float = 0.1,
        fine_sigma: float = 1.5,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
    ) -> None:
        super().__init__()
        self.options = options_of(locals())
        counts = {"num_joints": num_joints, "banks": banks, "features": features, "wide": wide, "head": head}
        for name, count in {**counts, "fine_size": fine_size, "fine_convs": fine_convs}.items():
            _check.positive_int(name, count)
        if extra_convs != 0:
            _check.positive_int("extra_convs", extra_convs)
        _check.option("trunk", trunk, TRUNKS)
        _check.option("lcn_border", lcn_border, CONTRAST_BORDERS)
        _check.option("fine_tap", fine_tap, TAPS)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: got {pooling!r}, allowed are {', '.join(map(str, POOLINGS))}")
        if trunk == "resnet" and pooling != 4:
            raise ValueError(f"pooling: got {pooling}, allowed is 4, the ResNet's")
        for name, number in (("jitter", jitter), ("fine_weight", fine_weight)):
            if _check.number(name, number) < 0:
                raise ValueError(f"{name}: got {number}, allowed is a number of at least 0")
        if hint_sigma is not None:
            _check.number("hint_sigma", hint_sigma, positive=True)
        self.input_size = _check.size("input_size", input_size)
        self.stride: int = pooling
        self.codec_preset = "tompson" if trunk == "pyramid" else "udp"
        self.hint_sigma, self.jitter, self.fine_weight = hint_sigma, jitter, fine_weight
        self.codec = self.default_codec()
        hint = hint_sigma is not None
        self.coarse: PyramidTrunk | ResNetTrunk
        if trunk == "resnet":
            self.coarse = ResNetTrunk(num_joints, hint=hint, head=head, width=width, layers=layers)
        else:
            self.coarse = PyramidTrunk(
                num_joints,
                banks=banks,
                hint=hint,
                dropout=dropout,
                head=head,
                window=lcn_window,
                border=lcn_border,
                pooling=pooling,
                features=features,
                wide=wide,
                extra_convs=extra_convs,
                tap=fine_tap,
            )
        self.fine: FineModel | None = None
        self.stage_names = ("coarse",)
        self.phases = ("coarse",)
        if fine:
            strides = self.coarse.strides
            self.fine = FineModel(num_joints, fine_size, self.coarse.channels, strides, features, head, fine_convs)
            method = "argmax" if trunk == "pyramid" else "dark"
            self.fine_codec = HeatmapCodec.preset("tompson", self.fine.side, fine_size, sigma=fine_sigma, method=method)
            self.stage_names = ("coarse", "fine")
            self.phases = ("coarse", "fine", "joint")

    def forward(self, images: torch.Tensor, center: torch.Tensor | None = None, *, fine: bool = True) -> TompsonMaps:
        """Predict coarse heatmaps, and fine ones around their maxima.

        Args:
            images: RGB in [0, 1], (B, 3, H, W), for a ResNet multiples of 32. Where a side is no multiple of the pooling, the
                last pixels belong to no cell.
            center: (B, 2), (x, y) in crop pixels, for ``hint_sigma``; None: the middle of the crop.
            fine: whether to ask the fine model too, if there is one. No gradient goes through the maxima, but one does go
                through the features.

        Returns:
            Coarse maps (B, K, H/p, W/p), fine ones (B, K, n, n) and where these are.

        Raises:
            TypeError, ValueError: ``images`` is not as above.
        """
        coarse, taps = self._coarse(View(images, center))
        if self.fine is None or not fine:
            return TompsonMaps(coarse, None, None)
        centers = self.codec_of(coarse).decode(coarse.detach(), method="argmax").coordinates
        if self.training and self.jitter:
            centers = centers + (2 * torch.rand_like(centers) - 1) * self.jitter * self.stride
        return TompsonMaps(coarse, self.fine(taps, centers), centers)

    def loss(
        self,
        outputs: TompsonMaps,
        keypoints: torch.Tensor,
        visible: torch.Tensor | None = None,
        *,
        codec: HeatmapCodec | None = None,
    ) -> torch.Tensor:
        """Compare the maps with labels.

        Args:
            outputs: of ``forward``.
            keypoints: (B, K, 2) in crop pixels, or (B, P, K, 2) with the person that the crop is around first; NaN: no label.
            visible: (B, K) or (B, P, K), bool or number; 0 means "no label".
            codec: convention of the coarse targets; None: :meth:`default_codec` for these crops.

        Returns:
            The coarse loss, and the fine one times its weight, if there are fine maps: (2,) or (1,). A joint that is not in
            its window has no fine target; it is left out.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        if keypoints.dim() == 4:
            keypoints, visible = keypoints[:, 0], None if visible is None else visible[:, 0]
        codec = codec or self.codec_of(outputs.coarse)
        losses = codec.loss([outputs.coarse], keypoints, visible)
        if self.fine is None or outputs.fine is None or outputs.centers is None:
            return losses
        side = self.fine.side
        points = keypoints - outputs.centers + (side - 1) / 2
        inside = ((points >= -0.5) & (points <= side - 0.5)).all(-1, keepdim=True)
        points = torch.where(inside, points, torch.nan)
        return torch.cat((losses, self.fine_weight * self.fine_codec.loss([outputs.fine], points, visible)))

    def codec_of(self, heatmaps: torch.Tensor) -> HeatmapCodec:
        # A codec is not made in a compiled graph.
        return self.codec if heatmaps.shape[-2:] == self.codec.heatmap_size else super().codec_of(heatmaps)

    def trained_stages(self, phase: str) -> int:
        _check.option("phase", phase, self.phases)
        return 1 if phase == "coarse" else 2

    def objective(
        self, phase: str, view: View, keypoints: torch.Tensor, everyone: torch.Tensor, codec: HeatmapCodec | None = None
    ) -> torch.Tensor:
        losses = self.loss(self(view.images, view.center, fine=phase != "coarse"), keypoints, codec=codec)
        return losses[1:] if phase == "fine" else losses

    def phase_modules(self, phase: str) -> list[nn.Module]:
        _check.option("phase", phase, self.phases)
        parts = (("coarse", self.coarse), ("fine", self.fine))
        return [module for name, module in parts if module is not None and phase in (name, "joint")]

    def _predict(
        self, view: View, codec: HeatmapCodec | None, flip_permutation: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        coarse, taps = self._coarse(view)
        codec = codec or self.codec_of(coarse)
        flip: dict[str, Any] = {}
        if flip_permutation is not None:
            mirrored, mirrored_taps = self._coarse(view.mirrored())
            flip = {"flipped": mirrored, "flip_permutation": flip_permutation}
        decoded = [codec.decode(coarse, **flip)]
        if self.fine is not None:
            centers = codec.decode(coarse, method="argmax", **flip).coordinates
            maps = self.fine(taps, centers)
            if flip_permutation is not None:
                opposite = mirror_points(centers[:, list(flip_permutation)], view.images.shape[-1])
                flip["flipped"] = self.fine(mirrored_taps, opposite)
            shift, scores = self.fine_codec.decode(maps, **flip)
            decoded.append(Decoded(centers + shift - (self.fine.side - 1) / 2, scores))
        return torch.stack([d.coordinates for d in decoded]), torch.stack([d.scores for d in decoded])

    def _coarse(self, view: View) -> tuple[torch.Tensor, list[Tap]]:
        hint = None
        if self.hint_sigma is not None:
            stride = self.coarse.hint_stride
            height, width = view.images.shape[-2:]
            cells = (view.middle() + 0.5) / stride - 0.5
            hint = gaussian_heatmap(cells.unsqueeze(1), (height // stride, width // stride), self.hint_sigma / stride)
        return self.coarse(view.images, hint)
