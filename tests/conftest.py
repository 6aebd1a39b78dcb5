"""Options and fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

try:
    import hypothesis
except ModuleNotFoundError:  # on a bare machine with a GPU, where benchmarks/gpu.sh runs the tests that do without it
    hypothesis = None

_SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MARKERS = (
    "kernel: what a kernel computes; run again for every SIMD level and for CUDA on the CPU",
    "cuda: needs a GPU; set by itself where the fixture `device` is one, or where `skipif` has the reason `no GPU`",
    "sanitize: small enough for compute-sanitizer, which slows a kernel a hundredfold; benchmarks/gpu.sh runs those on a GPU",
    "gpu_matrix: every configuration of a kernel on a GPU; runs with -m gpu_matrix, and in benchmarks/gpu.sh before the timing",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-on-cpu",
        metavar="FILE",
        help="test this build of fastpose._C, in which the CUDA kernels run on CPU tensors (see test_cuda_on_cpu.py)",
    )
    parser.addoption(
        "--damaged-files",
        metavar="N",
        type=int,
        default=100,
        help="damage a file of each format in N ways (test_damaged_files.py)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    file = config.getoption("cuda_on_cpu")
    if hypothesis:
        examples = 15 if file else 60
        hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=examples)
        hypothesis.settings.load_profile("suite")
    if file:  # `from fastpose import _C` finds it there
        spec = importlib.util.spec_from_file_location("fastpose._C", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["fastpose._C"] = module


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        on_gpu = getattr(item, "callspec", None) and item.callspec.params.get("device") == "cuda"
        if on_gpu or any("no GPU" in marker.kwargs.get("reason", "") for marker in item.iter_markers("skipif")):
            item.add_marker("cuda")
        if item.get_closest_marker("gpu_matrix"):
            item.add_marker("cuda")
            if "gpu_matrix" not in config.getoption("markexpr"):
                item.add_marker(pytest.mark.skip(reason="it takes minutes; -m gpu_matrix runs it"))
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real annotations and predictions, which lies beside the repository and is not part of it."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data is not there")
    return _SHARED_DATA.resolve()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For networks so small that threads wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """Of the maps."""
    on_gpu = device.type == "cuda" or request.config.getoption("cuda_on_cpu")
    if on_gpu and request.param == torch.float64:
        pytest.skip("a GPU has no float64 kernels")
    return request.param
