"""How benchmarks measure: rounds, CUDA graphs, checks beforehand, memory, ceilings, and what is said of the machine."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastpose
from fastpose.benchmarking import machine, timing
from fastpose.benchmarking.ceilings import ceilings_of, measure_ceilings
from fastpose.benchmarking.checking import Judge, WrongResultError
from fastpose.benchmarking.memory import peak_memory
from fastpose.benchmarking.preparing import prepare
from fastpose.benchmarking.workload import OURS, Provider, Workload

# ---- rounds -----------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def takes(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize(("seconds", "repeats"), [(0.004, 3), (0.5, 1)])
def test_a_round_on_the_cpu_is_long_enough_to_measure(clock: Clock, seconds: float, repeats: int) -> None:
    run = timing.cpu_round(clock.takes(seconds), 0.01)
    before = clock.now
    assert run() == pytest.approx(seconds)
    assert clock.now - before == pytest.approx(repeats * seconds)


def test_providers_take_turns_and_each_round_begins_with_another(clock: Clock) -> None:
    order: list[str] = []

    def provider(name: str, seconds: float) -> timing.Round:
        def run() -> float:
            order.append(name)
            clock.now += seconds
            return seconds

        return run

    times = timing.interleave({"a": provider("a", 1), "b": provider("b", 2), "c": provider("c", 3)}, seconds=20, fewest=3)
    assert times == {"a": [1] * 5, "b": [2] * 5, "c": [3] * 5}  # 4 rounds are over at 24, and their number is odd
    assert "".join(order) == "abcbcacababcbca"


def test_the_number_of_rounds_has_bounds(clock: Clock) -> None:
    slow, fast = timing.cpu_round(clock.takes(100)), timing.cpu_round(clock.takes(1e-3))
    assert len(timing.interleave({"slow": slow}, seconds=1)["slow"]) == timing.FEWEST_ROUNDS
    assert len(timing.interleave({"fast": fast}, seconds=1000)["fast"]) == timing.MOST_ROUNDS


def test_ratios_are_taken_within_the_rounds() -> None:
    """A machine that slows down fourfold half way does not change them."""
    ours, theirs = [1, 1, 4, 4, 4], [2, 2, 8, 8, 12]
    assert timing.ratios(theirs, ours) == [2, 2, 2]
    assert timing.quartiles([5, 1, 3, 2, 4]) == [2, 3, 4]
    assert timing.quartiles([7]) == [7, 7, 7]


# ---- a GPU that is not there ------------------------------------------------------------------------------------------


class FakeGPU:
    """What the timing asks of torch.cuda; its events tell time by a clock, its graphs replay what was called in them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.capturing: list[Any] | None = None
        self.pools: list[Any] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.clock.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        class Graph:
            def replay(self) -> None:
                gpu.clock.now += self.seconds

        class Capture:
            def __init__(self, graph: Any, pool: Any, stream: Any) -> None:
                self.graph = graph
                gpu.pools.append(pool)

            def __enter__(self) -> None:
                self.before = gpu.clock.now

            def __exit__(self, *_: object) -> None:
                self.graph.seconds = gpu.clock.now - self.before

        class Stream:
            def wait_stream(self, other: Any) -> None:
                pass

        stands_in = {"Event": Event, "CUDAGraph": Graph, "graph": Capture, "Stream": Stream, "current_stream": Stream}
        for name, value in stands_in.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: pytest.MonkeyPatch.context())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        properties = SimpleNamespace(L2_cache_size=60 * 2**20)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (7, 7))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.fixture
def gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU(clock)
    fake.install(monkeypatch)
    return fake


def test_a_graph_calls_with_every_set_of_inputs_and_its_time_is_that_of_one_call(gpu: FakeGPU) -> None:
    called: list[int] = []

    def function(index: int) -> int:
        called.append(index)
        gpu.clock.now += 1e-3
        return index

    replay = timing.Captured(function, [(0,), (1,), (2,), (3,)], pool=(7, 7))
    assert called == [0, 0, 0, 0, 1, 2, 3]  # three times to warm up, then once with each
    assert gpu.pools == [(7, 7)]
    run = timing.cuda_round(replay, calls=4)
    before = gpu.clock.now
    assert run() == pytest.approx(1e-3)
    assert gpu.clock.now - before == pytest.approx(2 * 4e-3)  # replayed twice, to last 5 ms


def test_results_live_until_the_capture_ends(gpu: FakeGPU) -> None:
    """Else all calls would write the same memory, which would stay in the cache."""
    alive = 0
    most = 0

    class Result:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    timing.Captured(lambda: Result(), [(), (), ()], pool=None)
    assert (most, alive) == (3, 0)


@pytest.mark.parametrize(("mebibytes", "sets"), [(4, 45), (128, 2), (1024, 1), (0, 512)])
def test_inputs_take_turns_until_they_are_out_of_the_cache(gpu: FakeGPU, mebibytes: int, sets: int) -> None:
    assert timing.input_sets(mebibytes * 2**20) == sets


