"""What a result must say about the machine it was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastpose

ROOT = Path(fastpose.__file__).resolve().parents[1]
"""Of the checkout that fastpose was imported from, if it was."""

_GPU_FACTS = "driver_version,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"


def describe(device: str) -> dict[str, Any]:
    """The machine, the software, and their state now.

    Args:
        device: ``"cpu"`` or ``"cuda"``; the GPU's facts are only in the latter's.
    """
    facts: dict[str, Any] = {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "fastpose": fastpose.__version__,
        "build": fastpose.build_info(),
        "commit": commit(ROOT),
    }
    return facts | (_describe_gpu() if device == "cuda" else {})


def name_of(machine: dict[str, Any]) -> str:
    """For file names: ``cpu``, or the GPU's, such as ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-") if machine["device"] == "cuda" else "cpu"


def commit(root: Path) -> str | None:
    """Which revision a checkout is at, ``-dirty`` if it has been changed since; None if ``root`` is not one's root."""
    if git(root, "rev-parse", "--show-toplevel") != str(root):
        return None
    return git(root, "describe", "--always", "--dirty", "--abbrev=12")


def git(root: Path, *arguments: str) -> str | None:
    """What a git command prints, None if it fails or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **_ask_driver(),
    }


def _ask_driver() -> dict[str, str]:
    """Driver, clocks and power limit; empty where there is no ``nvidia-smi``."""
    command = ["nvidia-smi", f"--query-gpu={_GPU_FACTS}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return {}
    return dict(zip(_GPU_FACTS.split(","), done.stdout.strip().split(", "), strict=False)) if done.returncode == 0 else {}
