from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastpose")
    group.addoption("--bench-device", default="cpu", choices=["cpu", "cuda"], help="device to measure (default: cpu)")
    group.addoption("--bench-threads", default="1,2", help="CPU thread counts, comma separated (default: 1,2)")
    group.addoption("--bench-batches", default="32", help="batch sizes, comma separated (default: 32)")
    group.addoption("--bench-dtypes", default="float32", help="dtypes, comma separated (default: float32)")


def _list(config: pytest.Config, name: str) -> list[str]:
    return config.getoption(name).split(",")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    if "threads" in metafunc.fixturenames:
        on_cpu = config.getoption("--bench-device") == "cpu"
        counts = [int(n) for n in _list(config, "--bench-threads")] if on_cpu else [1]
        metafunc.parametrize("threads", counts, ids=lambda n: f"{n}t", scope="session")
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", [int(n) for n in _list(config, "--bench-batches")], ids=lambda n: f"b{n}")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", _list(config, "--bench-dtypes"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--bench-device")
