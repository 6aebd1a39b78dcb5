"""The residual block's training kernels without a GPU: in the interpreter, compiled ahead of time, and how they are launched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

pytest.importorskip("triton")

import triton
from training_launches import Block, Launch, compile_launch, launches
from triton.backends.compiler import GPUTarget

import fastpose
from fastpose import _library
from fastpose.nn import HourglassResidual, _residual_training
from fastpose.triton import _launch, _residual_backward, _residual_forward


def _version(module: types.ModuleType) -> tuple[int, ...]:
    return tuple(map(int, module.__version__.split(".")[:2]))


ALL = os.environ.get("FASTPOSE_ALL_CONFIGS") == "1"  # takes half an hour on one core
INTERPRETED = Path(__file__).with_name("interpreted_residual_training.py")

PRODUCTS = ("first", "last", "input_gradient", "projected_input_gradient", "weight_gradient")
KERNELS = [
    name
    for module in (_residual_forward, _residual_backward)
    for name, kernel in vars(module).items()
    if isinstance(kernel, triton.JITFunction) and kernel.__module__ == module.__name__
]
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
# Bytes that a block may have. What is compiled for sm_80 must also fit sm_86, 89 and 120, which have 99 KiB: CUDA C++ Programming
# Guide, "Technical Specifications per Compute Capability".
SHARED_MEMORY = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}

PAPERS = [Block(256, 256, 32, 64), Block(128, 256, 32, 64), Block(256, 256, 32, 64, frozen=True)]
OTHERS = [
    *(Block(256, 256, 32, size) for size in (32, 16, 8, 4)),
    *(Block(256, 256, 1, size) for size in (64, 16)),
    Block(256, 256, 128, 64),
    Block(64, 128, 32, 128),
    Block(128, 128, 32, 64),
    Block(48, 96, 3, 17, torch.float16),
    Block(16, 32, 2, 4, torch.float16),
    Block(288, 288, 8, 64),
    Block(512, 512, 8, 64),
    *(Block(i, o, 32, size, torch.float32) for i, o in ((256, 256), (128, 256)) for size in (64, 8)),
    Block(256, 256, 32, 64, of_x=torch.float32),
    Block(256, 256, 32, 64, of_parameters=torch.bfloat16),
    Block(256, 256, 32, 64, cumulative=True),
    Block(256, 256, 32, 64, group="all"),
]


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[subprocess.Popen[str]]:
    """Runs beside the compiler."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(INTERPRETED)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    folder = INTERPRETED.parents[1]
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        yield run
        run.kill()


def _cases() -> list[Any]:
    """(kernel, architecture)."""
    few = [(name, 90) for name in KERNELS] + [(name, a) for a in (80, 100) for name in PRODUCTS]
    cases = [(name, a) for a in MATRIX_INSTRUCTION for name in KERNELS] if ALL else few
    return [pytest.param(name, a, id=f"{name}-sm_{a}") for name, a in cases]


def _launches(name: str) -> set[Launch]:
    """All that there are, or of the first of the paper's blocks that has any the products, or one."""
    of_blocks = [{launch for launch in launches(block) if launch.name == name} for block in PAPERS + OTHERS * ALL]
    if ALL:
        return set().union(*of_blocks)
    few = next(filter(None, of_blocks))
    return few if name in PRODUCTS else {min(few, key=str)}


@pytest.mark.parametrize(("name", "architecture"), _cases())
def test_compiles(name: str, architecture: int) -> None:
    """Without spilled registers, within the shared memory, to the architecture's own matrix instruction in 16 bits."""
    for launch in _launches(name):
        compiled = compile_launch(launch, architecture)
        assert compiled.stack == 0, launch
        assert not {"STL", "LDL"} & compiled.instructions.keys(), launch
        assert compiled.shared <= SHARED_MEMORY[architecture], launch
        if name in PRODUCTS and "*fp32" not in _matrix_types(launch):
            assert compiled.instructions[MATRIX_INSTRUCTION[architecture]] > 0, launch
        if name in PRODUCTS:
            assert not {"RED", "ATOM", "ATOMG"} & compiled.instructions.keys(), launch  # in global memory


def _matrix_types(launch: Launch) -> set[str]:
    return {kind for name, kind in launch.types if name in ("matrix", "dy")}


def test_every_kernel_is_launched_by_the_papers_blocks() -> None:
    assert {launch.name for block in PAPERS for launch in launches(block)} == set(KERNELS)


def test_other_batches_need_hardly_any_new_compilation() -> None:
    """Pixels are a number to the kernels, and tiles and parts have few sizes."""
    variants = Counter(launch.name for launch in {a for batch in range(1, 65) for a in launches(Block(256, 256, batch, 64))})
    assert max(variants.values()) <= 8
    assert sum(variants.values()) <= 3 * len({a for batch in (1, 64) for a in launches(Block(256, 256, batch, 64))})


# ---- launching ------------------------------------------------------------------------------------------------------


