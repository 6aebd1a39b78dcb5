"""The CUDA kernels compile for every generation without spilling registers, and move packs by 128-bit accesses."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "csrc").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

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
    """What ptxas reports."""

    name: str  # demangled, without namespaces and arguments
    registers: int
    stack: int
    spilled: int

    def __str__(self) -> str:
        return f"{self.name}: {self.registers} registers, {self.stack} bytes of stack, {self.spilled} bytes spilled"


@dataclass
class Cubin:
    path: Path
    kernels: dict[str, Kernel]  # by mangled name


def read_report(report: str) -> dict[str, Kernel]:
    kernels = {}
    for block in report.split("Compiling entry function '")[1:]:
        mangled = block.partition("'")[0]
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack.* (\d+) bytes.* (\d+) bytes", block).groups())
        registers = int(re.search(r"Used (\d+) registers", block)[1])
        kernels[mangled] = Kernel(mangled, registers, stack, stores + loads)
    names = subprocess.run(["c++filt", *kernels], capture_output=True, text=True, check=True).stdout.splitlines()
    for kernel, name in zip(kernels.values(), names, strict=True):
        kernel.name = name.removeprefix("void ").replace("fastpose::", "").rpartition("(")[0]
    return kernels


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> list[Cubin]:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the PATH")
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    folder = tmp_path_factory.mktemp("cubins")

    def compile_one(job: tuple[Path, str]) -> Cubin:
        source, architecture = job
        path = folder / f"{source.stem}.{architecture}.cubin"
        options = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v", f"-arch={architecture}", "-cubin"]
        done = subprocess.run(["nvcc", *options, source, "-o", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Cubin(path, read_report(done.stderr))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, [(s, a) for s in SOURCES for a in ARCHITECTURES if a in known]))


def test_nothing_is_spilled(cubins: list[Cubin]) -> None:
    assert all(cubin.kernels for cubin in cubins)
    bad = [f"{c.path.stem} {k}" for c in cubins for k in c.kernels.values() if k.spilled or k.stack]
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
