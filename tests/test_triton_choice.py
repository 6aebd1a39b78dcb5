"""How configurations are chosen, checked, measured and remembered. tests/test_triton_kernels.py runs this in the interpreter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("tests/test_triton_kernels.py runs this in the interpreter", allow_module_level=True)

from fastpose.triton import choice, configs, residual, tuning
from fastpose.triton.choice import Judge, Known, choose
from fastpose.triton.configs import ConvConfig, PointwiseConfig
from fastpose.triton.launches import Launch
from fastpose.triton.problems import Conv, Pointwise

CPU = torch.device("cpu")
SECOND = Conv(3, 16, 16, 32, 0, False, 0, False, False, 2, 4, 4, torch.float16)
FIRST = Pointwise(32, 16, 2, 4, 4, False, torch.float16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("FASTPOSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Known, "_of", {})
    return tmp_path / "cache"


@pytest.fixture
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All configurations are right; which of them were asked for."""
    asked: list[Any] = []
    monkeypatch.setattr(Judge, "__init__", lambda judge, example: None)
    monkeypatch.setattr(Judge, "finds_right", lambda judge, config: asked.append(config) or True)
    return asked


def test_tiles_are_as_large_as_the_gpu_is_full(nothing_is_run: list[Any]) -> None:
    def rows(batch: int, size: int, mid: int = 128) -> int:
        return choose(Conv(3, mid, mid, 256, 0, False, 0, False, False, batch, size, size, torch.float16), CPU, True).rows

    assert [rows(32, 64), rows(32, 16), rows(8, 32), rows(1, 16), rows(1, 4)] == [256, 64, 64, 64, 64]
    assert rows(32, 64, mid=256) == 128
    assert choose(Pointwise(256, 128, 32, 64, 64, False, torch.float16), CPU, True).block_m == 128
    assert choose(Pointwise(256, 128, 1, 8, 8, False, torch.float16), CPU, True).block_m == 64
    assert choose(Conv(3, 512, 512, 1024, 0, False, 0, False, False, 1, 4, 4, torch.float16), CPU, True) is None
    assert not any(config.nested for config in nothing_is_run if isinstance(config, ConvConfig))


def test_tensors_without_descriptors_get_pointers(nothing_is_run: list[Any]) -> None:
    assert choose(SECOND, CPU, True).tma
    assert not choose(SECOND, CPU, False).tma
    assert choose(FIRST, CPU, True).tma
    assert not choose(FIRST, CPU, False).tma


@pytest.mark.parametrize(
    ("size", "rows", "tile"),
    [
        ((64, 64), 256, (1, 16, 16)),
        ((64, 64), 128, (1, 8, 16)),
        ((8, 8), 128, (2, 8, 8)),
        ((4, 4), 64, (4, 4, 4)),
        ((1, 1), 64, (64, 1, 1)),
        ((7, 11), 64, (1, 4, 16)),
        ((3, 5), 64, (2, 4, 8)),
        ((2, 64), 64, (2, 2, 16)),
    ],
)
def test_tiles_cover_small_maps_of_several_images(size: tuple[int, int], rows: int, tile: tuple[int, int, int]) -> None:
    assert ConvConfig(rows, 64, 64, 4, 4).tile(*size) == tile


def test_families() -> None:
    found = {capability: configs.family(capability) for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))}
    assert list(found.values()) == ["sm_80", "sm_86", "sm_86", "sm_90", "sm_100", "sm_100", "sm_86"]


def test_what_is_found_is_kept(cache: Path, nothing_is_run: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(SECOND, CPU, True)
    assert nothing_is_run == [first]
    assert choose(SECOND, CPU, True) == first
    assert choose(SECOND.with_batch(1), CPU, True) == first
    (file,) = cache.iterdir()
    assert file.name.startswith("interpreter-")
    assert json.loads(file.read_text())["right"] == {f"{SECOND.with_batch(batch)} {first}": True for batch in (2, 1)}
    nothing_is_run.clear()
    monkeypatch.setattr(Known, "_of", {})  # another process
    assert choose(SECOND, CPU, True) == first
    assert nothing_is_run == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"right": {}}'])
def test_damaged_files_are_replaced(cache: Path, content: str, nothing_is_run: list[Any]) -> None:
    path = Known.of(CPU).path
    path.parent.mkdir()
    path.write_text(content)
    choose(FIRST, CPU, True)
    assert len(json.loads(path.read_text())["right"]) == 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, nothing_is_run: list[Any], monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTPOSE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="what was found out about Triton kernels cannot be kept in"):
        assert choose(FIRST, CPU, True)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTPOSE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choice.cache_folder() == tmp_path / "fastpose"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert choice.cache_folder() == Path.home() / ".cache" / "fastpose"


