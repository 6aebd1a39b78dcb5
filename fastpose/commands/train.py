"""``fastpose train``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastpose.commands._data import Data, refuse_with_figures, source_of
from fastpose.commands._output import pairs, stages_table


class Precision(str, Enum):
    """Arithmetic of the training; auto is bf16 where the machine computes in it."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def train(
    data: Annotated[Data, typer.Option(help="What to train on: figures drawn on the fly, or a published data set.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data set, with annotations and images.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation file, in place of --root.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images; by default 'images' beside the annotations.")] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Annotation file to validate on; by default the validation split, or else all people."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name of the recipe; by default hourglass-demo for figures, else hourglass.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE-DATA.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="People a step, in place of the recipe's.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="In place of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and figures.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes that load data; by default by the machine.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    devices: Annotated[int, typer.Option(help="GPUs, or processes where there are none, of each machine.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines; start each by torchrun.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the recipe, such as model_options.stacks=2."),
    ] = None,
) -> None:
    """Train a model, phase by phase; write its weights, checkpoints, logs, curves and a picture of all its stages."""
    from fastpose import training
    from fastpose.recipes import get_recipe
    from fastpose.training.report import write_report

    given = {"steps": steps, "batch_size": batch_size, "precision": precision and precision.value}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = recipe or ("hourglass-demo" if data is Data.figures else "hourglass")
    plan = get_recipe(recipe, **{**_overrides(get_recipe(recipe).to_dict(), settings or []), **changes})
    if data is Data.figures:
        refuse_with_figures(root=root, annotations=annotations, images=images, validation=validation)
        source = training.figures_data(plan, seed)
    else:
        source = training.published_data(data.value, source_of(data, root, annotations), images, validation)
    folder = out or Path("runs", f"{plan.name}-{data.value}")
    console = Console(quiet=training.rank() > 0)
    chosen = {name: value for name, value in plan.to_dict().items() if value not in (None, {})}
    console.print(pairs(f"recipe {plan.name}", chosen))
    result = training.train(plan, source, folder, seed=seed, workers=workers, resume=resume, devices=devices, nodes=nodes)
    if training.rank():
        return
    pictures = write_report(result, source.validation, folder)
    console.print(stages_table(f"{source.score.name} (%)", result.scores))
    console.print(f"weights: {result.weights}", soft_wrap=True, highlight=False)
    console.print(f"pictures: {', '.join(map(str, pictures))}", soft_wrap=True, highlight=False)


def _overrides(recipe: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Fields to set otherwise, from ``field=value`` and ``field.key=value``; values are JSON or else strings."""
    changes: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        field, *keys = path.split(".")
        if not equals or field not in recipe:
            raise ValueError(f"--set must be KEY=VALUE with a KEY of {', '.join(recipe)}, got {setting!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        changes[field] = _with(changes.get(field, recipe[field]), keys, value, field)
    return changes


def _with(entries: Any, keys: Sequence[str], value: Any, name: str) -> Any:
    """A copy of nested entries with the one under these keys set."""
    if not keys:
        return value
    if not isinstance(entries, Mapping):
        raise ValueError(f"--set: {name} has no entries to set, such as {keys[0]}")
    return {**entries, keys[0]: _with(entries.get(keys[0], {}), keys[1:], value, f"{name}.{keys[0]}")}
