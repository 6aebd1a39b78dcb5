"""Result files as pictures: speed-ups, bandwidth and roofline, memory against batch size. Needs matplotlib."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from fastpose._files import write_atomically
from fastpose.benchmarking.ceilings import ceilings_of
from fastpose.benchmarking.results import Row, row_title
from fastpose.benchmarking.table import machine_line, number
from fastpose.benchmarking.workload import OURS

_DOTS_PER_INCH = 110
_PALETTE_COLORS = 64
_WIDTH = 10.0  # inches
_LABELLED_POINTS = 24  # more would cover each other
_OURS_COLOR, _OTHER_COLORS = "tab:red", ("tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:cyan", "tab:olive")


def draw_all(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw every picture that the rows of a result allow, beside its file.

    Args:
        result: what the file holds.
        path: of the file: ``cpu.json`` gets ``cpu.speedups.png``, ``cpu.roofline.png`` and ``cpu.memory.png``.

    Returns:
        The pictures' files; those of an earlier run for which there are no rows any more are removed.
    """
    written = []
    for name, draw in (("speedups", speedups), ("roofline", roofline), ("memory", memory)):
        file = path.with_suffix(f".{name}.png")
        figure = draw(result)
        if figure is None:
            file.unlink(missing_ok=True)
            continue
        figure.supxlabel(machine_line(result), fontsize=6, color="0.4")
        write_atomically(file, _png(figure))
        written.append(file)
    return written


def _png(figure: Figure) -> memoryview:
    """With a palette, which takes a third of the bytes: these pictures lie beside the results in the repository."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DOTS_PER_INCH)
    canvas.draw()
    buffer = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(_PALETTE_COLORS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getbuffer()


def speedups(result: dict[str, Any]) -> Figure | None:
    """A bar for every baseline of every row: how many times as long as fastpose it takes, with quartiles."""
    rows = [row for row in result["rows"] if _ratios(row)]
    if not rows:
        return None
    bars = sum(len(_ratios(row)) for row in rows)
    figure = Figure(figsize=(_WIDTH, 1.2 + 0.17 * bars + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for row in rows:
        ratios = sorted(_ratios(row).items(), key=lambda item: item[1][1])
        for name, (low, median, high) in ratios:
            color = _OTHER_COLORS[0] if median >= 1 else "tab:orange"
            spread = [[median - low], [high - median]]
            axes.barh(place, median - 1, left=1, height=0.8, color=color, xerr=spread, error_kw={"lw": 0.8, "alpha": 0.6})
            job = f"{row_title(row)}: " if name == ratios[0][0] else ""
            ticks.append((place, f"{job}{name}  {number(median)}×"))
            place += 1
        place += 1
    axes.set_yticks([position for position, _ in ticks], [label for _, label in ticks], fontsize=7)
    axes.set_ylim(place - 0.5, -1)
    _log(axes.set_xscale, axes.xaxis)
    axes.axvline(1, color="0.3", lw=1)
    axes.set_xlabel("time as a multiple of fastpose's")
    axes.grid(axis="x", which="both", alpha=0.3)
    return figure


def roofline(result: dict[str, Any]) -> Figure | None:
    """Left bandwidth of the ops against the bytes they move, right arithmetic of blocks and networks; with the ceilings."""
    panels = [panel for panel in (_bandwidth_panel, _roofline_panel) if panel(None, result)]
    if not panels:
        return None
    figure = Figure(figsize=(_WIDTH, 5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, result)
        _log(axes.set_xscale, axes.xaxis)
        _log(axes.set_yscale, axes.yaxis)
        axes.tick_params(labelsize=7)
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize=6)
    return figure


def memory(result: dict[str, Any]) -> Figure | None:
    """Peak memory against batch size, for every job of modules that was measured with more than one."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        if row["suite"] == "ops":
            continue
        job = f"{row['workload']} {'×'.join(map(str, row['shape'][1:]))} {row['dtype']}"
        for name, provider in row["providers"].items():
            if provider.get("peak_bytes"):
                found[job][name].append((row["shape"][0], provider["peak_bytes"] / 2**20))
    found = {job: providers for job, providers in found.items() if len(providers[OURS]) > 1}
    if not found:
        return None
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(_WIDTH, 0.4 + 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (job, providers) in zip(panels, found.items(), strict=False):
        others = iter(_OTHER_COLORS * len(providers))
        for name, points in sorted(providers.items(), key=lambda item: item[0] == OURS):  # fastpose on top
            color = _OURS_COLOR if name == OURS else next(others)
            axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=3, color=color, label=name)
        axes.set_title(job, fontsize=7)
        axes.set_xlabel("batch size", fontsize=7)
        axes.set_ylabel("peak memory, MiB", fontsize=7)
        _log(axes.set_xscale, axes.xaxis, base=2)
        _log(axes.set_yscale, axes.yaxis, base=2)
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    for axes in list(panels):  # the last line may not be full
        axes.set_axis_off()
    return figure


