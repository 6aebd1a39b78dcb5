"""The ``fastpose`` command."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import torch

from fastpose._library import NotBuiltError

try:
    import typer
    from typer.core import TyperGroup

    from fastpose.commands._output import complain
    from fastpose.commands.bench import bench
    from fastpose.commands.convert import convert
    from fastpose.commands.demo import demo
    from fastpose.commands.evaluate import evaluate
    from fastpose.commands.info import info
    from fastpose.commands.models import models
    from fastpose.commands.predict import predict
    from fastpose.commands.score import score
    from fastpose.commands.train import train
except ModuleNotFoundError as error:
    print(f"fastpose: the command needs {error.name}: pip install 'fastpose-kernels[train]'", file=sys.stderr)
    sys.exit(2)

_EXTRAS = {"cv2", "h5py", "lightning", "matplotlib", "pycocotools", "safetensors", "scipy", "tensorboard", "torchmetrics"}
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
            complain(error)
        except ModuleNotFoundError as error:
            if ctx.params["debug"] or error.name not in _EXTRAS:
                raise
            complain(f"this needs {error.name}: pip install 'fastpose-kernels[train]'")
        raise typer.Exit(2)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Human pose estimation with fused heatmap kernels."""


for command in (train, evaluate, predict, score, convert, demo, bench, models, info):
    app.command()(command)


def main() -> None:
    """Run the command of this process."""
    app(prog_name="fastpose")
