"""Triton launches compiled for GPUs that are not there, and what their machine code looks like."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from fastpose.triton.launches import Launch

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
# Bytes of shared memory that one block may have: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


class Compiled(NamedTuple):
    registers: int
    stack: int
    local: int
    """Bytes of spilled registers."""
    shared: int
    """Bytes of shared memory."""
    instructions: dict[str, int]
    """How often each SASS mnemonic occurs, without its modifiers."""


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compiles the kernel as the launch would have it compiled at run time on that architecture."""
    constants = {p.name for p in launch.kernel.params if p.is_constexpr}
    signature: dict[str, str] = {}
    values: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        kind = _type(value)
        if name in constants or value is None or (kind == "i32" and value == 1):
            signature[name], values[name] = "constexpr", value
            continue
        signature[name] = kind
        if kind.startswith("*") or (kind == "i32" and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    instructions: dict[str, int] = {}
    for mnemonic in re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code):
        instructions[mnemonic] = instructions.get(mnemonic, 0) + 1
    return Compiled(registers, stack, local, compiled.metadata.shared, instructions)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>".replace(" ", "")
    return "fp32" if isinstance(value, float) else "i32"


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([CUOBJDUMP, option, path], capture_output=True, text=True, check=True).stdout
