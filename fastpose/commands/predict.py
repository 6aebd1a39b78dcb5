"""``fastpose predict``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from fastpose.commands._options import numbers
from fastpose.commands._output import complain

if TYPE_CHECKING:
    from fastpose.data.records import Person
    from fastpose.detections import Detections
    from fastpose.plots import Image
    from fastpose.prediction import Predictor
    from fastpose.video_files import Video


def predict(
    weights: Annotated[Path, typer.Argument(help="Weights of a training run or of convert, a .safetensors file.")],
    images: Annotated[list[Path], typer.Argument(help="Image or video files, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    box: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Where the person is, in pixels: left, top, width, height.")
    ] = None,
    center: Annotated[
        str | None, typer.Option(metavar="X,Y", help="MPII's centre of the person, in pixels from 0; with --scale.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="MPII's scale: the person's height in pixels / 200.")] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Detections in COCO's form that say where the people are; of a video by frame.")
    ] = None,
    least_score: Annotated[float, typer.Option(help="Score that detections must reach; with --boxes.")] = 0.5,
    annotations: Annotated[Path | None, typer.Option(help="MPII annotations that say where the people are.")] = None,
    flip_test: Annotated[bool, typer.Option(help="Average the predictions for the image and its mirror image.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")] = None,
) -> None:
    """Predict keypoints: for each image NAME.json and the picture NAME.overlay.jpg, for each video NAME.jsonl with a line
    for each frame and the video NAME.overlay.mp4.

    Without --box, --center, --boxes and --annotations the whole image is taken for one person's box.
    """
    from fastpose.pose_files import list_images
    from fastpose.prediction import Predictor
    from fastpose.video_files import is_video, open_video

    videos = [open_video(path) for path in images if is_video(path)]
    files = list_images([path for path in images if not is_video(path)])
    _check_names([video.path for video in videos])
    given = {"--box": box, "--center": center, "--boxes": boxes, "--annotations": annotations}
    located_by = [name for name, value in given.items() if value is not None]
    if len(located_by) > 1:
        raise ValueError(f"{' and '.join(located_by)} exclude each other")
    if (center is None) != (scale is None):
        raise ValueError("--center and --scale need each other")
    if (box or center) and len(files) + len(videos) > 1:
        raise ValueError(f"{located_by[0]} is of one image or video, got {len(files) + len(videos)} of them")
    if annotations and videos:
        raise ValueError("--annotations is of images, got a video")
    corners = None if box is None else numbers("--box", box, "X,Y,W,H")
    middle = None if center is None else numbers("--center", center, "X,Y")
    annotated = None if annotations is None else _read_people(annotations, files)
    detected = None if boxes is None else _read_boxes(boxes, least_score, files)
    predictor = Predictor.load(weights, device)

    def locate(place: Path | int, image: Image) -> list[Person]:
        if annotated is not None and isinstance(place, Path):
            return [replace(person, image=image) for person in annotated[place.name]]
        if detected is not None:
            found = detected.of_file(place) if isinstance(place, Path) else detected.of_frame(place)
            return [predictor.person_in_box(image, corners) for corners in found]
        if middle is not None and scale is not None:
            return [predictor.person_at(image, middle, scale)]
        return [predictor.person_in_box(image, corners)]

    failed = _run(predictor, files, videos, locate, out, flip_test)
    for error in failed:
        complain(error)
    if failed:
        raise typer.Exit(2)


def _run(
    predictor: Predictor,
    files: Sequence[Path],
    videos: Sequence[Video],
    locate: Callable[[Any, Image], list[Person]],
    out: Path,
    flip_test: bool,
) -> list[Exception]:
    """Predict for all files and return the errors of those for which nothing was written."""
    from fastpose.pose_files import predict_files
    from fastpose.video_files import predict_video

    failed: list[Exception] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        errors = predict_files(predictor, files, locate, out, flip_test=flip_test)
        failed += [error for error in progress.track(errors, total=len(files), description="predicting") if error]
        for video in videos:
            task = progress.add_task(video.path.name, total=video.frames or None)
            try:
                for count in predict_video(predictor, video, locate, out, flip_test=flip_test):
                    progress.advance(task, count)
            except (ValueError, OSError) as error:
                failed.append(error)
    return failed


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


def _read_boxes(boxes: Path, least_score: float, files: Sequence[Path]) -> Detections:
    from fastpose.detections import read_detections

    detected = read_detections(boxes, least_score)
    detected.check_knows(files)
    return detected


def _check_names(videos: Sequence[Path]) -> None:
    stems = [video.stem for video in videos]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise ValueError(f"videos must differ in their names, but several are called {', '.join(repeated)}")
