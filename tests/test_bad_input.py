"""Every wrong argument is refused before anything is written, by name, with what was given and what is allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

import fastpose
from fastpose import ops
from fastpose.cases import CASES

MAPS = torch.rand(2, 3, 5, 6)
KEYPOINTS = torch.rand(2, 3, 2)
TENSOR = "allowed is a torch.Tensor"
FLOATING = "allowed are float32, float16, bfloat16"
FINITE = "allowed is a finite number"
POSITIVE = "allowed is a positive finite number"
INTEGER = "allowed is an integer of at least 1"

RIGHT: dict[str, dict[str, Any]] = {
    "gaussian_heatmap": {"keypoints": KEYPOINTS, "size": (5, 6), "sigma": 1.5},
    "heatmap_mse_loss": {"predictions": MAPS, "keypoints": KEYPOINTS, "sigma": 1.5},
    "soft_argmax2d": {"heatmaps": MAPS},
    "decode_heatmaps": {"heatmaps": MAPS},
    "crop_windows": {"source": MAPS, "centers": KEYPOINTS, "sides": 4.0, "size": 3},
    "local_contrast_normalization": {"images": MAPS},
    "distance_transform2d": {"scores": MAPS, "springs": torch.rand(3, 4)},
    "gaussian_conv2d": {
        "base": torch.rand(2, 4, 3, 4),
        "keypoints": KEYPOINTS,
        "weight": torch.rand(4, 3, 3, 3),
        "size": (5, 6),
        "sigma": 1.5,
    },
}

# Wrong arguments, the error, and the beginning of its message.
Row = tuple[dict[str, Any], type[Exception], str]

DRAWING: list[Row] = [
    ({"keypoints": [[1.0, 2.0]]}, TypeError, f"keypoints: got list, {TENSOR}"),
    ({"keypoints": KEYPOINTS.long()}, TypeError, f"keypoints: got dtype torch.int64, {FLOATING}"),
    ({"keypoints": KEYPOINTS[0]}, ValueError, "keypoints: got shape (3, 2), allowed is (B, K, 2) or"),
    ({"keypoints": torch.rand(2, 3, 3)}, ValueError, "keypoints: got shape (2, 3, 3), allowed is (B, K, 2) or"),
    ({"sigma": 0}, ValueError, f"sigma: got 0.0, {POSITIVE}"),
    ({"sigma": -1.5}, ValueError, f"sigma: got -1.5, {POSITIVE}"),
    ({"sigma": math.nan}, ValueError, f"sigma: got nan, {POSITIVE}"),
    ({"sigma": math.inf}, ValueError, f"sigma: got inf, {POSITIVE}"),
    ({"sigma": "2"}, TypeError, "sigma: got str, allowed is a number"),
    ({"sigma": [1.0, 2.0, -3.0]}, ValueError, f"sigma[2]: got -3.0, {POSITIVE}"),
    ({"sigma": [1.0, 2.0]}, ValueError, "sigma: got shape (2,), allowed is a number or (3,)"),
    ({"sigma": torch.tensor([1.0, 0.0, 2.0])}, ValueError, "sigma: got [1.0, 0.0, 2.0], allowed are positive finite"),
    ({"sigma": torch.tensor([1, 2, 3])}, TypeError, f"sigma: got dtype torch.int64, {FLOATING}"),
    ({"sigma": torch.ones(3, device="meta")}, ValueError, "sigma: is on meta, but keypoints is on cpu"),
    ({"visible": [[1, 1, 0]]}, TypeError, f"visible: got list, {TENSOR}"),
    ({"visible": torch.ones(2, 4)}, ValueError, "visible: got shape (2, 4), allowed is (2, 3), one for each keypoint"),
    ({"visible": torch.ones(2, 3, device="meta")}, ValueError, "visible: is on meta, but keypoints is on cpu"),
    ({"rounding": "up"}, ValueError, "rounding: got 'up', allowed are 'none', 'nearest', 'floor'"),
    ({"window": "circle"}, ValueError, "window: got 'circle', allowed are 'square', 'disc'"),
    ({"combine": "mean"}, ValueError, "combine: got 'mean', allowed are 'max', 'sum'"),
    ({"radius": 0}, ValueError, "radius: got 0.0, allowed is a positive number"),
    ({"radius": math.nan}, ValueError, "radius: got nan, allowed is a positive number"),
    ({"radius": "3"}, TypeError, "radius: got str, allowed is a number"),
    ({"amplitude": math.inf}, ValueError, f"amplitude: got inf, {FINITE}"),
    ({"amplitude": True}, TypeError, "amplitude: got bool, allowed is a number"),
    ({"offset": math.nan}, ValueError, f"offset: got nan, {FINITE}"),
]

HEATMAPS: list[Row] = [
    ({"heatmaps": None}, TypeError, f"heatmaps: got NoneType, {TENSOR}"),
    ({"heatmaps": MAPS.int()}, TypeError, f"heatmaps: got dtype torch.int32, {FLOATING}"),
    ({"heatmaps": MAPS[0]}, ValueError, "heatmaps: got shape (3, 5, 6), allowed is (B, K, H, W)"),
    ({"heatmaps": MAPS[..., :0]}, ValueError, "heatmaps: got shape (2, 3, 5, 0), height and width must be at least 1"),
    ({"temperature": 0}, ValueError, f"temperature: got 0.0, {POSITIVE}"),
    ({"temperature": -1.0}, ValueError, f"temperature: got -1.0, {POSITIVE}"),
    ({"temperature": math.nan}, ValueError, f"temperature: got nan, {POSITIVE}"),
    ({"temperature": math.inf}, ValueError, f"temperature: got inf, {POSITIVE}"),
    ({"temperature": "1"}, TypeError, "temperature: got str, allowed is a number"),
]

WRONG: dict[str, list[Row]] = {
    "gaussian_heatmap": [
        *DRAWING,
        ({"size": 0}, ValueError, f"size[0]: got 0, {INTEGER}"),
        ({"size": (5, -1)}, ValueError, f"size[1]: got -1, {INTEGER}"),
        ({"size": (5, 6.0)}, TypeError, "size[1]: got float, allowed is an integer"),
        ({"size": (5, 6, 7)}, TypeError, "size: got (5, 6, 7), allowed is an integer or (height, width)"),
        ({"size": None}, TypeError, "size: got None, allowed is an integer or (height, width)"),
        ({"dtype": torch.int8}, TypeError, f"dtype: got torch.int8, {FLOATING}"),
        ({"out": [0.0]}, TypeError, f"out: got list, {TENSOR}"),
        ({"out": MAPS.int()}, TypeError, f"out: got dtype torch.int32, {FLOATING}"),
        ({"out": MAPS[:, :2]}, ValueError, "out: got shape (2, 2, 5, 6), allowed is (2, 3, 5, 6)"),
        ({"out": MAPS, "dtype": torch.float16}, ValueError, "out: got dtype torch.float32, but dtype is torch.float16"),
        ({"out": torch.ones(()).expand(2, 3, 5, 6)}, ValueError, "out: got an expanded tensor"),
        ({"out": MAPS.clone().requires_grad_()}, ValueError, "out: requires grad"),
        ({"out": MAPS.to("meta")}, ValueError, "out: is on meta, but keypoints is on cpu"),
    ],
    "heatmap_mse_loss": [
        *DRAWING,
        ({"predictions": 3}, TypeError, "predictions: got int, allowed is a torch.Tensor or a list of them"),
        ({"predictions": []}, ValueError, "predictions: got an empty list, allowed is at least one tensor"),
        ({"predictions": [MAPS, None]}, TypeError, f"predictions[1]: got NoneType, {TENSOR}"),
        ({"predictions": MAPS.int()}, TypeError, f"predictions: got dtype torch.int32, {FLOATING}"),
        ({"predictions": MAPS[0]}, ValueError, "predictions: got shape (3, 5, 6), allowed is (B, K, H, W)"),
        ({"predictions": MAPS[:, :, :0]}, ValueError, "predictions: got shape (2, 3, 0, 6), height and width"),
        ({"predictions": [MAPS, MAPS[..., 1:]]}, ValueError, "predictions[1]: got shape (2, 3, 5, 5)"),
        ({"predictions": [MAPS, MAPS.half()]}, ValueError, "predictions[1]: got shape (2, 3, 5, 6) and torch.float16"),
        ({"predictions": [MAPS, MAPS.to("meta")]}, ValueError, "predictions[1]: is on meta, but predictions[0] is on cpu"),
        ({"keypoints": KEYPOINTS[:, :2]}, ValueError, "keypoints: got shape (2, 2, 2), but predictions have B = 2 and K = 3"),
        ({"keypoints": KEYPOINTS[:1]}, ValueError, "keypoints: got shape (1, 3, 2), but predictions have B = 2 and K = 3"),
        ({"keypoints": KEYPOINTS.to("meta")}, ValueError, "keypoints: is on meta, but predictions is on cpu"),
        ({"keypoints": KEYPOINTS.clone().requires_grad_()}, ValueError, "keypoints: requires grad"),
        ({"sigma": torch.ones(3, requires_grad=True)}, ValueError, "sigma: requires grad"),
        ({"weights": torch.ones(3, requires_grad=True)}, ValueError, "weights: requires grad"),
        ({"weights": [1.0, 1.0, 0.0]}, TypeError, f"weights: got list, {TENSOR}"),
        ({"weights": torch.ones(2)}, ValueError, "weights: got shape (2,), allowed is (3,) or (2, 3)"),
        ({"weights": torch.ones(3, dtype=torch.complex64)}, TypeError, "weights: got dtype torch.complex64, allowed is"),
        ({"weights": torch.ones(3, device="meta")}, ValueError, "weights: is on meta, but predictions is on cpu"),
        ({"reduction": "none"}, ValueError, "reduction: got 'none', allowed are 'mean', 'sum', 'batchmean'"),
        ({"unlabelled": "skip"}, ValueError, "unlabelled: got 'skip', allowed are 'ignore', 'empty'"),
    ],
    "soft_argmax2d": HEATMAPS,
    "decode_heatmaps": [
        *HEATMAPS,
        ({"method": "mean"}, ValueError, "method: got 'mean', allowed are 'argmax', 'quarter', 'dark', 'soft_window'"),
        ({"border": "zero"}, ValueError, "border: got 'zero', allowed are 'torch7', 'msra', 'clamped'"),
        ({"flipped": 1}, TypeError, f"flipped: got int, {TENSOR}"),
        ({"flipped": MAPS[:1]}, ValueError, "flipped: got shape (1, 3, 5, 6), allowed is that of heatmaps, (2, 3, 5, 6)"),
        ({"flipped": MAPS.half()}, TypeError, "flipped: got dtype torch.float16, allowed is that of heatmaps"),
        ({"flipped": MAPS.to("meta")}, ValueError, "flipped: is on meta, but heatmaps is on cpu"),
        ({"flip_permutation": [0, 1, 2]}, ValueError, "flip_permutation: is given without flipped"),
        ({"flip_shift": 1}, ValueError, "flip_shift: is given without flipped"),
        ({"flipped": MAPS, "flip_shift": -1}, ValueError, "flip_shift: got -1, allowed is an integer of at least 0"),
        ({"flipped": MAPS, "flip_shift": 1.0}, TypeError, "flip_shift: got float, allowed is an integer"),
        ({"flipped": MAPS, "flip_permutation": [0, 1]}, ValueError, "flip_permutation: got [0, 1], allowed is a permut"),
        ({"flipped": MAPS, "flip_permutation": [0, 1, 1]}, ValueError, "flip_permutation: got [0, 1, 1], allowed is a"),
        ({"flipped": MAPS, "flip_permutation": [0, 1, 2.0]}, TypeError, "flip_permutation: got [0, 1, 2.0], allowed are int"),
        ({"flipped": MAPS, "flip_permutation": torch.arange(4)}, ValueError, "flip_permutation: got shape (4,), allowed is (3,)"),
        ({"flipped": MAPS, "flip_permutation": torch.ones(3)}, TypeError, "flip_permutation: got dtype torch.float32"),
        ({"affine": [[1, 0, 0]]}, TypeError, f"affine: got list, {TENSOR}"),
        ({"affine": torch.ones(2, 2, 3).int()}, TypeError, "affine: got dtype torch.int32, allowed are floating-point"),
        ({"affine": torch.ones(2, 3)}, ValueError, "affine: got shape (2, 3), allowed is (2, 2, 3)"),
        ({"affine": torch.ones(2, 2, 3, device="meta")}, ValueError, "affine: is on meta, but heatmaps is on cpu"),
        ({"affine": torch.ones(2, 2, 3, requires_grad=True)}, ValueError, "affine: requires grad"),
        ({"blur_size": 4}, ValueError, "blur_size: got 4, allowed are odd numbers up to 63"),
        ({"blur_size": 65}, ValueError, "blur_size: got 65, allowed are odd numbers up to 63"),
        ({"blur_size": 0}, ValueError, f"blur_size: got 0, {INTEGER}"),
        ({"blur_size": 5.0}, TypeError, "blur_size: got float, allowed is an integer"),
        ({"blur_sigma": 0.0}, ValueError, f"blur_sigma: got 0.0, {POSITIVE}"),
        ({"radius": 0}, ValueError, f"radius: got 0, {INTEGER}"),
        ({"radius": 1.5}, TypeError, "radius: got float, allowed is an integer"),
    ],
    "crop_windows": [
        ({"source": [0.0]}, TypeError, f"source: got list, {TENSOR}"),
        ({"source": MAPS.int()}, TypeError, f"source: got dtype torch.int32, {FLOATING}"),
        ({"source": MAPS[0]}, ValueError, "source: got shape (3, 5, 6), allowed is (B, C, H, W)"),
        ({"source": MAPS[:, :, :0]}, ValueError, "source: got shape (2, 3, 0, 6), height and width must be at least 1"),
        ({"centers": 3}, TypeError, f"centers: got int, {TENSOR}"),
        ({"centers": KEYPOINTS.long()}, TypeError, f"centers: got dtype torch.int64, {FLOATING}"),
        ({"centers": KEYPOINTS[0]}, ValueError, "centers: got shape (3, 2), allowed is (2, K, 2), as source has B = 2"),
        ({"centers": KEYPOINTS[:1]}, ValueError, "centers: got shape (1, 3, 2), allowed is (2, K, 2), as source has B = 2"),
        ({"centers": KEYPOINTS.to("meta")}, ValueError, "centers: is on meta, but source is on cpu"),
        ({"centers": KEYPOINTS.clone().requires_grad_()}, ValueError, "centers: requires grad, but is not differentiated"),
        ({"sides": "4"}, TypeError, "sides: got str, allowed is a number"),
        ({"sides": 0}, ValueError, f"sides: got 0.0, {POSITIVE}"),
        ({"sides": torch.ones(2, 3).int()}, TypeError, f"sides: got dtype torch.int32, {FLOATING}"),
        ({"sides": torch.ones(3)}, ValueError, "sides: got shape (3,), allowed is a number, (2, 3) or (2, 3, 2)"),
        ({"sides": torch.tensor([1.0, -2.0, 1.0]).expand(2, 3)}, ValueError, "sides: got -2.0, allowed are positive numbers"),
        ({"sides": torch.ones(2, 3, device="meta")}, ValueError, "sides: is on meta, but source is on cpu"),
        ({"sides": torch.ones(2, 3, requires_grad=True)}, ValueError, "sides: requires grad, but is not differentiated"),
        ({"size": 0}, ValueError, f"size[0]: got 0, {INTEGER}"),
        ({"fill": "red"}, TypeError, "fill: got str, allowed is a number"),
        ({"fill": [0.0, math.nan, 0.0]}, ValueError, f"fill[1]: got nan, {FINITE}"),
        ({"mean": [0.5, 0.5]}, ValueError, "mean: got 2 numbers, allowed is a number or 3 of them"),
        (
            {"source": torch.rand(2, 5, 8, 8), "mean": [0.5] * 5},
            ValueError,
            "mean: got 5 numbers, allowed is a number for 5 channels",
        ),
        ({"std": [1.0, 0.0, 1.0]}, ValueError, "std: got [1.0, 0.0, 1.0], allowed are finite numbers other than 0"),
        ({"std": math.inf}, ValueError, f"std: got inf, {FINITE}"),
        ({"dtype": torch.int8, "source": MAPS.byte()}, TypeError, f"dtype: got torch.int8, {FLOATING}"),
        ({"dtype": torch.float16}, ValueError, "dtype: got torch.float16, allowed is that of a floating source, torch.float32"),
    ],
    "local_contrast_normalization": [
        ({"images": None}, TypeError, f"images: got NoneType, {TENSOR}"),
        ({"images": MAPS.byte()}, TypeError, f"images: got dtype torch.uint8, {FLOATING}"),
        ({"images": MAPS[0]}, ValueError, "images: got shape (3, 5, 6), allowed is (B, C, H, W)"),
        ({"images": MAPS[..., :0]}, ValueError, "images: got shape (2, 3, 5, 0), height and width must be at least 1"),
        ({"window": 8}, ValueError, "window: got 8, allowed are odd numbers up to 31"),
        ({"window": 33}, ValueError, "window: got 33, allowed are odd numbers up to 31"),
        ({"window": 0}, ValueError, f"window: got 0, {INTEGER}"),
        ({"window": 9.0}, TypeError, "window: got float, allowed is an integer"),
        ({"window": [1.0, 1.0]}, ValueError, "window: got 2 weights, allowed are odd numbers up to 31"),
        ({"window": []}, ValueError, "window: got 0 weights, allowed are odd numbers up to 31"),
        ({"window": [1.0, -1.0, 1.0]}, ValueError, f"window[1]: got -1.0, {POSITIVE}"),
        ({"border": "clamped"}, ValueError, "border: got 'clamped', allowed are 'torch7', 'even'"),
        ({"threshold": 0}, ValueError, f"threshold: got 0.0, {POSITIVE}"),
        ({"threshold": None}, TypeError, "threshold: got NoneType, allowed is a number"),
    ],
    "distance_transform2d": [
        ({"scores": 1.0}, TypeError, f"scores: got float, {TENSOR}"),
        ({"scores": MAPS.int()}, TypeError, f"scores: got dtype torch.int32, {FLOATING}"),
        ({"scores": MAPS[0]}, ValueError, "scores: got shape (3, 5, 6), allowed is (B, K, H, W)"),
        ({"scores": MAPS[..., :0]}, ValueError, "scores: got shape (2, 3, 5, 0), height and width must be at least 1"),
        (
            {"scores": torch.zeros(1).expand(2, 3, 2**16, 2**15)},
            ValueError,
            "scores: got shape (2, 3, 65536, 32768), allowed are",
        ),
        ({"springs": [[1.0] * 4]}, TypeError, f"springs: got list, {TENSOR}"),
        ({"springs": torch.ones(3, 4).int()}, TypeError, f"springs: got dtype torch.int32, {FLOATING}"),
        ({"springs": torch.ones(4)}, ValueError, "springs: got shape (4,), allowed is (3, 4) or (2, 3, 4), as scores have B = 2"),
        ({"springs": torch.ones(3, 4, device="meta")}, ValueError, "springs: is on meta, but scores is on cpu"),
        ({"anchors": torch.ones(2, 2)}, ValueError, "anchors: got shape (2, 2), allowed is (3, 2) or (2, 3, 2), as scores have"),
        ({"anchors": torch.ones(3, 2).long()}, TypeError, f"anchors: got dtype torch.int64, {FLOATING}"),
    ],
    "gaussian_conv2d": [
        *(row for row in DRAWING if not {"window", "combine", "radius"} & row[0].keys()),
        ({"base": None}, TypeError, f"base: got NoneType, {TENSOR}"),
        ({"base": MAPS.int()}, TypeError, f"base: got dtype torch.int32, {FLOATING}"),
        ({"base": torch.rand(4, 3, 4)}, ValueError, "base: got shape (4, 3, 4), allowed is (B, K, H, W)"),
        ({"base": torch.rand(2, 4, 4, 4)}, ValueError, "base: got shape (2, 4, 4, 4), but the convolution gives (B, O, 3, 4)"),
        (
            {"base": torch.rand(1, 4, 3, 4)},
            ValueError,
            "keypoints: got shape (2, 3, 2), but base has B = 1; allowed is (B, K, 2)",
        ),
        ({"base": torch.rand(2, 4, 3, 4, device="meta")}, ValueError, "keypoints: is on cpu, but base is on meta"),
        ({"keypoints": KEYPOINTS[:, None]}, ValueError, "keypoints: got shape (2, 1, 3, 2), allowed is (B, K, 2): one person"),
        ({"keypoints": KEYPOINTS.clone().requires_grad_()}, ValueError, "keypoints: requires grad, but is not differentiated"),
        ({"sigma": torch.ones(3, requires_grad=True)}, ValueError, "sigma: requires grad, but is not differentiated"),
        ({"weight": 1}, TypeError, f"weight: got int, {TENSOR}"),
        ({"weight": torch.rand(4, 2, 3, 3)}, ValueError, "weight: got shape (4, 2, 3, 3), allowed is (4, 3, kernel rows, kernel"),
        ({"weight": torch.rand(4, 3, 0, 3)}, ValueError, "weight: got shape (4, 3, 0, 3), allowed is (4, 3, kernel rows, kernel"),
        ({"weight": torch.rand(4, 3, 3, 3).half()}, TypeError, "weight: got dtype torch.float16, allowed is that of base"),
        ({"weight": torch.rand(4, 3, 3, 3, device="meta")}, ValueError, "weight: is on meta, but base is on cpu"),
        ({"weight": torch.rand(4, 3, 9, 9)}, ValueError, "weight: got shape (4, 3, 9, 9), larger than the padded maps, (5, 6)"),
        ({"size": 0}, ValueError, f"size[0]: got 0, {INTEGER}"),
        ({"stride": 0}, ValueError, f"stride: got 0, {INTEGER}"),
        ({"stride": 1.0}, TypeError, "stride: got float, allowed is an integer"),
        ({"padding": -1}, ValueError, "padding: got -1, allowed is an integer of at least 0"),
        ({"padding": "same"}, TypeError, "padding: got str, allowed is an integer"),
    ],
}


@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [pytest.param(op, *row, id=f"{op}-{row[2]}"[:70]) for op, rows in WRONG.items() for row in rows],
)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_refused(op: str, arguments: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    given = {**RIGHT[op], **arguments}
    untouched = None
    if op == "gaussian_heatmap" and "out" not in arguments:
        untouched = given["out"] = torch.full((2, 3, 5, 6), -7.0)
    with fastpose.backend(backend), pytest.raises(error, match=f"^{re.escape(message)}"):
        getattr(ops, op)(**given)
    assert untouched is None or (untouched == -7).all()


def test_every_op_is_here() -> None:
    assert set(WRONG) == set(RIGHT) == {case.name for case in CASES}
    for op, arguments in RIGHT.items():
        getattr(ops, op)(**arguments)
