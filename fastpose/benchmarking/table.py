"""Result files as tables: the same cells for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastpose.benchmarking.results import Row, row_title
from fastpose.benchmarking.workload import OURS

TITLES = {"ops": "Ops", "blocks": "Residual block", "networks": "Networks"}
_ABSENT = "–"
_BUSY = 0.5  # of the cores


def tables(result: dict[str, Any], cells: Callable[[Row], dict[str, str]]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each suite with rows: its title, the heads of the columns, and the cells of every row."""
    for suite, title in TITLES.items():
        rows = [cells(row) for row in result["rows"] if row["suite"] == suite]
        if rows:
            yield title, list(rows[0]), [list(row.values()) for row in rows]


def brief_cells(row: Row) -> dict[str, str]:
    """What fits on a terminal of a row, by the heads of the columns; the first cell has two lines."""
    ours = row["providers"].get(OURS, {})
    return {
        "job": f"{row['workload']}\n{row_title(row).removeprefix(row['workload'] + ' ')}",
        "ms": number(ours["ms"]) if "ms" in ours else ours.get("error", "not timed"),
        "of ceiling": _share(row).partition(" ")[0],
        "memory": _memory(row).partition(" (")[0],
        "speed-up": f"{row['speedup_quartiles'][1]:.2f}× {row['fastest_baseline']}" if "fastest_baseline" in row else _ABSENT,
    }


def all_cells(row: Row) -> dict[str, str]:
    """All that the file says of a row, by the heads of the columns."""
    found = {
        "job": row["workload"],
        "shape, dtype": f"{'×'.join(map(str, row['shape']))} {row['dtype']}",
    }
    if row["device"] == "cpu":
        found["threads"] = str(row["threads"])
    ours = row["providers"].get(OURS, {})
    if "ms" not in ours:
        return found | {"ms": ours.get("error", "not timed"), **dict.fromkeys(_later_columns(row), _ABSENT)}
    values = [
        _spread(ours["ms_quartiles"]),
        _rate(row),
        _share(row),
        *_floors(row),
        _memory(row),
        *_fastest(row),
        _others(row),
    ]
    return found | {"ms": values[0]} | dict(zip(_later_columns(row), values[1:], strict=True))


def _later_columns(row: Row) -> list[str]:
    floors = [f"× {name}" for name in _floor_names(row)]
    return ["rate", "of ceiling", *floors, "peak memory", "fastest baseline", "its ms", "speed-up", "all baselines"]


def _floor_names(row: Row) -> list[str]:
    return [name for name, provider in row["providers"].items() if provider["role"] == "floor"]


def _floors(row: Row) -> list[str]:
    """How many times as long as a floor it takes."""
    floors = (row["providers"][name] for name in _floor_names(row))
    return [f"{1 / floor['ratio_quartiles'][1]:.2f}" if "ratio_quartiles" in floor else _ABSENT for floor in floors]


def _share(row: Row) -> str:
    return f"{row['share_of_ceiling']:.0%} ({row['bound']})" if "share_of_ceiling" in row else _ABSENT


def _memory(row: Row) -> str:
    """Peak memory, and what part that is of eager PyTorch's."""
    ours = row["providers"].get(OURS, {}).get("peak_bytes")
    if not ours:
        return _ABSENT
    eager = next((p.get("peak_bytes") for name, p in row["providers"].items() if name.startswith("eager")), None)
    return _bytes(ours) + (f" ({ours / eager:.2f} × eager)" if eager else "")


def _fastest(row: Row) -> list[str]:
    name = row.get("fastest_baseline")
    if name is None:
        return [_ABSENT] * 3
    low, median, high = row["speedup_quartiles"]
    return [name, number(row["providers"][name]["ms"]), f"**{median:.2f}×** ({low:.2f}–{high:.2f})"]


def _others(row: Row) -> str:
    """Speed-up over every baseline, the fastest first, and why some have none."""
    baselines = {name: provider for name, provider in row["providers"].items() if provider["role"] == "baseline"}
    timed = {name: provider["ratio_quartiles"][1] for name, provider in baselines.items() if "ms" in provider}
    parts = [f"{name} {ratio:.1f}×" for name, ratio in sorted(timed.items(), key=lambda item: item[1])]
    parts += [f"{name}: {provider['error']}" for name, provider in baselines.items() if "error" in provider]
    return ", ".join(parts) or _ABSENT


def _spread(quartiles: list[float]) -> str:
    low, median, high = map(number, quartiles)
    return f"{median} ({low}–{high})"


def _rate(row: Row) -> str:
    if not row["flops"]:
        return f"{number(row['gigabytes_per_second'])} GB/s"
    rate = row["teraflops"]
    return f"{number(rate)} TFLOP/s" if rate >= 1 else f"{number(1e3 * rate)} GFLOP/s"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{number(count / 2**10)} KiB"


def number(value: float) -> str:
    """Three significant digits, more where they stand before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def machine_line(result: dict[str, Any]) -> str:
    """On one line: what was measured where."""
    machine = result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores, {machine['build']['simd_level']}"
    parts = [f"{where}; torch {machine['torch']}", f"fastpose {machine['commit'] or machine['fastpose']}"]
    if "driver_version" in machine:
        parts.append(f"driver {machine['driver_version']}, power limit {machine['power.limit']}")
    if result["run"].get("compared_with"):
        parts.append(f"against {result['run']['compared_with']}")
    line = "Measured on " + ", ".join(parts) + "."
    if result["run"].get("quick"):
        line += " A quick look: small shapes, few rounds, no compiled baselines."
    load = machine.get("load")
    if machine["device"] == "cpu" and load is not None and load > _BUSY * machine["cores"]:
        line += f" The machine was busy with something else (load {load})."
    return line


def ceilings_line(result: dict[str, Any]) -> str:
    """On one line: what the machine can do."""
    parts = []
    for ceilings in result["ceilings"]:
        found = [f"{name} {number(value)} GB/s" for name, value in ceilings["gigabytes_per_second"].items()]
        found += [f"{name} {number(value)} TFLOP/s" for name, value in ceilings["teraflops"].items()]
        count = ceilings["threads"]
        parts.append(", ".join(found) + (f" ({count} thread{'s' * (count != 1)})" if count else ""))
    return f"Ceilings: {'; '.join(parts)}." if parts else "Ceilings: not measured."


def markdown(result: dict[str, Any]) -> str:
    """All of it."""
    parts = [machine_line(result), ceilings_line(result)]
    for title, heads, rows in tables(result, all_cells):
        # Reasons of failures are in others' words.
        lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
        parts += [f"**{title}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts)
