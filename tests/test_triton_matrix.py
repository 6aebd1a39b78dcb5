"""On a GPU: every configuration that it may run with computes the right values, at every level of the hourglass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from fastpose.triton.choice import Judge
from fastpose.triton.configs import family
from fastpose.triton.problems import Conv, Pointwise

pytestmark = pytest.mark.gpu_matrix
LEVELS = (64, 32, 16, 8, 4)
SECOND = Conv(3, 128, 128, 256, 0, True, 0, False, False, 5, 64, 64, torch.bfloat16)
HEAD = replace(SECOND, window=1, inputs=256, mid=256, low=False, joints=16, heatmaps=True)
FIRST = Pointwise(256, 128, 5, 64, 64, False, torch.bfloat16)


def problems() -> dict[str, Pointwise | Conv]:
    found: dict[str, Pointwise | Conv] = {}
    for size in LEVELS:
        at: dict[str, Any] = {"height": size, "width": size}
        found[f"first {size}"] = replace(FIRST, **at)
        found[f"first pooled from {size}"] = replace(FIRST, pool=True, **at)
        found[f"second {size}"] = replace(SECOND, **at)
        found[f"second {size} without low"] = replace(SECOND, low=False, **at)
        found[f"second {size} convolved"] = replace(SECOND, convolved=True, **at)
    found["second odd"] = replace(SECOND, low=False, height=27, width=35)
    found["second projected"] = replace(SECOND, low=False, skip=128)
    found["second float16"] = replace(SECOND, dtype=torch.float16)
    found["second of 128"] = replace(SECOND, inputs=64, mid=64, outputs=128)
    found["second of 512"] = replace(SECOND, inputs=256, mid=256, outputs=512)
    found["second of 1024 convolved"] = replace(SECOND, inputs=512, mid=512, outputs=1024, height=16, width=16, convolved=True)
    found["head"] = replace(HEAD, outputs=0)
    found["head and merge"] = HEAD
    found["merge"] = replace(HEAD, heatmaps=False)
    return found


def check(problem: Pointwise | Conv, aligned: bool = True) -> None:
    judge = Judge(problem.example("cuda"))
    configs = problem.configs(family(torch.cuda.get_device_capability()), aligned)
    wrong = [config for config in configs if not judge.finds_right(config)]
    assert not wrong


@pytest.mark.parametrize("problem", problems().values(), ids=problems())
def test_every_configuration(problem: Pointwise | Conv) -> None:
    check(problem)


@pytest.mark.parametrize("name", ["first 64", "first pooled from 8", "second 64", "second 4", "second odd"])
def test_every_configuration_for_misaligned_tensors(name: str) -> None:
    check(problems()[name], aligned=False)
