"""The demonstration: a small hourglass learns drawn figures on the spot, and the ops are timed on this machine."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer

import fastpose
from fastpose._files import write_atomically
from fastpose.benchmarking.machine import cpu_name
from fastpose.cases import CASES
from fastpose.checkpoints import load_model
from fastpose.commands._output import stages_table
from fastpose.data.crops import CropSettings, PoseDataset, PoseSample
from fastpose.data.figures import VALIDATION_SEED, Figures
from fastpose.plots import SheetRow, figure_sheet
from fastpose.recipes import Recipe, get_recipe
from fastpose.skeletons import MPII
from fastpose.training import TrainingResult, figures_data, train

_PEOPLE_SHOWN = 5
_ENLARGEMENT = 5  # of the pictures that are shown over those that the model sees

_TIMED_SHAPE = (32, 16, 64, 64)
_TIMED = (  # op, variant of its case, whether with its backward pass
    ("gaussian_heatmap", "plain", False),
    ("heatmap_mse_loss", "plain", True),
    ("soft_argmax2d", "plain", True),
    ("decode_heatmaps", "plain", False),
    ("decode_heatmaps", "dark", False),
)
_ROUNDS = 11


@dataclass(frozen=True)
class OpTiming:
    """Median times of an op on this machine, in milliseconds.

    Attributes:
        op: name, with the variant where it is not the plain one and the backward pass where it is included.
        fused: compiled kernel.
        reference: the same in plain PyTorch.
        ratio: reference / fused.
    """

    op: str
    fused: float
    reference: float
    ratio: float


def run_demo(
    out: str | os.PathLike[str] = ".", *, steps: int | None = None, seed: int = 0, progress: bool = True
) -> TrainingResult:
    """Train on drawn figures, show what was learnt, time the ops; print tables and write three files.

    ``fastpose_demo.png`` shows the first unseen figures with true and predicted skeletons, heatmaps and the learning
    curve; ``fastpose_demo.json`` holds the numbers; ``fastpose_demo.safetensors`` the weights, for
    ``fastpose predict``.

    Args:
        out: folder to write to, made if need be.
        steps: optimizer steps; None: those of the recipe ``"hourglass-demo"``.
        seed: of weights and figures.
        progress: whether to show a progress bar.

    Returns:
        The result of the training, with its weights in ``out``.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
        ValueError: an argument is not as above.
    """
    start = time.perf_counter()
    recipe = get_recipe("hourglass-demo", **({} if steps is None else {"steps": steps}))
    data = figures_data(recipe, seed)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    machine = describe_machine()
    console.print(
        f"A stacked hourglass ({recipe.model_options['stacks']} stacks, {recipe.model_options['features']} features) "
        f"learns {len(data.train):,} drawn figures in {recipe.steps:,} steps; "
        f"{len(data.validation)} unseen ones say how well."
    )
    console.print(", ".join(f"{name}: {value}" for name, value in machine.items()), highlight=False)

    weights = out / "fastpose_demo.safetensors"
    with tempfile.TemporaryDirectory() as run:
        result = train(recipe, data, run, seed=seed, progress=progress)
        write_atomically(weights, result.weights.read_bytes())
    result = TrainingResult(weights, result.history, result.scores)
    trained = time.perf_counter()
    console.print(stages_table(f"PCKh@0.5 (%) on {len(data.validation)} unseen figures", result.scores))

    figure_sheet(_sheet_rows(recipe, result), result.history, MPII, out / "fastpose_demo.png")
    timings = time_ops()
    console.print(_timings_table(timings))
    summary = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "unseen_figures": len(data.validation),
        "history": result.history,
        "pckh_initial": result.initial,
        "pckh_final": result.final,
        "machine": machine,
        "training_seconds": round(trained - start, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "timings_ms": {"shape": _TIMED_SHAPE, "dtype": "float32", "ops": [asdict(timing) for timing in timings]},
    }
    write_atomically(out / "fastpose_demo.json", json.dumps(summary, indent=1).encode())
    files = ", ".join(str(out / f"fastpose_demo.{kind}") for kind in ("png", "json", "safetensors"))
    console.print(f"{files} written; {summary['seconds']:.0f} s in all.", soft_wrap=True, highlight=False)
    return result


def describe_machine() -> dict[str, Any]:
    """What the timings depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "simd": fastpose.build_info()["simd_level"],
        "torch": torch.__version__,
        "fastpose": fastpose.__version__,
    }


