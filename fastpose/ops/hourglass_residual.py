"""The hourglass's residual block in inference: the whole op."""

from __future__ import annotations

import torch
from torch.nn import functional

from fastpose import _check, _library
from fastpose._layers import BatchNorm, Convolution, ResidualParameters, empty_maps
from fastpose._library import define, library

FUSED_DTYPES = (torch.float16, torch.bfloat16)
"""For which there are GPU kernels."""
MAX_MID_CHANNELS = 512
"""Of the 3×3 convolution, in a GPU kernel."""


def hourglass_residual(
    x: torch.Tensor, parameters: ResidualParameters, *, pool: bool = False, low: torch.Tensor | None = None
) -> torch.Tensor:
    r"""The pre-activation bottleneck of the Stacked Hourglass network with fixed statistics, and what stands around it there.

    .. math:: y = W_3 \, r(n_3(W_2 * r(n_2(W_1 \, r(n_1(x')))))) + S x' + \operatorname{up}(l), \qquad r = \max(0, \cdot)

    with x' the input or its 2×2 max-pooling, n the batch normalisations with running statistics, W the convolutions with their
    biases, S the identity or a projection, and up(l) every pixel of ``low`` in two rows and two columns. On a GPU two kernels:
    the second has the 3×3 convolution and everything behind it. The parameters are used as they are at the time: nothing that is
    computed from them is kept.

    Args:
        x: (B, C, H, W) of any strides. On a GPU float16 or bfloat16.
        parameters: C must be a multiple of 16 on a GPU, and so must the channels N of the result, of which the convolutions
            between have half as many, 512 at most there. The weights are of x's dtype; those of 3×3 are read fastest in
            channels_last memory. The normalisations may be of any floating dtype.
        pool: whether x' is ``max_pool2d(x, 2)``.
        low: (B, N, H', W') to be upsampled and added, for y of (B, N, 2 H', 2 W'); None: nothing is added.

    Returns:
        y (B, N, H, W), halved with ``pool``, in channels_last memory. Not differentiable: run in plain PyTorch for that.

    Raises:
        TypeError, ValueError: an argument is not as above.
        NotBuiltError: there is no kernel for x's device.

    Source: Newell et al. 2016, "Stacked Hourglass Networks for Human Pose Estimation", section 3.2 and figure 4.
    """
    _check_arguments(x, parameters, pool, low)
    if _library.current_backend() == "reference":
        return hourglass_residual_reference(x, parameters, pool, low)
    check_for_gpu(x, parameters)
    return run_op(x, parameters, pool, low)


def hourglass_residual_reference(
    x: torch.Tensor, parameters: ResidualParameters, pool: bool, low: torch.Tensor | None
) -> torch.Tensor:
    """The same in plain PyTorch, and differentiable."""
    p = parameters
    if pool:
        x = functional.max_pool2d(x, 2)
    # The batch normalisations write new tensors, so the ReLUs may work in place: the skip sees the raw x.
    y = p.conv1(functional.relu(p.bn1(x), inplace=True))
    y = p.conv2(functional.relu(p.bn2(y), inplace=True))
    y = p.conv3(functional.relu(p.bn3(y), inplace=True))
    y = y + (p.skip(x) if p.skip else x)
    return y if low is None else y + functional.interpolate(low, scale_factor=2)


def run_op(x: torch.Tensor, parameters: ResidualParameters, pool: bool, low: torch.Tensor | None) -> torch.Tensor:
    """The op itself, whose arguments have been checked."""
    p = parameters
    tensors = [*p.bn1[:4], *p.conv1, *p.bn2[:4], *p.conv2, *p.bn3[:4], *p.conv3, *(p.skip or ())]
    return _op(x, tensors, [p.bn1.eps, p.bn2.eps, p.bn3.eps], pool, low)


def _parameters(tensors: list[torch.Tensor], eps: list[float]) -> ResidualParameters:
    bns, convs = [], []
    for i in range(3):
        weight, bias, mean, variance, *conv = tensors[6 * i : 6 * i + 6]
        bns.append(BatchNorm(weight, bias, mean, variance, eps[i]))
        convs.append(Convolution(*conv))
    skip = Convolution(*tensors[18:]) if tensors[18:] else None
    return ResidualParameters(bns[0], convs[0], bns[1], convs[1], bns[2], convs[2], skip)


def check_for_gpu(x: torch.Tensor, parameters: ResidualParameters) -> None:
    """Raises what keeps the fused op from running on x's device."""
    _library.require_triton(x.device)
    if x.device.type != "cuda":
        return
    if x.dtype not in FUSED_DTYPES:
        raise TypeError(f"x: got {x.dtype} on {x.device}, allowed on a GPU are float16 and bfloat16")
    mid, channels = parameters.conv1.weight.shape[:2]
    reason = why_not_these_channels(channels, mid, parameters.conv3.weight.shape[0])
    if reason:
        raise ValueError(f"parameters: {reason}")


