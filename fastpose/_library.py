"""The dispatcher library ``fastpose``: op definitions, which implementation runs, and what this build contains."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

library = torch.library.Library("fastpose", "DEF")

try:
    from fastpose import _C  # type: ignore[attr-defined]  # loading it registers the kernels
except ImportError as error:  # the ops stay defined: fakes, references and messages do not need the kernels
    _C = None
    _why_not_built = str(error)

BUILD_COMMAND = "pip install --no-build-isolation -e ."
_REFERENCE_HINT = 'or run plain PyTorch under fastpose.backend("reference")'
_backends = ("fused", "reference")
_backend = "fused"


class NotBuiltError(RuntimeError):
    """A compiled kernel was asked for that this build, or this GPU, does not have."""


def build_info() -> dict[str, Any]:
    """How the compiled extension was built.

    Returns:
        ``version``, ``torch_target`` (oldest torch it loads into), ``cuda`` (nvcc version or None),
        ``cuda_architectures``, ``compiler``, ``simd_levels`` (built) and ``simd_level`` (in use on this CPU).

    Raises:
        NotBuiltError: the extension is not built; the message says why and how to build it.
    """
    if _C is None:
        raise NotBuiltError(
            f"fastpose's compiled extension could not be loaded ({_why_not_built}); "
            f"build it with `{BUILD_COMMAND}` in a checkout, {_REFERENCE_HINT}"
        )
    return _C.build_info()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Chooses what the ops run inside a ``with`` block.

    Args:
        name: ``"fused"`` (the default everywhere: compiled kernels) or ``"reference"`` (plain PyTorch, differentiable
            any number of times, on any device).

    The choice is one for the whole process, not per thread. Nothing changes it silently: an op whose kernel is missing raises.

    Raises:
        ValueError: unknown name.
    """
    global _backend
    if name not in _backends:
        raise ValueError(f"backend: got {name!r}, allowed are {', '.join(map(repr, _backends))}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def current_backend() -> str:
    """The backend in force: ``"fused"`` or ``"reference"``."""
    return _backend


def fused(tensor: torch.Tensor) -> bool:
    """Whether the compiled op shall run for ``tensor``; raises NotBuiltError if it should but cannot."""
    if _backend == "reference":
        return False
    require_kernels(tensor.device)
    return True


def require_kernels(device: torch.device) -> None:
    """Raises NotBuiltError, saying what was found, what was built and what mends it, if ``device`` has no kernels."""
    if device.type == "meta" or (device.type == "cpu" and _C is not None):
        return
    info = build_info()
    if device.type not in ("cpu", "cuda"):
        raise NotBuiltError(
            f"fastpose has kernels for cpu and cuda, but the tensors are on {device.type}; move them, {_REFERENCE_HINT}"
        )
    if info["cuda"] is None:
        raise NotBuiltError(
            f"the tensors are on {device}, but fastpose was built without CUDA kernels; "
            f"rebuild with nvcc on the PATH: `{BUILD_COMMAND}`, {_REFERENCE_HINT}"
        )
    if torch.compiler.is_compiling():  # no question to the host inside a graph; the driver will refuse a foreign GPU
        return
    _require_architecture(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _require_architecture(index: int) -> None:
    found = torch.cuda.get_device_capability(index)
    built = build_info()["cuda_architectures"]
    if not runs_on(found, built):
        arch = f"{found[0]}{found[1]}"
        raise NotBuiltError(
            f"cuda:{index} is a GPU of architecture sm_{arch}, but fastpose was built for {', '.join(built)}; "
            f"rebuild with `FASTPOSE_CUDA_ARCHS={arch} {BUILD_COMMAND}`, {_REFERENCE_HINT}"
        )


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a GPU runs code built for ``architectures``, in CMake's words: 90-real is machine code, 90-virtual PTX, 90 both."""
    for word in architectures:
        number, _, kind = word.partition("-")
        built = divmod(int(number.rstrip("af")), 10)
        same_machine_code = kind != "virtual" and built[0] == capability[0] and built[1] <= capability[1]
        newer_by_ptx = kind != "real" and capability >= built
        if same_machine_code or newer_by_ptx:
            return True
    return False


def why_no_triton(device: torch.device) -> str:
    """What is in the way of Triton kernels on a GPU; nothing, if they run, or while a graph is compiled, which needs Triton."""
    if torch.compiler.is_compiling():
        return ""
    return _why_no_triton(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _why_no_triton(index: int) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    major, minor = torch.cuda.get_device_capability(index)
    return (
        "" if major >= 8 else f"cuda:{index} is a GPU of architecture sm_{major}{minor}, Triton kernels are for sm_80 and newer"
    )


def require_triton(device: torch.device) -> None:
    """Raises NotBuiltError if an op that is Triton kernels on GPUs, and PyTorch on CPUs, cannot run on ``device``."""
    if device.type in ("cpu", "meta"):
        return
    reason = f"they are on {device}, allowed are cpu and cuda"
    if device.type == "cuda":
        reason = why_no_triton(device)
    if reason:
        raise NotBuiltError(f"fastpose has no kernels for the tensors: {reason}; {_REFERENCE_HINT.removeprefix('or ')}")


def define(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Defines ``fastpose::name``; its kernels are registered by C++ under the same name. Returns what calls it.

    Without ``backward`` the op refuses differentiation aloud: for the backward ops, that is double backward.
    """
    library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(f"fastpose::{name}", fake, lib=library)
    op: torch._ops.OpOverload = getattr(torch.ops.fastpose, name).default
    backward = backward or refuse(name)
    if "Tensor[]" in schema or "Tensor?[]" in schema:  # an autograd.Function sees no tensors that are in lists
        torch.library.register_autograd(f"fastpose::{name}", backward, setup_context=setup_context, lib=library)
    elif not schema.endswith("-> ()"):
        autograd = _differentiable(op, setup_context, backward)
        library.impl(name, autograd, "Autograd")
        return lambda *args: (autograd if straight_to_autograd(args) else op)(*args)
    return op


NO_FORWARD_MODE = "has no derivative in forward mode (jvp, jacfwd)"
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None), bool, int, float))


def straight_to_autograd(args: Iterable[Any]) -> bool:
    """Whether a call with these arguments goes to an op's autograd without the dispatcher.

    Mostly the dispatcher would find nothing else to do, and take longer than a small kernel. And the transforms of ``torch.func``
    know what to do with an autograd.Function only if no dispatcher is in between.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    for arg in args:  # noqa: SIM110, a generator takes twice as long
        if type(arg) not in _PLAIN and isinstance(arg, torch.Tensor):
            return False
    return True


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or differentiation in forward mode is under way."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiated(tensors: Iterable[Any]) -> bool:
    """Whether autograd, in either direction, or a transform of ``torch.func`` has to know of an op on these tensors."""
    if transformed():
        return True
    return torch.is_grad_enabled() and any(isinstance(tensor, torch.Tensor) and tensor.requires_grad for tensor in tensors)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` without its search for arguments left to their defaults, which takes longer than a kernel."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def _differentiable(
    op: torch._ops.OpOverload, setup_context: Callable[..., None] | None, backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The op's autograd. With ``torch.library.register_autograd`` a small call, forward and backward, takes a third longer."""

    def forward(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context or (lambda ctx, inputs, output: None)),
        "backward": staticmethod(backward),
        "jvp": staticmethod(refuse(op._opname, NO_FORWARD_MODE)),
        "generate_vmap_rule": True,
    }
    function: Any = type(op._opname, (torch.autograd.Function,), methods)

    def autograd(*args: Any) -> Any:
        return apply(function, *args) if differentiated(args) else forward(*args)

    return autograd


def refuse(name: str, why: str = "cannot be differentiated (double backward is not supported)") -> Callable[..., Any]:
    """The method of an autograd.Function for a derivative that there is not."""

    def method(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(f'fastpose::{name} {why}; run under fastpose.backend("reference") if you need it')

    return method
