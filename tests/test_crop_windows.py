"""What a window holds: against loops over the definition, PIL's filter as torch has it, and plain slices."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from fastpose import backend
from fastpose.ops import crop_windows

BACKENDS = ("fused", "reference")
each_backend = pytest.mark.parametrize("name", BACKENDS)


def axis_by_loops(centre: float, side: float, cells: int, pixels: int, antialias: bool) -> torch.Tensor:
    """(cells, pixels) weights and, in a last column, that of what lies outside."""
    out = torch.zeros(cells, pixels + 1, dtype=torch.float64)
    reach = max(1.0, side / cells) if antialias else 1.0
    for cell in range(cells):
        position = centre + ((cell + 0.5) / cells - 0.5) * side
        for i in range(math.floor(position - reach), math.ceil(position + reach) + 1):
            out[cell, i if 0 <= i < pixels else pixels] += max(0.0, 1 - abs(i - position) / reach)
    return out / out.sum(1, keepdim=True)


@each_backend
@pytest.mark.parametrize("antialias", [True, False])
def test_equals_the_sums_of_the_definition(name: str, antialias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(2, 3, 19, 23, dtype=torch.float64, generator=generator)
    centers = torch.tensor([[[4.3, 7.9], [-3.0, 2.5], [21.0, 18.75]], [[11.0, 9.0], [40.0, 9.0], [10.5, 8.25]]]).double()
    sides = torch.tensor([[[5.0, 9.5], [13.1, 4.0], [31.7, 47.2]], [[8.0, 8.0], [6.0, 6.0], [2.25, 1.5]]]).double()
    with backend(name):
        windows = crop_windows(source, centers, sides, (6, 8), antialias=antialias, fill=0.7)
    for b in range(2):
        with_fill = functional.pad(source[b], (0, 1, 0, 1), value=0.7)
        for k in range(3):
            (x, y), (side_x, side_y) = centers[b, k].tolist(), sides[b, k].tolist()
            rows = axis_by_loops(y, side_y, 6, 19, antialias)
            columns = axis_by_loops(x, side_x, 8, 23, antialias)
            torch.testing.assert_close(windows[b, k], rows @ with_fill @ columns.T)


@each_backend
def test_whole_cells_are_copied(name: str) -> None:
    source = torch.arange(2 * 7 * 9.0).view(1, 2, 7, 9)
    with backend(name):
        odd = crop_windows(source, torch.tensor([[[4.0, 3.0], [0.0, 6.0]]]), 5, 5)
        even = crop_windows(source, torch.tensor([[[4.5, 2.5]]]), 4, 4)
    assert torch.equal(odd[0, 0], source[0, :, 1:6, 2:7])
    assert torch.equal(odd[0, 1], functional.pad(source, (2, 0, 0, 2))[0, :, 4:9, 0:5])
    assert torch.equal(even[0, 0], source[0, :, 1:5, 3:7])


@each_backend
@pytest.mark.parametrize("size", [(32, 24), (11, 50), (7, 5)])
def test_shrinks_as_torch_does(name: str, size: tuple[int, int]) -> None:
    """Away from the border, where torch leaves the filter's outer part out."""
    source = torch.rand(1, 2, 64, 48, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(source, size, mode="bilinear", antialias=True)
    with backend(name):
        windows = crop_windows(source, torch.tensor([[[23.5, 31.5]]]), torch.tensor([[[48.0, 64.0]]]), size)
    torch.testing.assert_close(windows[0, 0, :, 1:-1, 1:-1], expected[0, :, 1:-1, 1:-1])


@each_backend
def test_images_are_normalised_and_read_where_they_lie(name: str) -> None:
    images = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.48, 0.46, 0.41], [0.23, 0.22, 0.24]
    centers, sides = torch.tensor([[[12.3, 7.7]], [[28.0, 2.0]]]), torch.tensor([[9.0], [31.0]])
    options = {"mean": mean, "std": std, "fill": mean}
    with backend(name):
        windows = crop_windows(images.permute(0, 3, 1, 2), centers, sides, 8, **options)
        planes = crop_windows(images.permute(0, 3, 1, 2).contiguous(), centers, sides, 8, **options)
        expected = crop_windows(
            (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1),
            centers,
            sides,
            8,
        )
        half = crop_windows(images.permute(0, 3, 1, 2), centers, sides, 8, dtype=torch.bfloat16, **options)
    assert windows.dtype == torch.float32
    assert windows.is_contiguous()
    torch.testing.assert_close(windows, expected)
    assert torch.equal(windows, planes)
    assert torch.equal(half, windows.bfloat16())


@each_backend
def test_no_window_is_zero(name: str) -> None:
    source = torch.rand(1, 2, 8, 8, requires_grad=True)
    centers = torch.tensor([[[math.nan, 3.0], [4.0, 4.0], [3.0, math.inf]]])
    with backend(name):
        windows = crop_windows(source, centers, torch.tensor([[4.0, math.nan, 4.0]]), 3, fill=5.0, mean=1.0)
        (gradient,) = torch.autograd.grad(windows.sum(), source)
    assert not windows.any()
    assert not gradient.any()


@each_backend
@pytest.mark.parametrize("side", [1e-30, 1e6, 1e30])
def test_windows_of_any_side(name: str, side: float) -> None:
    source = torch.full((1, 1, 6, 6), 2.0)
    with backend(name):
        windows = crop_windows(source, torch.tensor([[[2.0, 3.0], [1e30, -1e30]]]), side, 4, fill=1.0)
    expected = [2.0, 1.0] if side < 1 else [1.0, 1.0]
    torch.testing.assert_close(windows, torch.tensor(expected).view(1, 2, 1, 1, 1).expand(1, 2, 1, 4, 4), rtol=0, atol=2e-5)