def why_not_these_channels(channels: int, mid: int, outputs: int) -> str:
    """Why there is no GPU kernel for a block, or nothing."""
    if channels % 16 or outputs % 16 or mid % 8:
        return (
            f"the block has {channels}, {mid} and {outputs} channels; "
            "GPU kernels are for multiples of 16, and of 8 between the convolutions"
        )
    if mid > MAX_MID_CHANNELS:
        return f"the block has {mid} channels between the convolutions; GPU kernels are for {MAX_MID_CHANNELS} at most"
    return ""


def fits(x: torch.Tensor, outputs: int, pool: bool, low: torch.Tensor | None) -> bool:
    """Whether x can be pooled and ``low`` be added to a result of so many channels."""
    height, width = (side // 2 if pool else side for side in x.shape[2:])
    if low is None:
        return height > 0 and width > 0
    alike = low.dtype == x.dtype and low.device == x.device
    return alike and low.shape == (x.shape[0], outputs, height // 2, width // 2) and height % 2 == width % 2 == 0


def _check_arguments(x: torch.Tensor, parameters: ResidualParameters, pool: bool, low: torch.Tensor | None) -> None:
    _check.maps("x", x)
    p = parameters
    mid, channels = p.conv1.weight.shape[:2]
    outputs = p.conv3.weight.shape[0]
    if x.shape[1] != channels:
        raise ValueError(f"x: got shape {_check.shape(x)}, allowed is (B, {channels}, H, W)")
    shapes = {
        "conv1": (p.conv1, (mid, channels, 1, 1)),
        "conv2": (p.conv2, (mid, mid, 3, 3)),
        "conv3": (p.conv3, (outputs, mid, 1, 1)),
        "skip": (p.skip, (outputs, channels, 1, 1)),
    }
    for name, (conv, shape) in shapes.items():
        if conv is None:
            continue
        if conv.weight.shape != shape:
            raise ValueError(f"parameters.{name}: got weights of shape {_check.shape(conv.weight)}, allowed is {shape}")
        if conv.weight.dtype != x.dtype:
            raise TypeError(f"parameters.{name}: got weights of {conv.weight.dtype}, but x is {x.dtype}")
        _check.same_device(f"parameters.{name}", conv.weight, "x", x)
    if p.skip is None and channels != outputs:
        raise ValueError(f"parameters.skip: got None, which is for equal channel counts, but {channels} become {outputs}")
    height, width = x.shape[2:]
    if pool:
        height, width = height // 2, width // 2
        if not height or not width:
            raise ValueError(f"x: got shape {_check.shape(x)}, height and width must be at least 2 to be pooled")
    if low is None:
        return
    _check.floating("low", low)
    allowed = (x.shape[0], outputs, height // 2, width // 2)
    if low.shape != allowed or height % 2 or width % 2:
        raise ValueError(
            f"low: got shape {_check.shape(low)}, allowed is {allowed} upsampled to (.., {height}, {width}), both even"
        )
    if low.dtype != x.dtype:
        raise TypeError(f"low: got {low.dtype}, but x is {x.dtype}")
    _check.same_device("low", low, "x", x)


def _fake(
    x: torch.Tensor, parameters: list[torch.Tensor], eps: list[float], pool: bool, low: torch.Tensor | None
) -> torch.Tensor:
    height, width = (side // 2 if pool else side for side in x.shape[2:])
    return empty_maps(x, parameters[16].shape[0], height, width)


def _cuda(
    x: torch.Tensor, parameters: list[torch.Tensor], eps: list[float], pool: bool, low: torch.Tensor | None
) -> torch.Tensor:
    _library.require_triton(x.device)  # graphs were compiled without asking
    from fastpose.triton import residual  # takes time

    return residual.hourglass_residual(x, _parameters(parameters, eps), pool, low)


def _cpu(x: torch.Tensor, parameters: list[torch.Tensor], eps: list[float], pool: bool, low: torch.Tensor | None) -> torch.Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    p = _parameters(parameters, eps)
    with torch.autocast("cpu", enabled=False):
        if pool:
            x = functional.max_pool2d(x, 2)
        y = functional.relu_(p.bn1(x))
        y = functional.relu_(p.conv1.followed_by(p.bn2)(y))
        y = functional.relu_(p.conv2.followed_by(p.bn3)(y))
        y = p.conv3(y).contiguous(memory_format=torch.channels_last)
        y += p.skip(x) if p.skip else x
    if low is not None:
        add_upsampled_(y, low)
    return y


def add_upsampled_(y: torch.Tensor, low: torch.Tensor) -> None:
    """Adds every pixel of ``low`` (B, C, H, W) to a square of four of y (B, C, 2 H, 2 W), which is in channels_last memory."""
    squares = y.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    squares += low.permute(0, 2, 3, 1)[:, :, None, :, None]


_op = define(
    "hourglass_residual",
    "(Tensor x, Tensor[] parameters, float[] eps, bool pool, Tensor? low) -> Tensor",
    fake=_fake,
)
library.impl("hourglass_residual", _cuda, "CUDA")
library.impl("hourglass_residual", _cpu, "CPU")
