"""Writes the tables and pictures of "On drawn figures" in architectures.md from the folder of runs that its commands leave.

Of each run those seeds count that are there; what was not run at all is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from PIL import Image

SEEDS = (0, 1, 2)
RUNS = {
    "DeepPose": "deeppose",
    "Tompson": "tompson-4",
    "CPM": "cpm",
    "IEF": "ief",
    "Hourglass": "hourglass",
    "Tompson, 8 pixels a cell": "tompson-8",
    "Tompson, 16 pixels a cell": "tompson-16",
    "Tompson of 256 pixels, 4 a cell": "tompson-256-4",
    "Tompson of 256 pixels, 16 a cell": "tompson-256-16",
    "IEF, own path": "ief-own",
    "IEF, own path, at once": "ief-own-at-once",
    "IEF, fixed path, at once": "ief-at-once",
}
"""Folders of the runs, less the number of the seed, by what the tables call them."""

ARCHITECTURES = tuple(RUNS)[:5]
POOLINGS = (4, 8, 16)
PATHS = tuple(title for title in RUNS if title.startswith("IEF"))
NEAR, NEAREST = 0.5, 0.1
PICTURE_WIDTH = 560
PICTURE_COLORS = 128

_PAGE = Path(__file__).with_name("architectures.md")

Scores = dict[str, list[float]]
"""PCKh (%) of each seed by stage."""


def read(runs: Path, name: str, threshold: float) -> Scores:
    """The scores of the runs of a name, over the 14 joints of MPII's total, from what `fastpose evaluate --out` wrote."""
    scores: Scores = {}
    for seed in seeds_of(runs, name):
        for stage in json.loads((runs / f"{name}-{seed}" / "scores" / "scores.json").read_text(encoding="utf-8")):
            values = dict(zip(stage["thresholds"], stage["curves"]["total"], strict=True))
            scores.setdefault(stage["name"], []).append(values[threshold])
    return scores


def seeds_of(runs: Path, name: str) -> list[int]:
    """The seeds of which there are scores."""
    return [seed for seed in SEEDS if (runs / f"{name}-{seed}" / "scores" / "scores.json").is_file()]


def spread(values: list[float], sign: str = "") -> str:
    """Mean and, of several, standard deviation over the seeds."""
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def gains(before: list[float], after: list[float]) -> list[float]:
    """Of each seed; both must have been run with the same ones."""
    return [late - early for early, late in zip(before, after, strict=True)]


def stages_table(runs: Path) -> str:
    """PCKh@0.5 of every stage of the five architectures."""
    lines = ["| PCKh@0.5 (%) | stage 1 | 2 | 3 | 4 | last less first | of each seed |", "|---" * 7 + "|"]
    for title in ARCHITECTURES:
        if not seeds_of(runs, RUNS[title]):
            continue
        stages = list(read(runs, RUNS[title], NEAR).values())
        cells = [*map(spread, stages), *[""] * (4 - len(stages))]
        gained = gains(stages[0], stages[-1])
        lines.append(
            f"| {title} | {' | '.join(cells)} | {spread(gained, '+')} | {', '.join(f'{gain:+.1f}' for gain in gained)} |"
        )
    return "\n".join(lines)


def pooling_table(runs: Path, name: str = "tompson") -> str:
    """What Tompson's fine model adds to the coarse one, in runs of a name."""
    lines = [
        "| pixels a cell | " + " | ".join(f"coarse @{t} | fine @{t} | gain @{t}" for t in (NEAREST, NEAR)) + " |",
        "|---" * 7 + "|",
    ]
    for pooling in POOLINGS:
        if not seeds_of(runs, f"{name}-{pooling}"):
            continue
        cells = []
        for threshold in (NEAREST, NEAR):
            coarse, fine = read(runs, f"{name}-{pooling}", threshold).values()
            cells += [spread(coarse), spread(fine), spread(gains(coarse, fine), "+")]
        lines.append(f"| {pooling} | {' | '.join(cells)} |")
    return "\n".join(lines)


def path_table(runs: Path) -> str:
    """IEF that learns from the fixed path or from its own, step by step or all steps at once."""
    lines = ["| PCKh@0.5 (%); IEF: consolidated fixed path | step 1 | 2 | 3 | 4 | step 4, less IEF's |", "|---" * 6 + "|"]
    rows = {title: list(read(runs, RUNS[title], NEAR).values()) for title in PATHS if seeds_of(runs, RUNS[title])}
    for title, steps in rows.items():
        difference = spread(gains(rows["IEF"][-1], steps[-1]), "+") if "IEF" in rows and title != "IEF" else ""
        lines.append(f"| {title} | {' | '.join(map(spread, steps))} | {difference} |")
    return "\n".join(lines)


def runs_table(runs: Path) -> str:
    """Every run."""
    lines = ["| run | prediction | PCKh@0.5, seeds 0, 1, 2 | PCKh@0.1, seeds 0, 1, 2 |", "|---" * 4 + "|"]
    for title, name in RUNS.items():
        if not seeds_of(runs, name):
            continue
        nearest = read(runs, name, NEAREST)
        for stage, values in read(runs, name, NEAR).items():
            cells = [", ".join(f"{value:.1f}" for value in numbers) for numbers in (values, nearest[stage])]
            lines.append(f"| {title} | {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_pictures(runs: Path) -> None:
    """The pictures of all stages of the first seed, made small."""
    for title in ARCHITECTURES:
        if not seeds_of(runs, RUNS[title]):
            continue
        with Image.open(runs / f"{RUNS[title]}-{seeds_of(runs, RUNS[title])[0]}" / "stages.png") as sheet:
            size = PICTURE_WIDTH, round(sheet.height * PICTURE_WIDTH / sheet.width)
            small = sheet.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(PICTURE_COLORS)
            small.save(_PAGE.with_name(f"stages_{title.lower()}.png"), optimize=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/architectures_table.py RUNS")
    runs = Path(sys.argv[1])
    page = _PAGE.read_text(encoding="utf-8")
    tables = {
        "stages": stages_table(runs),
        "pooling": pooling_table(runs),
        "pooling of 256 pixels": pooling_table(runs, "tompson-256"),
        "paths": path_table(runs),
        "runs": runs_table(runs),
    }
    for title, table in tables.items():
        before, _, rest = page.partition(f"<!-- {title} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"{_PAGE.name} has no section between '<!-- {title} -->' and '<!-- end -->'")
        page = f"{before}<!-- {title} -->\n\n{table}\n\n{end}{after}"
    write_pictures(runs)
    unfinished = _PAGE.with_suffix(".tmp")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(_PAGE)


if __name__ == "__main__":
    main()
