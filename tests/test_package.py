"""The package as a whole: what importing it costs, what the extension shows, and what is said where kernels are missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import fastpose
from fastpose import _C, _library, ops

BUILD = "pip install --no-build-isolation -e ."


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- importing --------------------------------------------------------------------------------------------------------


def test_import_brings_nothing_but_torch_and_numpy() -> None:
    code = """
import sys, time, torch, numpy
before, start = set(sys.modules), time.perf_counter()
import fastpose
seconds = time.perf_counter() - start
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(names - set(sys.stdlib_module_names) - {"fastpose", "torch", "numpy"}))
print(seconds)
"""
    others, seconds = run(code).splitlines()
    assert others == "[]"
    assert float(seconds) < 2


WITHOUT_EXTENSION = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "fastpose._C":
            raise ImportError("no module named fastpose._C")
sys.meta_path.insert(0, Hide())
import torch, fastpose
keypoints = torch.rand(1, 2, 2)
"""


def test_without_the_extension_ops_say_how_to_build_it() -> None:
    code = """
try:
    fastpose.ops.gaussian_heatmap(keypoints, 8, 1.0)
except fastpose.NotBuiltError as error:
    print(error)
"""
    message = run(WITHOUT_EXTENSION + code).strip()
    assert message == (
        "fastpose's compiled extension could not be loaded (no module named fastpose._C); "
        f'build it with `{BUILD}` in a checkout, or run plain PyTorch under fastpose.backend("reference")'
    )


def test_without_the_extension_the_reference_and_fakes_work() -> None:
    code = """
with fastpose.backend("reference"):
    keypoints.requires_grad_()
    maps = fastpose.ops.gaussian_heatmap(keypoints, 8, 1.0)
    maps.sum().backward()
print(tuple(maps.shape), keypoints.grad.any().item())
print(tuple(fastpose.ops.soft_argmax2d(torch.empty(1, 2, 8, 8, device="meta")).coordinates.shape))
"""
    assert run(WITHOUT_EXTENSION + code).splitlines() == ["(1, 2, 8, 8) True", "(1, 2, 2)"]


# ---- the extension ----------------------------------------------------------------------------------------------------


def test_the_extension_shows_build_info_alone() -> None:
    assert [name for name in dir(_C) if not name.startswith("__")] == ["build_info"]
    info = fastpose.build_info()
    assert set(info) == {*("version", "torch_target", "compiler", "simd_levels", "simd_level", "cuda", "cuda_architectures")}
    assert info["version"] == fastpose.__version__
    assert info["simd_level"] in info["simd_levels"]
    assert (info["cuda"] is None) == (info["cuda_architectures"] == [])


def test_the_extension_uses_the_stable_abi_of_torch_only() -> None:
    pytest.importorskip("torch_abi_audit")
    audit = json.loads(run(f"from torch_abi_audit.cli import main; main([{_C.__file__!r}, '--json'])"))
    (extension,) = audit["extensions"]
    assert extension["torch"]["uses_torch"]
    assert extension["torch"]["unstable_symbols"] == []
    assert extension["torch"]["unknown_shim_symbols"] == []
    assert extension["torch"]["min_torch_version"].startswith(fastpose.build_info()["torch_target"])


def test_every_op_is_registered_for_the_cpu() -> None:
    names = [name for name in dir(torch.ops.fastpose) if not name.startswith("_") and name != "name"]
    assert len(names) >= 4
    for name in names:
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"fastpose::{name}", "CPU"), name


# ---- which implementation runs ----------------------------------------------------------------------------------------


def test_backend_is_restored_and_checked() -> None:
    assert _library.current_backend() == "fused"
    with fastpose.backend("reference"):
        assert _library.current_backend() == "reference"
    with pytest.raises(KeyError), fastpose.backend("reference"):
        raise KeyError
    assert _library.current_backend() == "fused"
    with pytest.raises(ValueError, match="backend: got 'eager', allowed are 'fused', 'reference'"), fastpose.backend("eager"):
        pass


def test_compiled_code_follows_the_backend() -> None:
    compiled = torch.compile(ops.gaussian_heatmap, backend="aot_eager", fullgraph=True)
    keypoints = torch.rand(1, 2, 2, requires_grad=True)
    fused = compiled(keypoints, 8, 1.0)
    with fastpose.backend("reference"):
        reference = compiled(keypoints, 8, 1.0)
    assert torch.equal(fused, ops.gaussian_heatmap(keypoints, 8, 1.0))
    torch.testing.assert_close(reference, fused)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ["80-real", "90-real"], True),
        ((8, 6), ["80-real", "90-real"], True),  # machine code runs on later minor versions of the same generation
        ((8, 0), ["86-real"], False),
        ((9, 0), ["80-real"], False),
        ((9, 0), ["80-virtual"], True),  # PTX is compiled by the driver for anything newer
        ((7, 5), ["80-virtual"], False),
        ((12, 0), ["80-real", "90"], True),
        ((9, 0), ["90a-real"], True),
        ((10, 0), [], False),
    ],
)
def test_runs_on(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    assert _library.runs_on(capability, architectures) is runs


@pytest.fixture
def built_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Pretends a build and a GPU; nothing is allocated there."""
    pretended = SimpleNamespace(cuda=None, architectures=[], capability=(9, 0))
    info = lambda: {"cuda": pretended.cuda, "cuda_architectures": pretended.architectures}  # noqa: E731
    monkeypatch.setattr(_library, "build_info", info)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: pretended.capability)
    _library._require_architecture.cache_clear()
    yield pretended
    _library._require_architecture.cache_clear()


def test_cuda_tensors_without_cuda_kernels(built_for: SimpleNamespace) -> None:
    expected = (
        f"the tensors are on cuda:1, but fastpose was built without CUDA kernels; rebuild with nvcc on the PATH: `{BUILD}`, "
        'or run plain PyTorch under fastpose.backend("reference")'
    )
    with pytest.raises(fastpose.NotBuiltError, match=f"^{re.escape(expected)}$"):
        _library.require_kernels(torch.device("cuda:1"))


def test_a_gpu_that_was_not_built_for(built_for: SimpleNamespace) -> None:
    built_for.cuda, built_for.architectures = "13.0", ["80-real", "86-real"]
    expected = (
        "cuda:0 is a GPU of architecture sm_90, but fastpose was built for 80-real, 86-real; "
        f'rebuild with `FASTPOSE_CUDA_ARCHS=90 {BUILD}`, or run plain PyTorch under fastpose.backend("reference")'
    )
    with pytest.raises(fastpose.NotBuiltError, match=f"^{re.escape(expected)}$"):
        _library.require_kernels(torch.device("cuda:0"))
    built_for.architectures = ["80-real", "90-real"]
    _library._require_architecture.cache_clear()
    _library.require_kernels(torch.device("cuda:0"))


def test_devices_without_kernels(built_for: SimpleNamespace) -> None:
    with pytest.raises(fastpose.NotBuiltError, match="has kernels for cpu and cuda, but the tensors are on xpu; move them"):
        _library.require_kernels(torch.device("xpu:0"))


def test_the_reference_needs_no_kernels(built_for: SimpleNamespace) -> None:
    tensor = SimpleNamespace(device=torch.device("cuda:0"))
    with fastpose.backend("reference"):
        assert not _library.fused(tensor)
    with pytest.raises(fastpose.NotBuiltError):
        _library.fused(tensor)
