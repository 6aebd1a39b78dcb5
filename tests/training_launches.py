"""Which Triton kernels a training step of a residual block launches, and what they become on GPUs that are not there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastpose.ops import _residual_order, hourglass_residual_training
from fastpose.ops._residual_steps import Parameters, Running
from fastpose.triton import residual_training

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}


class Launch(NamedTuple):
    """All that a kernel is compiled for. Those of the same machine code are equal."""

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def __str__(self) -> str:
        pairs = ", ".join(f"{name}={value}" for name, value in (*self.types, *self.constants))
        return f"{self.name}({pairs}), {self.warps} warps, {self.stages} stages"


class Compiled(NamedTuple):
    registers: int
    stack: int
    """Bytes for a thread, of spilled registers too."""
    shared: int
    """Bytes of shared memory."""
    instructions: Counter[str]
    """How often each SASS mnemonic occurs, without its modifiers."""


class Block(NamedTuple):
    """A block in training, and what it is given."""

    in_channels: int
    out_channels: int
    batch: int
    size: int
    dtype: torch.dtype = torch.bfloat16
    of_x: torch.dtype | None = None
    of_parameters: torch.dtype = torch.float32
    frozen: bool = False
    cumulative: bool = False
    group: str = ""


def launches(block: Block) -> set[Launch]:
    """Of a forward and a backward pass. Nothing is computed."""
    recorded: set[Launch] = set()

    def record(
        kernel: Any,
        grid: tuple[int, int, int],
        tensors: tuple[torch.Tensor | None, ...],
        numbers: tuple[int | float, ...],
        constants: tuple[Any, ...],
        *,
        warps: int = 4,
        stages: int = 3,
    ) -> None:
        assert all(programs > 0 for programs in grid)
        arguments = dict(zip(kernel.arg_names, (*tensors, *numbers, *constants), strict=True))
        constant = {p.name for p in kernel.params if p.is_constexpr} | {
            name for name, value in arguments.items() if value is None
        }
        types = tuple((name, _type(value)) for name, value in arguments.items() if name not in constant)
        values = tuple((name, value) for name, value in arguments.items() if name in constant)
        recorded.add(Launch(kernel, types, values, warps, stages))

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(residual_training, "launch", record)
        patch.setattr(residual_training._residual_statistics, "finish", lambda *_: None)  # of several ranks, which are not there
        _train(block)
    return recorded


def _train(block: Block) -> None:
    inner = block.out_channels // 2

    def parameter(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=block.of_parameters)

    shapes = Parameters(
        *((block.in_channels,), (block.in_channels,), (inner, block.in_channels, 1, 1), (inner,)),
        *((inner,), (inner,), (inner, inner, 3, 3), (inner,)),
        *((inner,), (inner,), (block.out_channels, inner, 1, 1), (block.out_channels,)),
        *((block.out_channels, block.in_channels, 1, 1), (block.out_channels,)),
    )
    p = Parameters(*(parameter(*shape) for shape in shapes))
    if block.in_channels == block.out_channels:
        p = p._replace(skip_weight=None, skip_bias=None)
    x = torch.empty(block.batch, block.in_channels, block.size, block.size, dtype=block.of_x or block.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    statistics = torch.empty(3 * (block.in_channels + 2 * inner))
    norms = hourglass_residual_training._norms(p, statistics, [not block.frozen] * 3, [block.group] * 3)
    running = [
        Running(torch.empty_like(norm.mean), torch.empty_like(norm.mean), torch.tensor(1), 0.1, block.cumulative, 1e-5, offset)
        for norm, offset in zip(norms, (None, p.conv1_bias, p.conv2_bias), strict=True)
    ]
    y, z1, z2 = _residual_order.forward(residual_training, x, p, norms, running, block.dtype)
    norms = [norm._replace(group="") for norm in norms]  # sums over ranks launch nothing more
    need = Parameters(*(tensor is not None for tensor in p))
    _residual_order.backward(residual_training, torch.empty_like(y), (x, z1, z2), p, norms, block.dtype, True, need)


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compiles the kernel as the launch would have it compiled at run time on that architecture."""
    types, names = dict(launch.types), launch.kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=dict(launch.constants), attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    mnemonics = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code)
    return Compiled(registers, stack + local, compiled.metadata.shared, Counter(mnemonics))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"
