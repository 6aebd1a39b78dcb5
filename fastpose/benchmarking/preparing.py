"""From a workload to providers that are built, found right, and ready to be timed in turns."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fastpose.benchmarking.checking import Judge, WrongResultError
from fastpose.benchmarking.memory import peak_memory
from fastpose.benchmarking.timing import Captured, Round, cpu_round, cuda_round, input_sets
from fastpose.benchmarking.workload import Function, Inputs, Workload


@dataclass
class Prepared:
    """The providers of a workload.

    Attributes:
        calls: of those that can be timed, by name: what is done in turn with each set of inputs, to the end.
        rounds: of the same, by the clock that suits the device.
        peaks: bytes of memory of those, where they can be told.
        errors: why the others cannot be timed.
        sets: how many sets of inputs take turns.
    """

    calls: dict[str, Callable[[], object]] = field(default_factory=dict)
    rounds: dict[str, Round] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    sets: int = 1

    def forget_functions(self) -> None:
        """Let go of the providers' modules, inputs and graphs."""
        self.calls.clear()
        self.rounds.clear()


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads; None leaves them as they are."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(workload: Workload, names: Sequence[str], doing: Callable[[str], None]) -> Prepared:
    """Build, check and warm up providers of a workload.

    A provider that fails, because it is wrong, lacks memory or does not run here, is left out with the reason; any number of
    others is still worth timing.

    Args:
        workload: what to prepare.
        names: of its providers, those to be timed.
        doing: is told what is going on.

    Raises:
        WrongResultError: plain PyTorch gives no numbers to compare with.
    """
    torch.compiler.reset()
    prepared = Prepared()
    if workload.device == "cuda":
        torch.backends.cudnn.benchmark = True  # for all providers alike
        prepared.sets = input_sets(max(workload.bytes_moved, workload.traffic))
    inputs = workload.make_inputs(0)
    doing("exact result")
    judge = Judge(workload, inputs, workload.providers[workload.eager].prepare()(*inputs))
    functions: dict[str, Function] = {}
    for name in names:
        doing(name)
        provider = workload.providers[name]
        try:
            function = provider.prepare()
            own = provider.make_inputs(0) if provider.make_inputs else inputs
            judge.check(name, provider, function(*own))
            if not provider.own_graph:
                prepared.peaks[name] = peak_memory(partial(function, *own), workload.device)
            functions[name] = function
        except Exception as error:
            prepared.errors[name] = _reason(error)
    del judge
    release_memory(workload.device)
    _make_rounds(workload, functions, inputs, prepared)
    return prepared


def _make_rounds(workload: Workload, functions: dict[str, Function], inputs: Inputs, prepared: Prepared) -> None:
    on_gpu = workload.device == "cuda"
    sets = [inputs, *(workload.make_inputs(seed) for seed in range(1, prepared.sets))]
    pool = torch.cuda.graph_pool_handle() if on_gpu else None
    for name, function in functions.items():
        provider = workload.providers[name]
        own = [provider.make_inputs(seed) for seed in range(len(sets))] if provider.make_inputs else sets
        call = partial(_call_with_each, function, own)
        try:
            if on_gpu:
                replay = call if provider.own_graph else Captured(function, own, pool)
                prepared.rounds[name] = cuda_round(replay, len(own))
                call = partial(_finish, replay)
            else:
                prepared.rounds[name] = cpu_round(call)
            prepared.calls[name] = call
        except Exception as error:
            prepared.errors[name] = f"cannot be captured in a CUDA graph: {_reason(error)}" if on_gpu else _reason(error)


def _call_with_each(function: Function, sets: list[Inputs]) -> None:
    for inputs in sets:
        function(*inputs)


def _finish(replay: Callable[[], object]) -> None:
    replay()
    torch.cuda.synchronize()


def release_memory(device: str) -> None:
    """Give back what nobody refers to any more; a CPU's memory is given back anyway, and a collection takes its time."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text: Any = str(error).strip().partition("\n")[0]
    return text if isinstance(error, WrongResultError) else f"{type(error).__name__}: {text}"
