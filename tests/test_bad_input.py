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
