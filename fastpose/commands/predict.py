"""``fastpose predict``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from fastpose.commands._options import numbers
from fastpose.commands._output import complain

if TYPE_CHECKING:
    from fastpose.data.records import Person
    from fastpose.plots import Image


def predict(
    weights: Annotated[Path, typer.Argument(help="Weights of a training run or of convert, a .safetensors file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    box: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Where the person is, in pixels: left, top, width, height.")
    ] = None,
    center: Annotated[
        str | None, typer.Option(metavar="X,Y", help="MPII's centre of the person, in pixels from 0; with --scale.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="MPII's scale: the person's height in pixels / 200.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="MPII annotations that say where the people are.")] = None,
    flip_test: Annotated[bool, typer.Option(help="Average the predictions for the image and its mirror image.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")] = None,
) -> None:
    """Predict keypoints: for each image NAME.json and the picture NAME.overlay.jpg.

    Without --box, --center and --annotations the whole image is taken for one person's box.
    """
    from fastpose.pose_files import list_images, predict_files
    from fastpose.prediction import Predictor

    files = list_images(images)
    given = {"--box": box, "--center": center, "--annotations": annotations}
    located_by = [name for name, value in given.items() if value is not None]
    if len(located_by) > 1:
        raise ValueError(f"{' and '.join(located_by)} exclude each other")
    if (center is None) != (scale is None):
        raise ValueError("--center and --scale need each other")
    if (box or center) and len(files) > 1:
        raise ValueError(f"{located_by[0]} is of one image, got {len(files)} images")
    corners = None if box is None else numbers("--box", box, "X,Y,W,H")
    middle = None if center is None else numbers("--center", center, "X,Y")
    annotated = None if annotations is None else _read_people(annotations, files)
    predictor = Predictor.load(weights, device)

    def locate(file: Path, image: Image) -> list[Person]:
        if annotated is not None:
            return [replace(person, image=image) for person in annotated[file.name]]
        if middle is not None and scale is not None:
            return [predictor.person_at(image, middle, scale)]
        return [predictor.person_in_box(image, corners)]

    errors = predict_files(predictor, files, locate, out, flip_test=flip_test)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        failed = [error for error in progress.track(errors, total=len(files), description="predicting") if error]
    for error in failed:
        complain(error)
    if failed:
        raise typer.Exit(2)


def _read_people(annotations: Path, files: Sequence[Path]) -> dict[str, list[Person]]:
    """The people of each image by its file's name."""
    from fastpose.data.mpii import read_mpii

    people: dict[str, list[Person]] = {file.name: [] for file in files}
    for person in read_mpii(annotations):
        if str(person.image_id) in people:
            people[str(person.image_id)].append(person)
    nobody = [name for name, found in people.items() if not found]
    if nobody:
        raise ValueError(f"{annotations} knows nobody in {', '.join(nobody[:8])}{' ...' if len(nobody) > 8 else ''}")
    return people
