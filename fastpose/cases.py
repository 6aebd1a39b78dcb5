"""One description of each op, from which every test and every benchmark makes its calls. Adding an op adds one case."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fastpose import ops
from fastpose._library import backend


class Shape(NamedTuple):
    """Of the maps."""

    batch: int
    joints: int
    height: int
    width: int

    @property
    def elements(self) -> int:
        return self.batch * self.joints * self.height * self.width


@dataclass(frozen=True)
class Call:
    """One call of an op: a function of floating tensors and options; ``differentiable`` names those with a gradient."""

    function: Callable[..., Any]
    tensors: dict[str, torch.Tensor]
    options: dict[str, Any]
    differentiable: tuple[str, ...]

    def __call__(self, *tensors: torch.Tensor, **changes: Any) -> tuple[torch.Tensor, ...]:
        """The results, without those that were not asked for. ``tensors`` replace the differentiable ones."""
        replaced = dict(zip(self.differentiable, tensors, strict=False))
        results = self.function(**{**self.tensors, **self.options, **replaced, **changes})
        if isinstance(results, torch.Tensor):
            return (results,)
        return tuple(result for result in results if result is not None)

    def reference(self, *tensors: torch.Tensor, **changes: Any) -> tuple[torch.Tensor, ...]:
        """The same in plain PyTorch."""
        with backend("reference"):
            return self(*tensors, **changes)

    def leaves(self) -> list[torch.Tensor]:
        """The tensors that have a gradient."""
        return [self.tensors[name] for name in self.differentiable]

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The same call with every tensor changed, and new leaves."""
        tensors = {name: change(tensor.detach()) for name, tensor in self.tensors.items()}
        for name in self.differentiable:
            tensors[name].requires_grad_()
        return replace(self, tensors=tensors)

    def on_cpu(self, dtype: torch.dtype) -> Call:
        """The same call on the CPU, which takes every dtype, with floating tensors and results of ``dtype``."""

        def move(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.cpu()
            return dtype if isinstance(value, torch.dtype) else value

        call = self.with_tensors(lambda tensor: tensor.cpu().to(dtype) if tensor.is_floating_point() else tensor.cpu())
        return replace(call, options={name: move(value) for name, value in self.options.items()})


@dataclass(frozen=True)
class OpCase:
    """An op: how to call it, in which variants, and what it must move."""

    name: str
    public: Callable[..., Any]
    make: Callable[..., Call]  # (Shape, dtype, device, layout, generator, **variant)
    variants: Mapping[str, Mapping[str, Any]]  # the first, "plain", is what benchmarks time
    forward_passes: float  # reads and writes of one stack of maps
    backward_passes: float
    gradient_roundings: int = 1  # to the maps' dtype, one after the other
    number: str = ""  # an option that varies from call to call without a new graph
    linear: bool = False  # in what is differentiated: differentiable any number of times
    smallest_side: int = 1  # of maps of which results can be compared
    not_numbers_as_in_pytorch: bool = True  # whether NaN and infinity reach what they reach in plain PyTorch, and no more

    def call(
        self,
        shape: tuple[int, int, int, int],
        variant: str = "plain",
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        layout: str = "contiguous",
        seed: int = 0,
    ) -> Call:
        generator = torch.Generator().manual_seed(seed)
        options = self.variants[variant]
        return self.make(Shape(*shape), dtype, device, layout, generator, **options).with_tensors(lambda tensor: tensor)

    def bytes_moved(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[int, int]:
        """Least bytes that the forward and the backward pass of the plain variant read and write."""
        maps = Shape(*shape).elements * dtype.itemsize
        return int(self.forward_passes * maps), int(self.backward_passes * maps)


LAYOUTS = ("contiguous", "channels_last", "transposed", "misaligned", "every_second", "expanded")


def lay_out(maps: torch.Tensor, layout: str) -> torch.Tensor:
    """The same maps (B, K, H, W) with other strides; ``expanded`` repeats the first sample's without copying them."""
    if layout == "contiguous":
        return maps.contiguous()
    if layout == "channels_last":
        return maps.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return maps.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return maps[:1].clone().expand(maps.shape)
    batch, joints, height, width = maps.shape
    if layout == "misaligned":  # one element past a 16-byte boundary, rows of odd length
        larger = maps.new_empty(batch, joints, height + 1, width + 3)
        view = larger[:, :, 1:, 1 : width + 1]
    elif layout == "every_second":
        view = maps.new_empty(batch, joints, height, 2 * width)[..., ::2]
    elif layout == "far_apart":  # samples 2^31 elements apart; memory that nobody touches costs nothing on a CPU
        sample = joints * height * width
        larger = maps.new_empty((batch - 1) * 2**31 + sample)
        view = larger.as_strided(maps.shape, (2**31, height * width, width, 1))
    else:
        raise ValueError(f"layout: got {layout!r}, allowed are {', '.join(map(repr, LAYOUTS))}")
    return view.copy_(maps)


def _keypoints(shape: Shape, people: int, generator: torch.Generator) -> torch.Tensor:
    """(B, K, 2), or (B, P, K, 2) for 1 to 4 people, in float32; some outside of the maps.

    All are multiples of 1/32, so that rounding and window borders are decided alike in every precision; and no pixel is
    equally far from two people: the squared distance to person p is p^2 / 1024 modulo 1/64.
    """
    size = (shape.batch, max(people, 1), shape.joints, 2)
    uniform = torch.rand(size, generator=generator) * torch.tensor([shape.width + 2.0, shape.height + 2.0])
    quarters = (4 * uniform).floor() / 4 - 1.5
    quarters[..., 0] += torch.arange(size[1]).view(-1, 1) / 32
    return quarters if people else quarters.squeeze(1)


def _labels(
    shape: Shape,
    device: str | torch.device,
    generator: torch.Generator,
    *,
    people: int = 0,
    some_invisible: bool = False,
    joint_sigmas: bool = False,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Keypoints and the arguments that belong to them."""
    keypoints = _keypoints(shape, people, generator)
    labels: dict[str, Any] = {"sigma": 1.5}
    if joint_sigmas:
        labels["sigma"] = torch.linspace(1.0, 2.5, shape.joints).to(device)
    if some_invisible:
        labels["visible"] = (torch.rand(keypoints.shape[:-1], generator=generator) > 0.4).to(device)
    return keypoints.to(device), labels


_LABELS = ("people", "some_invisible", "joint_sigmas")


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What :func:`_labels` takes, and the rest, which goes to the op as it is."""
    labels = {name: value for name, value in options.items() if name in _LABELS}
    return labels, {name: value for name, value in options.items() if name not in _LABELS}


def _peaks(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Maps as a network gives them: a bump somewhere in each, and positive noise."""
    centres = torch.rand(shape.batch, shape.joints, 2, generator=generator) * torch.tensor([shape.width, shape.height])
    dx = torch.arange(shape.width) - centres[..., :1]
    dy = torch.arange(shape.height) - centres[..., 1:]
    bumps = torch.exp(-(dy.square()[..., None] + dx.square()[..., None, :]) / 8)
    return bumps + 0.05 * torch.rand(tuple(shape), generator=generator)


# ---- the ops --------------------------------------------------------------------------------------------------------


def _gaussian_heatmap(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,  # this op reads no maps
    generator: torch.Generator,
    **options: Any,
) -> Call:
    of_labels, options = _split(options)
    keypoints, labels = _labels(shape, device, generator, **of_labels)
    tensors = {"keypoints": keypoints.to(torch.float64 if dtype == torch.float64 else torch.float32)}
    if isinstance(labels["sigma"], torch.Tensor):
        tensors["sigma"] = labels.pop("sigma").to(tensors["keypoints"].dtype)
    return Call(
        ops.gaussian_heatmap,
        tensors,
        {**labels, **options, "size": (shape.height, shape.width), "dtype": dtype},
        tuple(tensors) if options.get("rounding", "none") == "none" else tuple(tensors)[1:],
    )


def _loss_of_stacks(**arguments: Any) -> torch.Tensor:
    stacks = [arguments.pop(name) for name in sorted(arguments) if name.startswith("stack_")]
    return ops.heatmap_mse_loss(stacks, **arguments)


def _heatmap_mse_loss(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    *,
    stacks: int = 0,  # 0: one tensor, not a list
    weights: tuple[str, ...] = (),
    **options: Any,
) -> Call:
    of_labels, options = _split(options)
    keypoints, labels = _labels(shape, device, generator, **of_labels)
    names = [f"stack_{i}" for i in range(stacks)] or ["predictions"]
    tensors = {name: lay_out(torch.randn(tuple(shape), generator=generator).to(device, dtype), layout) for name in names}
    tensors["keypoints"] = keypoints
    if weights:
        size = [getattr(shape, name) for name in weights]
        # A third of them 0.
        tensors["weights"] = (1.5 * torch.rand(size, generator=generator) - 0.5).clamp(min=0).to(device)
    function = _loss_of_stacks if stacks else ops.heatmap_mse_loss
    return Call(function, tensors, {**labels, **options}, tuple(names))


def _soft_argmax2d(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    **options: Any,
) -> Call:
    heatmaps = lay_out((10 * _peaks(shape, generator)).to(device, dtype), layout)
    return Call(ops.soft_argmax2d, {"heatmaps": heatmaps}, options, ("heatmaps",))


def _decode_heatmaps(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    *,
    flip: bool = False,
    affine: bool = False,
    **options: Any,
) -> Call:
    tensors = {"heatmaps": lay_out(_peaks(shape, generator).to(device, dtype), layout)}
    if flip:
        tensors["flipped"] = lay_out(_peaks(shape, generator).to(device, dtype), layout)
        pairs = torch.arange(shape.joints).view(-1)
        pairs[: shape.joints // 2 * 2] ^= 1  # 1 0 3 2 ...
        options["flip_permutation"] = pairs.tolist()
    differentiable = tuple(tensors)
    if affine:
        tensors["affine"] = torch.randn(shape.batch, 2, 3, generator=generator).to(device)
    return Call(ops.decode_heatmaps, tensors, options, differentiable)


def _flat_windows(**arguments: Any) -> torch.Tensor:
    return ops.crop_windows(**arguments).flatten(0, 1)  # four dimensions can be laid out in all ways


def _crop_windows(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    *,
    windows: int = 5,
    shrink: float = 0.0,  # so many source pixels a cell, or half as many; 0: one window side serves all
    image: bool = False,
    **options: Any,
) -> Call:
    """Some windows reach over the source's border, some lie outside, and one in seven has no centre."""
    if layout == "far_apart":
        windows = 1  # each would have 2^31 elements to itself
    source = torch.rand(tuple(shape), generator=generator)
    source = (255 * source).to(device, torch.uint8) if image else source.to(device, dtype)
    centers = _keypoints(Shape(shape.batch, windows, shape.height, shape.width), 0, generator)
    centers[torch.rand(centers.shape[:2], generator=generator) < 1 / 7] = math.nan
    tensors = {"source": lay_out(source, layout), "centers": centers.to(device)}
    options = {"sides": 6.5, "size": (6, 9), "dtype": dtype, **options}
    if shrink:
        del options["sides"]
        cells = torch.tensor(options["size"][::-1])
        tensors["sides"] = (shrink * cells * (0.5 + 0.5 * torch.rand(*centers.shape, generator=generator))).to(device)
    return Call(_flat_windows, tensors, options, () if image else ("source",))


def _local_contrast_normalization(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    **options: Any,
) -> Call:
    """Images with a corner where nothing is to be seen."""
    images = torch.rand(tuple(shape), generator=generator)
    images[..., : shape.height // 2, : shape.width // 2] = 0
    images = lay_out(images.to(device, dtype), layout)
    return Call(ops.local_contrast_normalization, {"images": images}, options, ("images",))


def _distance_transform2d(
    shape: Shape,
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    *,
    each_sample: bool = False,
    anchors: bool = False,
    steepest: int = 12,
) -> Call:
    """On a grid on which sums are exact in every precision, so that equal maxima are equal in all; in float64 off it, so that
    there are none."""

    def on_grid(size: tuple[int, ...], low: int, high: int, unit: float) -> torch.Tensor:
        numbers = unit * torch.randint(low, high + 1, size, generator=generator)
        if dtype == torch.float64:
            return numbers.double() + unit * torch.rand(size, generator=generator, dtype=dtype)
        return numbers.to(device)

    scores = on_grid(tuple(shape), -127, 127, 1 / 64)
    of = (shape.batch, shape.joints) if each_sample else (shape.joints,)
    quadratic, linear = on_grid((*of, 2), 1, steepest, 1 / 256), on_grid((*of, 2), -8, 8, 1 / 64)
    tensors = {
        "scores": lay_out(scores.to(device, dtype), layout),
        "springs": torch.stack((quadratic, linear), -1).flatten(-2),
    }
    if anchors:
        tensors["anchors"] = on_grid((*of, 2), -9, 9, 0.25)
    return Call(ops.distance_transform2d, tensors, {}, tuple(tensors))


def _gaussian_conv2d(
    shape: Shape,  # of the result, with the channels in place of the joints
    dtype: torch.dtype,
    device: str | torch.device,
    layout: str,
    generator: torch.Generator,
    *,
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: int = 1,
    **options: Any,
) -> Call:
    of_labels, options = _split(options)
    shape = shape._replace(joints=max(shape.joints, 1))  # a convolution without channels is refused, by PyTorch too
    joints, (rows, columns) = 3, kernel
    size = ((shape.height - 1) * stride + rows - 2 * padding, (shape.width - 1) * stride + columns - 2 * padding)
    keypoints, labels = _labels(Shape(shape.batch, joints, *size), device, generator, **of_labels)
    weight = torch.randn(shape.joints, joints, rows, columns, generator=generator)
    tensors = {
        "base": lay_out(torch.randn(tuple(shape), generator=generator).to(device, dtype), layout),
        "weight": weight.to(device, dtype),
        "keypoints": keypoints,
    }
    options = {**labels, "size": size, "stride": stride, "padding": padding, **options}
    return Call(ops.gaussian_conv2d, tensors, options, ("base", "weight"))


_DRAWING: dict[str, dict[str, Any]] = {
    "joint_sigmas": {"joint_sigmas": True},
    "nearest": {"rounding": "nearest", "radius": 4.5},
    "floor": {"rounding": "floor"},
    "disc": {"radius": 2.7, "window": "disc"},
    "people_max": {"people": 3, "some_invisible": True},
    "people_sum": {"people": 4, "combine": "sum", "joint_sigmas": True},
    "people_disc": {"people": 2, "radius": 3.2, "window": "disc"},
    "ief": {"amplitude": 100.0, "offset": -50.0, "some_invisible": True},
}

CASES = (
    OpCase(
        "gaussian_heatmap",
        ops.gaussian_heatmap,
        _gaussian_heatmap,
        {"plain": {}, "square": {"radius": 2.7}, **_DRAWING},
        forward_passes=1,
        backward_passes=1,
        number="sigma",
    ),
    OpCase(
        "heatmap_mse_loss",
        ops.heatmap_mse_loss,
        _heatmap_mse_loss,
        {
            "plain": {},
            "stacks": {"stacks": 3, "weights": ("batch", "joints"), "reduction": "half_batchmean"},
            "joint_weights": {"stacks": 1, "weights": ("joints",), "reduction": "sum"},
            "empty": {"some_invisible": True, "unlabelled": "empty", "reduction": "batchmean"},
            **_DRAWING,
        },
        forward_passes=2,
        backward_passes=0,
        gradient_roundings=2,  # it is stored before the upstream gradient is known
        number="sigma",
    ),
    OpCase(
        "soft_argmax2d",
        ops.soft_argmax2d,
        _soft_argmax2d,
        {
            "plain": {},
            "covariance": {"covariance": True},
            "sharp": {"temperature": 0.1, "covariance": True},
            "flat": {"temperature": 25.0, "covariance": True},
        },
        forward_passes=1,
        backward_passes=2,
        number="temperature",
    ),
    OpCase(
        "decode_heatmaps",
        ops.decode_heatmaps,
        _decode_heatmaps,
        {
            "plain": {},
            "argmax": {"method": "argmax", "affine": True},
            "msra": {"border": "msra", "flip": True, "flip_shift": 1, "affine": True},
            "clamped": {"border": "clamped", "flip": True},
            "dark": {"method": "dark"},
            "dark_flip": {"method": "dark", "blur_size": 7, "blur_sigma": 1.2, "flip": True, "flip_shift": 1},
            "soft_window": {"method": "soft_window", "temperature": 0.1},
            "soft_window_flip": {"method": "soft_window", "radius": 3, "flip": True, "flip_shift": 2, "affine": True},
        },
        forward_passes=1,
        backward_passes=1,
        number="temperature",
    ),
    OpCase(
        "crop_windows",
        ops.crop_windows,
        _crop_windows,
        {
            "plain": {},
            "image": {"image": True, "shrink": 3.0, "fill": 0.25, "mean": 0.5, "std": 0.25},
            "enlarging": {"shrink": 0.4, "fill": -1.0},
            "bilinear": {"shrink": 2.5, "antialias": False, "mean": 1.5},
            "shrinking": {"shrink": 3.7, "std": 2.0},
        },
        forward_passes=2,  # of as many cells as the source has
        backward_passes=2,
        number="sides",
        linear=True,
        not_numbers_as_in_pytorch=False,
    ),
    OpCase(
        "local_contrast_normalization",
        ops.local_contrast_normalization,
        _local_contrast_normalization,
        {
            "plain": {},
            "even": {"window": 3, "border": "even", "threshold": 0.01},
            "weights": {"window": (1.0, 3.0, 4.0, 2.0, 0.5), "threshold": 0.1},
            "wide": {"window": 31},
        },
        forward_passes=2,
        backward_passes=3,
        number="threshold",
        smallest_side=2,  # a single pixel has no contrast, and what rounding makes of it is no measure
    ),
    OpCase(
        "distance_transform2d",
        ops.distance_transform2d,
        _distance_transform2d,
        {
            "plain": {},
            "anchors": {"anchors": True, "each_sample": True},
            "loose": {"anchors": True, "steepest": 1},
        },
        forward_passes=3,
        backward_passes=3,
    ),
    OpCase(
        "gaussian_conv2d",
        ops.gaussian_conv2d,
        _gaussian_conv2d,
        {
            "plain": {},
            "nearest": {"kernel": (4, 5), "stride": 3, "rounding": "nearest", "joint_sigmas": True},
            "ief": {**_DRAWING["ief"], "kernel": (7, 7), "stride": 2, "padding": 3},
        },
        forward_passes=2,
        backward_passes=1,
        number="sigma",
        linear=True,
        not_numbers_as_in_pytorch=False,
    ),
)
