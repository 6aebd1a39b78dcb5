"""Models ready to be called as fast as possible: CUDA graphs on a GPU, folded and packed convolutions on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from fastpose import _check
from fastpose._streams import overlapping_branches
from fastpose.nn._packed import pack_

_TRIES, _CALLS_PER_TRY = 5, 10
_WARM_UP_CALLS = 3  # cuDNN and Triton choose and compile in the first; what they allocate is there before the capture


class CompiledModel:
    """A model in evaluation, for inputs of one size and dtype; made by :func:`compile_for_inference`.

    Attributes:
        model: the model that it was made of.
        batch_sizes: the batches for which it is prepared, ascending; others up to the last are padded.
    """

    def __init__(
        self, model: nn.Module, example: torch.Tensor, batch_sizes: tuple[int, ...], options: dict[str, Any], copy_outputs: bool
    ) -> None:
        self.model = model
        self.batch_sizes = batch_sizes
        self._size, self._dtype, self._device = example.shape[1:], example.dtype, example.device
        channels_last = example.ndim == 4 and example.is_contiguous(memory_format=torch.channels_last)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._options = options
        self._copy_outputs = copy_outputs
        self._run: dict[int, Callable[[torch.Tensor], Any]] = {}
        self.refresh()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Any:
        """What the model returns.

        Args:
            images: (B, ...), B up to the largest of ``batch_sizes``, of the dtype and on the device of the example, and of its
                other sizes.

        Raises:
            TypeError, ValueError: ``images`` is anything else.
        """
        self._check(images)
        prepared = next(size for size in self.batch_sizes if size >= images.shape[0])
        return self._run[prepared](images)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's parameters and buffers as they are now.

        On a GPU, changes in place are seen without it: it is needed where they were replaced or moved, as ``model.to()`` does. On
        a CPU it is always needed.

        Raises:
            ValueError: the model is not in evaluation, or not on the device of the example any more.
        """
        _check_model(self.model, self._device)
        self._run = {}
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                pool = torch.cuda.graph_pool_handle()
                for batch in reversed(self.batch_sizes):  # the largest first, so that the others fit into its memory
                    arguments = (self.model, self._zeros(batch), self._options, self._copy_outputs, pool)
                    self._run[batch] = _fastest_graph(*arguments)
            return
        model = pack_(copy.deepcopy(self.model)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def run(images: torch.Tensor) -> Any:
            images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
            return model(images, **self._options)

        run(self._zeros(self.batch_sizes[-1]))  # lays out the weights for this size
        self._run = dict.fromkeys(self.batch_sizes, run)

    def _zeros(self, batch: int) -> torch.Tensor:
        zeros = torch.zeros(batch, *self._size, dtype=self._dtype, device=self._device)
        return zeros.contiguous(memory_format=self._memory_format)

    def _check(self, images: Any) -> None:
        _check.floating("images", images)
        if images.ndim != 1 + len(self._size) or images.shape[1:] != self._size:
            allowed = ", ".join(map(str, self._size))
            raise ValueError(f"images: got shape {_check.shape(images)}, this model was compiled for (B, {allowed})")
        if images.dtype != self._dtype:
            raise TypeError(f"images: got {images.dtype}, this model was compiled for {self._dtype}")
        if images.device != self._device:
            raise ValueError(f"images: is on {images.device}, this model was compiled for {self._device}")
        if not 1 <= images.shape[0] <= self.batch_sizes[-1]:
            raise ValueError(f"images: got a batch of {images.shape[0]}, this model was compiled for 1 to {self.batch_sizes[-1]}")

    def __repr__(self) -> str:
        size = f"({', '.join(['B', *map(str, self._size)])})"
        batches = ", ".join(map(str, self.batch_sizes))
        return f"CompiledModel({type(self.model).__name__}, {size} {self._dtype} on {self._device}, B = {batches})"


def compile_for_inference(
    model: nn.Module,
    example: torch.Tensor,
    *,
    batch_sizes: Sequence[int] | None = None,
    copy_outputs: bool = True,
    tune: bool = False,
    **options: Any,
) -> CompiledModel:
    """Prepare a model for being called many times with images of one size.

    On a GPU its kernels are captured in a CUDA graph for every batch size, which takes the place of hundreds of launches; the
    branches of hourglasses overlap there if that is measured to be faster. On a CPU a copy of the model is made, in which the
    hourglass residuals have their batch normalisations folded into weights that lie as oneDNN reads them. Results are those of
    the model up to rounding.

    Args:
        model: in evaluation, with parameters on the device of the example.
        example: images (B, ...) of the size, dtype, device and memory format of those to come; what is in them does not matter.
            Hourglasses on a GPU are fast in float16 and bfloat16, and after ``model.to(memory_format=torch.channels_last)``.
        batch_sizes: batches to prepare for; None: that of the example. A smaller batch is padded up to the next one.
        copy_outputs: whether every call returns new tensors. Else, on a GPU, the next call overwrites them.
        tune: whether to measure, on a GPU, the ways in which the fused layers can be computed, and to keep the fastest on disk.
            Takes some minutes the first time. See :func:`fastpose.triton.tuning.tune`.
        **options: further arguments of every call, such as ``last_only=True``. Under autocast, call this under autocast.

    Returns:
        A callable that takes images and returns what the model does, without gradients. For changes of the weights see its
        ``refresh``.

    Raises:
        TypeError, ValueError: the model is in training mode or not on the device of the example, or an argument is not as above.
    """
    _check.floating("example", example)
    if example.ndim < 1 or example.shape[0] < 1:
        raise ValueError(f"example: got shape {_check.shape(example)}, allowed is at least one dimension and one sample")
    _check_model(model, example.device)
    sizes = sorted({_check.positive_int("batch_sizes", size) for size in batch_sizes or [example.shape[0]]})
    if tune and example.device.type == "cuda":
        from fastpose.triton import tuning  # needs Triton, and time

        for batch in sizes:
            tuning.tune(lambda images: model(images, **options), example[:1].expand(batch, *example.shape[1:]))
    return CompiledModel(model, example.detach(), tuple(sizes), options, copy_outputs)


def _check_model(model: nn.Module, device: torch.device) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, allowed is a torch.nn.Module")
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"model: {training[0]} is in training mode; call model.eval() first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != device:
            raise ValueError(f"model: {name} is on {tensor.device}, but the example is on {device}")


class _Graph:
    """A CUDA graph of one call."""

    def __init__(self, model: nn.Module, images: torch.Tensor, options: dict[str, Any], copy_outputs: bool, pool: Any) -> None:
        self.images, self.copy_outputs = images, copy_outputs
        # The graph reads them where they are now, wherever the model may have moved to by then.
        self.memory = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        current = torch.cuda.current_stream()
        stream = torch.cuda.Stream(priority=-1)  # before those of overlapping branches
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                model(images, **options)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool, stream=stream):
                outputs = model(images, **options)
        current.wait_stream(stream)
        self.outputs, self.structure = tree_flatten(outputs)
        for output in self.outputs:
            if isinstance(output, torch.Tensor) and output.shape[:1] != images.shape[:1]:
                raise ValueError(f"model: returns a tensor {_check.shape(output)} for a batch of {images.shape[0]}")

    def __call__(self, images: torch.Tensor) -> Any:
        batch = images.shape[0]
        self.images[:batch].copy_(images)
        self.graph.replay()
        outputs = tree_map_only(torch.Tensor, lambda output: output[:batch], self.outputs)
        if self.copy_outputs:
            outputs = tree_map_only(torch.Tensor, torch.clone, outputs)
        return tree_unflatten(outputs, self.structure)

    def milliseconds(self) -> float:
        """For one call on the GPU, the least of several tries."""
        times = []
        for _ in range(_TRIES):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(_CALLS_PER_TRY):
                self.graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / _CALLS_PER_TRY)
        return min(times)


def _fastest_graph(*arguments: Any) -> _Graph:
    """With or without overlapping branches, if the model has any."""
    graph = _Graph(*arguments)
    with overlapping_branches() as branches:
        overlapping = _Graph(*arguments)
    return min(graph, overlapping, key=_Graph.milliseconds) if branches.were_used else graph
