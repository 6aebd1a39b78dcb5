"""What a result must say about the machine it was measured on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastpose


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split(", ")
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        **dict(zip(query.split(","), found, strict=False)),
    }


def describe(device: str) -> dict[str, Any]:
    import os

    info: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastpose": fastpose.__version__,
        "build": fastpose.build_info(),
        "commit": _commit(),
    }
    return info | (_gpu() if device == "cuda" else {})
