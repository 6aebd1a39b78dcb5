"""Which configuration a kernel runs with: a default, or the fastest that was measured, and none that was not found to be right.

Before a configuration is used for the first time on a kind of GPU it computes a random example, which is compared with plain
PyTorch; one that is wrong, or does not compile, is never used. What was found is kept on disk for each GPU, version of Triton and
version of the kernels, in ``$FASTPOSE_CACHE_DIR`` or else in ``fastpose`` under the user's cache folder. Losing those files costs
time and nothing else. Nothing is checked while a CUDA graph is captured, which is no time to wait for the GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton

from fastpose._files import write_atomically
from fastpose.triton import kernels
from fastpose.triton.configs import ConvConfig, PointwiseConfig, family, power_of_two
from fastpose.triton.problems import Conv, Example, Pointwise

Problem = Pointwise | Conv
Config = PointwiseConfig | ConvConfig

_UNITS_IN_THE_LAST_PLACE = 8  # of float32
_recorded: dict[tuple[Problem, torch.device, bool], None] | None = None


def choose(problem: Problem, device: torch.device, aligned: bool) -> Any:
    """The configuration to run with, or None to leave the 3×3 convolution to cuDNN.

    Args:
        problem: what is to be computed.
        device: a GPU; the CPU is Triton's interpreter, which takes itself for an H100.
        aligned: whether all tensors begin at multiples of 16 bytes.

    Raises:
        RuntimeError: none of the configurations computes the right values there.
    """
    if _recorded is not None:
        _recorded[problem, device, aligned] = None
    known = Known.of(device)
    key = known.key(problem, aligned)
    if key not in known.chosen:
        known.chosen[key] = _first_that_is_right(problem, aligned, known)
    return known.chosen[key]


def _first_that_is_right(problem: Problem, aligned: bool, known: Known) -> Config | None:
    configs: list[Any] = [*problem.configs(known.family, aligned)]
    if not configs:
        return None
    key = known.key(problem, aligned)
    if key in known.tuned:
        tuned = known.tuned[key]
        if tuned is None:
            return None
        configs.insert(0, type(configs[0])(**tuned))
    else:
        # The largest tiles of which there are enough for the whole GPU; the smallest if there are not.
        enough = (config for config in configs if problem.blocks(config) >= known.processors)
        configs.insert(0, next(enough, max(configs, key=lambda config: (problem.blocks(config), -config.rows))))
    for config in dict.fromkeys(configs):
        if known.is_right(problem, config):
            return config
    raise known.nothing_is_right(problem)


@contextmanager
def recording() -> Iterator[dict[tuple[Problem, torch.device, bool], None]]:
    """Collects what :func:`choose` is asked for, each once."""
    global _recorded
    _recorded = {}
    try:
        yield _recorded
    finally:
        _recorded = None


class Judge:
    """Compares what configurations compute with PyTorch in float64.

    FlashAttention's rule: the largest error may be at most twice that of plain PyTorch in the same dtype, and some units in the
    last place of the arithmetic.
    """

    def __init__(self, example: Example) -> None:
        self.example = example
        self.exact = example.reference(torch.float64)
        self.allowed = []
        for exact, eager in zip(self.exact, example.reference(example.outputs[0].dtype), strict=True):
            unit = torch.finfo(torch.float32).eps * exact.abs().max()
            self.allowed.append(2 * (eager.double() - exact).abs().max() + _UNITS_IN_THE_LAST_PLACE * unit)

    def finds_right(self, config: Config) -> bool:
        """Run it. One that does not compile is not right."""
        for output in self.example.outputs:
            output.fill_(torch.nan)
        try:
            self.example.launch(config).run()
        except (triton.CompilationError, triton.OutOfResources, RuntimeError) as error:
            if isinstance(error, torch.AcceleratorError):  # of the GPU, which cannot be used any more
                raise
            warnings.warn(f"a Triton kernel does not compile as {config}: {error}", stacklevel=2)
            return False
        errors = [(ours.double() - exact).abs().max() for ours, exact in zip(self.example.outputs, self.exact, strict=True)]
        return all(error <= allowed for error, allowed in zip(errors, self.allowed, strict=True))  # not if it is NaN


class Known:
    """What is known of one GPU."""

    _of: dict[torch.device, Known] = {}  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu, self.processors, self.family = "interpreter", 132, "sm_90"
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.gpu, self.processors = properties.name, properties.multi_processor_count
            self.family = family((properties.major, properties.minor))
        self.chosen: dict[str, Config | None] = {}
        version = hashlib.sha256(Path(kernels.__file__).read_bytes() + triton.__version__.encode()).hexdigest()[:16]
        self.path = cache_folder() / f"{re.sub('[^A-Za-z0-9]+', '-', self.gpu)}-{version}.json"
        kept = _read(self.path)
        self.tuned: dict[str, dict[str, Any] | None] = kept.get("tuned", {})
        self.right: dict[str, bool] = kept.get("right", {})

    @classmethod
    def of(cls, device: torch.device) -> Known:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in cls._of:
            cls._of[device] = cls(device)
        return cls._of[device]

    @staticmethod
    def key(problem: Problem, aligned: bool) -> str:
        """Of problems that share a configuration: batches up to the same power of two are taken for alike."""
        return f"{problem.with_batch(power_of_two(max(1, problem.batch)))}{'' if aligned else ' misaligned'}"

    def is_right(self, problem: Problem, config: Config) -> bool:
        """Whether the configuration is known to compute problems like this one, but for the batch, or is found to do so now."""
        images = config.tile(problem.height, problem.width)[0] if isinstance(config, ConvConfig) else 1
        small = problem.with_batch(min(max(1, problem.batch), 2 * images + 1))
        key = f"{small} {config}"
        capturing = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if key not in self.right and not capturing:
            self.right[key] = Judge(small.example(self.device)).finds_right(config)
            self.save()
        return self.right.get(key, True)

    def nothing_is_right(self, problem: Problem) -> RuntimeError:
        return RuntimeError(
            f"none of fastpose's Triton kernels computes the right values for {problem} on {self.gpu} with Triton "
            f'{triton.__version__}; use fastpose.backend("reference"), and please report it'
        )

    def save(self) -> None:
        """Keep it on disk, together with what others have found out meanwhile."""
        kept = _read(self.path)
        content = {name: {**kept.get(name, {}), **getattr(self, name)} for name in ("tuned", "right")}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(content, indent=1).encode())
        except OSError as error:
            warnings.warn(f"what was found out about Triton kernels cannot be kept in {self.path}: {error}", stacklevel=2)


def cache_folder() -> Path:
    """Where it is kept."""
    folder = os.environ.get("FASTPOSE_CACHE_DIR")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpose"


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
