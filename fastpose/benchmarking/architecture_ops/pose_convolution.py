"""The first convolution of iterative error feedback: what one step costs when the image's share is kept, and when it is not."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from fastpose import ops
from fastpose.benchmarking.architecture_ops.job import Job, Wrap, and_gradient, forward, wide
from fastpose.benchmarking.workload import Inputs, Provider, compiled

IMAGE_CHANNELS, JOINTS, CHANNELS, SIZE, KERNEL = 4, 16, 64, 224, 7
SIGMA, AMPLITUDE, OFFSET = 22.36, 100.0, -50.0
STRIDE, PADDING = 2, KERNEL // 2
OUT = SIZE // STRIDE

# Every form takes what any of them needs: the image's share of the result, the pose's weights, the keypoints, a kept tensor of
# the image's channels and room for the pose's, and the image's weights.
Tensor = torch.Tensor


def _fused(base: Tensor, weight: Tensor, keypoints: Tensor, kept: Tensor, image_weight: Tensor) -> Tensor:
    return ops.gaussian_conv2d(
        base, keypoints, weight, SIZE, SIGMA, amplitude=AMPLITUDE, offset=OFFSET, stride=STRIDE, padding=PADDING
    )


# ---- plain forms ------------------------------------------------------------------------------------------------------


def _pose(keypoints: Tensor, dtype: torch.dtype) -> Tensor:
    return ops.gaussian_heatmap(keypoints, SIZE, SIGMA, amplitude=AMPLITUDE, offset=OFFSET, dtype=dtype)


def whole_input(base: Tensor, weight: Tensor, keypoints: Tensor, kept: Tensor, image_weight: Tensor) -> Tensor:
    """As published: image and pose side by side, all convolved anew."""
    whole = torch.cat((kept[:, :IMAGE_CHANNELS], _pose(keypoints, kept.dtype)), 1)
    return functional.conv2d(whole, torch.cat((image_weight, weight), 1), stride=STRIDE, padding=PADDING)


def into_a_slice(base: Tensor, weight: Tensor, keypoints: Tensor, kept: Tensor, image_weight: Tensor) -> Tensor:
    """The pose drawn into its channels of a tensor that is kept, and all convolved anew."""
    ops.gaussian_heatmap(keypoints, SIZE, SIGMA, amplitude=AMPLITUDE, offset=OFFSET, out=kept[:, IMAGE_CHANNELS:])
    return functional.conv2d(kept, torch.cat((image_weight, weight), 1), stride=STRIDE, padding=PADDING)


def drawn(base: Tensor, weight: Tensor, keypoints: Tensor, kept: Tensor, image_weight: Tensor) -> Tensor:
    """The image's share kept, the pose drawn and convolved."""
    return base + functional.conv2d(_pose(keypoints, base.dtype), weight, stride=STRIDE, padding=PADDING)


def by_matrices(base: Tensor, weight: Tensor, keypoints: Tensor, kept: Tensor, image_weight: Tensor) -> Tensor:
    """The image's share kept, and the Gaussians' factors in products of matrices: what the op does, in plain PyTorch."""
    dtype = wide(base.dtype)
    place = torch.arange(-PADDING, SIZE + PADDING, device=base.device, dtype=dtype)
    inside = ((place >= 0) & (place < SIZE)).to(dtype)
    factors = torch.exp(-0.5 / SIGMA**2 * (place - keypoints.unsqueeze(-1)) ** 2) * inside
    constant = inside.expand(len(base), 1, -1)
    columns = torch.cat((factors[:, :, 0], constant), 1).unfold(-1, KERNEL, STRIDE)
    rows = torch.cat((AMPLITUDE * factors[:, :, 1], OFFSET * constant), 1).unfold(-1, KERNEL, STRIDE)
    weights = torch.cat((weight, weight.sum(1, keepdim=True)), 1).to(dtype)
    right = torch.einsum("okyx,bkjx->bokyj", weights, columns).flatten(2, 3)
    left = rows.transpose(1, 2).flatten(2)
    return (base + left.unsqueeze(1) @ right).to(base.dtype)


def _of_kept_share(wrap: Wrap) -> dict[str, Provider]:
    return {
        "eager drawn": Provider(lambda: wrap(drawn)),
        "eager matrices": Provider(lambda: wrap(by_matrices)),
        "compile matrices": Provider(lambda: wrap(compiled(by_matrices))),
    }


# ---- jobs -------------------------------------------------------------------------------------------------------------


def _inputs(batch: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(batch, IMAGE_CHANNELS + JOINTS, SIZE, SIZE, generator=generator).to(device, dtype)
    weight = 0.05 * torch.randn(CHANNELS, IMAGE_CHANNELS + JOINTS, KERNEL, KERNEL, generator=generator).to(device, dtype)
    of_image, of_pose = (part.contiguous() for part in weight.split((IMAGE_CHANNELS, JOINTS), 1))
    keypoints = (SIZE * torch.rand(batch, JOINTS, 2, generator=generator)).to(device)
    base = functional.conv2d(kept[:, :IMAGE_CHANNELS], of_image, stride=STRIDE, padding=PADDING)
    return base, of_pose.requires_grad_(), keypoints, kept, of_image


def _bytes(passes: int, dtype: torch.dtype) -> int:
    return passes * CHANNELS * OUT**2 * dtype.itemsize


JOBS = (
    Job(
        "pose convolution forward",
        (CHANNELS, OUT, OUT),
        _inputs,
        forward(_fused),
        forward(drawn),
        _of_kept_share(forward)
        | {
            "eager whole input": Provider(lambda: forward(whole_input)),
            "eager slice": Provider(lambda: forward(into_a_slice)),
        },
        partial(_bytes, 2),
    ),
    Job(
        "pose convolution forward+backward",
        (CHANNELS, OUT, OUT),
        _inputs,
        and_gradient(1)(_fused),
        and_gradient(1)(drawn),
        _of_kept_share(and_gradient(1)),
        partial(_bytes, 3),
    ),
)
