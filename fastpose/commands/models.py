"""``fastpose models``."""

from __future__ import annotations

import inspect

import torch
from rich.console import Console
from rich.table import Table


def models() -> None:
    """List the architectures with their papers and their size with default options."""
    from fastpose.models import create_model, list_models

    table = Table("name", "paper", title_justify="left")
    table.add_column("parameters", justify="right")
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        # The first line of an architecture's module is its paper.
        paper = (inspect.getdoc(inspect.getmodule(type(model))) or "").partition("\n")[0].rstrip(".")
        table.add_row(name, paper, f"{sum(parameter.numel() for parameter in model.parameters()):,}")
    Console().print(table)
