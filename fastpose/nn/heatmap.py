"""The heatmap ops as layers. An option that is wrong is refused when the layer is made, by the op itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastpose.ops import Decoded, SoftArgmax, decode_heatmaps, gaussian_heatmap, heatmap_mse_loss, soft_argmax2d


class _Options(nn.Module):
    """A layer that is its options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        # Tuples, so that lists given by the caller cannot change behind the layer's back.
        self.options: dict[str, Any] = {name: tuple(o) if isinstance(o, list) else o for name, o in options.items()}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class GaussianHeatmap(_Options):
    """Draws a Gaussian at every keypoint: :func:`fastpose.ops.gaussian_heatmap` as a layer.

    Args:
        size: (height, width) of the maps, or one number for a square.
        sigma: standard deviation in heatmap pixels, a number or K numbers.
        rounding, radius, window, combine, amplitude, offset, dtype: as of the op.

    Raises:
        TypeError, ValueError: an argument is not as the op wants it.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        sigma: float | Sequence[float],
        *,
        rounding: str = "none",
        radius: float | None = None,
        window: str = "square",
        combine: str = "max",
        amplitude: float = 1.0,
        offset: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            size=size,
            sigma=sigma,
            rounding=rounding,
            radius=radius,
            window=window,
            combine=combine,
            amplitude=amplitude,
            offset=offset,
            dtype=dtype,
        )
        self(torch.empty(0, _joints(sigma), 2, device="meta"))

    def forward(self, keypoints: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Draws.

        Args:
            keypoints: (B, K, 2), or (B, P, K, 2) for P people an image; (x, y) in heatmap pixels. NaN: no label.
            visible: (B, K) or (B, P, K), bool or number; 0 means "no label".

        Returns:
            Maps (B, K, height, width), differentiable in the keypoints where ``rounding`` is ``"none"``.
        """
        return gaussian_heatmap(keypoints, visible=visible, **self.options)


class HeatmapMSELoss(_Options):
    """Squared error of heatmaps straight from keypoints: :func:`fastpose.ops.heatmap_mse_loss` as a layer.

    Args:
        sigma: standard deviation of the target in heatmap pixels, a number or K numbers.
        reduction, unlabelled, rounding, radius, window, combine, amplitude, offset: as of the op.

    Raises:
        TypeError, ValueError: an argument is not as the op wants it.
    """

    def __init__(
        self,
        sigma: float | Sequence[float],
        *,
        reduction: str = "mean",
        unlabelled: str = "ignore",
        rounding: str = "none",
        radius: float | None = None,
        window: str = "square",
        combine: str = "max",
        amplitude: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        super().__init__(
            sigma=sigma,
            reduction=reduction,
            unlabelled=unlabelled,
            rounding=rounding,
            radius=radius,
            window=window,
            combine=combine,
            amplitude=amplitude,
            offset=offset,
        )
        joints = _joints(sigma)
        self(torch.empty(0, joints, 1, 1, device="meta"), torch.empty(0, joints, 2, device="meta"))

    def forward(
        self,
        predictions: torch.Tensor | Sequence[torch.Tensor],
        keypoints: torch.Tensor,
        visible: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the loss.

        Args:
            predictions: (B, K, H, W), or a list of S of them, one for each stack.
            keypoints: (B, K, 2) or (B, P, K, 2), (x, y) in heatmap pixels. NaN: no label.
            visible: (B, K) or (B, P, K), bool or number; 0 means "no label".
            weights: (K,) or (B, K), of the joints' squared errors.

        Returns:
            The loss () of one prediction, or the losses (S,) of a list.
        """
        return heatmap_mse_loss(predictions, keypoints, visible=visible, weights=weights, **self.options)


class SoftArgmax2d(_Options):
    """Expected coordinates of heatmaps: :func:`fastpose.ops.soft_argmax2d` as a layer.

    Args:
        temperature: positive: the smaller, the closer to the argmax.
        covariance: whether to compute the second moments too.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(self, temperature: float = 1.0, *, covariance: bool = False) -> None:
        super().__init__(temperature=temperature, covariance=covariance)
        self(torch.empty(0, 1, 1, 1, device="meta"))

    def forward(self, heatmaps: torch.Tensor) -> SoftArgmax:
        """Takes the expectation.

        Args:
            heatmaps: (B, K, H, W) logits.

        Returns:
            ``coordinates`` (B, K, 2), (x, y) in heatmap pixels, ``confidence`` (B, K), and ``covariance``
            (B, K, 2, 2) or None.
        """
        return soft_argmax2d(heatmaps, **self.options)


class DecodeHeatmaps(_Options):
    """Keypoints from the maxima of heatmaps: :func:`fastpose.ops.decode_heatmaps` as a layer.

    Args:
        method: ``"argmax"``, ``"quarter"``, ``"dark"`` or ``"soft_window"``.
        flip_permutation: for each of the K joints the one it becomes in the mirror; of the flip test.
        flip_shift: columns that mirrored-back maps move to the right; of the flip test.
        border, blur_sigma, blur_size, radius, temperature: as of the op.

    Raises:
        TypeError, ValueError: an argument is not as the op wants it.
    """

    def __init__(
        self,
        method: str = "quarter",
        *,
        flip_permutation: Sequence[int] | None = None,
        flip_shift: int = 0,
        border: str = "torch7",
        blur_sigma: float | None = None,
        blur_size: int = 11,
        radius: int = 2,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            method=method,
            border=border,
            blur_sigma=blur_sigma,
            blur_size=blur_size,
            radius=radius,
            temperature=temperature,
        )
        joints = 1 if flip_permutation is None else len(flip_permutation)
        self.flip_options: dict[str, Any] = {
            "flip_permutation": None if flip_permutation is None else tuple(flip_permutation),
            "flip_shift": flip_shift,
        }
        maps = torch.empty(0, joints, 1, 1, device="meta")
        self(maps, flipped=maps)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in (self.options | self.flip_options).items())

    def forward(
        self,
        heatmaps: torch.Tensor,
        flipped: torch.Tensor | None = None,
        affine: torch.Tensor | None = None,
    ) -> Decoded:
        """Finds and refines the maxima.

        Args:
            heatmaps: (B, K, H, W).
            flipped: likewise, of the mirrored images, as the network gave them: decodes the mean of both.
            affine: (B, 2, 3) from heatmap pixels to image pixels.

        Returns:
            ``coordinates`` (B, K, 2), (x, y) in heatmap pixels or, with ``affine``, in image pixels, and
            ``scores`` (B, K).
        """
        flip = {} if flipped is None else self.flip_options
        return decode_heatmaps(heatmaps, flipped=flipped, affine=affine, **self.options, **flip)


def _joints(sigma: float | Sequence[float]) -> int:
    return len(sigma) if isinstance(sigma, (list, tuple)) else 1