def time_ops(shape: tuple[int, int, int, int] = _TIMED_SHAPE, rounds: int = _ROUNDS) -> list[OpTiming]:
    """Time every fused op against its plain-PyTorch reference, in turns, so that a busy machine slows both.

    Args:
        shape: (B, K, H, W) of the maps, float32.
        rounds: how often each is timed; the medians are reported.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = {case.name: case for case in CASES}
    timings = []
    for name, variant, backward in _TIMED:
        call = cases[name].call(shape, variant, device=device)
        run = _forward_backward if backward else _forward
        fused, reference = (
            Timer(
                "run(function, leaves)",
                globals={"run": run, "function": function, "leaves": call.leaves()},
                num_threads=torch.get_num_threads(),
            )
            for function in (call, call.reference)
        )
        # Each measurement runs once beforehand to warm up.
        times = [(fused.timeit(1).median, reference.timeit(1).median) for _ in range(rounds)]
        fused_ms, reference_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        title = name + (f" ({variant})" if variant != "plain" else "") + (" forward + backward" if backward else "")
        timings.append(OpTiming(title, fused_ms, reference_ms, reference_ms / fused_ms))
    return timings


def _forward(function: Callable[[], tuple[torch.Tensor, ...]], leaves: list[torch.Tensor]) -> None:
    with torch.no_grad():
        function()


def _forward_backward(function: Callable[[], tuple[torch.Tensor, ...]], leaves: list[torch.Tensor]) -> None:
    torch.autograd.grad(function()[0].sum(), leaves)


def _sheet_rows(recipe: Recipe, result: TrainingResult) -> list[SheetRow]:
    """The first people validated on, as the model sees them and drawn larger for the eye."""
    codec = recipe.make_codec()
    assert codec is not None
    height, width = codec.input_size
    seen, shown = (_first_people(size) for size in ((height, width), (_ENLARGEMENT * height, _ENLARGEMENT * width)))
    model = load_model(result.weights).eval()
    with torch.inference_mode():
        stacks = model(torch.stack([sample["image"] for sample in seen]))
    # The crops' convention, (R/h)(x - c) + R/2, makes their coordinates proportional to their size R.
    initial, final = (_ENLARGEMENT * codec.decode(maps).coordinates.numpy() for maps in (stacks[0], stacks[-1]))
    return [
        SheetRow(
            image=(255 * sample["image"]).permute(1, 2, 0).byte().numpy(),
            truth=sample["keypoints"].numpy(),
            visible=sample["visible"].numpy(),
            initial=initial[index],
            final=final[index],
            heatmaps=stacks[-1][index].numpy(),
        )
        for index, sample in enumerate(shown)
    ]


def _first_people(size: tuple[int, int]) -> list[PoseSample]:
    figures = Figures(_PEOPLE_SHOWN, seed=VALIDATION_SEED, size=size)
    crops = PoseDataset(figures, MPII, CropSettings(size=size))
    return [crops[index] for index in range(_PEOPLE_SHOWN)]


def _timings_table(timings: list[OpTiming]) -> Table:
    batch, joints, height, width = _TIMED_SHAPE
    title = f"{batch} x {joints} maps of {height} x {width}, float32, {torch.get_num_threads()} threads, medians"
    table = Table("op", title=title, title_justify="left")
    for column in ("fused, ms", "plain PyTorch, ms", "ratio"):
        table.add_column(column, justify="right")
    for timing in timings:
        table.add_row(timing.op, f"{timing.fused:.2f}", f"{timing.reference:.2f}", f"{timing.ratio:.1f}")
    return table
