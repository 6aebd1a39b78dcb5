"""The hourglass's residual block in training, which keeps half of what autograd would: the whole op."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fastpose._library import define, differentiated, library, straight_to_autograd
from fastpose.ops import _residual_order, _residual_plain
from fastpose.ops._residual_steps import Norm, Parameters, Running, Steps, accumulator, new_maps

_OPTIONS = "bool[] batch, bool[] cumulative, float[] momentum, float[] eps, str[] groups, ScalarType dtype, bool fused"
_NAMES = ("running_mean", "running_var", "num_batches_tracked")
_SAVED = "Tensor x, Tensor z1, Tensor z2, Tensor statistics"


def hourglass_residual_training(
    x: torch.Tensor,
    parameters: Parameters,
    running: list[torch.Tensor | None],
    *,
    batch: list[bool],
    cumulative: list[bool],
    momentum: list[float],
    eps: list[float],
    groups: list[str],
    dtype: torch.dtype,
    fused: bool,
) -> torch.Tensor:
    """:class:`fastpose.nn.HourglassResidual` with gradients, in batch statistics or frozen ones; see ``_residual_order``.

    Args:
        x: (B, C, H, W), any strides.
        parameters: of the block. Weights of normalisations, biases and the skip's may be None.
        running: running mean, running variance and number of batches of each of the three normalisations, None where there
            is none. They are moved on in place where ``batch``.
        batch: whether a normalisation uses the statistics of this batch, or else the running ones, which then must be there.
        cumulative: whether its running statistics are averages of all batches, which is ``momentum=None`` of torch.
        momentum, eps: of each normalisation.
        groups: names of the process groups over which they share their statistics, "" for none.
        dtype: in which the convolutions work and z1 and z2 are kept. Statistics are in float32 (float64 for float64).
        fused: whether Triton kernels run, for GPUs and for the Triton interpreter, or plain PyTorch.

    Returns:
        The block's output (B, C_out, H, W), channels_last, of ``dtype``, or of what torch promotes it and x to where x itself is
        added. Differentiable once.
    """
    args = (*running, batch, cumulative, momentum, eps, groups, dtype, fused)
    return (_autograd if _unobserved(x, parameters) else _op)(x, list(parameters), *args)[0]


def _unobserved(x: torch.Tensor, parameters: Iterable[torch.Tensor | None]) -> bool:
    """Whether the kernels may be called from here, because a dispatcher would find nothing to do but that."""
    return straight_to_autograd((x, *parameters)) and not (x.is_meta or torch._C._are_functorch_transforms_active())


def _steps(fused: bool) -> Steps:
    return importlib.import_module("fastpose.triton.residual_training") if fused else _residual_plain


def _norms(p: Parameters, statistics: torch.Tensor, batch: list[bool], groups: list[str]) -> list[Norm]:
    """Views of the statistics: mean, 1 / std and scale of each normalisation, one after the other."""
    channels = [p.conv1_weight.shape[1], p.conv1_weight.shape[0], p.conv2_weight.shape[0]]
    parts = statistics.split([c for c in channels for _ in range(3)])
    norms = []
    for i, (weight, bias) in enumerate(((p.bn1_weight, p.bn1_bias), (p.bn2_weight, p.bn2_bias), (p.bn3_weight, p.bn3_bias))):
        weight = statistics.new_ones(channels[i]) if weight is None else weight
        bias = statistics.new_zeros(channels[i]) if bias is None else bias
        mean, rstd, scale = parts[3 * i : 3 * i + 3]
        norms.append(Norm(mean, rstd, scale, bias, weight, batch[i], groups[i]))
    return norms


@contextlib.contextmanager
def _on_device_of(x: torch.Tensor) -> Iterator[None]:
    """Kernels are launched on the GPU of ``x``, and autocast has had its say before: ``dtype`` is given."""
    with torch._C._DisableAutocast(), torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        yield


def _forward(x: torch.Tensor, parameters: list[torch.Tensor | None], *args: Any) -> tuple[torch.Tensor, ...]:
    running, (batch, cumulative, momentum, eps, groups, dtype, fused) = args[:9], args[9:]
    p = Parameters(*parameters)
    statistics = _new_statistics(x, p)
    norms = _norms(p, statistics, batch, groups)
    offsets = (None, p.conv1_bias, p.conv2_bias)
    states = list(map(Running, running[::3], running[1::3], running[2::3], momentum, cumulative, eps, offsets))
    x = x.contiguous(memory_format=torch.channels_last)
    with _on_device_of(x):
        y, z1, z2 = _residual_order.forward(_steps(fused), x, p, norms, states, dtype)
    return y, z1, z2, statistics


def _backward(dy: torch.Tensor, x: torch.Tensor, z1: torch.Tensor, z2: torch.Tensor, *args: Any) -> list[torch.Tensor]:
    statistics, parameters, batch, groups, dtype, fused, needs = args
    p = Parameters(*parameters)
    norms, need = _norms(p, statistics, batch, groups), Parameters(*needs[1:])
    dy, x, z1, z2 = (t.contiguous(memory_format=torch.channels_last) for t in (dy, x, z1, z2))
    with _on_device_of(x):
        dx, gradients = _residual_order.backward(_steps(fused), dy, (x, z1, z2), p, norms, dtype, needs[0], need)
    return [gradient for gradient in (dx, *gradients) if gradient is not None]


def _new_statistics(x: torch.Tensor, p: Parameters) -> torch.Tensor:
    size = 3 * (p.conv1_weight.shape[1] + p.conv1_weight.shape[0] + p.conv2_weight.shape[0])
    return x.new_empty(size, dtype=accumulator(x.dtype))


def _fake(x: torch.Tensor, parameters: list[torch.Tensor | None], *args: Any) -> tuple[torch.Tensor, ...]:
    p, dtype = Parameters(*parameters), args[-2]
    of_y = torch.promote_types(x.dtype, dtype) if p.skip_weight is None else dtype
    return (
        new_maps(x, p.conv3_weight.shape[0], of_y),
        new_maps(x, p.conv1_weight.shape[0], dtype),
        new_maps(x, p.conv2_weight.shape[0], dtype),
        _new_statistics(x, p),
    )


def _fake_backward(dy: torch.Tensor, x: torch.Tensor, *args: Any) -> list[torch.Tensor]:
    parameters, needs = args[3], args[-1]
    like_x = [new_maps(x, x.shape[1], x.dtype)] if needs[0] else []
    return like_x + [torch.empty_like(p) for p, needed in zip(parameters, needs[1:], strict=True) if needed]


class _Block(torch.autograd.Function):
    """The op's autograd: register_autograd takes no op that writes to its arguments."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, args: tuple[Any, ...], *parameters: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch._C._AutoDispatchBelowAutograd():
            y, z1, z2, statistics = (_forward if _unobserved(x, parameters) else _op)(x, list(parameters), *args)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(z1, z2, statistics)
        ctx.save_for_backward(x, z1, z2, statistics, *parameters)
        ctx.batch, (ctx.groups, ctx.dtype, ctx.fused) = args[9], args[13:]
        return y, z1, z2, statistics

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, ...]:
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        if dy is None:
            return (None,) * (1 + len(needs))
        x, z1, z2, statistics, *parameters = ctx.saved_tensors
        # In the other case somebody listens, or asks for gradients of gradients, which the op refuses.
        run = _backward if _unobserved(dy, (x, *parameters)) and not torch.is_grad_enabled() else _backward_op
        gradients = iter(run(dy, x, z1, z2, statistics, parameters, ctx.batch, ctx.groups, ctx.dtype, ctx.fused, needs))
        of_x, *of_parameters = [next(gradients) if needed else None for needed in needs]
        return of_x, None, *of_parameters