class FakeDriver:
    """A GPU of architecture sm_90 on which nothing runs. It notes with what a kernel's launcher is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.utils = types.SimpleNamespace(
            load_binary=lambda *_: ("module", "function", 32, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
            unload_module=lambda _: None,
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: self.calls.append(arguments)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    fake = FakeDriver()
    monkeypatch.setattr(_launch, "_compiled", {})
    active = triton.runtime.driver
    before = active._active
    active.set_active(fake)
    _residual_backward.add_parts.device_caches.clear()
    yield fake
    _residual_backward.add_parts.device_caches.clear()
    active._active = before


def _add_parts(parts: torch.Tensor, out: torch.Tensor, number: int = 4) -> None:
    _launch.launch(_residual_backward.add_parts, (1, 1, 1), (parts, out), (number,), (64, 16, 128))


@pytest.mark.filterwarnings("ignore")
def test_second_launch_asks_for_nothing_and_passes_the_same(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, out = torch.zeros(4, 64), torch.zeros(64)
    _add_parts(parts, out)
    monkeypatch.setattr(triton.JITFunction, "run", None)
    _add_parts(parts, out)
    first, second = driver.calls
    same = [a is b or a == b for a, b in zip(first, second, strict=True)]
    assert same.count(False) <= 1  # an object with the grid and the arguments, for profilers
    assert all(same[-6:])
    _add_parts(parts, out, 5)  # another number of parts needs no other code
    assert driver.calls[-1][-4:] == (5, 64, 16, 128)


@pytest.mark.filterwarnings("ignore")
def test_other_dtypes_alignments_and_sizes_are_looked_at_anew(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, out = torch.zeros(4, 64), torch.zeros(64)
    _add_parts(parts, out)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("looked at anew")

    monkeypatch.setattr(triton.JITFunction, "run", refuse)
    for tensors, number in (
        ((parts, out.half()), 4),
        ((parts, torch.zeros(65)[1:]), 4),
        ((parts, out), 2**31),
    ):
        with pytest.raises(RuntimeError, match="looked at anew"):
            _add_parts(*tensors, number)
    _add_parts(parts, out)


# ---- which way on a GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors on a GPU that is not there; nothing is computed."""
    monkeypatch.setattr(_library, "why_no_triton", lambda device: "")
    with FakeTensorMode():
        yield


def _block(in_channels: int, out_channels: int, dtype: torch.dtype) -> HourglassResidual:
    block = HourglassResidual(in_channels, out_channels)
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device="cuda")))
        for name, buffer in module.named_buffers(recurse=False):
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            setattr(module, name, torch.empty(buffer.shape, dtype=kind, device="cuda"))
    return block


def _path(channels: int, dtype: torch.dtype) -> Any:
    return _block(channels, channels, dtype).training_path(torch.empty(2, channels, 8, 8, device="cuda", dtype=dtype))


@pytest.mark.usefixtures("gpu")
def test_fused_on_a_gpu() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert _path(32, dtype) == ("fused", f"there are kernels for {dtype} on cuda:0")


@pytest.mark.usefixtures("gpu")
def test_not_fused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _path(32, torch.float64) == ("plain", "there are no kernels for torch.float64, and recompute=False")
    assert "multiples of 16 channels, the block has 24, 12, 24" in _path(24, torch.float32).reason
    with fastpose.backend("reference"):
        assert _path(32, torch.float32).name == "plain"
    monkeypatch.setattr(_library, "why_no_triton", lambda device: "Triton is not installed")
    assert _path(32, torch.float32) == ("plain", "Triton is not installed, and recompute=False")


@pytest.mark.usefixtures("gpu")
def test_a_rank_without_samples_shares_statistics_as_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = _block(32, 32, torch.float32), torch.empty(0, 32, 8, 8, device="cuda")
    assert block.training_path(x) == ("plain", "x is empty")
    monkeypatch.setattr(_residual_training, "_group", lambda bn: "all")
    assert block.training_path(x) == ("recompute", "x is empty, and other ranks' need not be")
    assert _block(24, 24, torch.float32).training_path(torch.empty(0, 24, 8, 8, device="cuda")).name == "plain"


@pytest.mark.usefixtures("gpu")
def test_fakes_on_a_gpu() -> None:
    block, x = _block(32, 64, torch.float16), torch.empty(2, 32, 8, 8, device="cuda", dtype=torch.float16)
    with torch.no_grad():  # a CPU build of PyTorch has no gradients for a GPU
        y = block(x)
    assert (y.shape, y.dtype, y.device.type) == ((2, 64, 8, 8), torch.float16, "cuda")
    assert y.is_contiguous(memory_format=torch.channels_last)


# ---- last, as it has been running all the while ---------------------------------------------------------------------


@pytest.mark.skipif(
    _version(triton) < (3, 7) and _version(np) >= (2, 4),
    reason="with NumPy 2.4 the interpreter of Triton 3.6 does not count up to a number that it is given",
)
def test_in_the_interpreter(interpreter: subprocess.Popen[str]) -> None:
    output, _ = interpreter.communicate()
    assert interpreter.returncode == 0, output[-10000:]
    assert int(re.search(r"(\d+) passed", output)[1]) > 100
