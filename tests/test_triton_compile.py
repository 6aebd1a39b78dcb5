"""The Triton kernels compile for every generation: no register is spilled, shared memory suffices, matrix instructions are used.

A few of the configurations here; all of them with ``FASTPOSE_ALL_CONFIGS=1``, which takes a quarter of an hour on one core.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton_aot

from fastpose.triton.configs import family
from fastpose.triton.problems import Conv, Pointwise

ALL = os.environ.get("FASTPOSE_ALL_CONFIGS") == "1"
MATRIX_INSTRUCTION = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}

_RESIDUAL = Conv(3, 128, 128, 256, 0, True, 0, False, False, 2, 64, 64, torch.bfloat16)
_HEAD = replace(_RESIDUAL, window=1, inputs=256, mid=256, low=False, joints=16, heatmaps=True)
PROBLEMS: dict[str, Pointwise | Conv] = {
    "first": Pointwise(256, 128, 2, 64, 64, False, torch.bfloat16),
    "first pooled": Pointwise(256, 128, 2, 64, 64, True, torch.bfloat16),
    "first of 512": Pointwise(512, 256, 2, 64, 64, False, torch.bfloat16),
    "second": _RESIDUAL,
    "second without low": replace(_RESIDUAL, low=False),
    "second projected": replace(_RESIDUAL, skip=128, low=False),
    "second of 64": replace(_RESIDUAL, inputs=64, mid=64, outputs=128, skip=64),
    "second of 80": replace(_RESIDUAL, inputs=40, mid=40, outputs=80),
    "second of 512": replace(_RESIDUAL, inputs=256, mid=256, outputs=512),
    "second convolved": replace(_RESIDUAL, convolved=True),
    "second of 512 convolved": replace(_RESIDUAL, inputs=256, mid=256, outputs=512, convolved=True),
    "second of 1024 convolved": replace(_RESIDUAL, inputs=512, mid=512, outputs=1024, convolved=True),
    "head": replace(_HEAD, outputs=0),
    "head and merge": _HEAD,
    "merge": replace(_HEAD, heatmaps=False),
    "head and merge of 128": replace(_HEAD, inputs=128, mid=128, outputs=128),
}


def configurations() -> list[Any]:
    """(problem, architecture, configuration), the first of which are run always."""
    few = [
        ("first", 90, 0),
        ("first pooled", 80, 0),
        ("second", 80, 0),
        ("second", 89, 1),
        ("second", 90, 0),
        ("second", 90, 6),
        ("second projected", 90, 2),
        ("second", 100, 0),
        ("head and merge", 90, 0),
    ]
    cases = {}
    for name, problem in PROBLEMS.items():
        for architecture in MATRIX_INSTRUCTION:
            configs: list[Any] = [*problem.configs(family(divmod(architecture, 10)))]
            if architecture >= 90 and architecture < 120:  # for tensors that no descriptor can describe
                configs += problem.configs(family(divmod(architecture, 10)), aligned=False)
            cases.update({(name, architecture, i): config for i, config in enumerate(configs)})
    chosen = cases if ALL else few
    return [
        pytest.param(
            PROBLEMS[key[0]], key[1], cases[key], id=f"{key[0]}-sm_{key[1]}-{'-'.join(map(str, vars(cases[key]).values()))}"
        )
        for key in chosen
    ]


@pytest.mark.parametrize(("problem", "architecture", "config"), configurations())
def test_compiles(problem: Pointwise | Conv, architecture: int, config: Any) -> None:
    launch = problem.example("cpu").launch(config)
    compiled = triton_aot.compile_launch(launch, architecture)
    assert compiled.stack == compiled.local == 0, "registers are spilled"
    assert not {"STL", "LDL"} & compiled.instructions.keys()
    assert compiled.shared <= triton_aot.SHARED_MEMORY[architecture]
    rows = getattr(config, "rows", 0) or config.block_m
    instruction = MATRIX_INSTRUCTION[architecture] if rows >= 64 else "HMMA"
    assert compiled.instructions.get(instruction, 0) > 0
    if config.tma:
        assert compiled.instructions.get("UTMALDG", 0) > 0
