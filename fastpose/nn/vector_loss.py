"""Losses of networks that predict coordinates, not maps."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check

KINDS = ("l2", "l1", "smooth_l1")
REDUCTIONS = ("batchmean", "mean", "sum")

_COUPLINGS = 6
_HIDDEN = 64


class VectorLoss(nn.Module):
    """Distance of predicted coordinates from labelled ones, joints without a label left out.

    Args:
        kind: of each coordinate's difference d: ``"l2"``: d^2 (DeepPose), ``"l1"``: abs(d), ``"smooth_l1"``: d^2 / 2 below
            1 and abs(d) - 1/2 above.
        reduction: of the sum over all labelled coordinates: ``"batchmean"``: divided by B; ``"mean"``: by the number of
            elements, those without a label counting too; ``"sum"``: as it is. Without elements the loss is 0.

    Raises:
        ValueError: unknown kind or reduction.
    """

    def __init__(self, kind: str = "l2", reduction: str = "batchmean") -> None:
        super().__init__()
        _check.option("kind", kind, KINDS)
        _check.option("reduction", reduction, REDUCTIONS)
        self.kind, self.reduction = kind, reduction

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, reduction={self.reduction!r}"

    def forward(self, predictions: torch.Tensor, targets: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the loss.

        Args:
            predictions: (B, ..., K, 2).
            targets: likewise; NaN: no label.
            visible: (B, ..., K), bool or number; 0 means "no label", as NaN does.

        Returns:
            The loss (), float32 or better.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        predictions, targets, labelled = _labelled(predictions, targets, visible, 2)
        difference = torch.where(labelled, predictions - targets, 0)
        if self.kind == "smooth_l1":
            total = functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="sum")
        else:
            total = (difference.square() if self.kind == "l2" else difference.abs()).sum()
        return total / _divisor(self.reduction, predictions)


class ResidualLogLikelihood(nn.Module):
    r"""Negative log-likelihood of labels under a density that is learnt along with the network (RLE).

    The network predicts a place and a deviation of each coordinate, :math:`\sigma = \operatorname{sigmoid}(s)`. With
    :math:`\bar e = (\mu - y) / \sigma`, Q the Laplace density with scale 1 and G one that a normalising flow, shared by all
    joints, makes of a standard normal one:

    .. math:: L = \sum_{x, y} \left(\log \sigma + \log 2 + |\bar e|\right) - \log G(\bar e)

    The released code adds the logarithms of sigma and of G twice. The flow is needed in training alone.

    Args:
        reduction: as of `VectorLoss`, whose elements are the places.

    Raises:
        ValueError: unknown reduction.

    Source: Li et al. 2021, "Human Pose Regression with Residual Log-likelihood Estimation", section 3.3 and equation 8.
    """

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__()
        _check.option("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.couplings = nn.ModuleList(_Coupling(index % 2) for index in range(_COUPLINGS))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"

    def log_density(self, errors: torch.Tensor) -> torch.Tensor:
        """Logarithms (...) of G at errors (..., 2)."""
        total = torch.zeros_like(errors[..., 0])
        for coupling in self.couplings:
            errors, change = coupling(errors)
            total = total + change
        return total - 0.5 * errors.square().sum(-1) - math.log(2 * math.pi)

    def forward(self, predictions: torch.Tensor, targets: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the loss.

        Args:
            predictions: (B, ..., K, 4): place (x, y), and what the sigmoid makes the deviations of.
            targets: (B, ..., K, 2); NaN: no label.
            visible: as of `VectorLoss`.

        Returns:
            The loss (), float32 or better.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        predictions, targets, labelled = _labelled(predictions, targets, visible, 4)
        place, raw = predictions.split(2, -1)
        with torch.autocast(predictions.device.type, enabled=False):
            log_sigma = functional.logsigmoid(raw)
            error = torch.where(labelled, (place - targets) * torch.exp(-log_sigma), 0)
            loss = (log_sigma + math.log(2) + error.abs()).sum(-1) - self.log_density(error)
        total = torch.where(labelled.squeeze(-1), loss, 0).sum()
        return total / _divisor(self.reduction, place)


class _Coupling(nn.Module):
    """One step of a RealNVP from data to the normal density: scales and shifts one coordinate by what the other one is."""

    def __init__(self, changed: int) -> None:
        super().__init__()
        self.changed = changed
        self.scale, self.shift = _perceptron(), _perceptron()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (..., 2) to (..., 2) and the logarithm of the determinant (...)."""
        changed, kept = x[..., self.changed, None], x[..., 1 - self.changed, None]
        log_scale = torch.tanh(self.scale(kept))
        changed = (changed - self.shift(kept)) * torch.exp(-log_scale)
        pair = (changed, kept) if self.changed == 0 else (kept, changed)
        return torch.cat(pair, -1), -log_scale.squeeze(-1)


def _perceptron() -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(1, _HIDDEN), nn.LeakyReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.LeakyReLU(), nn.Linear(_HIDDEN, 1)
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)  # about the identity
            nn.init.zeros_(layer.bias)
    return layers


def _labelled(
    predictions: torch.Tensor, targets: torch.Tensor, visible: torch.Tensor | None, numbers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both in float32 or better, and (..., 1) whether there is a label; no NaN is left in the targets."""
    _check.floating("predictions", predictions)
    _check.floating("targets", targets)
    if predictions.dim() < 3 or predictions.shape[-1] != numbers:
        raise ValueError(f"predictions: got shape {_check.shape(predictions)}, allowed is (B, ..., K, {numbers})")
    allowed = (*predictions.shape[:-1], 2)
    if targets.shape != allowed:
        raise ValueError(f"targets: got shape {_check.shape(targets)}, allowed is {allowed}, as of predictions")
    if visible is not None and visible.shape != allowed[:-1]:
        raise ValueError(f"visible: got shape {_check.shape(visible)}, allowed is {allowed[:-1]}, one for each joint")
    _check.same_device("targets", targets, "predictions", predictions)
    labelled = targets.isfinite().all(-1, keepdim=True)
    if visible is not None:
        labelled = labelled & (visible > 0).unsqueeze(-1)
    dtype = torch.promote_types(torch.promote_types(predictions.dtype, targets.dtype), torch.float32)
    return predictions.to(dtype), torch.where(labelled, targets.to(dtype), 0), labelled


def _divisor(reduction: str, places: torch.Tensor) -> int:
    return {"batchmean": max(1, places.shape[0]), "mean": max(1, places.numel()), "sum": 1}[reduction]