def _autograd(x: torch.Tensor, parameters: list[torch.Tensor | None], *args: Any) -> tuple[torch.Tensor, ...]:
    if differentiated((x, *parameters)):
        return _Block.apply(x, args, *parameters)
    with torch._C._AutoDispatchBelowAutograd():
        return (_forward if _unobserved(x, parameters) else _op)(x, parameters, *args)


_BUFFERS = ", ".join(f"Tensor({'abcdefghi'[3 * i + j]}!)? {name}{i + 1}" for i in range(3) for j, name in enumerate(_NAMES))
library.define(
    f"hourglass_residual_training(Tensor x, Tensor?[] parameters, {_BUFFERS}, {_OPTIONS}) "
    "-> (Tensor y, Tensor z1, Tensor z2, Tensor statistics)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.register_fake("fastpose::hourglass_residual_training", _fake, lib=library)
library.impl("hourglass_residual_training", _forward, "CompositeExplicitAutograd")
library.impl("hourglass_residual_training", _autograd, "Autograd")
_op = torch.ops.fastpose.hourglass_residual_training.default
_backward_op = define(
    "hourglass_residual_training_backward",
    f"(Tensor dy, {_SAVED}, Tensor?[] parameters, bool[] batch, str[] groups, ScalarType dtype, bool fused, bool[] needs) "
    "-> Tensor[]",
    fake=_fake_backward,
)
library.impl("hourglass_residual_training_backward", _backward, "CompositeExplicitAutograd")
