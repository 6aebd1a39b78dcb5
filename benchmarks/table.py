"""`python -m benchmarks.table` turns the result files into the README's tables and pictures. No file, no figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastpose.benchmarking.results import read_results
from fastpose.benchmarking.table import markdown

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.table) -->", "<!-- benchmarks: end -->"
_PICTURES = {
    "speedups": "time of every baseline as a multiple of fastpose's",
    "roofline": "bandwidth and arithmetic reached, with the ceilings of the machine",
    "memory": "peak memory against batch size",
}


def publishable(folder: Path) -> dict[Path, dict[str, Any]]:
    """The results in a folder by their files; neither quick looks nor comparisons of revisions."""
    found = {file: read_results(file) for file in sorted(folder.glob("fastpose-bench-*.json"))}
    return {file: result for file, result in found.items() if not (result["run"]["quick"] or "compared_with" in result["run"])}


def section(folder: Path = RESULTS, root: Path = README.parent) -> str:
    """The README's part: for the CPU and for every GPU what was measured, or that nothing was.

    Args:
        folder: of result files and their pictures.
        root: of the checkout, from which the README names pictures.
    """
    parts = []
    found = publishable(folder)
    for device, kind in (("cpu", "CPU"), ("cuda", "GPU")):
        of_device = {file: result for file, result in found.items() if result["machine"]["device"] == device}
        if not of_device:
            parts.append(f"### {kind}\n\nNot yet measured.")
        for file, result in of_device.items():
            pictures = [
                f"![{text}]({picture.relative_to(root).as_posix()})"
                for name, text in _PICTURES.items()
                if (picture := file.with_suffix(f".{name}.png")).exists()
            ]
            title = result["machine"].get("gpu", kind)
            parts.append("\n\n".join([f"### {title}", markdown(result), *pictures]))
    return "\n\n".join(parts)


def replace_section(text: str, new: str) -> str:
    """A README with this between the two marks; ValueError if they are missing."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the lines {BEGIN!r} and {END!r} are missing")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def main() -> None:
    """Draw the pictures of all publishable results and rewrite the README."""
    from fastpose.benchmarking.plots import draw_all  # needs matplotlib

    for file, result in publishable(RESULTS).items():
        draw_all(result, file)
    README.write_text(replace_section(README.read_text(encoding="utf-8"), section()), encoding="utf-8")


if __name__ == "__main__":
    main()
