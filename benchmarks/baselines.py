"""What the fused ops are measured against: the best plain forms in PyTorch, eager and compiled, the libraries, and NumPy.

Each baseline computes the same thing as the fused op on the same inputs; bench_ops.py checks that before it times anything.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

SIGMA = 2.0
TEMPERATURE = 1.0
BLUR = 11  # side of DARK's blur kernel
BLUR_SIGMA = 0.3 * ((BLUR - 1) * 0.5 - 1) + 0.8
BLUR_KERNEL = torch.from_numpy(cv2.getGaussianKernel(BLUR, BLUR_SIGMA)).float()

Baselines = dict[str, Callable[..., Any]]


def installed(baselines: Baselines, device: str) -> Baselines:
    """Leaves out what cannot run here: a library that is not installed, NumPy loops for a GPU."""
    return {
        name: function
        for name, function in baselines.items()
        if not (device == "cuda" and name.startswith("numpy"))
        and all(importlib.util.find_spec(library) for library in ("kornia", "dsntnn") if library in name)
    }


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


# ---- rendering --------------------------------------------------------------------------------------------------------


def render_separable(keypoints: torch.Tensor, size: int) -> torch.Tensor:
    # Clamped: torch's exp on the CPU is 10 to 40 times slower below -87.
    cells = torch.arange(size, device=keypoints.device, dtype=keypoints.dtype)
    factors = torch.exp((-0.5 / SIGMA**2 * (cells - keypoints.unsqueeze(-1)) ** 2).clamp(min=-80))
    return factors[..., 1, :, None] * factors[..., 0, None, :]


def render_broadcast(keypoints: torch.Tensor, size: int) -> torch.Tensor:
    cells = torch.arange(size, device=keypoints.device, dtype=keypoints.dtype)
    dx, dy = cells - keypoints[..., 0, None], cells - keypoints[..., 1, None]
    squared = dy.square()[..., :, None] + dx.square()[..., None, :]
    return torch.exp((-0.5 / SIGMA**2 * squared).clamp(min=-80))


def render_kornia(keypoints: torch.Tensor, size: int) -> torch.Tensor:
    """Normalised to sum 1 by kornia, brought back to peak 1: exact away from the border only."""
    from kornia.geometry.subpix import render_gaussian2d

    joints = keypoints.shape[1]
    std = torch.full((joints, 2), SIGMA, device=keypoints.device, dtype=keypoints.dtype)
    maps = [render_gaussian2d(k, std, (size, size), normalized_coordinates=False) for k in keypoints.unbind()]
    return torch.stack(maps) * (2 * math.pi * SIGMA**2)


def render_dsntnn(keypoints: torch.Tensor, size: int) -> torch.Tensor:
    import dsntnn

    normalised = (2 * keypoints + 1) / size - 1
    return dsntnn.make_gauss(normalised, [size, size], sigma=SIGMA, normalize=False)


def render_numpy(keypoints: torch.Tensor, size: int) -> torch.Tensor:
    """As data loaders do it: one joint at a time."""
    cells = np.arange(size, dtype=np.float32)
    out = np.empty((*keypoints.shape[:2], size, size), np.float32)
    for b, person in enumerate(keypoints.numpy()):
        for k, (x, y) in enumerate(person):
            gx, gy = np.exp(-0.5 / SIGMA**2 * (cells - x) ** 2), np.exp(-0.5 / SIGMA**2 * (cells - y) ** 2)
            np.outer(gy, gx, out=out[b, k])
    return torch.from_numpy(out)


def render_baselines(device: str) -> Baselines:
    baselines: Baselines = {
        "eager separable": render_separable,
        "eager broadcast": render_broadcast,
        "compile separable": compiled(render_separable),
        "kornia": render_kornia,
        "dsntnn": render_dsntnn,
        "numpy loop": render_numpy,
    }
    return installed(baselines, device)


# ---- loss, forward and backward ---------------------------------------------------------------------------------------


def _gradients(loss: torch.Tensor, predictions: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, predictions)


def _loss_with(render: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def loss(predictions: list[torch.Tensor], keypoints: torch.Tensor) -> torch.Tensor:
        target = render(keypoints, predictions[0].shape[-1])
        return sum((torch.nn.functional.mse_loss(p, target.to(p.dtype)) for p in predictions), keypoints.new_zeros(()))

    return loss


def loss_baselines(device: str) -> Baselines:
    def with_backward(loss: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        return lambda predictions, keypoints: _gradients(loss(predictions, keypoints), predictions)

    baselines: Baselines = {
        "eager separable": with_backward(_loss_with(render_separable)),
        "compile separable": with_backward(compiled(_loss_with(render_separable))),
        "compile broadcast": with_backward(compiled(_loss_with(render_broadcast))),
        "kornia": with_backward(_loss_with(render_kornia)),
    }
    return installed(baselines, device)


# ---- soft-argmax ------------------------------------------------------------------------------------------------------


def soft_argmax_marginals(heatmaps: torch.Tensor) -> torch.Tensor:
    height, width = heatmaps.shape[-2:]
    p = torch.softmax(heatmaps.flatten(2) / TEMPERATURE, -1).view_as(heatmaps)
    x = torch.arange(width, device=p.device, dtype=p.dtype)
    y = torch.arange(height, device=p.device, dtype=p.dtype)
    return torch.stack([(p.sum(-2) * x).sum(-1), (p.sum(-1) * y).sum(-1)], -1)


def soft_argmax_kornia(heatmaps: torch.Tensor) -> torch.Tensor:
    from kornia.geometry.subpix import spatial_soft_argmax2d

    temperature = torch.tensor(1 / TEMPERATURE, device=heatmaps.device, dtype=heatmaps.dtype)
    return spatial_soft_argmax2d(heatmaps, temperature, normalized_coordinates=False)


def soft_argmax_dsntnn(heatmaps: torch.Tensor) -> torch.Tensor:
    import dsntnn

    size = heatmaps.shape[-1]
    return ((dsntnn.dsnt(dsntnn.flat_softmax(heatmaps / TEMPERATURE)) + 1) * size - 1) / 2


def soft_argmax_baselines(device: str) -> Baselines:
    baselines: Baselines = {
        "eager marginals": soft_argmax_marginals,
        "compile marginals": compiled(soft_argmax_marginals),
        "kornia": soft_argmax_kornia,
        "compile kornia": compiled(soft_argmax_kornia),
        "dsntnn": soft_argmax_dsntnn,
    }
    return installed(baselines, device)


# ---- decoding ---------------------------------------------------------------------------------------------------------


def _argmax(heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = heatmaps.flatten(2)
    scores, index = flat.max(-1)
    width = heatmaps.shape[-1]
    return scores, index % width, index // width


def quarter_torch(heatmaps: torch.Tensor) -> torch.Tensor:
    height, width = heatmaps.shape[-2:]
    _, x, y = _argmax(heatmaps)
    inside = (x >= 1) & (x <= width - 2) & (y >= 1) & (y <= height - 2)
    flat, index = heatmaps.flatten(2), y.clamp(1, height - 2) * width + x.clamp(1, width - 2)

    def at(offset: int) -> torch.Tensor:
        return flat.gather(-1, (index + offset).unsqueeze(-1)).squeeze(-1)

    steps = torch.stack([torch.sign(at(1) - at(-1)), torch.sign(at(width) - at(-width))], -1)
    return torch.stack([x, y], -1) + 0.25 * steps * inside.unsqueeze(-1)


def quarter_numpy(heatmaps: torch.Tensor) -> torch.Tensor:
    maps = heatmaps.numpy()
    batch, joints, height, width = maps.shape
    index = maps.reshape(batch, joints, -1).argmax(2)
    out = np.stack([index % width, index // width], -1).astype(np.float32)
    for b in range(batch):
        for k in range(joints):
            x, y = int(out[b, k, 0]), int(out[b, k, 1])
            if 1 <= x <= width - 2 and 1 <= y <= height - 2:
                m = maps[b, k]
                out[b, k] += 0.25 * np.sign([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]])
    return torch.from_numpy(out)


def dark_torch(heatmaps: torch.Tensor) -> torch.Tensor:
    """DARK on a 15 x 15 patch around the maximum: the blur is needed at the stencil only."""
    height, width = heatmaps.shape[-2:]
    _, x, y = _argmax(heatmaps)
    reach = BLUR // 2 + 2
    side = 2 * reach + 1
    padded = torch.nn.functional.pad(heatmaps, (reach,) * 4).flatten(2)
    step = torch.arange(side, device=x.device)
    index = (y[..., None, None] + step[:, None]) * (width + 2 * reach) + x[..., None, None] + step
    patch = padded.gather(-1, index.flatten(2)).view(-1, 1, side, side)
    kernel = BLUR_KERNEL.to(heatmaps)
    blurred = torch.nn.functional.conv2d(torch.nn.functional.conv2d(patch, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    log = blurred.clamp(min=1e-10).log().view(*x.shape, 5, 5)
    dx, dy = (log[..., 2, 3] - log[..., 2, 1]) / 2, (log[..., 3, 2] - log[..., 1, 2]) / 2
    centre = log[..., 2, 2]
    dxx, dyy = (log[..., 2, 4] - 2 * centre + log[..., 2, 0]) / 4, (log[..., 4, 2] - 2 * centre + log[..., 0, 2]) / 4
    dxy = (log[..., 3, 3] - log[..., 1, 3] - log[..., 3, 1] + log[..., 1, 1]) / 4
    determinant = dxx * dyy - dxy**2
    refine = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & (determinant != 0)
    safe = torch.where(refine, determinant, 1)
    offset = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], -1) / safe.unsqueeze(-1)
    return torch.stack([x, y], -1) + torch.where(refine.unsqueeze(-1), offset, 0)


def dark_numpy(heatmaps: torch.Tensor) -> torch.Tensor:
    """DARK as data pipelines do it: every map blurred whole by OpenCV."""
    maps = heatmaps.numpy()
    batch, joints, height, width = maps.shape
    index = maps.reshape(batch, joints, -1).argmax(2)
    out = np.stack([index % width, index // width], -1).astype(np.float32)
    for b in range(batch):
        for k in range(joints):
            x, y = int(out[b, k, 0]), int(out[b, k, 1])
            if not (1 < x < width - 2 and 1 < y < height - 2):
                continue
            blurred = cv2.GaussianBlur(maps[b, k], (BLUR, BLUR), BLUR_SIGMA, borderType=cv2.BORDER_CONSTANT)
            m = np.log(np.maximum(blurred, 1e-10))
            gradient = np.array([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]]) / 2
            dxy = (m[y + 1, x + 1] - m[y - 1, x + 1] - m[y + 1, x - 1] + m[y - 1, x - 1]) / 4
            dxx = (m[y, x + 2] - 2 * m[y, x] + m[y, x - 2]) / 4
            dyy = (m[y + 2, x] - 2 * m[y, x] + m[y - 2, x]) / 4
            hessian = np.array([[dxx, dxy], [dxy, dyy]])
            if np.linalg.det(hessian) != 0:
                out[b, k] -= np.linalg.solve(hessian, gradient)
    return torch.from_numpy(out)


def quarter_baselines(device: str) -> Baselines:
    return installed({"eager": quarter_torch, "compile": compiled(quarter_torch), "numpy loop": quarter_numpy}, device)


def dark_baselines(device: str) -> Baselines:
    return installed({"eager local": dark_torch, "compile local": compiled(dark_torch), "numpy, full blur": dark_numpy}, device)
