"""What the fused ops are measured against: the best plain forms in PyTorch, eager and compiled, the libraries, and NumPy.

Each computes the same as the fused op from the same inputs, which is checked before anything is timed. The plain forms in
float64 are also the exact results. Coordinates that they return are in float32 at least, whatever the maps are.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fastpose.benchmarking.workload import Function, Provider, compiled

SIGMA = 2.0
TEMPERATURE = 1.0
BLUR = 11  # side of DARK's blur kernel
BLUR_SIGMA = 2.0

_LIBRARIES = ("kornia", "dsntnn", "torchvision", "numpy", "scipy")
# kornia scales a Gaussian to sum to 1 over the map. Brought back to a peak of 1, a keypoint 8 pixels, 4 sigma, from a border is
# high by the mass beyond it, 3.2e-5 at each of two borders; what lies at the border itself is not compared.
_KORNIA_SLACK, _KORNIA_BORDER = 1e-4, 16

Baselines = dict[str, Provider]
_Map = np.ndarray[Any, Any]


def _eager(function: Function) -> Provider:
    return Provider(lambda: function)


def _compiled(function: Function) -> Provider:
    return Provider(lambda: compiled(function))


def runnable(baselines: Baselines, device: str) -> Baselines:
    """Leaves out what cannot run here: a library that is not installed, NumPy and SciPy for a GPU."""
    missing = {library for library in _LIBRARIES if importlib.util.find_spec(library) is None}
    if device == "cuda":
        missing |= {"numpy", "scipy"}
    return {name: provider for name, provider in baselines.items() if missing.isdisjoint(name.replace(",", "").split())}


# ---- rendering --------------------------------------------------------------------------------------------------------


def render_separable(keypoints: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    # Clamped: torch's exp on the CPU is 10 to 40 times slower below -87.
    cells = torch.arange(size, device=keypoints.device, dtype=keypoints.dtype)
    factors = torch.exp((-0.5 / SIGMA**2 * (cells - keypoints.unsqueeze(-1)) ** 2).clamp(min=-80)).to(dtype)
    return factors[..., 1, :, None] * factors[..., 0, None, :]


def render_broadcast(keypoints: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    cells = torch.arange(size, device=keypoints.device, dtype=keypoints.dtype)
    dx, dy = cells - keypoints[..., 0, None], cells - keypoints[..., 1, None]
    squared = dy.square()[..., :, None] + dx.square()[..., None, :]
    return torch.exp((-0.5 / SIGMA**2 * squared).clamp(min=-80)).to(dtype)


def _render_kornia() -> Function:
    from kornia.geometry.subpix import render_gaussian2d

    def render(keypoints: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        std = keypoints.new_full((1, 2), SIGMA)
        maps = render_gaussian2d(keypoints, std, (size, size), normalized_coordinates=False)
        return (maps * (2 * math.pi * SIGMA**2)).to(dtype)

    return render


def _render_dsntnn() -> Function:
    import dsntnn

    def render(keypoints: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        normalised = (2 * keypoints + 1) / size - 1
        return dsntnn.make_gauss(normalised, [size, size], sigma=SIGMA, normalize=False).to(dtype)

    return render


def render_numpy(keypoints: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """As data loaders do it: one joint at a time."""
    cells = np.arange(size, dtype=np.float32)
    out = np.empty((*keypoints.shape[:2], size, size), np.float32)
    for b, person in enumerate(keypoints.numpy()):
        for k, (x, y) in enumerate(person):
            gx, gy = np.exp(-0.5 / SIGMA**2 * (cells - x) ** 2), np.exp(-0.5 / SIGMA**2 * (cells - y) ** 2)
            np.outer(gy, gx, out=out[b, k])
    return torch.from_numpy(out).to(dtype)


def render_baselines(device: str) -> Baselines:
    baselines = {
        "eager separable": _eager(render_separable),
        "eager broadcast": _eager(render_broadcast),
        "compile separable": _compiled(render_separable),
        "kornia": Provider(_render_kornia, slack=_KORNIA_SLACK, border=_KORNIA_BORDER),
        "dsntnn": Provider(_render_dsntnn),
        "numpy loop": _eager(render_numpy),
    }
    return runnable(baselines, device)


# ---- loss, forward and backward ---------------------------------------------------------------------------------------


def _loss_with(render: Function) -> Function:
    def loss(predictions: list[torch.Tensor], keypoints: torch.Tensor) -> torch.Tensor:
        maps = predictions[0]
        target = render(keypoints, maps.shape[-1], maps.dtype)
        return sum((functional.mse_loss(p, target) for p in predictions), keypoints.new_zeros(()))

    return loss


def _and_gradients(loss: Function) -> Function:
    def run(predictions: list[torch.Tensor], keypoints: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = loss(predictions, keypoints)
        return value.detach(), *torch.autograd.grad(value, predictions)

    return run


mse_separable = _loss_with(render_separable)
loss_separable = _and_gradients(mse_separable)


def loss_baselines(device: str) -> Baselines:
    baselines = {
        "eager separable": _eager(loss_separable),
        "compile separable": Provider(lambda: _and_gradients(compiled(_loss_with(render_separable)))),
        "compile broadcast": Provider(lambda: _and_gradients(compiled(_loss_with(render_broadcast)))),
        "kornia": Provider(lambda: _and_gradients(_loss_with(_render_kornia())), slack=_KORNIA_SLACK, border=_KORNIA_BORDER),
    }
    return runnable(baselines, device)


# ---- soft-argmax ------------------------------------------------------------------------------------------------------


def soft_argmax_marginals(heatmaps: torch.Tensor) -> torch.Tensor:
    height, width = heatmaps.shape[-2:]
    p = torch.softmax(heatmaps.flatten(2) / TEMPERATURE, -1).view_as(heatmaps)
    x = torch.arange(width, device=p.device, dtype=p.dtype)
    y = torch.arange(height, device=p.device, dtype=p.dtype)
    return torch.stack([(p.sum(-2) * x).sum(-1), (p.sum(-1) * y).sum(-1)], -1)


def _soft_argmax_kornia() -> Function:
    from kornia.geometry.subpix import spatial_soft_argmax2d

    return partial(spatial_soft_argmax2d, normalized_coordinates=False)  # at its temperature of 1


def _soft_argmax_dsntnn() -> Function:
    import dsntnn

    def soft_argmax(heatmaps: torch.Tensor) -> torch.Tensor:
        size = heatmaps.shape[-1]
        return ((dsntnn.dsnt(dsntnn.flat_softmax(heatmaps / TEMPERATURE)) + 1) * size - 1) / 2

    return soft_argmax


def soft_argmax_baselines(device: str, wrap: Callable[[Function], Function]) -> Baselines:
    """``wrap`` makes of coordinates what is timed: without a gradient, or with the backward pass."""
    functions: dict[str, Callable[[], Function]] = {
        "eager marginals": lambda: soft_argmax_marginals,
        "compile marginals": lambda: compiled(soft_argmax_marginals),
        "kornia": _soft_argmax_kornia,
        "compile kornia": lambda: compiled(_soft_argmax_kornia()),
        "dsntnn": _soft_argmax_dsntnn,
    }

    def provider(make: Callable[[], Function]) -> Provider:
        return Provider(lambda: wrap(make()))

    return runnable({name: provider(make) for name, make in functions.items()}, device)


# ---- decoding ---------------------------------------------------------------------------------------------------------


def _argmax(heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = heatmaps.flatten(2).max(-1).indices
    width = heatmaps.shape[-1]
    return index % width, index // width


def _coordinates(x: torch.Tensor, y: torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, y], -1).to(torch.promote_types(heatmaps.dtype, torch.float32))


def quarter_torch(heatmaps: torch.Tensor) -> torch.Tensor:
    height, width = heatmaps.shape[-2:]
    x, y = _argmax(heatmaps)
    inside = (x >= 1) & (x <= width - 2) & (y >= 1) & (y <= height - 2)
    flat, index = heatmaps.flatten(2), y.clamp(1, height - 2) * width + x.clamp(1, width - 2)

    def at(offset: int) -> torch.Tensor:
        return flat.gather(-1, (index + offset).unsqueeze(-1)).squeeze(-1)

    steps = torch.stack([torch.sign(at(1) - at(-1)), torch.sign(at(width) - at(-width))], -1)
    return _coordinates(x, y, heatmaps) + 0.25 * steps * inside.unsqueeze(-1)


def _decode_numpy(refine: Callable[[_Map, int, int], _Map], border: int, heatmaps: torch.Tensor) -> torch.Tensor:
    """As evaluation scripts do it: one joint at a time, refined where its maximum is ``border`` cells or more inside."""
    maps = heatmaps.float().numpy()
    batch, joints, height, width = maps.shape
    index = maps.reshape(batch, joints, -1).argmax(2)
    out = np.stack([index % width, index // width], -1).astype(np.float32)
    for b in range(batch):
        for k in range(joints):
            x, y = int(out[b, k, 0]), int(out[b, k, 1])
            if border <= x < width - border and border <= y < height - border:
                out[b, k] += refine(maps[b, k], x, y)
    return torch.from_numpy(out)


def _quarter_numpy(m: _Map, x: int, y: int) -> _Map:
    return 0.25 * np.sign([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]])


def blur_kernel(dtype: torch.dtype, device: str) -> torch.Tensor:
    """DARK's blur in one dimension, (11,), in float32 at least."""
    cells = torch.arange(BLUR, dtype=torch.float64) - BLUR // 2
    kernel = torch.exp(-0.5 * (cells / BLUR_SIGMA) ** 2)
    return (kernel / kernel.sum()).to(device, torch.promote_types(dtype, torch.float32))