def _bandwidth_panel(axes: Axes | None, result: dict[str, Any]) -> bool:
    """Draw it if there are axes; whether there is anything to draw."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in result["rows"]:
        if not row["flops"] and "gigabytes_per_second" in row:
            name = f"{row['workload']} {row['dtype']}" + (f", {row['threads']} threads" if row["threads"] else "")
            series[name].append((row["bytes"] / 2**20, row["gigabytes_per_second"]))
    if axes is None or not series:
        return bool(series)
    for index, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="os^v"[index // 10 % 4], ms=4, color=f"C{index % 10}", label=name)
    for ceilings in result["ceilings"]:
        for index, (name, value) in enumerate(ceilings["gigabytes_per_second"].items()):
            threads = f", {ceilings['threads']} threads" if ceilings["threads"] else ""
            axes.axhline(value, ls="--", lw=0.8, color="0.4")
            place = (0.01 + 0.1 * index, value)  # beside each other, as most are about alike
            axes.annotate(name + threads, place, xycoords=("axes fraction", "data"), fontsize=6, va="bottom")
    axes.set_xlabel("least bytes to move, MiB")
    axes.set_ylabel("fastpose, GB/s")
    return True


def _roofline_panel(axes: Axes | None, result: dict[str, Any]) -> bool:
    """Likewise."""
    rows = [row for row in result["rows"] if row["flops"] and OURS in row["providers"] and "teraflops" in row]
    if axes is None or not rows:
        return bool(rows)
    for kind, color, marker in ((OURS, _OURS_COLOR, "o"), ("fastest_baseline", _OTHER_COLORS[0], "x")):
        points = [(_intensity(row), _rate(row, kind)) for row in rows if kind == OURS or kind in row]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.scatter(xs, ys, s=18, marker=marker, color=color, label=kind.replace("_", " "))
    for row in rows if len(rows) <= _LABELLED_POINTS else ():
        label = f"{row['workload']}, {'×'.join(map(str, row['shape']))}"
        side = "left" if _intensity(row) < sorted(map(_intensity, rows))[len(rows) // 2] else "right"
        axes.annotate(label, (_intensity(row), _rate(row, OURS)), fontsize=5, ha=side, va="bottom")
    intensities = [_intensity(row) for row in rows]
    span = (min(intensities) / 2, max(intensities) * 2)
    for threads, dtype in dict.fromkeys((row["threads"], row["dtype"]) for row in rows):
        ceilings = ceilings_of(result["ceilings"], threads)
        flat = ceilings and ceilings["teraflops"].get(f"matmul {dtype}")
        if ceilings and flat:
            slope = ceilings["gigabytes_per_second"]["copy"] / 1e3
            knee = flat / slope
            corners = sorted({span[0], min(max(knee, span[0]), span[1]), span[1]})
            label = f"copy, matmul {dtype}" + (f", {threads} threads" if threads else "")
            axes.plot(corners, [min(slope * x, flat) for x in corners], ls="--", lw=1, color="0.4", label=label)
    axes.set_xlabel("FLOP per least byte moved")
    axes.set_ylabel("TFLOP/s")
    return True


def _intensity(row: Row) -> float:
    return row["flops"] / row["bytes"]


def _rate(row: Row, kind: str) -> float:
    return row["flops"] / row["providers"][row.get(kind, kind)]["ms"] / 1e9


def _ratios(row: Row) -> dict[str, list[float]]:
    return {
        name: provider["ratio_quartiles"]
        for name, provider in row["providers"].items()
        if provider["role"] == "baseline" and "ratio_quartiles" in provider
    }


def _log(set_scale: Callable[..., None], axis: Axis, base: int = 10) -> None:
    """A logarithmic axis whose ticks are numbers, not powers."""
    set_scale("log", base=base)
    axis.set_major_locator(LogLocator(base=base, subs=(1, 2, 5) if base == 10 else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