def test_a_workload_on_a_gpu(gpu: FakeGPU) -> None:
    """Graphs share a pool, but one provider has its own; floors have their own inputs; what cannot be captured is left out."""
    seeds: list[tuple[str, int]] = []

    def inputs(name: str) -> Callable[[int], tuple[torch.Tensor, ...]]:
        def make(seed: int) -> tuple[torch.Tensor, ...]:
            seeds.append((name, seed))
            return (torch.full((2, 3, 8, 8), float(seed + 1)),)

        return make

    def provider(milliseconds: float, **options: Any) -> Provider:
        def function(x: torch.Tensor) -> torch.Tensor:
            gpu.clock.now += milliseconds / 1e3
            return x.sum(0, keepdim=True)

        return Provider(lambda: function, **options)

    def refuse(x: torch.Tensor) -> torch.Tensor:
        if gpu.pools:  # since the first capture
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        return x.sum(0, keepdim=True)

    workload = job(
        device="cuda",
        make_inputs=inputs("job"),
        bytes_moved=90 * 2**20,
        providers={
            OURS: provider(1, role="ours", own_graph=True),
            "eager": provider(2),
            "copy": provider(3, role="floor", make_inputs=inputs("copy")),
            "kornia": Provider(lambda: refuse),
        },
    )
    prepared = prepare(workload, list(workload.providers), lambda what: None)
    assert torch.backends.cudnn.benchmark
    assert prepared.sets == 2
    assert seeds == [("job", 0), ("copy", 0), ("job", 1), ("copy", 0), ("copy", 1)]
    assert gpu.pools == [(7, 7)] * len(gpu.pools)
    assert prepared.errors == {
        "kornia": "cannot be captured in a CUDA graph: RuntimeError: operation not permitted when stream is capturing"
    }
    assert {name: run() for name, run in prepared.rounds.items()} == pytest.approx({OURS: 1e-3, "eager": 2e-3, "copy": 3e-3})
    assert prepared.peaks == {"eager": 250, "copy": 250, "kornia": 250}
    before = gpu.clock.now
    prepared.calls["eager"]()
    assert gpu.clock.now - before == pytest.approx(2 * 2e-3)


# ---- checks before the timing -----------------------------------------------------------------------------------------


def job(**changes: Any) -> Workload:
    """To add up two rows of maps."""
    fields: dict[str, Any] = {
        "suite": "ops",
        "name": "sum",
        "shape": (2, 3, 8, 8),
        "dtype": torch.float32,
        "device": "cpu",
        "make_inputs": lambda seed: (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),),
        "exact": lambda x: x.sum(0, keepdim=True),
        "eager": "eager",
        "providers": {"eager": Provider(lambda: lambda x: x.sum(0, keepdim=True))},
        "bytes_moved": 1,
    }
    return Workload(**{**fields, **changes})


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    return job().make_inputs(0)


def judged(result: Any, inputs: tuple[torch.Tensor, ...], provider: Provider | None = None, **changes: Any) -> None:
    workload = job(**changes)
    provider = provider or Provider(lambda: lambda x: x)
    Judge(workload, inputs, inputs[0].sum(0, keepdim=True)).check("candidate", provider, result)


def test_rounding_errors_are_allowed_and_others_are_not(inputs: tuple[torch.Tensor, ...]) -> None:
    (x,) = inputs
    right = x[:1] + x[1:]
    unit = torch.finfo(torch.float32).eps * right.max()
    judged(right + 7 * unit, inputs)
    with pytest.raises(WrongResultError, match=r"sum 2×3×8×8 float32: candidate is wrong: result 0 is off by .*, eager by "):
        judged(right + 12 * unit, inputs)
    judged(right + 12 * unit, inputs, terms=400)  # sums of 400 numbers may be off by 20 units
    judged(right + 12 * unit, inputs, magnitude=4.0)


def test_one_wrong_number_is_found(inputs: tuple[torch.Tensor, ...]) -> None:
    (x,) = inputs
    for value in (x[0, 0, 3, 3].item(), math.nan, math.inf):
        wrong = x.sum(0, keepdim=True)
        wrong[0, 2, 7, 0] = value
        with pytest.raises(WrongResultError):
            judged(wrong, inputs)


def test_half_precision_is_measured_by_eager_in_half_precision(inputs: tuple[torch.Tensor, ...]) -> None:
    rounded = (inputs[0].bfloat16(),)
    exact = rounded[0].double().sum(0, keepdim=True)
    judged(exact.bfloat16(), rounded, dtype=torch.bfloat16)
    with pytest.raises(WrongResultError):
        judged((exact + 0.2).bfloat16(), rounded, dtype=torch.bfloat16)
    with pytest.raises(WrongResultError):  # of a result in float32 more is expected than of one in bfloat16
        judged(exact.float() + 0.02, rounded, dtype=torch.bfloat16)