def dark_torch(kernel: torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
    """DARK on a 15 x 15 patch around the maximum: the blur is needed at the stencil only."""
    height, width = heatmaps.shape[-2:]
    x, y = _argmax(heatmaps)
    reach = BLUR // 2 + 2
    side = 2 * reach + 1
    padded = functional.pad(heatmaps, (reach,) * 4).flatten(2)
    step = torch.arange(side, device=x.device)
    index = (y[..., None, None] + step[:, None]) * (width + 2 * reach) + x[..., None, None] + step
    patch = padded.gather(-1, index.flatten(2)).view(-1, 1, side, side).to(kernel.dtype)
    blurred = functional.conv2d(functional.conv2d(patch, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    log = blurred.clamp(min=1e-10).log().view(*x.shape, 5, 5)
    dx, dy = (log[..., 2, 3] - log[..., 2, 1]) / 2, (log[..., 3, 2] - log[..., 1, 2]) / 2
    centre = log[..., 2, 2]
    dxx, dyy = (log[..., 2, 4] - 2 * centre + log[..., 2, 0]) / 4, (log[..., 4, 2] - 2 * centre + log[..., 0, 2]) / 4
    dxy = (log[..., 3, 3] - log[..., 1, 3] - log[..., 3, 1] + log[..., 1, 1]) / 4
    determinant = dxx * dyy - dxy**2
    refine = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & (determinant != 0)
    safe = torch.where(refine, determinant, 1)
    offset = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], -1) / safe.unsqueeze(-1)
    return _coordinates(x, y, heatmaps) + torch.where(refine.unsqueeze(-1), offset, 0)


def _dark_numpy() -> Function:
    """DARK as data pipelines do it: every map blurred whole by OpenCV."""
    import cv2

    def refine(m: _Map, x: int, y: int) -> _Map:
        blurred = cv2.GaussianBlur(m, (BLUR, BLUR), BLUR_SIGMA, borderType=cv2.BORDER_CONSTANT)
        m = np.log(np.maximum(blurred, 1e-10))
        gradient = np.array([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]]) / 2
        dxy = (m[y + 1, x + 1] - m[y - 1, x + 1] - m[y + 1, x - 1] + m[y - 1, x - 1]) / 4
        dxx = (m[y, x + 2] - 2 * m[y, x] + m[y, x - 2]) / 4
        dyy = (m[y + 2, x] - 2 * m[y, x] + m[y - 2, x]) / 4
        hessian = np.array([[dxx, dxy], [dxy, dyy]])
        return np.zeros(2) if np.linalg.det(hessian) == 0 else -np.linalg.solve(hessian, gradient)

    return partial(_decode_numpy, refine, 2)


def quarter_baselines(device: str) -> Baselines:
    baselines = {
        "eager": _eager(quarter_torch),
        "compile": _compiled(quarter_torch),
        "numpy loop": _eager(partial(_decode_numpy, _quarter_numpy, 1)),
    }
    return runnable(baselines, device)


def dark_baselines(device: str, dtype: torch.dtype) -> Baselines:
    local = partial(dark_torch, blur_kernel(dtype, device))
    baselines = {"eager local": _eager(local), "compile local": _compiled(local)}
    if importlib.util.find_spec("cv2"):
        baselines["numpy, full blur"] = Provider(_dark_numpy)
    return runnable(baselines, device)
