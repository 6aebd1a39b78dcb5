"""``fastpose demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of the recipe's.")] = None,
) -> None:
    """Train a small hourglass on drawn figures, show what it learnt, and time fused against plain PyTorch ops."""
    from fastpose.demo import run_demo

    run_demo(out, steps=steps)
