"""The squared error of heatmaps straight from keypoints: the whole op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastpose import _check
from fastpose._library import (
    NO_FORWARD_MODE,
    apply,
    define,
    differentiated,
    fused,
    library,
    refuse,
    straight_to_autograd,
)
from fastpose.ops import _gaussian
from fastpose.ops._gaussian import GaussianArgs

REDUCTIONS = ("mean", "sum", "batchmean", "half_batchmean")
UNLABELLED = ("ignore", "empty")


def heatmap_mse_loss(
    predictions: torch.Tensor | Sequence[torch.Tensor],
    keypoints: torch.Tensor,
    sigma: float | Sequence[float] | torch.Tensor,
    *,
    visible: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    unlabelled: str = "ignore",
    rounding: str = "none",
    radius: float | None = None,
    window: str = "square",
    combine: str = "max",
    amplitude: float = 1.0,
    offset: float = 0.0,
) -> torch.Tensor:
    r"""Squared error between predicted heatmaps and the Gaussians at the keypoints, which are never drawn in memory.

    .. math:: L_s = c \sum_{b, k} w_{bk} \sum_{y, x} \left(P_s - M\right)_{bk}^2(y, x)

    with M the maps that :func:`gaussian_heatmap` draws and c set by ``reduction``. All stacks of a network are compared at once,
    each prediction being read once and its gradient written once, in the forward pass. The backward pass only multiplies by the
    upstream gradient, and leaves memory alone where that is 1. (A float16 prediction costs that multiplication always: the
    gradient of a mean is too small for float16 until a loss scaler's factor is in it, and is exact with it.)

    Args:
        predictions: (B, K, H, W), or a list of S of them, one for each stack, of one shape, dtype and device. Any strides.
        keypoints: (B, K, 2), or (B, P, K, 2) for P people an image; (x, y) in heatmap pixels, cell i has its centre at i.
        sigma: as in :func:`gaussian_heatmap`, like ``visible``, ``rounding``, ``radius``, ``window``, ``combine``, ``amplitude``
            and ``offset``.
        weights: (K,) or (B, K), of the joints' squared errors, bool or number. A map of weight 0 adds no loss and has a gradient
            of exactly 0 whatever is in it, NaN included. Elsewhere a NaN in a prediction gives a NaN loss and gradient.
        reduction: c is ``"mean"``: 1 / (B K H W), ignored maps counting too; ``"sum"``: 1; ``"batchmean"``: 1 / B (Tompson);
            ``"half_batchmean"``: 1 / 2B (CPM, Caffe's EuclideanLoss). Without elements the loss is 0.
        unlabelled: maps on which no person is labelled are left out, ``"ignore"``, or compared with the empty map, ``"empty"``
            (Torch7 hourglass, CPM).

    Returns:
        The loss () of one prediction, or the losses (S,) of a list; float32, for float64 float64. Differentiable once, in the
        predictions.

    Raises:
        TypeError, ValueError: an argument is not as above, or keypoints, sigma or weights require grad: they are labels here.
        NotBuiltError: there is no kernel for the predictions' device.

    Source: Tompson et al. 2014, section 3; Newell et al. 2016, section 3.1; Wei et al. 2016, equation 4.
    """
    maps = [predictions] if isinstance(predictions, torch.Tensor) else predictions
    _check_predictions(maps, listed=maps is predictions)
    batch, joints, dtype = *maps[0].shape[:2], maps[0].dtype
    args = _gaussian.gaussian_args(
        keypoints,
        sigma,
        visible=visible,
        rounding=rounding,
        radius=radius,
        window=window,
        combine=combine,
        amplitude=amplitude,
        offset=offset,
        dtype=dtype,
    )
    _check.option("reduction", reduction, REDUCTIONS)
    _check.option("unlabelled", unlabelled, UNLABELLED)
    if (keypoints.shape[0], keypoints.shape[-2]) != (batch, joints):
        raise ValueError(
            f"keypoints: got shape {_check.shape(keypoints)}, but predictions have B = {batch} and K = {joints}; "
            "allowed is (B, K, 2) or (B, P, K, 2)"
        )
    _check.same_device("keypoints", keypoints, "predictions", maps[0])
    if weights is not None:
        weights = _weights(weights, maps[0], args.keypoints.dtype)
    grad = torch.is_grad_enabled()
    for name, label in (("keypoints", keypoints), ("sigma", sigma), ("weights", weights)):
        if grad and isinstance(label, torch.Tensor) and label.requires_grad:
            raise ValueError(f"{name}: requires grad, but the loss has a gradient for predictions only; detach it")
    run: Callable[..., Any] = heatmap_mse_loss_reference
    if fused(maps[0]):
        run = _autograd if straight_to_autograd((*maps, args.keypoints, args.sigmas, weights)) else _op
    losses, _ = run(
        list(maps),
        *args,
        weights,
        REDUCTIONS.index(reduction),
        unlabelled == "ignore",
        maps is predictions,
        grad and differentiated(maps),
    )
    return losses


def heatmap_mse_loss_reference(predictions: list[torch.Tensor], *args: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same in plain PyTorch; arguments as the op's, and no gradients precomputed."""
    gaussian = GaussianArgs(*args[: len(GaussianArgs._fields)])
    weights, reduction, ignore_unlabelled, listed, _ = args[len(gaussian) :]
    height, width = predictions[0].shape[2:]
    target = _gaussian.draw(gaussian, height, width)
    weight = torch.ones_like(target[:, :, 0, 0]) if weights is None else weights
    if ignore_unlabelled:
        weight = torch.where(_gaussian.labelled(gaussian).any(1), weight, 0)
    weight = weight[:, :, None, None]
    scale = _scale(reduction, target.shape)
    # Masked before it is squared, so that a NaN in an ignored map reaches neither the loss nor the gradient.
    differences = [torch.where(weight == 0, 0, p.to(target.dtype) - target) for p in predictions]
    losses = [scale * (weight * d.square()).sum() for d in differences]
    return torch.stack(losses) if listed else losses[0], []


def _check_predictions(predictions: Any, listed: bool) -> None:
    if not isinstance(predictions, (list, tuple)):
        raise TypeError(f"predictions: got {type(predictions).__name__}, allowed is a torch.Tensor or a list of them")
    if not predictions:
        raise ValueError("predictions: got an empty list, allowed is at least one tensor")
    for i, prediction in enumerate(predictions):
        name = f"predictions[{i}]" if listed else "predictions"
        _check.maps(name, prediction)
        if prediction.shape != predictions[0].shape or prediction.dtype != predictions[0].dtype:
            raise ValueError(
                f"{name}: got shape {_check.shape(prediction)} and {prediction.dtype}, "
                f"but predictions[0] has {_check.shape(predictions[0])} and {predictions[0].dtype}"
            )
        _check.same_device(name, prediction, "predictions[0]", predictions[0])


def _weights(weights: torch.Tensor, prediction: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(weights, torch.Tensor):
        raise TypeError(f"weights: got {type(weights).__name__}, allowed is a torch.Tensor")
    if weights.is_complex():
        raise TypeError(f"weights: got dtype {weights.dtype}, allowed is bool or a real number")
    batch, joints = prediction.shape[:2]
    if weights.shape not in ((joints,), (batch, joints)):
        raise ValueError(f"weights: got shape {_check.shape(weights)}, allowed is ({joints},) or ({batch}, {joints})")
    _check.same_device("weights", weights, "predictions", prediction)
    return weights.to(dtype).expand(batch, joints).contiguous()


class _Loss(torch.autograd.Function):
    """The op's autograd. Written out because register_autograd spends 0.1 ms a call on arguments that are lists of tensors."""

    generate_vmap_rule = True
    jvp = staticmethod(refuse("heatmap_mse_loss", NO_FORWARD_MODE))

    @staticmethod
    def forward(args: tuple[Any, ...], *predictions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            losses, gradients = _op(predictions, *args)
        return losses, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        args, *predictions = inputs
        _, *gradients = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*gradients)
        ctx.save_for_backward(*output)
        ctx.reduction, ctx.stacks = args[-4], len(predictions)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor | None, *_: None) -> tuple[Any, ...]:
        losses, *gradients = ctx.saved_tensors
        if upstream is None:
            return (None,) * (1 + ctx.stacks)
        if not gradients:
            raise RuntimeError("fastpose::heatmap_mse_loss was called with compute_gradient=False and has no gradient")
        upstream = upstream.expand(len(gradients))  # of one loss (), of several (S,)
        if _may_overwrite(gradients, upstream):
            _scale_op(gradients, upstream, ctx.reduction)
        else:
            gradients = _scaled(gradients, upstream, ctx.reduction)
            if torch.is_grad_enabled():
                gradients = apply(_Once, losses, *gradients)
        return None, *gradients


class _Once(torch.autograd.Function):
    """Passes gradients on and refuses to be differentiated. ``losses`` ties them to the predictions, so that it is asked to."""

    generate_vmap_rule = True
    backward = staticmethod(refuse("heatmap_mse_loss"))

    @staticmethod
    def forward(losses: torch.Tensor, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        pass


def _may_overwrite(gradients: list[torch.Tensor], upstream: torch.Tensor) -> bool:
    """Whether the saved buffers can become the gradients.

    They can if nobody will ask for them again, and neither a compiler nor a transform nor a batch of upstream gradients looks on.
    """
    retained = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    if retained is None or retained() or torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    if any(type(gradient) is not torch.Tensor for gradient in gradients):
        return False
    return not torch._C._functorch.is_legacy_batchedtensor(upstream)


def _scaled(gradients: list[torch.Tensor], upstream: torch.Tensor, reduction: int) -> list[torch.Tensor]:
    """What the op ``heatmap_mse_loss_scale_`` does, in plain PyTorch: a compiler makes it part of the operation that follows."""
    dtype = gradients[0].dtype
    factors = upstream * _scale(reduction, gradients[0].shape) if dtype == torch.float16 else upstream
    return [(gradient * factor).to(dtype) for gradient, factor in zip(gradients, factors.view(-1, 1, 1, 1, 1), strict=True)]


def _scale(reduction: int, shape: torch.Size) -> float:
    """What the sum of squares is multiplied by."""
    batch, numel = max(1, shape[0]), max(1, shape.numel())
    return (1 / numel, 1.0, 1 / batch, 0.5 / batch)[reduction]


def _autograd(predictions: list[torch.Tensor], *args: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if differentiated(predictions):
        losses, *gradients = apply(_Loss, args, *predictions)
        return losses, gradients
    with torch._C._AutoDispatchBelowAutograd():
        return _op(predictions, *args)


def _fake(predictions: list[torch.Tensor], *args: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    keypoints, listed, compute_gradient = args[0], *args[-2:]
    gradients = [torch.empty_like(p) for p in predictions] if compute_gradient else []
    return keypoints.new_empty(len(predictions) if listed else ()), gradients


def _vmap(info: Any, in_dims: tuple[Any, ...], predictions: list[torch.Tensor], *args: Any) -> tuple[Any, ...]:
    """One call after the other: torch makes no such fallback for an op on lists of tensors."""

    def one(value: Any, dim: int | None, index: int) -> Any:
        return value if dim is None else value.select(dim, index)

    def call(index: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        own = [one(p, dim, index) for p, dim in zip(predictions, in_dims[0], strict=True)]
        return _op(own, *(one(arg, dim, index) for arg, dim in zip(args, in_dims[1:], strict=True)))

    losses, gradients = zip(*map(call, range(info.batch_size)), strict=True)
    stacked = [torch.stack(of_stack) for of_stack in zip(*gradients, strict=True)]
    return (torch.stack(losses), stacked), (0, [0] * len(stacked))


library.define(
    f"heatmap_mse_loss(Tensor[] predictions, {_gaussian.SCHEMA}, Tensor? weights, int reduction, bool ignore_unlabelled, "
    "bool listed, bool compute_gradient) -> (Tensor losses, Tensor[] gradients)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.register_fake("fastpose::heatmap_mse_loss", _fake, lib=library)
library.impl("heatmap_mse_loss", _autograd, "Autograd")
torch.library.register_vmap("fastpose::heatmap_mse_loss", _vmap, lib=library)
_op = torch.ops.fastpose.heatmap_mse_loss.default
_scale_op = define(
    "heatmap_mse_loss_scale_", "(Tensor(a!)[] gradients, Tensor upstream, int reduction) -> ()", fake=lambda *args: None
)
