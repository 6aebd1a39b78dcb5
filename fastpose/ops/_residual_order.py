"""Training of the hourglass's residual block: the order of the steps, forward and backward, whatever carries them out.

With n_i(z) = (z - mean_i) / std_i * weight_i + bias_i a batch normalisation and a_i = relu(n_i(.)), the block is

    z1 = W1 a1(x),   z2 = W2 * a2(z1),   y = W3 a3(z2) + b3 + skip(x)

Only x, z1 and z2 are kept for the backward pass, which computes the a_i anew: half of what autograd keeps. The biases b1 and b2
of the first two convolutions are left out, because the normalisations that follow subtract them again: they move the mean, and
with statistics of the batch their gradient is exactly zero.

A :class:`Steps` carries out what touches pixels: :mod:`fastpose.ops._residual_plain` in plain PyTorch on any device, which is the
definition, and :mod:`fastpose.triton.residual_training` in fused kernels. The 3×3 convolution is PyTorch's in both.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from fastpose.ops._residual_statistics import means
from fastpose.ops._residual_steps import Norm, Parameters, Running, Steps, Sums


def forward(
    steps: Steps, x: torch.Tensor, p: Parameters, norms: list[Norm], running: list[Running], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, z1 and z2 of a channels_last x; the ``norms`` are filled in. Convolutions work in ``dtype``."""
    counted = [of.batches for of in running if of.batches is not None]
    if counted:
        torch._foreach_add_(counted, 1)
    for norm, of in zip(norms, running, strict=True):
        if not norm.batch:
            steps.frozen_statistics(norm, of)
    if norms[0].batch:
        steps.batch_statistics(x, norms[0], running[0])
    z1 = steps.first(x, norms[0], p.conv1_weight.to(dtype), norms[1], running[1])
    with deterministic_cudnn():
        z2 = torch.conv2d(steps.activation(z1, norms[1], dtype), _conv2(p, dtype), padding=1)
    z2 = z2.contiguous(memory_format=torch.channels_last)
    if norms[2].batch:
        steps.batch_statistics(z2, norms[2], running[2])
    skip_weight = None if p.skip_weight is None else p.skip_weight.to(dtype)
    y = steps.last(z2, norms[2], p.conv3_weight.to(dtype), p.conv3_bias, x, skip_weight, p.skip_bias)
    return y, z1, z2


def backward(
    steps: Steps,
    dy: torch.Tensor,
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    p: Parameters,
    norms: list[Norm],
    dtype: torch.dtype,
    need_x: bool,
    need: Parameters,
) -> tuple[torch.Tensor | None, Parameters]:
    """Gradients in x and in the parameters, None where not needed. ``dy`` and the ``saved`` x, z1 and z2 are channels_last."""
    x, z1, z2 = saved
    norm1, norm2, norm3 = norms
    grads: dict[str, torch.Tensor | None] = {}
    # What must be known of each tensor, from the input up: a gradient is needed where one below it is.
    before_bn1 = need_x or need.bn1_weight or need.bn1_bias
    z1_needed = before_bn1 or need.conv1_weight
    before_bn2 = z1_needed or need.bn2_weight or need.bn2_bias or (need.conv1_bias and not norm2.batch)
    z2_needed = before_bn2 or need.conv2_weight
    before_bn3 = z2_needed or need.bn3_weight or need.bn3_bias or (need.conv2_bias and not norm3.batch)

    of_branch = dy.to(dtype)  # from which y may differ: it has the skip's dtype if that is wider
    if need.conv3_weight or need.conv3_bias:
        grads["conv3_weight"], grads["conv3_bias"] = steps.pointwise_weight_gradient(
            of_branch, z2, norm3, p.conv3_weight, p.conv3_bias if need.conv3_bias else None
        )
    if need.skip_weight or need.skip_bias:
        grads["skip_weight"], grads["skip_bias"] = steps.pointwise_weight_gradient(
            of_branch, x, None, p.skip_weight, p.skip_bias if need.skip_bias else None
        )
    if before_bn3:
        g, sums = steps.pointwise_input_gradient(of_branch, p.conv3_weight.to(dtype), z2, norm3)
        _norm_gradients(grads, "bn3", "conv2_bias", sums, norm3, p)
    if z2_needed:
        dz = steps.norm_input_gradient(g, z2, norm3, *means(sums, g, norm3), masked=True)
        weight = _conv2(p, dtype)
        a = steps.activation(z1, norm2, dtype) if need.conv2_weight else z1  # of the latter only the shape is read
        with deterministic_cudnn():
            d, grads["conv2_weight"], _ = torch.ops.aten.convolution_backward(
                dz, a, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [before_bn2, need.conv2_weight, False]
            )
        del a, dz
    if before_bn2:
        d = d.contiguous(memory_format=torch.channels_last)
        sums = steps.masked_sums(d, z1, norm2)
        _norm_gradients(grads, "bn2", "conv1_bias", sums, norm2, p)
    if z1_needed:
        dz = steps.norm_input_gradient(d, z1, norm2, *means(sums, d, norm2), masked=False)
        if need.conv1_weight:
            grads["conv1_weight"], _ = steps.pointwise_weight_gradient(dz, x, norm1, p.conv1_weight, None)
    if before_bn1:
        g, sums = steps.pointwise_input_gradient(dz, p.conv1_weight.to(dtype), x, norm1)
        _norm_gradients(grads, "bn1", None, sums, norm1, p)
    dx = None
    if need_x:
        skip_weight = None if p.skip_weight is None else p.skip_weight.to(dtype)
        dx = steps.block_input_gradient(g, x, norm1, *means(sums, g, norm1), dy, skip_weight)
    for name in ("conv1_bias", "conv2_bias"):  # in front of a normalisation by the batch
        if getattr(need, name) and name not in grads:
            grads[name] = torch.zeros_like(getattr(p, name))
    return dx, Parameters(*(_as(grads.get(name), getattr(p, name), getattr(need, name)) for name in Parameters._fields))


def _conv2(p: Parameters, dtype: torch.dtype) -> torch.Tensor:
    return p.conv2_weight.to(dtype, memory_format=torch.channels_last)


def _norm_gradients(
    grads: dict[str, torch.Tensor | None], bn: str, conv_bias: str | None, sums: Sums, norm: Norm, p: Parameters
) -> None:
    """Of the normalisation's weight and bias, and of the bias that running statistics do not cancel, of this rank."""
    grads[f"{bn}_bias"], grads[f"{bn}_weight"] = sums
    if conv_bias is not None and getattr(p, conv_bias) is not None and not norm.batch:
        grads[conv_bias] = sums[0] * norm.scale


def _as(gradient: torch.Tensor | None, parameter: torch.Tensor | None, needed: bool) -> torch.Tensor | None:
    """In the parameter's dtype and strides, or None."""
    if gradient is None or parameter is None or not needed:
        return None
    strides = parameter.stride()
    same_order = all(a == b or n == 1 for a, b, n in zip(gradient.stride(), strides, parameter.shape, strict=True))
    if same_order and gradient.dtype == parameter.dtype:
        return gradient.as_strided(parameter.shape, strides)
    return torch.empty_like(parameter).copy_(gradient)


_lock, _inside, _before = threading.Lock(), 0, False


@contextlib.contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """cuDNN adds no floats by atomics in here. The setting is the process's own, and several threads may be inside at once.

    (torch.backends.cudnn.flags would ask for other settings, which raises if convolutions and RNNs differ in them.)
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch._C._get_cudnn_deterministic()
            torch._C._set_cudnn_deterministic(True)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch._C._set_cudnn_deterministic(_before)
