"""Whether a provider computes what it should, judged before it is timed.

The measure is plain PyTorch in the same dtype, as in FlashAttention's tests: the largest error against the exact result, which is
computed in float64, may be twice as large as plain PyTorch's, plus 8 units in the last place of the largest number, or the square
root of the number of terms in a sum: so do rounding errors grow that add up in any order.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastpose.benchmarking.workload import Provider, Workload, in_float64, plain, tensors

UNITS_IN_THE_LAST_PLACE = 8


class WrongResultError(RuntimeError):
    """A provider does not compute what its workload is about."""


class Judge:
    """Knows the exact results of a workload and how far plain PyTorch is from them.

    Args:
        workload: whose providers will be judged.
        inputs: of the workload.
        eager: plain PyTorch's result of them.

    Raises:
        WrongResultError: plain PyTorch itself gives no numbers.
    """

    def __init__(self, workload: Workload, inputs: tuple[Any, ...], eager: Any) -> None:
        self._workload = workload
        self._exact = [tensor.detach() for tensor in tensors(plain(workload.exact)(*in_float64(inputs)))]
        self._eager_errors = self._errors(eager, border=0)
        if not all(map(math.isfinite, self._eager_errors)):
            raise WrongResultError(f"{workload.title}: {workload.eager} gives results that are no numbers")

    def check(self, name: str, provider: Provider, result: Any) -> None:
        """Raise WrongResultError if ``result`` is further from the exact one than it may be."""
        if provider.role == "floor":
            return
        results = tensors(self._workload.compared(result))
        # What is zero in exact arithmetic, as the gradient of a bias before a batch normalisation, is of the others' scale.
        count = max(1, sum(exact.numel() for exact in self._exact))
        typical = math.sqrt(sum(exact.square().sum().item() for exact in self._exact) / count)
        for index, error in enumerate(self._errors(result, provider.border)):
            scale = max(typical, _largest(self._exact[index]), self._workload.magnitude)
            unit = max(torch.finfo(dtype).eps for dtype in (results[index].dtype, self._workload.arithmetic))
            units = max(UNITS_IN_THE_LAST_PLACE, math.sqrt(self._workload.terms))
            allowed = 2 * self._eager_errors[index] + (units * unit + provider.slack) * scale
            if not error <= allowed:
                raise WrongResultError(
                    f"{self._workload.title}: {name} is wrong: result {index} is off by {error:.3g}, "
                    f"{self._workload.eager} by {self._eager_errors[index]:.3g}, allowed is {allowed:.3g}"
                )

    def _errors(self, result: Any, border: int) -> list[float]:
        results = tensors(self._workload.compared(result))
        if [tensor.shape for tensor in results] != [exact.shape for exact in self._exact]:
            shapes = [[tuple(tensor.shape) for tensor in both] for both in (results, self._exact)]
            raise WrongResultError(f"{self._workload.title}: got results of shapes {shapes[0]}, exact are {shapes[1]}")
        return [_largest_error(*pair, border) for pair in zip(results, self._exact, strict=True)]


def _largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _largest_error(result: torch.Tensor, exact: torch.Tensor, border: int) -> float:
    """Infinite where one of them is NaN or infinite and the other is not the same."""
    if border and exact.dim() == 4:
        result, exact = (tensor[..., border:-border, border:-border] for tensor in (result, exact))
    result = result.detach().double()
    same = (result == exact) | (result.isnan() & exact.isnan())
    return _largest(torch.where(same, 0, (result - exact).abs().nan_to_num(math.inf, posinf=math.inf)))
