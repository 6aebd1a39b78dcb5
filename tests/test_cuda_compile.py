"""The CUDA kernels of the extension, in the machine code it was built with: none spills, and packs move 128 bits at a time.

For which architectures is the build's choice (FASTPOSE_CUDA_ARCHS); continuous integration builds for three generations.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastpose

SOURCES = sorted((Path(__file__).parents[1] / "csrc").glob("*.cu"))

# Instantiations (without namespaces) that move the maps in packs, and what they must do 16 bytes at a time.
PACKED = {
    r"gaussian_heatmap_kernel<\w+, \w+, true, ": {"STG"},
    r"heatmap_mse_loss_kernel<\w+, \w+, true, ": {"LDG", "STG"},
    r"heatmap_mse_loss_scale_kernel<\w+, true>": {"LDG", "STG"},
    r"soft_argmax2d_kernel<\w+, true, ": {"LDG"},
    r"soft_argmax2d_joints_kernel<": {"LDG"},
    r"soft_argmax2d_backward_kernel<\w+, true>": {"LDG", "STG"},
    r"soft_argmax2d_joints_backward_kernel<": {"LDG", "STG"},
    r"decode_planes_kernel<\w+, [48], ": {"LDG"},
    r"decode_joints_kernel<\w+, [48], ": {"LDG"},
    r"crop_windows_kernel<\w+, \w+, true>": {"LDG", "STG"},
    r"crop_windows_backward_kernel<\w+, true>": {"LDG", "STG"},
}


def find_tool(name: str) -> str | None:
    """On the PATH, beside nvcc, or in one of the wheels that bring it (nvidia-cuda-nvdisasm, triton)."""
    nvcc = shutil.which("nvcc")
    packages = Path(sysconfig.get_path("purelib"))
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    folders += [*packages.glob("nvidia/*/bin"), packages / "triton/backends/nvidia/bin"]
    return shutil.which(name) or next((str(folder / name) for folder in folders if (folder / name).exists()), None)


@dataclass
class Kernel:
    name: str  # demangled, without namespaces and arguments
    registers: int
    stack: int  # bytes, among them what is spilled
    local: int

    def __str__(self) -> str:
        return f"{self.name}: {self.registers} registers, {self.stack} bytes of stack, {self.local} bytes of local memory"


@dataclass
class Cubin:
    path: Path
    kernels: dict[str, Kernel]  # by mangled name


def read_usage(usage: str) -> dict[str, Kernel]:
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    mangled = [name for name, *_ in found]
    names = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    short = [name.removeprefix("void ").replace("fastpose::", "").rpartition("(")[0] for name in names]
    return {m: Kernel(name, *map(int, numbers)) for m, name, (_, *numbers) in zip(mangled, short, found, strict=True)}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> list[Cubin]:
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump")
    built = [word.removesuffix("-real") for word in fastpose.build_info()["cuda_architectures"] if not word.endswith("-virtual")]
    if not built:
        pytest.skip("the extension was built without machine code for GPUs")
    folder = tmp_path_factory.mktemp("cubins")
    extension = sys.modules["fastpose._C"].__file__
    subprocess.run([cuobjdump, "-xelf", "all", extension], cwd=folder, capture_output=True, check=True)
    paths = sorted(folder.glob("*.cubin"))
    assert {path.stem for path in paths} == {f"{source.stem}.sm_{number}" for source in SOURCES for number in built}
    command = [cuobjdump, "-res-usage"]
    usages = [subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout for path in paths]
    return [Cubin(path, read_usage(usage)) for path, usage in zip(paths, usages, strict=True)]


def test_nothing_is_spilled(cubins: list[Cubin]) -> None:
    assert all(cubin.kernels for cubin in cubins)
    bad = [f"{c.path.stem} {k}" for c in cubins for k in c.kernels.values() if k.stack or k.local]
    assert not bad, "\n".join(bad)


@functools.cache
def wide_accesses(cubin: Path, nvdisasm: str) -> dict[str, set[str]]:
    """By mangled name, which of LDG and STG the machine code does 128 bits at a time."""
    code = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\.text\.(\w+):$", code, flags=re.MULTILINE)[1:]
    return {
        name: set(re.findall(r"\b(LDG|STG)[.\w]*\.128\b", text)) for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


@pytest.mark.parametrize(("pattern", "expected"), PACKED.items(), ids=[name.partition("<")[0] for name in PACKED])
def test_packs_are_moved_at_once(cubins: list[Cubin], pattern: str, expected: set[str]) -> None:
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    seen = set()
    for cubin in cubins:
        packed = {name: kernel for name, kernel in cubin.kernels.items() if re.match(pattern, kernel.name)}
        if not packed:
            continue
        wide = wide_accesses(cubin.path, nvdisasm)
        for name, kernel in packed.items():
            assert wide[name] >= expected, f"{cubin.path.stem} {kernel}"
            seen.add((cubin.path.suffixes[0], re.search(r"<(\w+)", kernel.name)[1]))
    architectures = {cubin.path.suffixes[0] for cubin in cubins}
    assert seen == {(a, dtype) for a in architectures for dtype in ("float", "Half", "BFloat16")}
