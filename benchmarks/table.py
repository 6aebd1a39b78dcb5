"""Turns result files into the table of the README: `python -m benchmarks.table` rewrites it. No file, no figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.table) -->", "<!-- benchmarks: end -->"


def machine_line(machine: dict[str, Any]) -> str:
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores, {machine['build']['simd_level']}"
    return f"{where}; torch {machine['torch']}, fastpose {machine['commit'] or machine['fastpose']}"


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"Measured on {machine_line(result['machine'])}; the C library keeps freed memory, for all alike.",
        "",
        "| op | shape, dtype | threads | fastpose ms | fastest baseline | its ms | speed-up | of a copy's time | all baselines |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ms, best = row["milliseconds"], row["fastest_baseline"]
        others = ", ".join(f"{name} {ratio:.1f}×" for name, ratio in sorted(row["speedups"].items(), key=lambda i: i[1]))
        lines.append(
            f"| {row['workload']} | {'×'.join(map(str, row['shape']))} {row['dtype']} | {row['threads'] or '–'} "
            f"| {ms['fastpose']:.3f} | {best} | {ms[best]:.3f} | **{row['speedup']:.1f}×** | {row['times_copy']:.2f} | {others} |"
        )
    return "\n".join(lines)


def section() -> str:
    parts = []
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        path = HERE / "results" / f"{device}.json"
        body = markdown(json.loads(path.read_text())) if path.exists() else "Not yet measured."
        parts.append(f"### {title}\n\n{body}")
    return "\n\n".join(parts)


def main() -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{README}: the lines {BEGIN!r} and {END!r} are missing")
    README.write_text(f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
