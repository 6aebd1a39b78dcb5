"""What decoding means: every rule against a second implementation, from the formulas and rules that were published."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fastpose import backend
from fastpose.ops import decode_heatmaps

METHODS = ("argmax", "quarter", "dark", "soft_window")
each_method = pytest.mark.parametrize("method", METHODS)
each_backend = pytest.mark.parametrize("name", ["fused", "reference"])


def noisy_peaks(shape: tuple[int, int, int, int], noise: float, sigma: float = 2.0, seed: int = 0) -> torch.Tensor:
    batch, joints, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(batch, joints, 2, 1, 1, generator=generator) * torch.tensor([width, height]).view(2, 1, 1)
    x, y = torch.arange(width), torch.arange(height)[:, None]
    maps = torch.exp(-((x - centres[:, :, 0]) ** 2 + (y - centres[:, :, 1]) ** 2) / (2 * sigma**2))
    return maps + noise * torch.randn(shape, generator=generator)


def brute_force(maps: torch.Tensor, step: Any) -> torch.Tensor:
    """(B, K, 2) from step(map, y, x) -> (x, y), called for the first maximum of every map."""
    found = [step(m, *np.unravel_index(m.argmax(), m.shape)) for m in maps.flatten(0, 1).double().numpy()]
    return torch.tensor(np.array(found)).view(*maps.shape[:2], 2)


def published_dark(blur_size: int, sigma: float) -> Any:
    """Zhang et al. 2020, equations 4 to 11, with the whole map blurred and rescaled."""

    def step(heatmap: np.ndarray, y: int, x: int) -> tuple[float, float]:
        height, width = heatmap.shape
        if not (1 < x < width - 2 and 1 < y < height - 2):
            return x, y
        border = [blur_size] * 4
        wide = cv2.copyMakeBorder(heatmap, *border, cv2.BORDER_CONSTANT, value=0)
        blurred = cv2.GaussianBlur(wide, (blur_size, blur_size), sigma)[blur_size:-blur_size, blur_size:-blur_size]
        logarithm = np.log(np.maximum(blurred * heatmap.max() / blurred.max(), 1e-10))

        def p(dy: int, dx: int) -> float:
            return logarithm[y + dy, x + dx]

        gradient = np.array([p(0, 1) - p(0, -1), p(1, 0) - p(-1, 0)]) / 2
        xx, yy = (p(0, 2) - 2 * p(0, 0) + p(0, -2)) / 4, (p(2, 0) - 2 * p(0, 0) + p(-2, 0)) / 4
        xy = (p(1, 1) - p(1, -1) - p(-1, 1) + p(-1, -1)) / 4
        offset = np.linalg.solve(np.array([[xx, xy], [xy, yy]]), -gradient)
        return x + offset[0], y + offset[1]

    return step


def quarter_step(border: str) -> Any:
    def step(heatmap: np.ndarray, y: int, x: int) -> tuple[float, float]:
        height, width = heatmap.shape
        if border == "torch7" and not (1 <= x <= width - 2 and 1 <= y <= height - 2):
            return x, y
        if border == "msra" and not (1 < x < width - 1 and 1 < y < height - 1):
            return x, y
        dx = heatmap[y, min(x + 1, width - 1)] - heatmap[y, max(x - 1, 0)]
        dy = heatmap[min(y + 1, height - 1), x] - heatmap[max(y - 1, 0), x]
        if border == "clamped":
            return x + (0.25 if dx > 0 else -0.25), y + (0.25 if dy > 0 else -0.25)
        return x + 0.25 * np.sign(dx), y + 0.25 * np.sign(dy)

    return step


@pytest.mark.kernel
@each_backend
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("size", [(64, 64), (64, 48), (96, 72), (20, 15)])
def test_dark_as_published(size: tuple[int, int], noise: float, name: str) -> None:
    maps = noisy_peaks((4, 16, *size), noise)
    with backend(name):
        ours = decode_heatmaps(maps, "dark").coordinates
        precise = decode_heatmaps(maps.double(), "dark").coordinates if name == "reference" else None
    published = brute_force(maps, published_dark(11, 2.0))
    assert (ours - published).abs().max() <= 1e-4
    if precise is not None:
        assert (precise - published).abs().max() <= 1e-8


def test_dark_without_noise_finds_the_centre() -> None:
    maps = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x, y = torch.arange(64), torch.arange(64)[:, None]
    maps[0, 0] = torch.exp(-((x - 31.3) ** 2 + (y - 20.8) ** 2) / 8)
    found = decode_heatmaps(maps, "dark").coordinates[0, 0]
    # The blur's kernel is cut off at 2.5 sigma, which is what keeps the step from being exact.
    assert (found - torch.tensor([31.3, 20.8])).abs().max() < 2e-3


@pytest.mark.parametrize("blur_size", [3, 9, 17, 63])
def test_dark_kernels(blur_size: int) -> None:
    maps = noisy_peaks((2, 4, 40, 33), 0.02)
    sigma = 0.3 * ((blur_size - 1) * 0.5 - 1) + 0.8
    published = brute_force(maps, published_dark(blur_size, sigma))
    assert (decode_heatmaps(maps, "dark", blur_size=blur_size).coordinates - published).abs().max() <= 1e-4


@pytest.mark.kernel
@each_backend
def test_dark_stays_where_the_hessian_is_singular(name: str) -> None:
    """On ridges, which do not change along a line, and where every logarithm is that of the floor."""
    heatmaps = torch.full((4, 1, 64, 64), -1.0)
    x, y = torch.arange(64), torch.arange(64)[:, None]
    heatmaps[0] = torch.exp(-((x - 30.4) ** 2) / 8)
    heatmaps[1] = heatmaps[0].mT
    heatmaps[2] = torch.exp(-((x - y) ** 2) / 16)
    for i, (row, column) in enumerate([(32, 30), (30, 32), (32, 32), (32, 32)]):
        heatmaps[i, 0, row, column] += 2e-7  # where the maximum is
    with backend(name):
        found = decode_heatmaps(heatmaps, "dark").coordinates[:, 0]
    assert found.tolist() == [[30, 32], [32, 30], [32, 32], [32, 32]]


@pytest.mark.kernel
@each_backend
@pytest.mark.parametrize("border", ["torch7", "msra", "clamped"])
def test_quarter_rules(border: str, name: str) -> None:
    """Few levels make ties, and small maps put every fourth maximum on each border."""
    levels = torch.randint(0, 4, (40, 20, 6, 5), generator=torch.Generator().manual_seed(0)).float()
    with backend(name):
        ours = decode_heatmaps(levels, "quarter", border=border)
    assert torch.equal(ours.coordinates, brute_force(levels, quarter_step(border)).float())
    assert torch.equal(ours.scores, levels.amax((2, 3)))


@pytest.mark.kernel
@each_backend
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shift", [0, 1, 2, 70])
@each_method
def test_flip_test(method: str, shift: int, layout: torch.memory_format, name: str) -> None:
    heatmaps, flipped = noisy_peaks((2, 5, 24, 40), 0.1), noisy_peaks((2, 5, 24, 40), 0.1, seed=1)
    permutation = [2, 0, 1, 4, 3]  # not its own inverse
    mirrored = flipped[:, permutation].flip(-1)
    if shift:
        kept = mirrored[..., : max(mirrored.shape[-1] - shift, 0)]
        mirrored = torch.cat([mirrored[..., :1].expand(-1, -1, -1, 40 - kept.shape[-1]), kept], -1)
    mean = (heatmaps + mirrored) / 2
    affine = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(2))
    options: dict[str, Any] = {"method": method, "temperature": 0.2, "affine": affine}
    with backend(name):
        ours = decode_heatmaps(
            heatmaps.contiguous(memory_format=layout),
            flipped=flipped.contiguous(memory_format=layout),
            flip_permutation=permutation,
            flip_shift=shift,
            **options,
        )
        plain = decode_heatmaps(mean, **options)
    torch.testing.assert_close(ours.coordinates, plain.coordinates, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.scores, plain.scores)


def test_flip_permutation_may_be_left_out_or_a_tensor() -> None:
    heatmaps, flipped = noisy_peaks((1, 3, 8, 8), 0.1), noisy_peaks((1, 3, 8, 8), 0.1, seed=1)
    by_default = decode_heatmaps(heatmaps, flipped=flipped)
    for permutation in ([0, 1, 2], torch.tensor([0, 1, 2], dtype=torch.int32)):
        given = decode_heatmaps(heatmaps, flipped=flipped, flip_permutation=permutation)
        assert torch.equal(given.coordinates, by_default.coordinates)


def test_affine_comes_last() -> None:
    heatmaps = noisy_peaks((3, 4, 16, 16), 0.1)
    affine = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    plain, moved = decode_heatmaps(heatmaps), decode_heatmaps(heatmaps, affine=affine.double())
    expected = plain.coordinates @ affine[:, :, :2].mT + affine[:, None, :, 2]
    torch.testing.assert_close(moved.coordinates, expected)
    assert torch.equal(moved.scores, plain.scores)


@pytest.mark.kernel
@each_backend
@each_method
def test_soft_window_is_cut_at_the_border_and_others_stay(method: str, name: str) -> None:
    heatmaps = torch.zeros(1, 1, 6, 7)
    heatmaps[0, 0, 5, 6] = 1
    with backend(name):
        found = decode_heatmaps(heatmaps, method, temperature=0.5).coordinates[0, 0]
    expected = torch.tensor([6.0, 5.0])
    if method == "soft_window":
        # Of the window's nine cells three are one away along an axis and three two; the corner's weight is e^(1 / 0.5).
        expected = expected - (3 * 1 + 3 * 2) / (math.exp(2) + 8)
    torch.testing.assert_close(found, expected)


@pytest.mark.kernel
@each_backend
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@each_method
def test_values_that_are_not_numbers(method: str, layout: torch.memory_format, name: str) -> None:
    heatmaps = noisy_peaks((1, 6, 24, 20), 0.1)
    heatmaps[0, 0] = math.nan
    heatmaps[0, 1] = -math.inf
    heatmaps[0, 2] = 0
    heatmaps[0, 2, 12, 9] = heatmaps[0, 2, 12, 11] = math.inf  # the first one is the maximum
    heatmaps[0, 3] = math.nan
    heatmaps[0, 3, 11, 8] = -5.0  # the only number
    heatmaps[0, 4, 3, 4] = math.nan
    heatmaps[0, 5] = -1e-40  # denormal numbers are numbers
    heatmaps[0, 5, 13, 7] = 1e-40
    heatmaps = heatmaps.contiguous(memory_format=layout).requires_grad_()
    with backend(name):
        coordinates, scores = decode_heatmaps(heatmaps, method)
    scores.nan_to_num().sum().backward()
    assert coordinates[0, :2].isnan().all()
    assert scores[0, :2].isnan().all()
    assert coordinates[0, 2].tolist() == [9, 12]
    assert scores[0, 2] == math.inf
    assert coordinates[0, 3].tolist() == [8, 11]
    assert scores[0, 3] == -5
    assert coordinates[0, 4].isfinite().all()
    assert scores[0, 5].item() == pytest.approx(1e-40)
    assert (coordinates[0, 5] - torch.tensor([7, 13])).abs().max() < 0.5
    assert heatmaps.grad[0, :2].count_nonzero() == 0
    assert heatmaps.grad[0, 3].count_nonzero() == 1
    assert heatmaps.grad[0, 3, 11, 8] == 1


@pytest.mark.kernel
@each_backend
def test_the_first_of_equal_maxima(name: str) -> None:
    heatmaps = torch.zeros(4, 1, 33, 41)
    heatmaps[1, 0, 7, 40] = heatmaps[1, 0, 8, 0] = 1
    heatmaps[2, 0, 7, 3] = heatmaps[2, 0, 7, 35] = 1
    heatmaps[3, 0, 0, 1] = -0.0
    with backend(name):
        for maps in (heatmaps, heatmaps.view(1, 4, 33, 41).contiguous(memory_format=torch.channels_last)):
            found = decode_heatmaps(maps, "argmax").coordinates.view(4, 2)
            assert found.tolist() == [[0, 0], [40, 7], [3, 7], [0, 0]]


@each_backend
@each_method
def test_what_is_differentiable(method: str, name: str) -> None:
    heatmaps = noisy_peaks((2, 3, 9, 12), 0.1).requires_grad_()
    flipped = noisy_peaks((2, 3, 9, 12), 0.1, seed=1).requires_grad_()
    with backend(name):
        coordinates, scores = decode_heatmaps(heatmaps, method, flipped=flipped, flip_permutation=[2, 0, 1], flip_shift=1)
    assert coordinates.requires_grad == (method == "soft_window")
    upstream = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    to_heatmaps, to_flipped = torch.autograd.grad(scores, [heatmaps, flipped], upstream)
    assert torch.equal(to_heatmaps.sum((2, 3)), upstream / 2)
    assert torch.equal(to_flipped.sum((2, 3))[:, [2, 0, 1]], upstream / 2)
    assert to_heatmaps.count_nonzero() == to_flipped.count_nonzero() == 6


@pytest.mark.kernel
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_planes_beyond_the_integers_of_float32(layout: torch.memory_format) -> None:
    height, width = 4097, 4111  # more than 2^24 cells
    heatmaps = torch.zeros(1, 2, height, width, dtype=torch.bfloat16).contiguous(memory_format=layout)
    heatmaps[0, 0, height - 1, width - 2] = heatmaps[0, 1, height - 2, 1] = 1
    assert decode_heatmaps(heatmaps, "argmax").coordinates.tolist() == [[[width - 2, height - 1], [1, height - 2]]]


@pytest.mark.parametrize("dimension", [0, 1, 2, 3])
def test_offsets_beyond_32_bits(dimension: int) -> None:
    """Only the pages that are touched take memory."""
    memory = torch.empty(2 * (2**31 + 4096), dtype=torch.bfloat16)
    shape, strides = [2, 2, 2, 2], [64, 16, 4, 1]
    shape[dimension], strides[dimension] = 3, 2**31 // 2 + 1024
    heatmaps = memory.as_strided(shape, strides)
    heatmaps.fill_(0)
    index = [1, 1, 1, 1]
    index[dimension] = 2
    b, k, y, x = index
    heatmaps[b, k, y, x] = 1
    decoded = decode_heatmaps(heatmaps, "argmax")
    assert decoded.coordinates[b, k].tolist() == [x, y]
    assert decoded.scores.sum() == 1


WRONG: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("heatmaps", TypeError, {"heatmaps": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}),
    ("heatmaps", ValueError, {"heatmaps": torch.zeros(3, 8, 8)}),
    ("heatmaps", ValueError, {"heatmaps": torch.zeros(1, 3, 0, 8)}),
    ("method", ValueError, {"method": "udp"}),
    ("border", ValueError, {"border": "none"}),
    ("flipped", TypeError, {"flipped": [1]}),
    ("flipped", TypeError, {"flipped": torch.zeros(1, 3, 8, 8, dtype=torch.float64)}),
    ("flipped", ValueError, {"flipped": torch.zeros(1, 3, 8, 9)}),
    ("flipped", ValueError, {"flipped": torch.zeros(1, 3, 8, 8, device="meta")}),
    ("flip_permutation", ValueError, {"flip_permutation": [0, 1, 2]}),
    ("flip_shift", ValueError, {"flip_shift": 1}),
    ("flip_shift", ValueError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_shift": -1}),
    ("flip_shift", TypeError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_shift": 0.5}),
    ("flip_permutation", ValueError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_permutation": [0, 1]}),
    ("flip_permutation", ValueError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_permutation": [0, 1, 1]}),
    ("flip_permutation", ValueError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_permutation": torch.tensor([1, 2, 3])}),
    (
        "flip_permutation",
        ValueError,
        {"flipped": torch.zeros(1, 3, 8, 8), "flip_permutation": torch.tensor([[0, 1, 2]])},
    ),
    ("flip_permutation", TypeError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_permutation": [0.0, 1.0, 2.0]}),
    ("flip_permutation", TypeError, {"flipped": torch.zeros(1, 3, 8, 8), "flip_permutation": torch.zeros(3)}),
    ("affine", TypeError, {"affine": [[1, 0, 0], [0, 1, 0]]}),
    ("affine", TypeError, {"affine": torch.zeros(1, 2, 3, dtype=torch.int32)}),
    ("affine", ValueError, {"affine": torch.zeros(2, 3)}),
    ("affine", ValueError, {"affine": torch.zeros(1, 2, 3, requires_grad=True)}),
    ("blur_size", ValueError, {"blur_size": 10}),
    ("blur_size", ValueError, {"blur_size": 65}),
    ("blur_size", TypeError, {"blur_size": 11.0}),
    ("blur_sigma", ValueError, {"blur_sigma": 0}),
    ("radius", ValueError, {"radius": 0}),
    ("temperature", ValueError, {"temperature": -1.0}),
    ("temperature", ValueError, {"temperature": math.nan}),
]


@pytest.mark.parametrize(("argument", "error", "changes"), WRONG)
def test_wrong_arguments_are_named(argument: str, error: type[Exception], changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{argument}: "):
        decode_heatmaps(**{"heatmaps": torch.zeros(1, 3, 8, 8), **changes})
