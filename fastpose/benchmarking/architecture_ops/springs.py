"""The messages of a tree of springs: distance transforms of a network's log-scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fastpose import ops
from fastpose.benchmarking.architecture_ops.job import Job, Wrap, and_gradient, forward, wide
from fastpose.benchmarking.workload import Function, Inputs, Provider, compiled

MAPS = (14, 64, 64)
_SCORE_UNIT, _SPRING_UNIT = 1 / 64, 1 / 256

Results = tuple[torch.Tensor, ...]  # the values, and where they are reached


def _fused(scores: torch.Tensor, springs: torch.Tensor) -> Results:
    return ops.distance_transform2d(scores, springs)


def _values(results: Results) -> torch.Tensor:
    return results[0]


# ---- plain forms ------------------------------------------------------------------------------------------------------


def _costs(cells: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(K, q, u)"""
    place = torch.arange(cells, dtype=a.dtype, device=a.device)
    d = place - place[:, None]
    return d * (a[:, None, None] * d + b[:, None, None])


def all_pairs(scores: torch.Tensor, springs: torch.Tensor) -> Results:
    """Two maxima over all pairs of cells along an axis, and where they are."""
    (ax, bx, ay, by), (height, width) = springs.unbind(-1), scores.shape[2:]
    maps = scores.to(wide(scores.dtype))
    best, columns = (maps.unsqueeze(-2) - _costs(width, ax, bx)[:, None]).max(-1)
    down, rows = (best.transpose(2, 3).unsqueeze(-2) - _costs(height, ay, by)[:, None]).max(-1)
    values, rows = down.transpose(2, 3), rows.transpose(2, 3)
    return values.to(scores.dtype), rows * width + columns.gather(2, rows)


def _best(scores: torch.Tensor, springs: torch.Tensor) -> torch.Tensor:
    return _values(all_pairs(scores, springs))


def _shifted(scores: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Results:
    """Along the last axis, distance by distance, without a tensor of all pairs."""
    cells = scores.shape[-1]
    best = torch.full_like(scores, -torch.inf)
    place = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
    columns = torch.arange(cells, dtype=torch.int32, device=scores.device)
    for d in range(1 - cells, cells):
        q = slice(max(0, -d), cells - max(0, d))
        u = slice(max(0, d), cells + min(0, d))
        value = scores[..., u] - (d * (a * d + b))[:, None, None]
        better = value > best[..., q]
        best[..., q] = torch.where(better, value, best[..., q])
        place[..., q] = torch.where(better, columns[u], place[..., q])
    return best, place


def by_shifts(scores: torch.Tensor, springs: torch.Tensor) -> Results:
    ax, bx, ay, by = springs.unbind(-1)
    best, columns = _shifted(scores.to(wide(scores.dtype)), ax, bx)
    down, rows = _shifted(best.transpose(2, 3).contiguous(), ay, by)
    values, rows = down.transpose(2, 3), rows.transpose(2, 3).long()
    return values.to(scores.dtype), rows * scores.shape[-1] + columns.gather(2, rows)


def _scipy_dilation() -> Function:
    """SciPy's grey dilation along each axis; it does not say where the maxima are."""
    from scipy.ndimage import grey_dilation

    def line(cells: int, a: float, b: float) -> np.ndarray[Any, Any]:
        d = np.arange(1 - cells, cells)
        return -(a * d**2 - b * d).astype(np.float32)  # a dilation mirrors its structure

    def run(scores: torch.Tensor, springs: torch.Tensor) -> Results:
        maps = scores.detach().float().numpy()
        out = np.empty(maps.shape, np.float32)
        for k, (ax, bx, ay, by) in enumerate(springs.tolist()):
            across, down = line(maps.shape[3], ax, bx)[None], line(maps.shape[2], ay, by)[:, None]
            for sample in range(maps.shape[0]):
                along = grey_dilation(maps[sample, k], structure=across, mode="constant", cval=-np.inf)
                out[sample, k] = grey_dilation(along, structure=down, mode="constant", cval=-np.inf)
        return (torch.from_numpy(out).to(scores.dtype),)

    return run


def _baselines(wrap: Wrap) -> dict[str, Provider]:
    def provider(make: Callable[[], Function]) -> Provider:
        return Provider(lambda: wrap(make()))

    return {"eager all pairs": provider(lambda: all_pairs), "compile all pairs": provider(lambda: compiled(all_pairs))}


# ---- jobs -------------------------------------------------------------------------------------------------------------


def _inputs(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Logarithms of a Gaussian a joint, 2 cells wide, over a noisy floor; springs of 3 to 8 cells.

    All on grids on which sums are exact in float32: where two cells are equally good, they are so in every precision.
    """
    joints, height, width = MAPS
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(batch, joints, 2, generator=generator) * torch.tensor([width, height])
    dx, dy = torch.arange(width) - centres[..., :1], torch.arange(height) - centres[..., 1:]
    peak = torch.exp(-(dy.square()[..., None] + dx.square()[..., None, :]) / 8)
    scores = (peak + 1e-3 * torch.rand(peak.shape, generator=generator) + 1e-4).log()
    scores = _SCORE_UNIT * (scores / _SCORE_UNIT).round()
    quadratic = _SPRING_UNIT * torch.randint(2, 15, (joints, 2), generator=generator)
    linear = _SPRING_UNIT * torch.randint(-8, 9, (joints, 2), generator=generator)
    springs = torch.stack((quadratic, linear), -1).flatten(1)
    return scores.to(device, dtype).requires_grad_(), springs.to(device)


def _bytes(dtype: torch.dtype, *, backward: bool = False) -> int:
    joints, height, width = MAPS
    maps, cells = dtype.itemsize, torch.int32.itemsize
    return joints * height * width * (2 * maps + cells) * (2 if backward else 1)


JOBS = (
    Job(
        "distance transform forward",
        MAPS,
        _inputs,
        forward(_fused),
        forward(_best),
        _baselines(forward) | {"eager shifts": Provider(lambda: forward(by_shifts)), "scipy dilation": Provider(_scipy_dilation)},
        _bytes,
        compared=_values,
    ),
    Job(
        "distance transform forward+backward",
        MAPS,
        _inputs,
        and_gradient(result=_values)(_fused),
        and_gradient()(_best),
        _baselines(and_gradient(result=_values)),
        partial(_bytes, backward=True),
    ),
)