def test_a_library_may_differ_as_much_as_it_is_known_to(inputs: tuple[torch.Tensor, ...]) -> None:
    result = inputs[0].sum(0, keepdim=True)
    result[..., 0] += 1
    result[..., 4] *= 1.001
    tolerant = Provider(lambda: lambda x: x, slack=2e-3, border=1)
    judged(result, inputs, tolerant)
    for strict in (Provider(tolerant.prepare, slack=2e-3), Provider(tolerant.prepare, border=1)):
        with pytest.raises(WrongResultError):
            judged(result, inputs, strict)


def test_a_floor_may_compute_anything_and_shapes_must_agree(inputs: tuple[torch.Tensor, ...]) -> None:
    judged(inputs[0], inputs, Provider(lambda: lambda x: x, role="floor"))
    with pytest.raises(WrongResultError, match=r"got results of shapes \[\(2, 3, 8, 8\)\], exact are \[\(1, 3, 8, 8\)\]"):
        judged(inputs[0], inputs)


def test_eager_without_numbers_measures_nothing() -> None:
    inputs = (torch.full((2, 3, 8, 8), 3e38),)  # their sum is finite in float64 only
    with pytest.raises(WrongResultError, match="eager gives results that are no numbers"):
        Judge(job(), inputs, inputs[0].sum(0, keepdim=True))


# ---- memory -----------------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_alive_at_the_same_time(capfd: pytest.CaptureFixture[str]) -> None:
    source = torch.ones(2**18)

    def call() -> torch.Tensor:
        a = source + 1
        b = a + 1
        del a
        return b + 1  # 2 of the 3 are alive at any time

    assert 2 * 2**20 <= peak_memory(call, "cpu") < 2.1 * 2**20
    assert peak_memory(lambda: source.add_(1), "cpu") < 2**16
    assert capfd.readouterr().err == ""


# ---- machine and ceilings ---------------------------------------------------------------------------------------------


def test_the_machine_is_described() -> None:
    facts = machine.describe("cpu")
    assert facts["torch"] == torch.__version__
    assert facts["build"] == fastpose.build_info()
    assert facts["cores"] >= 1
    assert "gpu" not in facts
    assert machine.name_of(facts) == "cpu"
    assert machine.name_of({"device": "cuda", "gpu": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"


def test_the_commit_is_of_a_checkout_itself(tmp_path: Path) -> None:
    """Not of a repository that an installed package happens to lie in."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert machine.commit(tmp_path) is None
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert machine.commit(inner) is None
    clean = machine.commit(tmp_path)
    assert clean
    (tmp_path / "file").write_text("x")
    subprocess.run([*git, "add", "file"], check=True)
    assert machine.commit(tmp_path) == f"{clean}-dirty"


def test_gpu_facts_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    values = "580.1, 1980 MHz, 3201 MHz, 345 MHz, 3201 MHz, 700.00 W, 31, Disabled"
    done = SimpleNamespace(stdout=values + "\n", returncode=0)
    monkeypatch.setattr(machine.subprocess, "run", lambda *command, **options: done)
    facts = machine._ask_driver()
    assert (facts["driver_version"], facts["power.limit"], facts["mig.mode.current"]) == ("580.1", "700.00 W", "Disabled")

    def missing(*command: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    assert machine._ask_driver() == {}


def test_ceilings_of_the_cpu() -> None:
    ceilings = measure_ceilings("cpu", [torch.float32], [1], quick=True)
    assert [found["threads"] for found in ceilings] == [1]
    assert ceilings[0]["gigabytes_per_second"]["copy"] > 0.1
    assert ceilings[0]["teraflops"]["matmul float32"] > 1e-3
    assert ceilings_of(ceilings, 1) is ceilings[0]
    assert ceilings_of(ceilings, 2) is None


@pytest.fixture
def triton() -> Iterator[Any]:
    return pytest.importorskip("triton")


def test_the_kernel_that_only_reads_reads_everything(triton: Any) -> None:
    """In Triton's interpreter, which must be chosen before it is imported."""
    code = """
import torch
from fastpose.benchmarking.read_kernel import BLOCK, read_repeatedly
source, sums = torch.rand(6 * BLOCK), torch.empty(3)
read_repeatedly(source, sums, 5)
torch.testing.assert_close(sums.sum(), 5 * source.sum())
"""
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(machine.ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_kernel_that_only_reads_loads_16_bytes_past_the_l1_cache(triton: Any) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastpose.benchmarking.read_kernel import BLOCK, WARPS, read_kernel

    signature = {"source": "*fp32", "sums": "*fp32", "blocks": "i32", "reads": "i32", "BLOCK": "constexpr"}
    aligned = {(0,): [["tt.divisibility", 16]]}
    source = ASTSource(fn=read_kernel, signature=signature, constexprs={"BLOCK": BLOCK}, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS}).asm["ptx"]
    loads = [line.split()[0] for line in ptx.splitlines() if "ld.global" in line]
    assert set(loads) == {"ld.global.cg.v4.b32"}
    assert "st.local" not in ptx
