"""``fastpose info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

import fastpose
from fastpose._library import NotBuiltError
from fastpose.commands._output import pairs
from fastpose.nn import HourglassResidual

if TYPE_CHECKING:
    from fastpose.cases import OpCase


def info() -> None:
    """Show how fastpose was built, the devices, and which ops and layers run fused on them."""
    from fastpose.cases import CASES

    console = Console()
    facts = {"fastpose": fastpose.__version__, "torch": torch.__version__}
    try:
        facts.update(fastpose.build_info())
    except NotBuiltError as error:
        facts["build"] = str(error)
    console.print(pairs("build", facts))

    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    console.print(pairs("devices", {str(device): _describe_device(device) for device in devices}))

    table = Table("op", *map(str, devices), title="kernels", title_justify="left")
    reasons = set()
    for case in CASES:
        found = {str(device): _why_not_fused(case, device) for device in devices}
        table.add_row(case.name, *("no" if reason else "fused" for reason in found.values()))
        reasons |= {f"{device}: {reason}" for device, reason in found.items() if reason}
    for title, path in (("residual, inference", _inference_path), ("residual, training", _training_path)):
        paths = {str(device): path(device) for device in devices}
        table.add_row(title, *(name for name, _ in paths.values()))
        reasons |= {f"{device}: {title} is {name}: {reason}" for device, (name, reason) in paths.items() if name == "plain"}
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


def _inference_path(device: torch.device) -> tuple[str, str]:
    with torch.no_grad():
        block, x = _residual(device)
        return block.eval().inference_path(x)


def _training_path(device: torch.device) -> tuple[str, str]:
    block, x = _residual(device)
    return block.training_path(x)


def _residual(device: torch.device) -> tuple[HourglassResidual, torch.Tensor]:
    """The paper's block and an input, in the dtype that is usual on the device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    block = HourglassResidual(256, 256).to(device, dtype)
    return block, torch.empty(1, 256, 64, 64, device=device, dtype=dtype)
