"""Distance transforms against all pairs of cells, SciPy's dilation and the lower envelope of parabolas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from fastpose import backend
from fastpose.ops import distance_transform2d

BACKENDS = ("fused", "reference")
each_backend = pytest.mark.parametrize("name", BACKENDS)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_pairs(scores: np.ndarray, spring: list[float], anchor: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The definition for one map (H, W)."""
    height, width = scores.shape
    ax, bx, ay, by = spring
    values, cells = np.empty_like(scores), np.empty(scores.shape, int)
    uy, ux = np.mgrid[:height, :width]
    for y, x in itertools.product(range(height), range(width)):
        dx, dy = ux - x - anchor[0], uy - y - anchor[1]
        total = scores - (ax * dx**2 + bx * dx + ay * dy**2 + by * dy)
        values[y, x], cells[y, x] = total.max(), total.argmax()
    return values, cells


@each_backend
@pytest.mark.parametrize("signs", [1, -1])
def test_equals_all_pairs(name: str, signs: int) -> None:
    """Springs that push away are searched as exactly."""
    scores, anchors = 3 * random(2, 3, 9, 13), 2 * random(2, 3, 2, seed=2)
    springs = random(2, 3, 4, seed=1)
    springs[..., ::2] = 0.1 * signs * springs[..., ::2].abs()
    with backend(name):
        values, cells = distance_transform2d(scores, springs, anchors)
    assert cells.dtype == torch.int32
    for b, k in itertools.product(range(2), range(3)):
        expected = all_pairs(scores[b, k].numpy(), springs[b, k].tolist(), anchors[b, k].tolist())
        np.testing.assert_allclose(values[b, k], expected[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(cells[b, k], expected[1])


@each_backend
def test_equals_grey_dilation(name: str) -> None:
    scores, (ax, bx, ay, by) = random(1, 1, 16, 11), (0.05, -0.1, 0.2, 0.15)
    dy, dx = np.mgrid[-15:16, -10:11]
    # SciPy's structure is mirrored: it is added to the score at q - d.
    structure = -(ax * dx**2 - bx * dx + ay * dy**2 - by * dy)
    expected = scipy.ndimage.grey_dilation(scores[0, 0].numpy(), structure=structure, mode="constant", cval=-np.inf)
    with backend(name):
        values = distance_transform2d(scores, torch.tensor([[ax, bx, ay, by]])).values
    np.testing.assert_allclose(values[0, 0], expected)


@each_backend
def test_an_anchor_is_a_shift(name: str) -> None:
    """A part that rests 3 columns right of and 2 rows above the other."""
    scores = torch.full((1, 1, 12, 12), -100.0)
    scores[0, 0, 5, 8] = 0
    with backend(name):
        values, cells = distance_transform2d(scores, torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[3.0, -2.0]]))
    assert divmod(values.argmax().item(), 12) == (7, 5)
    assert values.max() == 0
    assert cells[0, 0, 7, 5] == 5 * 12 + 8


@each_backend
def test_equal_scores_give_the_first_cell(name: str) -> None:
    with backend(name):
        flat = distance_transform2d(torch.zeros(1, 1, 3, 4), torch.zeros(1, 4))
        pulled = distance_transform2d(torch.tensor([[[[1.0, 0.0, 1.0]]]]), torch.tensor([[0.25, 0.0, 0.25, 0.0]]))
    assert not flat.cells.any()
    assert pulled.cells.flatten().tolist() == [0, 0, 2]


@each_backend
def test_nothing_and_not_a_number(name: str) -> None:
    scores = torch.full((1, 3, 2, 3), -math.inf)
    scores[0, 1] = math.nan
    scores[0, 2, 1, 2] = math.inf
    scores[0, 2, 0, 0] = math.nan
    with backend(name):
        values, cells = distance_transform2d(scores, torch.ones(3, 4))
    assert (values[0, :2] == -math.inf).all()
    assert not cells[0, :2].any()
    assert (values[0, 2] == math.inf).all()
    assert (cells[0, 2] == 5).all()


@each_backend
def test_gradients_are_those_of_the_chosen_cells(name: str) -> None:
    scores = (3 * random(1, 2, 5, 7)).requires_grad_()
    springs = random(2, 4, seed=1).abs().requires_grad_()
    anchors = random(2, 2, seed=2).requires_grad_()
    with backend(name):
        values, cells = distance_transform2d(scores, springs, anchors)
        upstream = random(1, 2, 5, 7, seed=3)
        to_scores, to_springs, to_anchors = torch.autograd.grad(values, (scores, springs, anchors), upstream)
    for k in range(2):
        expected = torch.zeros(35, dtype=torch.float64).index_add(0, cells[0, k].flatten().long(), upstream[0, k].flatten())
        torch.testing.assert_close(to_scores[0, k].flatten(), expected)
        y, x = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
        dx, dy = cells[0, k] % 7 - x - anchors[k, 0], cells[0, k] // 7 - y - anchors[k, 1]
        sums = torch.stack([(upstream[0, k] * term).sum() for term in (dx**2, dx, dy**2, dy)])
        torch.testing.assert_close(to_springs[k], -sums)
        slope_x = 2 * springs[k, 0] * dx + springs[k, 1]
        torch.testing.assert_close(to_anchors[k, 0], (upstream[0, k] * slope_x).sum())
