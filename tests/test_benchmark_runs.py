"""Runs of benchmarks: what is measured, what is stored when, what happens to what is wrong or interrupted, and the suites."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastpose.benchmarking import architecture_ops, blocks, networks, ops, preparing, runner, tune
from fastpose.benchmarking.architecture_ops import pose_convolution
from fastpose.benchmarking.preparing import prepare
from fastpose.benchmarking.results import ResultFile, read_results
from fastpose.benchmarking.runner import planned, run, thread_counts
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.workload import OURS, Provider, Workload, in_float64, plain, tensors

Double = Callable[[torch.Tensor], Any]


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def workload(name: str = "double", ours: Double = double, **others: Double) -> Workload:
    """To double 1000 numbers; ``others`` are further baselines."""
    providers = {OURS: Provider(lambda: ours, role="ours"), "eager": Provider(lambda: double)}
    providers.update(
        (other.replace("_", " "), Provider(lambda function=function: function)) for other, function in others.items()
    )
    return Workload(
        suite="ops",
        name=name,
        shape=(10, 100),
        dtype=torch.float32,
        device="cpu",
        make_inputs=lambda seed: (torch.rand(10, 100, generator=torch.Generator().manual_seed(seed)),),
        exact=double,
        eager="eager",
        providers=providers | {"copy": Provider(lambda: torch.clone, role="floor")},
        bytes_moved=8000,
    )


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.doings: list[str] = []
        self.lines: list[str] = []

    def start(self, total: int) -> None:
        self.totals.append(total)

    def doing(self, what: str) -> None:
        self.doings.append(what)

    def done(self, result: str) -> None:
        self.lines.append(result)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """The workloads of the suite "ops"; rounds are short, ceilings given."""
    workloads: list[Workload] = []
    monkeypatch.setitem(runner._SUITES, "ops", lambda settings: workloads)
    monkeypatch.setattr(runner, "QUICK_ROW_SECONDS", 0.0)
    measured = {"threads": 1, "gigabytes_per_second": {"copy": 10.0}, "teraflops": {"matmul float32": 0.1}}
    monkeypatch.setattr(runner, "measure_ceilings", lambda *arguments, **options: [measured])
    return workloads


SETTINGS = Settings(suites=("ops",), threads=(1,), quick=True)


def names(result: dict[str, Any]) -> list[str]:
    return [row["workload"] for row in result["rows"]]


# ---- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_holds_what_was_measured(suite: list[Workload], tmp_path: Path) -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        return sum((2 * x for _ in range(30)), 0 * x) / 30

    suite.append(dataclasses.replace(workload(eager_slow=slow), flops=lambda: 1000))
    told = Told()
    result = run(SETTINGS, tmp_path / "a.json", told)
    assert result == json.loads((tmp_path / "a.json").read_text())
    (row,) = result["rows"]
    assert {name: row[name] for name in ("suite", "workload", "shape", "dtype", "device", "threads")} == {
        "suite": "ops",
        "workload": "double",
        "shape": [10, 100],
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    providers = row["providers"]
    assert {name: provider["role"] for name, provider in providers.items()} == {
        OURS: "ours",
        "eager": "baseline",
        "eager slow": "baseline",
        "copy": "floor",
    }
    low, median, high = providers[OURS]["ms_quartiles"]
    assert 0 < low <= median == providers[OURS]["ms"] <= high
    assert 4000 <= providers[OURS]["peak_bytes"] < 4100
    assert "ratio_quartiles" not in providers[OURS]
    assert providers["eager slow"]["ratio_quartiles"][1] > 3
    assert row["fastest_baseline"] == "eager"
    assert row["speedup_quartiles"] == providers["eager"]["ratio_quartiles"]
    assert row["gigabytes_per_second"] == pytest.approx(8000 / median / 1e6)
    assert row["teraflops"] == pytest.approx(1000 / median / 1e9)
    assert row["bound"] == "bandwidth"  # 0.8 µs at 10 GB/s, 0.01 µs at 0.1 TFLOP/s
    assert row["share_of_ceiling"] == pytest.approx(8e-4 / median)
    assert row["rounds"] == 3
    assert told.totals == [1]
    assert "double 10×100 float32, 1 thread: eager slow" in told.doings
    assert told.lines[0].startswith("double 10×100 float32, 1 thread: ")
    assert told.lines[0].endswith("× eager")


def test_what_is_wrong_is_not_timed(suite: list[Workload], tmp_path: Path) -> None:
    def lost(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("3 GiB")

    def unknown(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("not for this dtype\nand more")

    suite.append(workload(wrong=lambda x: 2.1 * x, lost=lost, unknown=unknown))
    suite.append(workload("wrong", ours=lambda x: 2.1 * x))
    settings = dataclasses.replace(SETTINGS, quick=True, providers=("eager",))
    told = Told()
    # Only kinds that are known can be chosen by name; these here are chosen as they are.
    suite[:] = [
        dataclasses.replace(w, providers={n.replace("lost", "eager lost"): p for n, p in w.providers.items()}) for w in suite
    ]
    first, second = run(settings, tmp_path / "a.json", told)["rows"]
    assert set(first["providers"]) == {OURS, "eager", "eager lost", "copy"}
    assert first["providers"]["eager lost"] == {"role": "baseline", "error": "out of memory"}
    assert first["fastest_baseline"] == "eager"
    error = second["providers"][OURS]["error"]
    assert error.startswith("wrong 10×100 float32: fastpose is wrong: result 0 is off by 0.")
    assert "speedup_quartiles" not in second
    assert "ms" in second["providers"]["eager"]
    assert error in told.lines[1]

    prepared = prepare(workload(unknown=unknown, wrong=lambda x: 2.1 * x), [OURS, "unknown", "wrong"], lambda what: None)
    assert set(prepared.rounds) == set(prepared.calls) == {OURS}
    assert prepared.errors["unknown"] == "NotImplementedError: not for this dtype"
    assert "wrong is wrong" in prepared.errors["wrong"]


def test_eager_without_numbers_leaves_a_row_of_errors(suite: list[Workload], tmp_path: Path) -> None:
    broken = Provider(lambda: lambda x: x * float("nan"))
    suite.append(dataclasses.replace(workload(), providers={**workload().providers, "eager": broken}))
    (row,) = run(SETTINGS, tmp_path / "a.json", Told())["rows"]
    assert all("no numbers" in provider["error"] for provider in row["providers"].values())


# ---- files ------------------------------------------------------------------------------------------------------------


def interrupt(x: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_its_rows_and_can_be_resumed(suite: list[Workload], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    suite.extend([workload("first"), workload("second", ours=interrupt), workload("third")])
    with pytest.raises(KeyboardInterrupt):
        run(SETTINGS, path, Told())
    assert names(read_results(path)) == ["first"]
    first = read_results(path)["rows"][0]
    with pytest.raises(KeyboardInterrupt):  # what killed the run comes last this time
        run(SETTINGS, path, Told(), resume=True)
    assert names(read_results(path)) == ["first", "third"]
    suite[1] = workload("second")
    told = Told()
    result = run(SETTINGS, path, told, resume=True)
    assert names(result) == ["first", "third", "second"]
    assert result["rows"][0] == first
    assert result["begun"] == []
    assert told.totals == [1]
    assert names(run(SETTINGS, path, Told())) == ["first", "second", "third"]


def test_a_file_is_gone_on_with_by_the_same_machine_and_kind_of_run_only(suite: list[Workload], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    suite.append(workload())
    data = run(SETTINGS, path, Told())
    with pytest.raises(ValueError, match=r"a\.json: cannot go on with it, its quick is True, now it is False"):
        run(dataclasses.replace(SETTINGS, quick=False), path, Told(), resume=True)
    path.write_text(json.dumps({**data, "machine": {**data["machine"], "commit": "abc"}}))
    with pytest.raises(ValueError, match="its commit is 'abc', now it is "):
        run(SETTINGS, path, Told(), resume=True)
    for text, message in (("{", "is not a result file"), ("[]", "of version 1"), ('{"schema": 2}', "of version 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            run(SETTINGS, path, Told(), resume=True)
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        run(SETTINGS, tmp_path / "missing" / "a.json", Told())


def test_ceilings_are_measured_once_and_again_for_what_is_new(
    suite: list[Workload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Sequence[torch.dtype], Sequence[int]]] = []

    def measure(device: str, dtypes: Sequence[torch.dtype], threads: Sequence[int], **options: Any) -> list[dict[str, Any]]:
        asked.append((dtypes, threads))
        rates = {f"matmul {str(dtype).removeprefix('torch.')}": 1.0 for dtype in dtypes}
        return [{"threads": count, "gigabytes_per_second": {"copy": 1.0}, "teraflops": rates} for count in threads]

    monkeypatch.setattr(runner, "measure_ceilings", measure)
    path = tmp_path / "a.json"
    result = run(dataclasses.replace(SETTINGS, suites=("ceilings",)), path, Told())
    assert result["rows"] == []
    suite.append(workload())
    for count in (1, 1, 2):
        run(dataclasses.replace(SETTINGS, threads=(count,)), path, Told(), resume=True)
    every = torch.get_num_threads()
    assert asked == ([([torch.float32], [every])] if every == 1 else [([torch.float32], [every]), ([torch.float32], [1])]) + (
        [([torch.float32], [2])]
    )


def test_no_row_is_begun_when_time_is_over(suite: list[Workload], tmp_path: Path) -> None:
    suite.append(workload())
    told = Told()
    result = run(dataclasses.replace(SETTINGS, minutes=1e-9), tmp_path / "a.json", told)
    assert result["rows"] == []
    assert result["left_out"] == ["double 10×100 float32, 1 thread"]
    assert told.lines == ["double 10×100 float32, 1 thread: left out, 1e-09 minutes are over"]
    assert run(SETTINGS, tmp_path / "a.json", Told(), resume=True)["left_out"] == []


def test_a_result_file_is_complete_at_any_time(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "a.json", {"device": "cpu"}, {"quick": True})
    assert read_results(file.path)["rows"] == []
    file.begin("a 1 float32")
    assert read_results(file.path)["begun"] == ["a 1 float32"]
    file.add({"workload": "a", "shape": [1], "dtype": "float32", "threads": None})
    assert read_results(file.path)["begun"] == []
    assert file.finished == {"a 1 float32"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# ---- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"suites": ("op",)}, ValueError, "suites: got 'op', allowed are 'ceilings', 'ops', 'blocks', 'networks'"),
        ({"device": "gpu"}, ValueError, "device: got 'gpu', allowed are 'cpu', 'cuda'"),
        ({"dtypes": ("float64",)}, ValueError, "dtypes: got 'float64'"),
        ({"providers": ("tf",)}, ValueError, "providers: got 'tf'"),
        ({"threads": (0,)}, ValueError, "threads: got 0, allowed is an integer of at least 1"),
        ({"batches": (1.5,)}, TypeError, "batches: got float, allowed is an integer"),
        ({"minutes": 0}, ValueError, "minutes: got 0.0, allowed is a positive finite number"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Settings(**changes)


def test_settings_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: got 'cuda', but torch finds no GPU here"):
        Settings(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"threads: got \(1,\), which is for the CPU"):
        Settings(device="cuda", threads=(1,))
    assert thread_counts(Settings(device="cuda"), "ops") == (None,)


def test_thread_counts_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert thread_counts(Settings(), "ops") == (1, 8)
    assert thread_counts(Settings(), "blocks") == (8,)
    assert thread_counts(Settings(quick=True), "ops") == (8,)
    assert thread_counts(Settings(threads=(4, 2)), "networks") == (4, 2)


def test_only_what_is_asked_for(suite: list[Workload], tmp_path: Path) -> None:
    suite.extend([workload("render"), workload("decode")])
    settings = dataclasses.replace(SETTINGS, only=("ender 10", "nothing"))
    assert [w.name for w, _ in planned(settings)] == ["render"]
    with pytest.raises(ValueError, match="only: no workload has 'nothing' in its title"):
        run(dataclasses.replace(SETTINGS, only=("nothing",)), tmp_path / "a.json", Told())


# ---- the suites -------------------------------------------------------------------------------------------------------


def uncompiled(workload: Workload) -> list[str]:
    return [name for name in workload.providers if not name.startswith(("compile", "max-autotune"))]


def check(workloads: Iterable[Workload]) -> list[str]:
    """Prepares every provider that needs no compiler; returns what was prepared."""
    titles = []
    for found in workloads:
        prepared = prepare(found, uncompiled(found), lambda what: None)
        assert prepared.errors == {}
        titles.append(found.title)
        assert found.bytes_moved > 0
    return titles


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_providers_of_the_ops_agree(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A convolution in bfloat16 takes seconds on some CPUs.
    monkeypatch.setattr(pose_convolution, "SIZE", 56)
    monkeypatch.setattr(preparing, "cpu_round", lambda call: call)
    titles = check(ops.workloads(Settings(batches=(1,), dtypes=(dtype,))))
    assert titles[0] == f"render 1×16×64×64 {dtype}"
    assert len(titles) == len(ops.OPS) + len(architecture_ops.JOBS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_providers_of_the_block_agree(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LEVELS", (4,))
    titles = check(blocks.workloads(Settings(batches=(2,), dtypes=(dtype,))))
    assert titles == [f"residual inference 2×256×4×4 {dtype}", f"residual training step 2×256×4×4 {dtype}"]


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """Inference and training step of one stack on small images."""
    monkeypatch.setattr(networks, "SIZE", 128)
    return list(networks.workloads(Settings(batches=(2,), quick=True)))


def test_providers_of_the_network_agree(small_networks: list[Workload]) -> None:
    assert check(small_networks) == [f"hourglass-1 {job} 2×3×128×128 float32" for job in ("inference", "training step")]


def test_a_wrong_network_is_found(small_networks: list[Workload]) -> None:
    """By one filter of many, in inference and in training."""
    for found in small_networks:
        make = found.providers[OURS].prepare

        def spoiled(make: Callable[[], Any] = make) -> Any:
            original = networks.modules.own_copy

            def own_copy(*arguments: Any) -> Any:
                copied = original(*arguments)
                with torch.no_grad():
                    copied.stacks[0].hourglass.low1[0].conv3.weight[0] += 0.1
                return copied

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(networks.modules, "own_copy", own_copy)
                return make()

        changed = dataclasses.replace(found, providers={**found.providers, OURS: Provider(spoiled, role="ours")})
        assert "fastpose is wrong" in prepare(changed, [OURS], lambda what: None).errors[OURS]


def test_a_network_is_compiled_for_inference_where_that_exists(
    small_networks: list[Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def compile_for_inference(
        model: torch.nn.Module, example: torch.Tensor, **options: Any
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        assert not model.training
        asked.append(tuple(example.shape))
        return lambda images: model(images)[-1]  # the final prediction alone

    monkeypatch.setattr(networks, "compile_for_inference", compile_for_inference)
    inference = small_networks[0]
    assert prepare(inference, [OURS], lambda what: None).errors == {}
    assert asked == [(2, 3, 128, 128)]


def test_a_compiled_baseline_agrees() -> None:
    decode = next(w for w in ops.workloads(Settings(batches=(1,))) if w.name == "decode quarter")
    assert "compile" in prepare(decode, ["compile"], lambda what: None).rounds


def test_work_is_counted() -> None:
    """FLOP of a residual block a pixel: 2·(256·128 + 9·128·128 + 128·256), and three times that with both gradients; an
    hourglass of 8 stacks takes 54.9 GFLOP an image."""
    found = list(blocks.workloads(Settings(batches=(3,))))
    block = {w.title.split(" ")[1]: w for w in found if w.shape[-1] == 16}
    pixels = 3 * 16 * 16
    assert block["inference"].flops() == 425_984 * pixels
    assert block["training"].flops() == 3 * 425_984 * pixels
    maps = 3 * 256 * 16 * 16 * 4
    weights = 2 * 256 * 128 + 9 * 128 * 128 + 128 + 128 + 256 + 2 * (256 + 128 + 128)
    assert block["inference"].bytes_moved == 2 * maps + 4 * weights
    network = [w for w in networks.workloads(Settings(batches=(1,))) if w.name == "hourglass-8 inference"]
    assert network[0].flops() == pytest.approx(54.9e9, rel=1e-3)


def test_bytes_of_the_architectures_ops() -> None:
    """Images in uint8, windows in the dtype; the copy beside a job moves as many bytes, reading and writing half of them each."""
    found = {w.name: w for w in architecture_ops.workloads(Settings(batches=(2,), dtypes=("bfloat16",)))}
    assert found["crop images"].bytes_moved == 2 * 3 * (480 * 640 + 14 * 220 * 220 * 2)
    assert found["distance transform forward"].bytes_moved == 2 * 14 * 64 * 64 * (2 + 2 + 4)
    for job in found.values():
        make_pair = job.providers["copy"].make_inputs
        assert make_pair is not None
        assert sum(tensor.nbytes for tensor in make_pair(0)) == job.bytes_moved


def test_floor_of_a_job_with_a_backward_pass_is_a_gradient() -> None:
    jobs = {job.name: job.workload(1, torch.float32, "cpu") for job in ops.OPS}
    for name in ("loss forward+backward", "soft-argmax forward+backward"):
        floor = jobs[name].providers["clone"]
        assert floor.make_inputs is not None
        (maps,) = floor.make_inputs(0)
        (gradient,) = floor.prepare()(maps)
        assert gradient.shape == maps.shape == jobs[name].shape
        assert torch.equal(gradient, maps)
        assert gradient.data_ptr() != maps.data_ptr()


def test_what_reads_tensors_back_is_left_out_on_a_gpu() -> None:
    names = {name for job in architecture_ops.JOBS for name in job.workload(1, torch.float32, "cuda").providers}
    assert {"eager matrices", "eager shifts", "compile grid_sample"} <= names
    assert names.isdisjoint({"eager interpolate", "scipy dilation", "clone"})


def test_maps_have_one_maximum_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        maps = ops.peaks(4, dtype, "cpu", 0).flatten(2)
        assert ((maps == maps.max(-1, keepdim=True).values).sum(-1) == 1).all()


def test_sizes_on_a_gpu_are_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    memory = 80 * 2**30
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("Properties", (), {"total_memory": memory}))
    sizes = list(ops._sizes(Settings(device="cuda")))
    assert sizes[:4] == [(1024, torch.bfloat16), (512, torch.float32), (8192, torch.bfloat16), (4096, torch.float32)]
    memory = 16 * 2**30
    assert max(batch for batch, _ in ops._sizes(Settings(device="cuda"))) == 1024


def test_exact_results_are_plain_and_in_float64() -> None:
    inputs = (torch.ones(2, requires_grad=True), [torch.ones(1).bfloat16()], torch.float32, 3, torch.ones(1, dtype=torch.int64))
    converted = in_float64(inputs)
    assert [t.dtype for t in tensors(converted)] == [torch.float64, torch.float64, torch.int64]
    assert converted[0].requires_grad
    assert converted[0].is_leaf
    assert converted[2:4] == (torch.float64, 3)
    from fastpose._library import current_backend

    assert (plain(current_backend)(), current_backend()) == ("reference", "fused")


# ---- tuning -----------------------------------------------------------------------------------------------------------


def test_fused_layers_of_blocks_and_networks_are_tuned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_networks: list[Workload]
) -> None:
    tuned: list[tuple[int, ...]] = []

    def tune_layers(model: Callable[[torch.Tensor], Any], images: torch.Tensor, progress: Callable[[str], None]) -> None:
        model(images)
        tuned.append(tuple(images.shape))
        progress("12 µs")

    monkeypatch.setitem(sys.modules, "fastpose.triton", ModuleType("fastpose.triton"))
    tuning = ModuleType("fastpose.triton.tuning")
    tuning.tune = tune_layers
    monkeypatch.setitem(sys.modules, "fastpose.triton.tuning", tuning)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main() == tune.NOTHING_TO_DO
    assert "nothing to tune: device: got 'cuda', but torch finds no GPU here" in capsys.readouterr().out

    monkeypatch.setattr(blocks, "LEVELS", (8, 4))
    monkeypatch.setitem(networks.STACKS, "cpu", (1, 2))
    monkeypatch.setattr(tune, "Settings", lambda suites, device: Settings(suites=suites, batches=(1,)))
    assert tune.main() == 0
    assert tuned == [(1, 256, 8, 8), (1, 256, 4, 4), (1, 3, 128, 128)]
    assert "residual inference 1×256×8×8 float32\n  12 µs\n" in capsys.readouterr().out
