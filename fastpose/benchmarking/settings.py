"""What a run measures, as the user asked for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastpose import _check
from fastpose.benchmarking.workload import Workload

SUITES = ("ceilings", "ops", "blocks", "networks")
DTYPES = ("float32", "bfloat16", "float16")
KINDS = ("eager", "compile", "max-autotune", "kornia", "dsntnn", "torchvision", "numpy", "scipy")
QUICK_KINDS = (
    "eager",
    "kornia",
    "dsntnn",
    "torchvision",
    "numpy",
    "scipy",
)  # torch.compile alone would take longer than all the rest

HELP = {
    "suites": f"What to measure: {', '.join(SUITES)}; everything by default.",
    "device": "cpu or cuda; by default a GPU if there is one.",
    "quick": "Small shapes, few rounds, no compiled baselines: a look in under a minute.",
    "compare": "A git revision to measure against, in place of the baselines.",
    "out": "JSON file to write, with pictures beside it, or the folder to write to.",
    "resume": "Keep the rows that the file has, and measure those that are missing.",
    "minutes": "Begin no further row after so many minutes.",
    "only": "Measure only rows with this text in their title; may be repeated.",
    "providers": f"Baselines to time, separated by commas, of {', '.join(KINDS)}.",
    "threads": "CPU thread counts, separated by commas.",
    "batches": "Batch sizes, separated by commas.",
    "dtypes": f"Separated by commas, of {', '.join(DTYPES)}.",
}
"""Of the command's arguments."""


@dataclass(frozen=True)
class Settings:
    """What to measure and for how long. Empty means the suite's default for the device.

    Attributes:
        suites: of :data:`SUITES`; the ceilings of the machine are measured in any case.
        device: ``"cpu"`` or ``"cuda"``.
        threads: thread counts on a CPU.
        dtypes: of :data:`DTYPES`.
        batches: batch sizes.
        providers: kinds of baselines, of :data:`KINDS`: the first word of their names.
        only: parts of titles; a workload whose title contains none of them is left out.
        quick: small shapes, no compiled baselines, few rounds: a look, not a result to publish.
        minutes: after which no further row is begun.

    Raises:
        TypeError, ValueError: a setting is not as above, or there is no GPU.
    """

    suites: tuple[str, ...] = SUITES
    device: str = "cpu"
    threads: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    providers: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    quick: bool = False
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("suites", SUITES), ("dtypes", DTYPES), ("providers", KINDS)):
            for value in getattr(self, name):
                _check.option(name, value, allowed)
        _check.option("device", self.device, ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: got 'cuda', but torch finds no GPU here")
        if self.device == "cuda" and self.threads:
            raise ValueError(f"threads: got {self.threads}, which is for the CPU")
        for name in ("threads", "batches"):
            for value in getattr(self, name):
                _check.positive_int(name, value)
        if self.minutes is not None:
            _check.number("minutes", self.minutes, positive=True)

    def torch_dtypes(self, default: tuple[str, ...]) -> tuple[torch.dtype, ...]:
        return tuple(getattr(torch, name) for name in self.dtypes or default)

    def choose(self, workload: Workload) -> list[str]:
        """The providers of a workload that are to be timed; fastpose and floors always are."""
        return [name for name, provider in workload.providers.items() if provider.role != "baseline" or self.wants(name)]

    def wants(self, provider: str) -> bool:
        """Whether a baseline of this name is to be timed."""
        kinds = self.providers or (QUICK_KINDS if self.quick else KINDS)
        return provider.startswith(kinds)
