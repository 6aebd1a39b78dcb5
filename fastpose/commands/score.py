"""``fastpose score``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fastpose.commands._scores import score_table

if TYPE_CHECKING:
    from fastpose.metrics import OKSProtocol, Protocol
    from fastpose.score_files import Score


class Metric(str, Enum):
    """What to count: joints, or limbs by both ends or by their mean error."""

    pck = "pck"
    pcp = "pcp"
    pcp_loose = "pcp-loose"


def score(
    predictions: Annotated[list[str], typer.Argument(help="Files of predictions; NAME=FILE to name a method.")],
    truth: Annotated[Path, typer.Option(help="File of the labels, as the benchmark publishes it.")],
    protocol: Annotated[str, typer.Option(help="What counts, such as mpii_official or lsp_pc; see docs/metrics.md.")],
    metric: Annotated[Metric, typer.Option(help="Joints (PCK, PCKh), or limbs (PCP, strict or loose).")] = Metric.pck,
    threshold: Annotated[float | None, typer.Option(help="Largest distance of a hit, in place of the protocol's.")] = None,
    variable: Annotated[str | None, typer.Option(help="Name of the predictions within the files.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Order of the axes of people N, joints K, coordinates C, such as NKC or CKN.")
    ] = None,
    base: Annotated[int | None, typer.Option(help="Number of the first pixel in the predictions: 0 or 1.")] = None,
    joints: Annotated[str | None, typer.Option(help="Names of the predicted joints in their order, by commas.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with counts and curves.")] = False,
    curve: Annotated[Path | None, typer.Option(help="Picture of PCK over the threshold to write.")] = None,
    curve_of: Annotated[str, typer.Option(help="The joint, column or total whose curve to draw.")] = "total",
) -> None:
    """Score published predictions against published labels.

    Reads MATLAB (v5 and v7.3), HDF5, JSON, NumPy and safetensors files, finds the array, its layout and where its pixels
    begin, and says what it took for granted. COCO's results are scored by --protocol coco.
    """
    from fastpose.metrics import OKSProtocol, get_protocol
    from fastpose.score_files import read_predictions, read_truth, score_points

    files = _named(predictions)
    found = get_protocol(protocol)
    if isinstance(found, OKSProtocol):
        given = {"--threshold": threshold, "--variable": variable, "--layout": layout, "--base": base, "--joints": joints}
        unwanted = [name for name, value in {**given, "--curve": curve}.items() if value is not None]
        if unwanted or metric is not Metric.pck:
            raise ValueError(f"{', '.join(unwanted) or '--metric'} does not go with --protocol {protocol}")
        scores = _score_results(files, truth, found)
    else:
        if threshold is not None:
            found = replace(found, threshold=threshold)
        if curve is not None and metric is not Metric.pck:
            raise ValueError(f"--curve draws PCK, but --metric is {metric.value}")
        names = None if joints is None else [name.strip() for name in joints.split(",")]
        labels = read_truth(truth)
        reading = partial(
            read_predictions, truth=labels, limbs=found.limbs, variable=variable, layout=layout, base=base, joints=names
        )
        read = {name: reading(file) for name, file in files.items()}
        scores = [score_points(name, points, labels, found, metric.value) for name, points in read.items()]
        if curve is not None:
            _draw(scores, found, curve_of, curve)
    if as_json:
        content = {"truth": str(truth), "protocol": protocol, "methods": [entry.to_dict() for entry in scores]}
        typer.echo(json.dumps(content, indent=1, allow_nan=False))
        return
    for entry in scores:
        if entry.notes:
            typer.echo(f"{entry.name}: {'; '.join(entry.notes)}", err=True)
    Console().print(score_table(scores, protocol))


def _named(arguments: Sequence[str]) -> dict[str, Path]:
    """Files by the names of their methods: what is given, or the part of the path that tells them apart."""
    named: list[tuple[str | None, Path]] = []
    for argument in arguments:
        name, equals, file = argument.partition("=")
        given = bool(equals) and not Path(argument).exists()
        named.append((name, Path(file)) if given else (None, Path(argument)))
    # From the last part backwards to the first in which they differ.
    parts = [path.resolve().with_suffix("").parts[::-1] for name, path in named if name is None]
    levels = range(min(map(len, parts), default=0))
    level = next((level for level in levels if len({part[level] for part in parts}) == len(parts)), 0)
    found = iter(part[level] for part in parts)
    files = [(next(found) if name is None else name, path) for name, path in named]
    names = [name for name, _ in files]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"methods must differ in their names, but several are called {', '.join(repeated)}; give NAME=FILE")
    return dict(files)


def _score_results(files: dict[str, Path], truth: Path, protocol: OKSProtocol) -> list[Score]:
    from fastpose.score_files import score_results
    from fastpose.score_files.arrays import read_json

    annotations = read_json(truth)
    if not isinstance(annotations, dict):
        raise ValueError(f"{truth} must hold COCO's annotations, an object, got a {type(annotations).__name__}")
    scores = []
    for name, file in files.items():
        results = read_json(file)
        if not isinstance(results, list):
            raise ValueError(f"{file} must hold COCO's results, a list, got a {type(results).__name__}")
        scores.append(score_results(name, results, annotations, protocol))
    return scores


def _draw(scores: Sequence[Score], protocol: Protocol, name: str, path: Path) -> None:
    from fastpose.plots import threshold_curves

    unknown = [entry.name for entry in scores if name not in entry.curves]
    if unknown:
        raise ValueError(f"--curve-of must be one of {', '.join(scores[0].curves)}, got {name!r}")
    unit = protocol.normalizer if isinstance(protocol.normalizer, str) else "torso"
    threshold_curves(
        {entry.name: entry.curves[name] for entry in scores},
        scores[0].thresholds,
        path,
        title=f"{name} ({protocol.skeleton.name})",
        unit=unit.replace("_", " "),
    )
