"""``fastpose evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from fastpose.commands._data import Data, refuse_with_figures, source_of
from fastpose.commands._scores import score_table

if TYPE_CHECKING:
    from fastpose.data.records import Person


def evaluate(
    weights: Annotated[Path, typer.Argument(help="Weights of a training run, a .safetensors file.")],
    data: Annotated[Data, typer.Option(help="Whom to evaluate on: figures that training does not see, or a published data set.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data set, with annotations and images.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation file, in place of --root.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images; by default 'images' beside the annotations.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the data set; by default that to validate on, or everyone in a file.")
    ] = None,
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
    who: Sequence[Person]
    labels: dict[str, Any] | None = None
    if data is Data.figures:
        refuse_with_figures(root=root, annotations=annotations, images=images, split=split)
        who = _figures(_figure_size(weights) or predictor.crops.size, people)
    else:
        source = source_of(data, root, annotations)
        who = _published(data.value, source, split, images)[:people]
        if data is Data.coco:
            labels = _coco_labels(source, split)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(who))
        evaluation = run(
            predictor,
            who,
            protocol,
            annotations=labels,
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


def _published(name: str, source: Path, split: str | None, images: Path | None) -> list[Person]:
    from fastpose.data.datasets import DATASETS, read

    if split is None and source.is_dir():
        split = DATASETS[name].splits[1]
    return [person for person in read(name, source, split, images=images) if person.labelled.any()]


def _coco_labels(source: Path, split: str | None) -> dict[str, Any]:
    """What COCO's file of the people holds."""
    from fastpose.data.datasets import DATASETS
    from fastpose.score_files.arrays import read_json

    coco = DATASETS["coco"]
    file = coco.find(source, split or coco.splits[1])[0].file if source.is_dir() else source
    return read_json(file)


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(factor) for factor in text.split(","))
    except ValueError:
        raise ValueError(f"--scales must be S,S,... in numbers, got {text!r}") from None
