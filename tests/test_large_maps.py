"""Maps beyond the CPU's caches, past which the loss writes its gradient: the same bits as from a few maps at a time."""

from __future__ import annotations

import pytest
import torch

from fastpose.ops import heatmap_mse_loss


def gradient_of(predictions: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    predictions = predictions.detach().requires_grad_()
    return torch.autograd.grad(heatmap_mse_loss(predictions, keypoints, 2.0, reduction="sum"), predictions)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("joints", "height", "width"), [(16, 64, 64), (17, 63, 71)])
def test_gradient_of_the_loss(joints: int, height: int, width: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    batch, few = 128, 2  # 32 MiB and more read and written, against half of the last cache
    generator = torch.Generator().manual_seed(0)
    predictions = torch.rand(batch, joints, height, width, generator=generator).to(dtype).contiguous(memory_format=layout)
    keypoints = 60 * torch.rand(batch, joints, 2, generator=generator)
    together = gradient_of(predictions, keypoints)
    apart = map(gradient_of, predictions.split(few), keypoints.split(few))
    assert all(torch.equal(whole, part) for whole, part in zip(together.split(few), apart, strict=True))
