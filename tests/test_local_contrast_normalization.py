"""Local contrast normalisation against torch7's two modules, written out with OpenCV's filters."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from fastpose import backend
from fastpose.ops import local_contrast_normalization

BACKENDS = ("fused", "reference")
each_backend = pytest.mark.parametrize("name", BACKENDS)


def torch7(image: np.ndarray, kernel: np.ndarray, threshold: float) -> np.ndarray:
    """nn.SpatialSubtractiveNormalization, then nn.SpatialDivisiveNormalization; image (C, H, W)."""
    kernel = kernel / (kernel.sum() * len(image))

    def estimate(maps: np.ndarray) -> np.ndarray:
        return sum(cv2.filter2D(m, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT) for m in maps)

    coefficient = estimate(np.ones_like(image))
    subtracted = image - estimate(image) / coefficient
    deviation = np.sqrt(estimate(subtracted**2)) / coefficient
    return subtracted / np.where(deviation > threshold, deviation, threshold)


@each_backend
@pytest.mark.parametrize("window", [9, 3, 1, [1.0, 2.0, 4.0, 3.0, 0.5], 31])
def test_equals_torch7(name: str, window: int | list[float]) -> None:
    images = torch.rand(2, 3, 21, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[0, :, 3:17, 2:20] = 0.25  # nothing to see: the threshold
    along = np.array(window if isinstance(window, list) else [1.0] * window)
    expected = [torch7(image, np.outer(along, along), 1e-4) for image in images.numpy()]
    with backend(name):
        result = local_contrast_normalization(images, window)
    torch.testing.assert_close(result, torch.from_numpy(np.array(expected)), rtol=1e-9, atol=1e-9)


@each_backend
def test_border_rules(name: str) -> None:
    """With the same contrast everywhere torch7's rule damps the corners of a 9 x 9 box to the root of 25 / 81."""
    signs = torch.tensor([1.0, -1.0]).repeat(20)
    images = (signs[:, None] * signs).expand(1, 2, 40, 40) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    with backend(name):
        damped = local_contrast_normalization(images)
        even = local_contrast_normalization(images, border="even")
    torch.testing.assert_close(even, images)
    torch.testing.assert_close(damped[0, 0, 0, 0].item(), (25 / 81) ** 0.5)
    torch.testing.assert_close(damped[..., 8:-8, 8:-8], images[..., 8:-8, 8:-8])


@each_backend
def test_all_channels_are_one(name: str) -> None:
    """A channel's own brightness and contrast stay: they are shared out jointly."""
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images[:, 1] = 0.2 * images[:, 1] + 3
    with backend(name):
        result = local_contrast_normalization(images, border="even")
    assert result[:, 1].mean() > 1
    assert result[:, 1].std() < 0.5 * result[:, 0].std()


@each_backend
def test_threshold(name: str) -> None:
    images = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with backend(name):
        low = local_contrast_normalization(images, threshold=1e-9)
        high = local_contrast_normalization(images, threshold=10.0)
        scaled = local_contrast_normalization(100 * images, threshold=1e-9)
    torch.testing.assert_close(low, scaled)
    assert high.abs().max() < 0.1
