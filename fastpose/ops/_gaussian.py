"""How a target is drawn: the options that rendering and the loss share, checked once and brought into the ops' form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastpose import _check

ROUNDINGS = ("none", "nearest", "floor")
WINDOWS = ("square", "disc")
COMBINES = ("max", "sum")

# The leading arguments of every op that draws Gaussians; GaussianArgs holds their values in this order.
SCHEMA = (
    "Tensor keypoints, Tensor? sigmas, float sigma, int rounding, float radius, bool circular, bool add, "
    "float amplitude, float offset"
)


class GaussianArgs(NamedTuple):
    keypoints: torch.Tensor  # (B, P, K, 2) float32 or float64, contiguous; NaN: no label
    sigmas: torch.Tensor | None  # (K,) in the keypoints' dtype
    sigma: float
    rounding: int
    radius: float
    circular: bool
    add: bool
    amplitude: float
    offset: float


def gaussian_args(
    keypoints: torch.Tensor,
    sigma: float | Sequence[float] | torch.Tensor,
    *,
    visible: torch.Tensor | None,
    rounding: str,
    radius: float | None,
    window: str,
    combine: str,
    amplitude: float,
    offset: float,
    dtype: torch.dtype,
) -> GaussianArgs:
    """Checks the options and converts them for maps of ``dtype``; raises TypeError or ValueError."""
    _check.floating("keypoints", keypoints)
    if keypoints.dim() not in (3, 4) or keypoints.shape[-1] != 2:
        raise ValueError(
            f"keypoints: got shape {_check.shape(keypoints)}, allowed is (B, K, 2) or, for several people, (B, P, K, 2)"
        )
    _check.option("rounding", rounding, ROUNDINGS)
    _check.option("window", window, WINDOWS)
    _check.option("combine", combine, COMBINES)
    radius = math.inf if radius is None else _check.number("radius", radius, positive=True, infinite=True)
    # Coordinates keep float32 or better whatever the maps are: bfloat16 cannot tell 200.5 from 201.
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    scalar, sigmas = _sigma(sigma, keypoints, precise)
    xy = keypoints.to(precise)
    if visible is not None:
        xy = torch.where(_visible(visible, keypoints).unsqueeze(-1), xy, math.nan)
    if xy.dim() == 3:
        xy = xy.unsqueeze(1)
    if rounding != "none":
        xy = xy.detach()
    return GaussianArgs(
        xy.contiguous(),
        sigmas,
        scalar,
        ROUNDINGS.index(rounding),
        radius,
        window == "disc",
        combine == "sum",
        _check.number("amplitude", amplitude),
        _check.number("offset", offset),
    )


def _sigma(
    sigma: float | Sequence[float] | torch.Tensor, keypoints: torch.Tensor, dtype: torch.dtype
) -> tuple[float, torch.Tensor | None]:
    joints = keypoints.shape[-2]
    if not isinstance(sigma, (torch.Tensor, list, tuple)):
        return _check.number("sigma", sigma, positive=True), None
    if not isinstance(sigma, torch.Tensor):
        for i, value in enumerate(sigma):
            _check.number(f"sigma[{i}]", value, positive=True)
        sigma = torch.tensor(sigma, dtype=dtype, device=keypoints.device)
    _check.floating("sigma", sigma)
    if sigma.shape not in ((), (joints,)):
        raise ValueError(f"sigma: got shape {_check.shape(sigma)}, allowed is a number or ({joints},), one for each joint")
    _check.same_device("sigma", sigma, "keypoints", keypoints)
    # Reading a GPU's memory would stall it; there the kernel treats such a sigma as "no label".
    if sigma.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError(f"sigma: got {sigma.tolist()}, allowed are positive finite numbers")
    return 1.0, sigma.to(dtype).expand(joints).contiguous()


def _visible(visible: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    if not isinstance(visible, torch.Tensor):
        raise TypeError(f"visible: got {type(visible).__name__}, allowed is a torch.Tensor")
    if visible.shape != keypoints.shape[:-1]:
        raise ValueError(
            f"visible: got shape {_check.shape(visible)}, allowed is {_check.shape(keypoints[..., 0])}, one for each keypoint"
        )
    _check.same_device("visible", visible, "keypoints", keypoints)
    return visible > 0 if visible.dtype != torch.bool else visible


def labelled(args: GaussianArgs) -> torch.Tensor:
    """(B, P, K) bool: where a keypoint is drawn at all."""
    finite = args.keypoints.isfinite().all(-1)
    if args.sigmas is None:
        return finite
    return finite & (args.sigmas > 0) & args.sigmas.isfinite()


def draw(args: GaussianArgs, height: int, width: int) -> torch.Tensor:
    """The definition, in plain PyTorch: (B, K, height, width) maps in the keypoints' dtype."""
    drawn = labelled(args)
    centres = torch.where(drawn.unsqueeze(-1), args.keypoints, 0)
    if args.rounding:
        centres = (centres + (0.5 if ROUNDINGS[args.rounding] == "nearest" else 0.0)).floor()
    sigmas = centres.new_full((centres.shape[2],), args.sigma) if args.sigmas is None else args.sigmas
    sigmas = torch.where((sigmas > 0) & sigmas.isfinite(), sigmas, 1)[:, None]
    dx = torch.arange(width, dtype=centres.dtype, device=centres.device) - centres[..., 0:1]
    dy = torch.arange(height, dtype=centres.dtype, device=centres.device) - centres[..., 1:2]
    gx, gy = torch.exp(-0.5 * (dx / sigmas) ** 2), torch.exp(-0.5 * (dy / sigmas) ** 2)
    g = gy.unsqueeze(-1) * gx.unsqueeze(-2)
    if args.circular:
        inside = dy.square().unsqueeze(-1) + dx.square().unsqueeze(-2) <= args.radius**2
    else:
        inside = (dy.abs() <= args.radius).unsqueeze(-1) & (dx.abs() <= args.radius).unsqueeze(-2)
    g = torch.where(inside & drawn[..., None, None], g, 0)
    if g.shape[1] == 0:
        g = g.new_zeros(g.shape[0], *g.shape[2:])
    elif args.add:
        g = g.sum(1).clamp(max=1)
    else:
        g = g.max(1).values  # the gradient goes to the first maximum
    return args.amplitude * g + args.offset
