"""The convolution of Gaussian maps against drawing them and convolving."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from fastpose import backend
from fastpose.ops import gaussian_conv2d, gaussian_heatmap

BACKENDS = ("fused", "reference")
each_backend = pytest.mark.parametrize("name", BACKENDS)
IEF: dict[str, Any] = {"amplitude": 100.0, "offset": -50.0}


@each_backend
def test_the_split_input_of_ief(name: str) -> None:
    """The convolution of 3 colours, 16 joints and a marker, from the image's share and the pose's."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 20, 7, 7, generator=generator, dtype=torch.float64)
    keypoints = 80 * torch.rand(2, 16, 2, generator=generator, dtype=torch.float64) - 8
    keypoints[0, 3] = math.nan
    marker = gaussian_heatmap(torch.full((2, 1, 2), 32.0).double(), 64, 6.4, **IEF)
    whole = torch.cat((image, gaussian_heatmap(keypoints, 64, 6.4, **IEF), marker), 1)
    expected = functional.conv2d(whole, weight, stride=2, padding=3)
    base = functional.conv2d(torch.cat((image, marker), 1), weight[:, [0, 1, 2, 19]], stride=2, padding=3)
    with backend(name):
        result = gaussian_conv2d(base, keypoints, weight[:, 3:19], 64, 6.4, stride=2, padding=3, **IEF)
    torch.testing.assert_close(result, expected)


@each_backend
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((1, 1), 1, 0), ((3, 5), 1, 2), ((7, 7), 2, 3), ((4, 2), 3, 1), ((9, 9), 4, 8)]
)
@pytest.mark.parametrize("drawing", [{}, IEF, {"rounding": "nearest"}], ids=["plain", "ief", "nearest"])
def test_equals_drawing_and_convolving(
    name: str, kernel: tuple[int, int], stride: int, padding: int, drawing: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    keypoints = 30 * torch.rand(2, 3, 2, generator=generator, dtype=torch.float64) - 3
    visible = torch.tensor([[True, False, True], [True, True, True]])
    weight = torch.randn(5, 3, *kernel, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([1.0, 2.5, 20.0], dtype=torch.float64)
    maps = gaussian_heatmap(keypoints, (19, 26), sigma, visible=visible, **drawing)
    convolved = functional.conv2d(maps, weight, stride=stride, padding=padding)
    base = torch.randn(convolved.shape, generator=generator, dtype=torch.float64)
    options = {"stride": stride, "padding": padding, "visible": visible, **drawing}
    with backend(name):
        result = gaussian_conv2d(base, keypoints, weight, (19, 26), sigma, **options)
    torch.testing.assert_close(result, base + convolved)
