"""The words in which wrong arguments are refused: name, what was given, what is allowed. No check reads device memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def floating(name: str, tensor: Any) -> None:
    """A tensor of float32, float16, bfloat16, or float64 on the CPU."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, allowed is a torch.Tensor")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, allowed are float32, float16, bfloat16 and (on the CPU) float64")
    if tensor.dtype == torch.float64 and tensor.device.type == "cuda":
        raise TypeError(f"{name}: got float64 on {tensor.device}, allowed on a GPU are float32, float16 and bfloat16")


def maps(name: str, tensor: Any) -> None:
    """A batch of maps (B, K, H, W) that are not empty."""
    floating(name, tensor)
    if tensor.dim() != 4:
        raise ValueError(f"{name}: got shape {shape(tensor)}, allowed is (B, K, H, W)")
    if tensor.shape[2] == 0 or tensor.shape[3] == 0:
        raise ValueError(f"{name}: got shape {shape(tensor)}, height and width must be at least 1")


def same_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name}: is on {tensor.device}, but {other_name} is on {other.device}")


def not_differentiated(name: str, tensor: torch.Tensor) -> None:
    """Refuses an operand that asks for a gradient where the op has none for it."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires grad, but is not differentiated; detach it")


def option(name: str, value: Any, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(map(repr, allowed))}")


def number(name: str, value: Any, *, positive: bool = False, infinite: bool = False) -> float:
    """A real number, finite unless ``infinite``, and above 0 if ``positive``."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)):  # the abstract Real last, as it takes longest
        raise TypeError(f"{name}: got {type(value).__name__}, allowed is a number")
    value = float(value)
    # Comparisons, because torch.compile cannot trace math.isnan of a number that varies between calls.
    if not -math.inf <= value <= math.inf or (abs(value) == math.inf and not infinite) or (positive and value <= 0):
        kind = ("positive " if positive else "") + ("number" if infinite else "finite number")
        raise ValueError(f"{name}: got {value}, allowed is a {kind}")
    return value


def positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, allowed is an integer")
    if value < 1:
        raise ValueError(f"{name}: got {value}, allowed is an integer of at least 1")
    return value


def non_negative_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, allowed is an integer")
    if value < 0:
        raise ValueError(f"{name}: got {value}, allowed is an integer of at least 0")
    return value


def size(name: str, value: Any) -> tuple[int, int]:
    """(height, width), or one integer for a square."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not isinstance(value, (tuple, list, torch.Size)) or len(value) != 2:
        raise TypeError(f"{name}: got {value!r}, allowed is an integer or (height, width)")
    return positive_int(f"{name}[0]", value[0]), positive_int(f"{name}[1]", value[1])
