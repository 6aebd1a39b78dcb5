"""``fastpose models``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from fastpose.models import PoseModel

_COLUMNS = ("config", "parameters", "GMAC", "input", "output", "stages")


def models() -> None:
    """List the architectures with their papers, and for each configuration its size, what goes in and what comes out.

    GMAC are the multiplications of convolutions and matrix products, in billions, of a prediction by all stages for one
    person, without flip test. Those of the package's own kernels do not count.
    """
    from fastpose.models import create_model, list_configurations, list_models

    console = Console()
    for name in list_models():
        rows = []
        for config in list_configurations(name):
            with torch.device("meta"):
                model = create_model(name, config=config).eval()
                rows.append((config, *_facts(model)))
        # The first line of an architecture's module is its paper.
        paper = (inspect.getdoc(inspect.getmodule(type(model))) or "").partition("\n")[0].rstrip(".")
        console.print(f"[bold]{name}[/bold]: {paper}")
        table = Table()
        for column in _COLUMNS:
            table.add_column(column, justify="right" if column in ("parameters", "GMAC") else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _facts(model: PoseModel) -> tuple[str, ...]:
    """Size, input, output and stages."""
    parameters = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    height, width = model.input_size
    with FlopCounterMode(display=False) as counter:
        stages = model.predict(torch.empty(1, 3, height, width))
    joints = f"{stages.coordinates.shape[2]} joints"
    output = joints if model.stride is None else f"{joints}, heatmaps {height // model.stride}×{width // model.stride}"
    first, *more = stages.names
    return (
        parameters,
        f"{counter.get_total_flops() / 2e9:.2f}",
        f"{height}×{width}",
        output,
        f"{first} to {more[-1]}" if more else first,
    )
