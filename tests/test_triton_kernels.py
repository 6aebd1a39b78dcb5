"""What the Triton kernels compute, against PyTorch in float64: on a GPU, or in Triton's interpreter, which a test here starts.

The interpreter runs the kernels' Python on CPU tensors. (Its matrix products of bfloat16 are wrong, so that is for a GPU.)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import fastpose
from fastpose import nn
from fastpose.models import hourglass
from fastpose.triton import residual
from fastpose.triton.choice import Judge
from fastpose.triton.configs import ConvConfig, PointwiseConfig
from fastpose.triton.problems import Conv, Pointwise

ROOT = Path(__file__).parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float16, torch.float32 if INTERPRETED else torch.bfloat16]

SANITIZED = ("1", "odd", "pool odd", "odd projected", "even low", "convolved odd", "merge", "odd head")

needs_kernels = pytest.mark.usefixtures() if INTERPRETED else pytest.mark.cuda
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def test_in_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("this is it")
    files = [__file__, ROOT / "tests" / "test_triton_choice.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


def tma_works() -> bool:
    return INTERPRETED or torch.cuda.get_device_capability() >= (9, 0)


def each(problems: dict[str, Any]) -> list[Any]:
    """Parameters of a test; the odd ones, which need masks, also under a sanitizer."""
    return [
        pytest.param(problem, id=name, marks=[pytest.mark.sanitize] if name in SANITIZED else [])
        for name, problem in problems.items()
    ]


def rows_for(height: int) -> int:
    """Few tiles in large maps, which the interpreter takes long for; no GPU has registers for the largest."""
    return {64: 1024 if INTERPRETED else 256, 32: 256}.get(height, 64)


# Whole tiles and odd ones, and channels that fill no block.
POINTWISE = {
    "64": Pointwise(32, 16, 1, 64, 64, False, torch.float32),
    "32": Pointwise(32, 16, 1, 32, 32, False, torch.float32),
    "16": Pointwise(32, 16, 2, 16, 16, False, torch.float32),
    "8": Pointwise(32, 16, 3, 8, 8, False, torch.float32),
    "4": Pointwise(32, 16, 3, 4, 4, False, torch.float32),
    "1": Pointwise(32, 16, 1, 1, 1, False, torch.float32),
    "odd": Pointwise(48, 24, 3, 7, 11, False, torch.float32),
    "256 channels": Pointwise(256, 128, 1, 8, 8, False, torch.float32),
    "pool to 32": Pointwise(16, 32, 1, 64, 64, True, torch.float32),
    "pool to 4": Pointwise(32, 16, 3, 8, 8, True, torch.float32),
    "pool odd": Pointwise(48, 24, 2, 9, 13, True, torch.float32),
    "pool 256 channels": Pointwise(256, 128, 1, 8, 8, True, torch.float32),
}


@needs_kernels
@each_dtype
@pytest.mark.parametrize("tma", [True, False], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("problem", each(POINTWISE))
def test_bn_relu_conv1x1(problem: Pointwise, tma: bool, dtype: torch.dtype) -> None:
    if tma and not tma_works():
        pytest.skip("needs sm_90")
    config = PointwiseConfig(rows_for(problem.height), 32, 64 if problem.channels > 64 else 32, 4, 2, tma)
    assert Judge(replace(problem, dtype=dtype).example(DEVICE)).finds_right(config)


def conv(height: int, width: int, **changes: object) -> Conv:
    """The second half of a residual of 32 channels."""
    plain = {
        "window": 3,
        "inputs": 16,
        "mid": 16,
        "outputs": 32,
        "skip": 0,
        "low": False,
        "joints": 0,
        "heatmaps": False,
        "convolved": False,
        "batch": 1,
        "height": height,
        "width": width,
        "dtype": torch.float32,
    }
    return Conv(**{**plain, **changes})


CONV = {
    "64 low": conv(64, 64, low=True),
    "32": conv(32, 32, low=True),
    "16 projected": conv(16, 16, skip=16),
    "8": conv(8, 8, batch=3, low=True),
    "4": conv(4, 4, batch=5, low=True),
    "1": conv(1, 1, batch=2),
    "odd": conv(7, 11, inputs=24, mid=24, outputs=48, batch=3),
    "odd projected": conv(5, 19, inputs=40, mid=40, outputs=80, skip=48),
    "even low": conv(6, 22, low=True),
    "256 channels": conv(8, 8, inputs=128, mid=128, outputs=256, low=True),
    "projected to 256": conv(8, 8, inputs=128, mid=128, outputs=256, skip=128),
    "convolved": conv(16, 16, convolved=True, low=True),
    "convolved odd": conv(7, 11, inputs=24, mid=24, outputs=48, skip=32, convolved=True, batch=3),
    "head": conv(16, 16, window=1, inputs=32, mid=32, outputs=0, joints=16, heatmaps=True),
    "head and merge": conv(16, 16, window=1, inputs=32, mid=32, outputs=32, joints=16, heatmaps=True),
    "merge": conv(7, 9, window=1, inputs=48, mid=48, outputs=48, joints=17, heatmaps=False, batch=2),
    "odd head": conv(7, 9, window=1, inputs=48, mid=48, outputs=0, joints=14, heatmaps=True, batch=2),
}


def check(problem: Conv, dtype: torch.dtype, tma: bool, nested: bool) -> None:
    if tma and not tma_works():
        pytest.skip("needs sm_90")
    block = 64 if problem.mid > 64 else 32
    config = ConvConfig(rows_for(problem.height), block, block, 4, 2, tma, nested)
    assert Judge(replace(problem, dtype=dtype).example(DEVICE)).finds_right(config)


@needs_kernels
@each_dtype
@pytest.mark.parametrize(("tma", "nested"), [(True, False), (False, True)], ids=["descriptors flat", "pointers nested"])
@pytest.mark.parametrize("problem", each(CONV))
def test_conv_relu_conv1x1(problem: Conv, tma: bool, nested: bool, dtype: torch.dtype) -> None:
    check(problem, dtype, tma, nested)


@needs_kernels
@pytest.mark.parametrize(("tma", "nested"), [(True, True), (False, False)], ids=["descriptors nested", "pointers flat"])
@pytest.mark.parametrize("problem", ["4", "odd", "256 channels"])
def test_other_forms_of_the_loop(problem: str, tma: bool, nested: bool) -> None:
    check(CONV[problem], torch.float16, tma, nested)


@needs_kernels
@pytest.mark.parametrize("tma", [True, False], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("kind", ["pointwise", "conv"])
def test_nan_is_kept_where_it_is(kind: str, tma: bool) -> None:
    """As by PyTorch's pooling and ReLU: in its pixel, and in those that a window of nine brings it to."""
    if tma and not tma_works():
        pytest.skip("needs sm_90")
    dtype = torch.float16
    if kind == "pointwise":
        example = Pointwise(16, 16, 1, 8, 8, True, dtype).example(DEVICE)
        config, hit = PointwiseConfig(64, 16, 16, 4, 2, tma), (..., slice(1, 2), slice(2, 3))
    else:
        example = replace(CONV["8"], dtype=dtype, batch=1).example(DEVICE)
        config, hit = ConvConfig(64, 16, 32, 4, 2, tma), (..., slice(1, 4), slice(3, 6))
    example.inputs[0][:, :, 2, 4] = torch.nan
    example.launch(config).run()
    nan = example.outputs[0].isnan()
    assert nan[hit].all()
    assert nan.sum() == nan[hit].sum()


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU tests/test_hourglass_inference.py does this")
def test_network_in_the_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The way that a GPU goes, from the model down to the kernels, with float16 on the CPU."""
    monkeypatch.setenv("FASTPOSE_CACHE_DIR", str(tmp_path))
    for module, op in ((nn.residual, "run_op"), (hourglass, "run_head")):
        monkeypatch.setattr(module, "why_plain", lambda *_: "")
        monkeypatch.setattr(module, op, {"run_op": residual.hourglass_residual, "run_head": residual.hourglass_head}[op])
    torch.manual_seed(0)
    model = hourglass.StackedHourglass(stacks=2, num_joints=5, features=32, depth=1, init="torch7").eval().half()
    images = torch.rand(2, 3, 16, 24).half()
    with torch.no_grad():
        ours, last = model(images), model(images, last_only=True)
        monkeypatch.undo()
        with fastpose.backend("reference"):
            eager = model(images)
            exact = model.double()(images.double())
    for values in zip([*ours, *last], [*eager, eager[-1]], [*exact, exact[-1]], strict=True):
        error, eager_error = ((value.double() - values[2]).abs().max() for value in values[:2])
        assert error <= 2 * eager_error
