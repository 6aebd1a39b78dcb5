"""Triton launches compiled for GPUs that are not there, and what their machine code looks like."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}
# Bytes of shared memory that one block may have: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


class Launch(NamedTuple):
    """A kernel with all that it is called with, but for the grid. Hashable, to tell launches of the same machine code."""

    kernel: Any
    types: tuple[tuple[str, str], ...]  # of the arguments that are not constants
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        values = [f"{name}={value}" for name, value in (*self.types, *self.constants, *self.options)]
        return f"{self.kernel.__name__}({', '.join(values)})"


def launch_of(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[torch.Tensor | None, ...],
    numbers: tuple[int | float, ...],
    constants: tuple[Any, ...],
    *,
    warps: int = 4,
    stages: int = 3,
) -> Launch:
    """Takes what fastpose.triton._launch.launch takes."""
    arguments = dict(zip(kernel.arg_names, (*tensors, *numbers, *constants), strict=True))
    constant = {p.name for p in kernel.params if p.is_constexpr} | {name for name, value in arguments.items() if value is None}
    types = tuple((name, _type(value)) for name, value in arguments.items() if name not in constant)
    values = tuple((name, value) for name, value in arguments.items() if name in constant)
    return Launch(kernel, types, values, (("num_warps", warps), ("num_stages", stages), ("enable_fp_fusion", True)))


class Compiled(NamedTuple):
    registers: int
    stack: int
    """Bytes for a thread, of spilled registers too."""
    shared: int
    """Bytes of shared memory."""
    instructions: Counter[str]
    """How often each SASS mnemonic occurs, without its modifiers."""


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compiles the kernel as the launch would have it compiled at run time on that architecture."""
    types, constants = dict(launch.types), dict(launch.constants)
    names = launch.kernel.arg_names
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "").startswith("*")}
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    mnemonics = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code)
    return Compiled(registers, stack + local, compiled.metadata.shared, Counter(mnemonics))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([CUOBJDUMP, option, path], capture_output=True, text=True, check=True).stdout
