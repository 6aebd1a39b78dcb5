"""Measures configurations, and keeps the fastest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import triton.testing

from fastpose.triton.choice import Config, Judge, Known, Problem, recording
from fastpose.triton.problems import Conv


class Timing(NamedTuple):
    """What was measured of one configuration."""

    config: Config | None
    """None: the 3×3 convolution by cuDNN, and the rest in the kernel."""
    microseconds: float
    """NaN if it computes something else or does not compile."""


def tune(
    model: Callable[..., Any], *inputs: Any, progress: Callable[[str], None] = lambda line: None
) -> dict[Problem, list[Timing]]:
    """Measure all configurations for what a model's fused layers compute, and use the fastest from now on.

    Args:
        model: anything that runs fused layers in evaluation.
        *inputs: what it is called with, on a GPU; the timings hold for their sizes.
        progress: is given a line of text for every problem.

    Returns:
        The timings of every problem, the fastest first.

    Raises:
        RuntimeError: none of the configurations computes the right values.
    """
    with recording() as problems, torch.no_grad():
        model(*inputs)
    timings: dict[Problem, list[Timing]] = {}
    for number, (problem, device, aligned) in enumerate(problems, 1):
        timings[problem] = measure(problem, aligned, Known.of(device))
        best = timings[problem][0]
        progress(f"{number} of {len(problems)}: {best.microseconds:.1f} µs with {best.config or 'cuDNN'} for {problem}")
    return timings


def measure(problem: Problem, aligned: bool, known: Known) -> list[Timing]:
    """Timings of one problem, the fastest first. It is what the problem is solved with from now on."""
    example = problem.example(known.device)
    judge = Judge(example)
    timings: list[Timing] = []
    for config in problem.configs(known.family, aligned):
        right = known.is_right(problem, config) and judge.finds_right(config)
        timings.append(Timing(config, microseconds(example.launch(config).run) if right else math.nan))
    if isinstance(problem, Conv) and problem.window == 3 and not problem.convolved:
        timings.append(Timing(None, _with_cudnn(problem, aligned, known)))
    timings.sort(key=lambda timing: (math.isnan(timing.microseconds), timing.microseconds))
    if math.isnan(timings[0].microseconds):
        raise known.nothing_is_right(problem)
    best, key = timings[0].config, known.key(problem, aligned)
    known.chosen[key], known.tuned[key] = best, asdict(best) if best else None
    known.save()
    return timings


def _with_cudnn(problem: Conv, aligned: bool, known: Known) -> float:
    """Microseconds for the convolution by cuDNN and then the rest at its best."""
    rest = measure(problem.after_convolution(), aligned, known)[0]
    h = torch.randn(problem.batch, problem.inputs, problem.height, problem.width, dtype=problem.dtype, device=known.device)
    weight = torch.randn(problem.mid, problem.inputs, 3, 3, dtype=problem.dtype, device=known.device)
    h, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (h, weight))
    return rest.microseconds + microseconds(lambda: torch.conv2d(h, weight, padding=1))


def microseconds(run: Callable[[], Any]) -> float:
    """Median time on the GPU alone: many runs in a CUDA graph. What fits the cache stays there, as it does between layers."""
    return 1000 * triton.testing.do_bench_cudagraph(run, rep=20, return_mode="median")
