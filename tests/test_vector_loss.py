"""Losses of coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from fastpose.nn import ResidualLogLikelihood, VectorLoss

pytestmark = pytest.mark.usefixtures("one_thread")


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions, targets of which one is missing, and visibility of which another one is missing."""
    generator = torch.Generator().manual_seed(0)
    predictions, targets = (3 * torch.randn(2, 4, 5, 2, generator=generator)).unbind(0)
    targets[1, 2, 0] = torch.nan
    visible = torch.ones(4, 5)
    visible[3, 0] = 0
    return predictions, targets, visible


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("batchmean", 4), ("mean", 40)])
@pytest.mark.parametrize("kind", ["l2", "l1", "smooth_l1"])
def test_labelled_coordinates_count(kind: str, reduction: str, divisor: int) -> None:
    predictions, targets, visible = example()
    of = {"l2": functional.mse_loss, "l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}[kind]
    each = of(predictions, targets.nan_to_num(), reduction="none")
    each[1, 2] = each[3, 0] = 0
    torch.testing.assert_close(VectorLoss(kind, reduction)(predictions, targets, visible), each.sum() / divisor)
    torch.testing.assert_close(VectorLoss(kind, reduction)(predictions, targets, visible.bool()), each.sum() / divisor)


@pytest.mark.parametrize("loss", [VectorLoss(), ResidualLogLikelihood()])
def test_joints_without_a_label_have_no_gradient(loss: torch.nn.Module) -> None:
    predictions, targets, visible = example()
    if isinstance(loss, ResidualLogLikelihood):
        predictions = torch.cat((predictions, predictions), -1)
    predictions.requires_grad_()
    loss(predictions, targets, visible).backward()
    assert (predictions.grad[1, 2] == 0).all()
    assert (predictions.grad[3, 0] == 0).all()
    assert (predictions.grad != 0).sum() == (20 - 2) * predictions.shape[-1]
    assert loss(predictions, torch.full_like(targets, torch.nan)) == 0


def test_gradients_are_exact() -> None:
    torch.manual_seed(0)
    predictions = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 3, 2, dtype=torch.float64)
    targets[0, 1] = torch.nan
    likelihood = ResidualLogLikelihood().double()
    assert torch.autograd.gradcheck(lambda p: likelihood(p, targets), predictions)
    for kind in ("l2", "l1", "smooth_l1"):
        assert torch.autograd.gradcheck(lambda p, kind=kind: VectorLoss(kind)(p[..., :2], targets), predictions)


def trained_flow() -> ResidualLogLikelihood:
    torch.manual_seed(0)
    loss = ResidualLogLikelihood().double()
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return loss


def test_flow_is_a_density() -> None:
    """Its integral is 1."""
    loss = trained_flow()
    line = torch.linspace(-10, 10, 101, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    total = loss.log_density(grid).exp().sum() * (line[1] - line[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)
    assert loss.log_density(torch.zeros(2).double()).item() != pytest.approx(-math.log(2 * math.pi), abs=1e-3)
    fresh = ResidualLogLikelihood()
    assert fresh.log_density(torch.zeros(2)).item() == pytest.approx(-math.log(2 * math.pi), abs=1e-3)


def test_likelihood_by_its_definition() -> None:
    loss = trained_flow()
    torch.manual_seed(1)
    predictions, targets = torch.randn(3, 4, 4).double(), torch.randn(3, 4, 2).double()
    sigma = predictions[..., 2:].sigmoid()
    error = (predictions[..., :2] - targets) / sigma
    laplace = torch.exp(-error.abs()) / 2
    density = (laplace / sigma).prod(-1) * loss.log_density(error).exp()
    torch.testing.assert_close(loss(predictions, targets), -density.log().sum() / 3)


def test_likelihood_keeps_its_precision_under_autocast() -> None:
    predictions, targets = torch.randn(3, 4, 4), torch.randn(3, 4, 2)
    loss = ResidualLogLikelihood()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(predictions, targets), loss(predictions, targets))
        lossy = loss(predictions, targets)
    assert torch.equal(lossy, loss(predictions, targets))
    assert loss(predictions.bfloat16(), targets).dtype == torch.float32


def test_likelihood_learns_a_spread() -> None:
    """Errors that are ten times as large get ten times the deviation."""
    torch.manual_seed(0)
    loss = ResidualLogLikelihood()
    raw = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.2)
    targets = torch.randn(100, 1, 1) * torch.tensor([0.02, 0.2])
    for _ in range(100):
        optimizer.zero_grad()
        loss(torch.cat((torch.zeros(100, 1, 2), raw.expand(100, 1, 2)), -1), targets).backward()
        optimizer.step()
    narrow, wide = raw.sigmoid().tolist()
    assert wide / narrow == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(
    ("predictions", "targets", "visible", "error", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2), None, ValueError, r"predictions: got shape \(2, 2\), allowed is \(B, ..., K, 2\)"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 2, 2), None, ValueError, r"targets: got shape \(1, 2, 2\), allowed is \(1, 3, 2\)"),
        (
            torch.zeros(1, 3, 2),
            torch.zeros(1, 3, 2),
            torch.ones(3),
            ValueError,
            r"visible: got shape \(3,\), allowed is \(1, 3\)",
        ),
        (torch.zeros(1, 3, 2).int(), torch.zeros(1, 3, 2), None, TypeError, r"predictions: got dtype torch\.int32"),
    ],
)
def test_wrong_arguments_are_refused(predictions, targets, visible, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VectorLoss()(predictions, targets, visible)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="kind: got 'l3'"):
        VectorLoss("l3")
    with pytest.raises(ValueError, match="reduction: got 'none'"):
        VectorLoss(reduction="none")
    with pytest.raises(ValueError, match="reduction: got 'none'"):
        ResidualLogLikelihood("none")