def spoil(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """Launches of configurations that are ``wrong`` leave a wrong number in the last pixel."""
    run = Launch.run

    def spoilt(launch: Launch) -> None:
        run(launch)
        if wrong(launch):
            y = launch.arguments["y_at"]
            getattr(y, "base", y)[-1, -1, -1, -1] += 1

    monkeypatch.setattr(Launch, "run", spoilt)


def test_what_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    default = choose(SECOND, CPU, True)
    monkeypatch.setattr(Known, "_of", {})
    monkeypatch.setenv("FASTPOSE_CACHE_DIR", os.environ["FASTPOSE_CACHE_DIR"] + "2")
    spoil(monkeypatch, lambda launch: not launch.arguments["NESTED"])
    chosen = choose(SECOND, CPU, True)
    assert not default.nested
    assert chosen.nested
    known = Known.of(CPU)
    assert set(known.right.values()) == {True, False}
    assert not known.is_right(SECOND, default)


def test_nothing_right_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv, "configs", lambda *_: [ConvConfig(64, 16, 32, 4, 2, tma=True)])
    spoil(monkeypatch, lambda launch: True)
    with pytest.raises(RuntimeError, match=r"none of fastpose's Triton kernels computes the right values for Conv\("):
        choose(SECOND, CPU, True)


def test_what_does_not_compile_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(launch: Launch) -> None:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(Launch, "run", fail)
    with pytest.warns(UserWarning, match="a Triton kernel does not compile as PointwiseConfig.*PassManager"):
        assert not Judge(FIRST.example("cpu")).finds_right(PointwiseConfig(64, 16, 32, 4, 2))


def test_tuning_takes_the_fastest_that_is_right(monkeypatch: pytest.MonkeyPatch, nothing_is_run: list[Any]) -> None:
    times = {"cudnn": 50.0, "convolved": 7.0}
    candidates = SECOND.configs("sm_90")
    wrong, fastest = candidates[3], candidates[5]
    monkeypatch.setattr(Judge, "finds_right", lambda judge, config: config != wrong)

    def microseconds(run: Any) -> float:
        launch = getattr(run, "__self__", None)
        if launch is None:
            return times["cudnn"]
        if launch.arguments.get("TAPS") == 0:
            return times["convolved"]
        made = [config for config in candidates if SECOND.example("cpu").launch(config).arguments.keys() and same(launch, config)]
        return 1.0 if made == [wrong] else 20.0 if made == [fastest] else 30.0

    def same(launch: Launch, config: ConvConfig) -> bool:
        a = launch.arguments
        options = (launch.options["num_warps"], launch.options["num_stages"], a["BLOCK_K"], a["BLOCK_N"], a["NESTED"], a["TMA"])
        rows = a["TILE_B"] * a["TILE_H"] * a["TILE_W"]
        c = config
        return (rows, *options) == (c.rows, c.warps, c.stages, c.block_k, c.block_n, c.nested, c.tma)

    monkeypatch.setattr(tuning, "microseconds", microseconds)
    lines: list[str] = []
    timings = tuning.tune(lambda: choose(SECOND, CPU, True), progress=lines.append)
    assert list(timings) == [SECOND]
    best, *rest = timings[SECOND]
    assert best == (fastest, 20.0)
    assert (None, 57.0) in rest
    assert [timing.config for timing in rest if timing.microseconds != timing.microseconds] == [wrong]
    assert lines == [f"1 of 1: 20.0 µs with {fastest} for {SECOND}"]
    monkeypatch.setattr(Known, "_of", {})
    assert choose(SECOND, CPU, True) == fastest
    assert choose(SECOND, CPU, False) != fastest

    times["cudnn"] = 5.0
    assert tuning.measure(SECOND, True, Known.of(CPU))[0] == (None, 12.0)
    monkeypatch.setattr(Known, "_of", {})
    assert choose(SECOND, CPU, True) is None
    assert choose(SECOND.after_convolution(), CPU, True) is not None


def test_residual_with_and_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    for aligned in (True, False):
        monkeypatch.setattr(residual, "_aligned", lambda *_, aligned=aligned: aligned)
        for tuned in (False, True):
            if tuned:
                Known.of(CPU).chosen[Known.key(SECOND, aligned)] = None
            example = SECOND.example("cpu")
            arguments = example.launch(ConvConfig(64, 16, 32, 4, 2)).arguments
            bn = residual.BatchNorm(*(arguments[name] for name in ("gamma", "beta", "mean", "variance", "eps")))
            conv = residual.Convolution(arguments["w1_at"], arguments["bias1"])
            total = residual.Sum(
                residual.Convolution(arguments["w2_at"], arguments["bias2"]), arguments["x_at"], None, None, arguments["y_at"]
            )
            residual._second(example.inputs[0], conv, bn, total)
            (exact,) = example.reference(torch.float64)
            torch.testing.assert_close(example.outputs[0].double(), exact, rtol=1e-2, atol=1e-2)
