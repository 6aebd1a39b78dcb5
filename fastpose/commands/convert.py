"""``fastpose convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fastpose.commands._options import numbers
from fastpose.commands._output import pairs

if TYPE_CHECKING:
    from fastpose.published import PublishedModel


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of pytorch-pose, its fork by anibali, or princeton-vl.")],
    out: Annotated[Path, typer.Option(help="Weights to write, a .safetensors file.")],
    skeleton: Annotated[str | None, typer.Option(help="Joints of the heatmaps, in place of the published ones: lsp, ...")] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Side of the crops it was trained with, in place of the published one.")
    ] = None,
    image_mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="What it subtracts from images in 0..1, in place of the published one.")
    ] = None,
) -> None:
    """Convert a published checkpoint to weights for predict, saying what was recognised.

    The last three options are for weights that were trained with the same code on other data.
    """
    from fastpose.published import load_published

    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise ValueError(f"--out must not be the checkpoint, got {out}")
    mean = None if image_mean is None else numbers("--image-mean", image_mean, "R,G,B")
    published = load_published(checkpoint, skeleton=skeleton, input_size=input_size, image_mean=mean)
    published.save(out)
    console = Console()
    console.print(pairs(f"recognised as {published.publication.name}", _describe(published)))
    console.print(f"weights: {out}", soft_wrap=True, highlight=False)


def _describe(published: PublishedModel) -> dict[str, Any]:
    model, codec = published.model, published.codec
    options = model.options
    return {
        "published by": published.publication.source,
        "network": f"hourglass of {options['stacks']} stack(s), {options['features']} features, depth {options['depth']}, "
        f"{options['modules']} residual(s) in a row, stem of {options['stem']}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "left out": f"{len(published.dead_weights)} tensors that the network does not use",
        "joints": f"{options['num_joints']}, {published.skeleton.name if published.skeleton else 'unknown'}",
        "crops": "{} x {} pixels".format(*codec.input_size),
        "images": "RGB in 0..1" + (f", less {', '.join(map(str, options['image_mean']))}" if any(options["image_mean"]) else ""),
        "codec": f"{published.publication.codec}, sigma {codec.sigma:g}",
    }
