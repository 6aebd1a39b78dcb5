"""``fastpose evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from fastpose.commands._scores import score_table

if TYPE_CHECKING:
    from fastpose.data.records import Person


class Data(str, Enum):
    """Whom to evaluate on."""

    figures = "figures"
    mpii = "mpii"


class Split(str, Enum):
    """Part of the annotated people."""

    train = "train"
    val = "val"


def evaluate(
    weights: Annotated[Path, typer.Argument(help="Weights of a training run, a .safetensors file.")],
    data: Annotated[Data, typer.Option(help="Whom to evaluate on: figures that training does not see, or MPII.")],
    annotations: Annotated[Path | None, typer.Option(help="MPII annotations, a JSON file.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of MPII's images; by default 'images' beside the annotations.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Part of the annotated people; by default all.")] = None,
    people: Annotated[int | None, typer.Option(min=1, help="How many to evaluate on; by default all.")] = None,
    protocol: Annotated[str | None, typer.Option(help="What counts; by default that of the joints' data set.")] = None,
    flip_test: Annotated[bool, typer.Option(help="Average the predictions for the image and its mirror image.")] = True,
    scales: Annotated[str, typer.Option(metavar="S,S,...", help="Factors of the crop to average over.")] = "1",
    all_stages: Annotated[bool, typer.Option("--all-stages/--last-stage", help="Score every stage, or the last.")] = True,
    batch_size: Annotated[int, typer.Option(help="People at a time.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions and labels, for fastpose score.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with counts and curves.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")] = None,
) -> None:
    """Score a model on labelled people, stage by stage."""
    from fastpose.evaluation import DEFAULT_PROTOCOLS
    from fastpose.evaluation import evaluate as run
    from fastpose.prediction import Predictor

    factors = _factors(scales)
    predictor = Predictor.load(weights, device)
    if data is Data.figures:
        if annotations or images or split:
            raise ValueError("--annotations, --images and --split are for --data mpii")
        who = _figures(_figure_size(weights) or predictor.crops.size, people)
    elif annotations is None:
        raise ValueError("--data mpii needs --annotations FILE")
    else:
        who = _mpii(annotations, images, split)[:people]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(who))
        evaluation = run(
            predictor,
            who,
            protocol,
            flip_test=flip_test,
            scales=factors,
            all_stages=all_stages,
            batch_size=batch_size,
            progress=lambda count: progress.advance(task, count),
        )
    if out is not None:
        evaluation.save(out)
    if as_json:
        typer.echo(json.dumps([score.to_dict() for score in evaluation.scores], indent=1, allow_nan=False))
    else:
        Console().print(score_table(evaluation.scores, protocol or DEFAULT_PROTOCOLS[predictor.skeleton.name]))


def _figures(size: tuple[int, int], people: int | None) -> Sequence[Person]:
    from fastpose.data.figures import VALIDATION_FIGURES, VALIDATION_SEED, Figures

    return Figures(people or VALIDATION_FIGURES, seed=VALIDATION_SEED, size=size)[:]


def _figure_size(weights: Path) -> tuple[int, int] | None:
    """The size of the figures that the weights were trained on."""
    from fastpose.checkpoints import read_metadata
    from fastpose.recipes import Recipe
    from fastpose.training import RECIPE_KEY

    metadata = read_metadata(weights)
    return Recipe.from_dict(json.loads(metadata[RECIPE_KEY])).figure_size if RECIPE_KEY in metadata else None


def _mpii(annotations: Path, images: Path | None, split: Split | None) -> list[Person]:
    from fastpose.data.mpii import read_mpii

    return read_mpii(annotations, images, None if split is None else "train" if split is Split.train else "val")


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(factor) for factor in text.split(","))
    except ValueError:
        raise ValueError(f"--scales must be S,S,... in numbers, got {text!r}") from None
