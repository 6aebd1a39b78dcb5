"""Options of bench_suites.py, and which of its workloads and providers they choose."""

from __future__ import annotations

import pytest

from fastpose.benchmarking.bench import parse_settings
from fastpose.benchmarking.runner import planned, title_of
from fastpose.benchmarking.settings import HELP

_LISTS = ("providers", "threads", "batches", "dtypes")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastpose")
    group.addoption("--suites", default="", metavar="LIST", help="separated by commas; all by default")
    group.addoption("--device", help=HELP["device"])
    group.addoption("--quick", action="store_true", help=HELP["quick"])
    for name in _LISTS:
        group.addoption(f"--{name}", default="", metavar="LIST", help=HELP[name])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    settings = parse_settings(
        suites=[suite for suite in config.getoption("--suites").split(",") if suite],
        device=config.getoption("--device"),
        quick=config.getoption("--quick"),
        minutes=None,
        only=[],
        **{name: config.getoption(f"--{name}") for name in _LISTS},
    )
    cases = [
        pytest.param(workload, threads, name, id=f"{title_of(workload, threads)}: {name}".replace(" ", "-"))
        for workload, threads in planned(settings)
        for name in settings.choose(workload)
    ]
    metafunc.parametrize(("workload", "threads", "name"), cases)
