"""The ``fastpose`` command: train, predict, demo, info, models.

Each command imports what it needs when it runs, so that ``--help`` and ``info`` do not wait for Lightning.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

import fastpose
from fastpose._library import NotBuiltError

try:
    import typer
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from typer.core import TyperGroup
except ModuleNotFoundError as error:
    print(f"fastpose: the command needs {error.name}: pip install 'fastpose-kernels[train]'", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from fastpose.cases import OpCase
    from fastpose.data.records import Person
    from fastpose.plots import Image

_EXTRAS = {"cv2", "lightning", "matplotlib", "safetensors", "tensorboard", "torchmetrics"}
# What the user can mend. Anything else is a bug, which its traceback describes best.
_USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, NotBuiltError, torch.OutOfMemoryError)


class Commands(TyperGroup):
    """The commands; an error that the user can mend is one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _USER_ERRORS as error:
            if ctx.params["debug"]:
                raise
            _complain(error)
        except ModuleNotFoundError as error:
            if ctx.params["debug"] or error.name not in _EXTRAS:
                raise
            _complain(f"this needs {error.name}: pip install 'fastpose-kernels[train]'")
        raise typer.Exit(2)


def _complain(error: Exception | str) -> None:
    message = " ".join(str(error).split()) or type(error).__name__
    typer.echo(f"fastpose: {message}", err=True)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Human pose estimation with fused heatmap kernels."""


class Data(str, Enum):
    """What to train on."""

    figures = "figures"
    mpii = "mpii"


_DEFAULT_RECIPES = {Data.figures: "hourglass-demo", Data.mpii: "hourglass"}


class Precision(str, Enum):
    """Arithmetic of the training; auto is bf16 where the machine computes in it."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


@app.command()
def train(
    data: Annotated[Data, typer.Option(help="What to train on: figures drawn on the fly, or MPII.")],
    annotations: Annotated[Path | None, typer.Option(help="MPII annotations, a JSON file.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of MPII's images; by default 'images' beside the annotations.")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="MPII annotations to validate on; by default the validation split, or else all people."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name of the recipe; by default hourglass-demo for figures, hourglass for mpii.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE-DATA.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="People a step, in place of the recipe's.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="In place of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and figures.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes that load data; by default by the machine.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the recipe, such as model_options.stacks=2."),
    ] = None,
) -> None:
    """Train a model; write its weights, checkpoints and logs."""
    from fastpose import training
    from fastpose.recipes import get_recipe

    given = {"steps": steps, "batch_size": batch_size, "precision": precision and precision.value}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = recipe or _DEFAULT_RECIPES[data]
    plan = get_recipe(recipe, **{**_overrides(get_recipe(recipe).to_dict(), settings or []), **changes})
    if data is Data.figures:
        if annotations or images or validation:
            raise ValueError("--annotations, --images and --validation are for --data mpii")
        source = training.figures_data(plan, seed)
    elif annotations is None:
        raise ValueError("--data mpii needs --annotations FILE")
    else:
        source = training.mpii_data(annotations, images, validation)
    folder = out or Path("runs", f"{plan.name}-{data.value}")
    console = Console()
    console.print(_pairs(f"recipe {plan.name}", plan.to_dict()))
    result = training.train(plan, source, folder, seed=seed, workers=workers, resume="last" if resume else None)
    console.print(_scores(result.initial, result.final))
    console.print(f"weights: {result.weights}", soft_wrap=True, highlight=False)


def _overrides(recipe: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Fields to set otherwise, from ``field=value`` and ``field.key=value``; values are JSON or else strings."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        field, dot, inner = key.partition(".")
        if not equals or field not in recipe:
            raise ValueError(f"--set must be KEY=VALUE with a KEY of {', '.join(recipe)}, got {setting!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if dot:
            outer = changes.get(field, recipe[field])
            if not isinstance(outer, Mapping):
                raise ValueError(f"--set: {field} has no entries to set, got {setting!r}")
            value = {**outer, inner: value}
        changes[field] = value
    return changes


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, str(value))
    return table


def _scores(initial: Mapping[str, float], final: Mapping[str, float]) -> Table:
    table = Table("joint", title="PCKh@0.5 (%)", title_justify="left")
    for column in ("initial stack", "final stack"):
        table.add_column(column, justify="right")
    for name in final:
        table.add_row(name, f"{initial[name]:.1f}", f"{final[name]:.1f}")
    return table


@app.command()
def predict(
    weights: Annotated[Path, typer.Argument(help="Weights of a training run, a .safetensors file.")],
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
    corners = None if box is None else _numbers("--box", box, "X,Y,W,H")
    middle = None if center is None else _numbers("--center", center, "X,Y")
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
        _complain(error)
    if failed:
        raise typer.Exit(2)


def _numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != form.count(",") + 1 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{option} must be {form} in numbers, got {text!r}")
    return numbers


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of the recipe's.")] = None,
) -> None:
    """Train a small hourglass on drawn figures, show what it learnt, and time fused against plain PyTorch ops."""
    from fastpose.demo import run_demo

    run_demo(out, steps=steps)


@app.command()
def info() -> None:
    """Show how fastpose was built, the devices, and which ops run fused on them."""
    from fastpose.cases import CASES

    console = Console()
    facts = {"fastpose": fastpose.__version__, "torch": torch.__version__}
    try:
        facts.update(fastpose.build_info())
    except NotBuiltError as error:
        facts["build"] = str(error)
    console.print(_pairs("build", facts))

    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    console.print(_pairs("devices", {str(device): _describe_device(device) for device in devices}))

    table = Table("op", *map(str, devices), title="kernels", title_justify="left")
    reasons = set()
    for case in CASES:
        found = {str(device): _why_not_fused(case, device) for device in devices}
        table.add_row(case.name, *("no" if reason else "fused" for reason in found.values()))
        reasons |= {f"{device}: {reason}" for device, reason in found.items() if reason}
    console.print(table)
    for reason in sorted(reasons):
        console.print(reason, soft_wrap=True, highlight=False, markup=False)


def _describe_device(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def _why_not_fused(case: OpCase, device: torch.device) -> str | None:
    """None if the op's compiled kernel ran on the device just now, else what was in its way."""
    try:
        case.call((1, 1, 8, 8), device=device)()
    except (NotBuiltError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0]
    return None


@app.command()
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


def main() -> None:
    """Run the command of this process."""
    app(prog_name="fastpose")
