"""The coordinate convention of a heatmap method in one object: encode, loss and decode cannot disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch

from fastpose import _check, ops
from fastpose.ops import BORDERS, METHODS, REDUCTIONS, UNLABELLED, Decoded
from fastpose.ops._gaussian import gaussian_args

MAPPINGS = ("centre", "corner", "udp")


@dataclass(frozen=True, kw_only=True)
class HeatmapCodec:
    """Keypoints to heatmaps and back.

    Keypoints are (x, y) in input pixels: the pixels of the crop that the network sees, pixel i having its centre
    at i. The object is a plain value: hashable, picklable, and without tensors, so that it works on any device and
    inside ``torch.compile`` and ``torch.export``. :meth:`preset` makes the published conventions.

    Args:
        input_size: (height, width) of the network's input in pixels.
        heatmap_size: (height, width) of its heatmaps.
        sigma: standard deviation of the target in heatmap pixels.
        mapping: from input pixels x to heatmap pixels, n input pixels and m cells wide:

            - ``"centre"``: (x + 1/2) m/n - 1/2, which cuts the input into m cells of equal width (CPM). The only
              one next to ``"udp"`` that commutes with mirroring.
            - ``"corner"``: x m/n (hourglass, SimpleBaseline, HRNet).
            - ``"udp"``: x (m-1)/(n-1), which puts the outermost pixel centres on the outermost cell centres.
        rounding: of the centre before drawing, see :func:`fastpose.ops.gaussian_heatmap`, as for the next five.
        radius: of the target in heatmap pixels; None: full support.
        window: ``"square"`` or ``"disc"``.
        combine: several people: ``"max"`` or ``"sum"``.
        amplitude: peak of the target above ``offset``.
        offset: value of the target where nothing is drawn.
        background: whether a last channel max(0, 1 - max_j target_j) follows those of the joints.
        ignore_outside: whether a keypoint whose window lies off the map altogether is not labelled.
        unlabelled: what the loss does with a joint that nobody is labelled with: ``"ignore"`` or ``"empty"``.
        reduction: of the loss, see :func:`fastpose.ops.heatmap_mse_loss`.
        loss_scale: factor of the loss.
        method: of decoding, see :func:`fastpose.ops.decode_heatmaps`, as for ``border``. ``"dark"`` blurs with
            ``sigma`` over 2·ceil(2.5 sigma) + 1 cells, which are the published kernels: 11 for 2 and 17 for 3.
        border: where ``"quarter"`` moves nothing.
        decode_offset: added to decoded coordinates, in heatmap pixels; 1/2 makes up for ``rounding="floor"``.
        flip_shift: columns by which the mirrored-back maps of the flip test move to the right.
        soft_radius: radius of ``"soft_window"`` in heatmap pixels.
        soft_temperature: temperature of ``"soft_window"``, in units of the map.

    Raises:
        TypeError, ValueError: a value is not as above.
    """

    input_size: tuple[int, int]
    heatmap_size: tuple[int, int]
    sigma: float
    mapping: str = "centre"
    rounding: str = "none"
    radius: float | None = None
    window: str = "square"
    combine: str = "max"
    amplitude: float = 1.0
    offset: float = 0.0
    background: bool = False
    ignore_outside: bool = False
    unlabelled: str = "ignore"
    reduction: str = "mean"
    loss_scale: float = 1.0
    method: str = "dark"
    border: str = "torch7"
    decode_offset: float = 0.0
    flip_shift: int = 0
    soft_radius: int = 2
    soft_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("input_size", "heatmap_size"):
            object.__setattr__(self, name, _check.size(name, getattr(self, name)))
        for name in ("background", "ignore_outside"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, allowed are True and False")
        _check.number("sigma", self.sigma, positive=True)
        gaussian_args(torch.empty(0, 1, 2), self.sigma, visible=None, dtype=torch.float32, **self._target())
        for name, allowed in (
            ("mapping", MAPPINGS),
            ("unlabelled", UNLABELLED),
            ("reduction", REDUCTIONS),
            ("method", METHODS),
            ("border", BORDERS),
        ):
            _check.option(name, getattr(self, name), allowed)
        _check.number("loss_scale", self.loss_scale, positive=True)
        _check.number("decode_offset", self.decode_offset)
        if isinstance(self.flip_shift, bool) or not isinstance(self.flip_shift, int):
            raise TypeError(f"flip_shift: got {self.flip_shift!r}, allowed is an integer")
        if self.flip_shift < 0:
            raise ValueError(f"flip_shift: got {self.flip_shift}, allowed is an integer of at least 0")
        _check.positive_int("soft_radius", self.soft_radius)
        _check.number("soft_temperature", self.soft_temperature, positive=True)
        if self.mapping == "udp" and min(*self.input_size, *self.heatmap_size) < 2:
            raise ValueError(
                f"mapping: 'udp' needs sizes of at least 2, got input_size {self.input_size} and heatmap_size {self.heatmap_size}"
            )
        if self.background and (self.amplitude, self.offset) != (1, 0):
            raise ValueError(
                "background: it is 1 minus the joints, which needs amplitude 1 and offset 0; "
                f"got {self.amplitude} and {self.offset}"
            )

    @classmethod
    def preset(
        cls,
        name: str,
        input_size: int | tuple[int, int],
        heatmap_size: int | tuple[int, int] | None = None,
        **overrides: Any,
    ) -> HeatmapCodec:
        """Makes the convention of a published method; see :data:`PRESETS` for its numbers and their sources.

        Args:
            name: ``"torch7_hourglass"``, ``"pytorch_pose"``, ``"msra"``, ``"udp"``, ``"cpm"``, ``"ief"`` or
                ``"tompson"``.
            input_size: (height, width) in pixels, or one number for a square.
            heatmap_size: likewise; None: the input divided by the stride of the method.
            **overrides: fields to set otherwise. A radius in units of sigma follows a given ``sigma``.

        Raises:
            TypeError: no field has the name of an override.
            ValueError: unknown name, a size that is no multiple of the stride, or a value that is not allowed.
        """
        _check.option("name", name, PRESETS)
        preset = PRESETS[name]
        _check_fields(overrides, cls)
        height, width = _check.size("input_size", input_size)
        if heatmap_size is None:
            if height % preset.stride or width % preset.stride:
                raise ValueError(
                    f"input_size: got {(height, width)}, which is no multiple of {name}'s stride "
                    f"{preset.stride}; give heatmap_size too"
                )
            heatmap_size = height // preset.stride, width // preset.stride
        heatmap_size = _check.size("heatmap_size", heatmap_size)
        sigma = overrides.pop("sigma", None)
        if sigma is None:
            sigma = preset.sigma
            if preset.sigma_in_input_pixels:
                if heatmap_size[0] * width != heatmap_size[1] * height:
                    raise ValueError(
                        f"heatmap_size: got {heatmap_size} for the input {(height, width)}, allowed is the same "
                        f"ratio of height to width, as {name}'s sigma is in input pixels; or give sigma"
                    )
                sigma = sigma * heatmap_size[0] / height
        radius = None
        if preset.radius is not None:
            per_sigma, constant = preset.radius
            radius = per_sigma * _check.number("sigma", sigma, positive=True) + constant
        values = {"radius": radius, **preset.values, **overrides}
        return cls(input_size=(height, width), heatmap_size=heatmap_size, sigma=sigma, **values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeatmapCodec:
        """Makes the codec that :meth:`to_dict` described.

        Raises:
            TypeError: a field is missing, or there is no field of a given name.
            ValueError: a value is not allowed.
        """
        _check_fields(values, cls)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for a checkpoint or a JSON file."""
        return asdict(self)

    def num_channels(self, num_joints: int) -> int:
        """Number of heatmaps for K joints: K, with a background K + 1."""
        return num_joints + self.background

    def to_heatmap(self, points: torch.Tensor) -> torch.Tensor:
        """Maps points from input pixels to heatmap pixels.

        Args:
            points: (..., 2) floating-point (x, y); NaN stays NaN.

        Returns:
            Points (..., 2), float32, for float64 float64.

        Raises:
            TypeError, ValueError: ``points`` is not as above.
        """
        (scale_x, shift_x), (scale_y, shift_y) = self._axes()
        x, y = _coordinates(points)
        return torch.stack((scale_x * x + shift_x, scale_y * y + shift_y), -1)

    def to_input(self, points: torch.Tensor) -> torch.Tensor:
        """Maps points from heatmap pixels to input pixels; the inverse of :meth:`to_heatmap`, like it in all else."""
        (scale_x, shift_x), (scale_y, shift_y) = self._axes()
        x, y = _coordinates(points)
        return torch.stack(((x - shift_x) / scale_x, (y - shift_y) / scale_y), -1)

    def encode(
        self,
        keypoints: torch.Tensor,
        visible: torch.Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Draws the target maps. Training does not need them: see :meth:`loss`.

        Args:
            keypoints: (B, K, 2), or (B, P, K, 2) for P people an image; (x, y) in input pixels. NaN: no label.
            visible: (B, K) or (B, P, K), bool or number; 0 means "no label", as NaN does.
            dtype: of the maps; None: that of the keypoints.

        Returns:
            Maps (B, num_channels(K), height, width) of ``heatmap_size``; differentiable in the keypoints where
            ``rounding`` is ``"none"``.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        points = self._points(keypoints)
        dtype = dtype or keypoints.dtype
        maps = self._draw(points, visible, dtype)
        if not self.background:
            return maps
        return torch.cat((maps, self._background(points, visible, dtype)), 1)

    def loss(
        self,
        predictions: torch.Tensor | Sequence[torch.Tensor],
        keypoints: torch.Tensor,
        visible: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Squared error between predictions and what :meth:`encode` draws, without drawing it.

        The background channel of CPM is the exception: it depends on all joints, so it is drawn, once for all
        stacks, and compared in plain PyTorch. That reads and writes one channel of each prediction a few times,
        and the gradient of a prediction is put together from two parts, one more write of it.

        Args:
            predictions: (B, num_channels(K), height, width), or a list of S of them, one for each stack.
            keypoints: as in :meth:`encode`.
            visible: as in :meth:`encode`. Pass it to leave hidden joints out of the training (pytorch-pose);
                without it they count like the others (Torch7 hourglass).
            weights: (K,) or (B, K) weights of the joints' squared errors. The background weighs 1.

        Returns:
            The loss () of one prediction, or the losses (S,) of a list; float32, for float64 float64.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        points = self._points(keypoints)
        channels = self.num_channels(points.shape[-2])
        listed = isinstance(predictions, (list, tuple))
        maps: list[Any] = list(predictions) if listed else [predictions]
        for i, prediction in enumerate(maps):
            name = f"predictions[{i}]" if listed else "predictions"
            self._check_maps(name, prediction)
            if prediction.shape[1] != channels:
                raise ValueError(
                    f"{name}: got {prediction.shape[1]} channels, allowed are {channels} for {points.shape[-2]} "
                    f"joints{' and the background' if self.background else ''}"
                )
        joints, factor = maps, self.loss_scale
        if self.background:
            # Unlike two slices, a split gathers its gradient in one write.
            pairs = [p.split((channels - 1, 1), 1) for p in maps]
            joints = [of_joints for of_joints, _ in pairs]
            if self.reduction == "mean":
                factor *= (channels - 1) / channels
        losses = ops.heatmap_mse_loss(
            joints,
            points,
            self.sigma,
            visible=visible,
            weights=_scaled(weights, factor, points),
            reduction=self.reduction,
            unlabelled=self.unlabelled,
            **self._target(),
        )
        if self.background:
            target = self._background(points, visible, losses.dtype)
            factor = self.loss_scale * self._reduction_factor(points.shape[0], channels)
            losses = losses + torch.stack([factor * (p.to(target) - target).square().sum() for _, p in pairs])
        return losses if listed else losses.squeeze(0)

    def decode(
        self,
        heatmaps: torch.Tensor,
        *,
        flipped: torch.Tensor | None = None,
        flip_permutation: Sequence[int] | torch.Tensor | None = None,
        affine: torch.Tensor | None = None,
        method: str | None = None,
    ) -> Decoded:
        """Reads keypoints off heatmaps.

        Args:
            heatmaps: (B, num_channels(K), height, width), what the network predicts.
            flipped: likewise, of the mirrored input, as the network gave them: decodes the mean of both.
            flip_permutation: for each of the K joints the one it becomes in the mirror; needs ``flipped``.
            affine: (B, 2, 3) from input pixels to image pixels, such as ``crop_to_image`` of a sample.
            method: None: that of the codec.

        Returns:
            ``coordinates`` (B, K, 2) in input pixels or, with ``affine``, in image pixels; ``scores`` (B, K),
            the value of the map at its maximum. See :func:`fastpose.ops.decode_heatmaps` for what is
            differentiable and for maps with NaN.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        method = self.method if method is None else method
        _check.option("method", method, METHODS)
        options: dict[str, Any] = {"border": self.border}
        if method == "dark":
            options = {"blur_sigma": self.sigma, "blur_size": 2 * math.ceil(2.5 * self.sigma) + 1}
        elif method == "soft_window":
            options = {"radius": self.soft_radius, "temperature": self.soft_temperature}
        if flipped is not None:
            flipped = self._joints("flipped", flipped)
            options["flip_shift"] = self.flip_shift
        decoded = ops.decode_heatmaps(
            self._joints("heatmaps", heatmaps),
            method,
            flipped=flipped,
            flip_permutation=flip_permutation,
            affine=None if affine is None else self._from_heatmap(affine),
            **options,
        )
        if affine is not None:
            return decoded
        return decoded._replace(coordinates=self.to_input(decoded.coordinates + self.decode_offset))

    def _axes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((scale, shift) of x, of y): a heatmap coordinate is scale times the input coordinate plus shift."""
        x, y = (self._axis(n, m) for n, m in zip(self.input_size[::-1], self.heatmap_size[::-1], strict=True))
        return x, y

    def _axis(self, pixels: int, cells: int) -> tuple[float, float]:
        if self.mapping == "udp":
            return (cells - 1) / (pixels - 1), 0.0
        scale = cells / pixels
        return scale, 0.5 * scale - 0.5 if self.mapping == "centre" else 0.0

    def _from_heatmap(self, affine: torch.Tensor) -> torch.Tensor:
        """(B, 2, 3) from decoded heatmap pixels to where ``affine`` takes input pixels."""
        if not isinstance(affine, torch.Tensor):
            raise TypeError(f"affine: got {type(affine).__name__}, allowed is a torch.Tensor")
        if affine.dim() != 3 or affine.shape[1:] != (2, 3):
            raise ValueError(f"affine: got shape {_check.shape(affine)}, allowed is (B, 2, 3), one for each image")
        (scale_x, shift_x), (scale_y, shift_y) = self._axes()
        of_x, of_y, constant = affine.unbind(-1)
        of_x, of_y = of_x / scale_x, of_y / scale_y
        constant = constant + (self.decode_offset - shift_x) * of_x + (self.decode_offset - shift_y) * of_y
        return torch.stack((of_x, of_y, constant), -1)

    def _target(self) -> dict[str, Any]:
        names = ("rounding", "radius", "window", "combine", "amplitude", "offset")
        return {name: getattr(self, name) for name in names}

    def _points(self, keypoints: torch.Tensor) -> torch.Tensor:
        """Keypoints in heatmap pixels; NaN for those that ``ignore_outside`` excludes."""
        _check.floating("keypoints", keypoints)
        if keypoints.dim() not in (3, 4) or keypoints.shape[-1] != 2:
            raise ValueError(
                f"keypoints: got shape {_check.shape(keypoints)}, allowed is (B, K, 2) or, for several people, (B, P, K, 2)"
            )
        points = self.to_heatmap(keypoints)
        if not self.ignore_outside or self.radius is None:
            return points
        centres = points
        if self.rounding != "none":
            centres = torch.floor(points + 0.5 if self.rounding == "nearest" else points)
        height, width = self.heatmap_size
        x, y = centres.unbind(-1)
        beyond_x = (x + self.radius < 0) | (x - self.radius > width - 1)
        beyond_y = (y + self.radius < 0) | (y - self.radius > height - 1)
        return torch.where((beyond_x | beyond_y).unsqueeze(-1), math.nan, points)

    def _draw(self, points: torch.Tensor, visible: torch.Tensor | None, dtype: torch.dtype, **changes: Any) -> torch.Tensor:
        options = self._target() | changes
        return ops.gaussian_heatmap(points, self.heatmap_size, self.sigma, visible=visible, dtype=dtype, **options)

    def _background(self, points: torch.Tensor, visible: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, height, width), from keypoints in heatmap pixels."""
        if points.dim() == 4 and self.combine == "sum":
            return 1 - self._draw(points, visible, dtype).amax(1, keepdim=True)
        # The maximum over the joints is one joint that many people have: a single map is drawn, not K.
        people = points.flatten(1, -2).unsqueeze(-2)
        visible = None if visible is None else visible.flatten(1).unsqueeze(-1)
        return self._draw(people, visible, dtype, combine="max", amplitude=-1.0, offset=1.0)

    def _reduction_factor(self, batch: int, channels: int) -> float:
        height, width = self.heatmap_size
        return {
            "mean": 1 / max(1, batch * channels * height * width),
            "sum": 1.0,
            "batchmean": 1 / max(1, batch),
            "half_batchmean": 0.5 / max(1, batch),
        }[self.reduction]

    def _joints(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        self._check_maps(name, maps)
        return maps[:, :-1] if self.background else maps

    def _check_maps(self, name: str, maps: torch.Tensor) -> None:
        _check.maps(name, maps)
        if maps.shape[2:] != self.heatmap_size:
            raise ValueError(
                f"{name}: got maps of {tuple(maps.shape[2:])}, allowed are those of heatmap_size, {self.heatmap_size}"
            )


class Preset(NamedTuple):
    """A published convention, for inputs of any size."""

    source: str
    stride: int  # input pixels a cell
    sigma: float
    values: dict[str, Any]  # fields of the codec
    radius: tuple[float, float] | None = None  # (a, b): a sigma + b heatmap pixels
    sigma_in_input_pixels: bool = False  # else in heatmap pixels


PRESETS: dict[str, Preset] = {
    "torch7_hourglass": Preset(
        "Newell et al. 2016 and its Torch7 code, pose-hg-train",
        stride=4,
        # The paper says 1, but the code gets its patch from image.gaussian, whose sigma is a quarter of the side:
        # 0.25 * 7 cells (pose-hg-train issue 25). The patch of side 6s + 1 therefore has a radius of 2 sigma - 1/2.
        sigma=1.75,
        radius=(2.0, -0.5),
        values={
            "mapping": "corner",
            # The code truncates toward zero, which draws keypoints just left of the map into its first column. It
            # also misplaces patches that the left or upper border cuts off, by up to two cells. Neither is kept.
            "rounding": "floor",
            "decode_offset": 0.5,
            "unlabelled": "empty",  # a zero map that counts in full
            "reduction": "mean",
            "method": "quarter",
            "border": "torch7",
        },
    ),
    "pytorch_pose": Preset(
        "bearpaw/pytorch-pose: the hourglass in PyTorch",
        stride=4,
        sigma=1.0,
        radius=(3.0, 0.0),
        values={
            "mapping": "corner",
            "rounding": "floor",
            "decode_offset": 0.5,  # since its pull request 16: +0.3 PCKh
            "ignore_outside": True,
            "unlabelled": "ignore",
            "reduction": "mean",
            "loss_scale": 0.5,
            "method": "quarter",
            "border": "torch7",
        },
    ),
    "msra": Preset(
        "Xiao et al. 2018 (SimpleBaseline) and Sun et al. 2019 (HRNet)",
        stride=4,
        sigma=2.0,
        radius=(3.0, 0.0),
        values={
            "mapping": "corner",
            "rounding": "nearest",
            "ignore_outside": True,
            "unlabelled": "ignore",
            "reduction": "mean",
            "loss_scale": 0.5,  # JointsMSELoss; mmpose, otherwise the same, has no such factor
            "method": "quarter",
            "border": "msra",
            "flip_shift": 1,
        },
    ),
    "udp": Preset(
        "Huang et al. 2020 (UDP), with the decoding of Zhang et al. 2020 (DARK)",
        stride=4,
        sigma=2.0,
        # The published patch surrounds the nearest cell by 3 sigma; half a cell more around the sub-pixel centre
        # holds the same cells.
        radius=(3.0, 0.5),
        values={
            # mmpose encodes by (n-1)/(m-1) but decodes by n/(m-1), 0.4 % too far at 256 pixels. Not kept.
            "mapping": "udp",
            "rounding": "none",
            "ignore_outside": True,
            "unlabelled": "ignore",
            "reduction": "mean",
            "loss_scale": 0.5,
            "method": "dark",
        },
    ),
    "cpm": Preset(
        "Wei et al. 2016 (Convolutional Pose Machines) and its Caffe code",
        stride=8,
        sigma=7.0,
        sigma_in_input_pixels=True,
        radius=(math.sqrt(2 * 4.6052), 0.0),  # nothing below 1 %: where the exponent exceeds ln 100
        values={
            "mapping": "centre",  # cell g lies at 8 g + 3.5
            "rounding": "none",
            "window": "disc",
            "combine": "sum",
            "background": True,
            "unlabelled": "empty",
            "reduction": "half_batchmean",  # Caffe's EuclideanLoss
            # The authors enlarge the maps eight times by cubic interpolation and take the maximum; this finds the
            # same maximum of the drawn Gaussians, to a fraction of a cell too, without enlarging.
            "method": "dark",
        },
    ),
    "ief": Preset(
        "Carreira et al. 2016 (Iterative Error Feedback): the rendered pose, an input of the network",
        stride=1,
        # 100 exp(-0.001 d^2) - 50 by the defaults of the released layer. A configuration says a width of 5, but the
        # released model was validated after the change to this.
        sigma=math.sqrt(500.0),
        sigma_in_input_pixels=True,
        values={
            "mapping": "centre",
            "rounding": "nearest",  # the layer's additional 1 is MATLAB's first index
            "amplitude": 100.0,
            "offset": -50.0,
            "method": "argmax",
        },
    ),
    "tompson": Preset(
        "Tompson et al. 2014 and 2015",
        stride=4,
        sigma=1.5,
        values={
            "mapping": "centre",
            "rounding": "none",
            "unlabelled": "ignore",
            "reduction": "batchmean",  # a sum over joints and pixels: a mean drowns the few bright ones
            "method": "argmax",
        },
    ),
}
"""The conventions that :meth:`HeatmapCodec.preset` knows, by name."""


def _check_fields(values: Mapping[str, Any], cls: type) -> None:
    allowed = [field.name for field in fields(cls)]
    unknown = sorted(values.keys() - set(allowed))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: a codec has no such field, allowed are {', '.join(allowed)}")


def _coordinates(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y in float32 or better: half precision cannot tell 200.5 from 201."""
    _check.floating("points", points)
    if points.dim() == 0 or points.shape[-1] != 2:
        raise ValueError(f"points: got shape {_check.shape(points)}, allowed is (..., 2)")
    x, y = points.to(torch.promote_types(points.dtype, torch.float32)).unbind(-1)
    return x, y


def _scaled(weights: torch.Tensor | None, factor: float, points: torch.Tensor) -> torch.Tensor | None:
    """Weights that hold the loss's factor as well: multiplying the loss would cost another pass over its gradient."""
    if factor == 1 or not isinstance(weights, torch.Tensor | None):  # the op refuses what is no tensor
        return weights
    if weights is None:
        return points.new_full((points.shape[-2],), factor)
    return weights * factor
