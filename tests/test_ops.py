"""Every check is written once here and runs on all ops, as fastpose/cases.py describes them, on the CPU and any GPU.

Accuracy is judged as FlashAttention does: our largest error against float64 may be at most twice that of plain PyTorch
in the same dtype, plus a few units in the last place of the arithmetic, because plain PyTorch may be exact by luck.
"""

from __future__ import annotations

import ctypes
import inspect
import itertools
import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastpose.cases import CASES, LAYOUTS, Call, OpCase, lay_out

SMALL = (2, 3, 13, 17)  # fits no vector, no 16-byte pack and no tile
WIDE = (2, 8, 12, 72)  # fits them, and spans two tiles
UNITS_IN_THE_LAST_PLACE = 8


def having(argument: str) -> list[OpCase]:
    """The ops that have an argument of this name; all of them if it is empty."""
    return [case for case in CASES if not argument or argument in inspect.signature(case.public).parameters]


def each_case(argument: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", having(argument), ids=lambda case: case.name)


def each_variant(argument: str = "") -> pytest.MarkDecorator:
    variants = [(case, name) for case in having(argument) for name in case.variants]
    return pytest.mark.parametrize(
        ("case", "variant"), [pytest.param(case, name, id=f"{case.name}-{name}") for case, name in variants]
    )


class Values(NamedTuple):
    outputs: list[torch.Tensor]
    gradients: list[torch.Tensor]


def upstream_of(outputs: tuple[torch.Tensor, ...], layout: str = "contiguous") -> list[torch.Tensor]:
    """A random gradient for every output."""
    gradients = []
    for seed, output in enumerate(outputs):
        random = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output)
        gradients.append(lay_out(random, layout) if random.dim() == 4 else random)
    return gradients


def evaluate(call: Call, outputs: tuple[torch.Tensor, ...], upstream: list[torch.Tensor]) -> Values:
    recorded = [i for i, output in enumerate(outputs) if output.requires_grad]
    gradients: tuple[torch.Tensor, ...] = ()
    if recorded:
        through = [outputs[i] for i in recorded]
        gradients = torch.autograd.grad(through, call.leaves(), [upstream[i].to(outputs[i]) for i in recorded])
    return Values([output.detach() for output in outputs], list(gradients))


def fused(call: Call, layout: str = "contiguous") -> Values:
    outputs = call()
    return evaluate(call, outputs, upstream_of(outputs, layout))


def largest_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Infinite where one of them is NaN or infinite and the other is not the same."""
    value = value.cpu().double()
    same = (value == exact) | (value.isnan() & exact.isnan())
    difference = torch.where(same, 0, (value - exact).abs().nan_to_num(math.inf))
    return difference.max().item() if difference.numel() else 0.0


def assert_accurate(name: str, ours: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, factor: float) -> None:
    assert ours.shape == exact.shape, name
    assert ours.dtype == eager.dtype, name
    finite = exact[exact.isfinite()].abs()
    unit = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
    eagers = largest_error(eager, exact)
    allowed = factor * eagers + UNITS_IN_THE_LAST_PLACE * unit * (finite.max().item() if finite.numel() else 0.0)
    error = largest_error(ours, exact)
    assert error <= allowed, f"{name}: error {error:.3g}, plain PyTorch's {eagers:.3g}, allowed {allowed:.3g}"


def assert_same_in_float64(name: str, ours: torch.Tensor, theirs: torch.Tensor, in_float32: torch.Tensor, factor: float) -> None:
    """The error of plain PyTorch, which is the measure here, is unknown: that of float32, scaled down, stands in, and 8
    times as much for luck. Arithmetic in float32 by mistake would be off by a million times as much."""
    assert ours.shape == theirs.shape, name
    assert ours.dtype == torch.float64, name
    finite = theirs[theirs.isfinite()].abs()
    unit = torch.finfo(torch.float64).eps
    eagers = largest_error(in_float32, theirs) * unit / torch.finfo(torch.float32).eps
    allowed = 8 * factor * eagers + UNITS_IN_THE_LAST_PLACE * unit * (finite.max().item() if finite.numel() else 0.0)
    error = largest_error(ours, theirs)
    assert error <= allowed, f"{name}: error {error:.3g}, plain PyTorch's {eagers:.3g}, allowed {allowed:.3g}"


def check(case: OpCase, call: Call, layout: str = "contiguous") -> None:
    """Outputs and gradients against plain PyTorch, in the same dtype and in float64."""
    outputs = call()
    upstream = upstream_of(outputs, layout)
    ours = evaluate(call, outputs, upstream)
    in_float64 = outputs[0].dtype == torch.float64
    eager_call, exact_call = call.on_cpu(torch.float32) if in_float64 else call, call.on_cpu(torch.float64)
    eager = evaluate(eager_call, eager_call.reference(), upstream)
    exact = evaluate(exact_call, exact_call.reference(), [gradient.cpu() for gradient in upstream])
    compare = assert_same_in_float64 if in_float64 else assert_accurate
    for i, values in enumerate(zip(ours.outputs, exact.outputs, eager.outputs, strict=True)):
        if values[0].is_floating_point():
            compare(f"output {i}", *values, factor=2)
        else:
            assert torch.equal(values[0].cpu(), values[1]), f"output {i}"
    # Rounded twice, a number is off by 3 times as much at most: half a unit, which the next binade doubles, and half.
    factor = 2 if case.gradient_roundings == 1 else 3
    for name, *values in zip(call.differentiable, ours.gradients, exact.gradients, eager.gradients, strict=False):
        compare(f"gradient of {name}", *values, factor=factor)


def bits(values: Values) -> list[torch.Tensor]:
    return [tensor.cpu().contiguous().flatten().view(torch.uint8) for tensor in (*values.outputs, *values.gradients)]


def assert_same_bits(a: Values, b: Values) -> None:
    for x, y in zip(bits(a), bits(b), strict=True):
        assert torch.equal(x, y)


# ---- values: run again for every SIMD level and for CUDA on the CPU -------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [pytest.param(SMALL, id="small", marks=pytest.mark.sanitize), pytest.param(WIDE, id="wide")])
@each_variant()
def test_variants(case: OpCase, variant: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    check(case, case.call(shape, variant, dtype=dtype, device=device))


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@each_case()
def test_layouts(case: OpCase, layout: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    check(case, case.call(shape, dtype=dtype, device=device, layout=layout), layout)


@pytest.mark.kernel
@pytest.mark.parametrize("variant_layout", ["channels_last", "misaligned"])
@each_variant()
def test_variants_in_other_layouts(case: OpCase, variant: str, variant_layout: str, device: torch.device) -> None:
    check(case, case.call(WIDE, variant, device=device, layout=variant_layout), variant_layout)


@pytest.mark.kernel
@each_case()
def test_any_shape(case: OpCase, device: torch.device) -> None:
    """Empty batches and joints, sizes of 1, and everything between."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.given(
        shape=st.tuples(st.integers(0, 3), st.integers(0, 18), st.integers(1, 40), st.integers(1, 40)),
        variant=st.sampled_from(sorted(case.variants)),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        layout=st.sampled_from(LAYOUTS),
        seed=st.integers(0, 99),
    )
    @hypothesis.example((0, 3, 8, 8), "plain", torch.float32, "contiguous", 0)
    @hypothesis.example((2, 0, 8, 8), "plain", torch.float32, "contiguous", 0)
    @hypothesis.example((1, 1, 1, 1), "plain", torch.float32, "contiguous", 0)
    def run(shape: tuple[int, int, int, int], variant: str, dtype: torch.dtype, layout: str, seed: int) -> None:
        shape = (*shape[:2], *(max(side, case.smallest_side) for side in shape[2:]))
        check(case, case.call(shape, variant, dtype=dtype, device=device, layout=layout, seed=seed), layout)

    run()


@pytest.mark.kernel
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30], ids=["nan", "inf", "-inf", "huge"])
@each_variant()
def test_values_that_are_not_numbers(case: OpCase, variant: str, value: float, device: torch.device) -> None:
    """They do as in plain PyTorch, and reach only the map or keypoint that they are in."""

    if not case.not_numbers_as_in_pytorch:
        pytest.skip("a test of its own says what they do")
    call = case.call(SMALL, variant, device=device)
    for name, tensor in call.tensors.items():
        if name == "keypoints" or tensor.dim() == 4:
            parts = tensor.detach().view(tensor.shape[0] * tensor.shape[1], -1)
            parts[::2, parts.shape[1] // 2] = value
    outputs = call()
    upstream = upstream_of(outputs)
    ours, expected = evaluate(call, outputs, upstream), evaluate(call, call.reference(), upstream)
    for mine, theirs in zip([*ours.outputs, *ours.gradients], [*expected.outputs, *expected.gradients], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.kernel
@each_variant("keypoints")
def test_no_label_is_one_rule(case: OpCase, variant: str, device: torch.device) -> None:
    """A NaN coordinate and visible = 0 do the same; what is written under visible = 0 does not matter."""
    call = case.call(SMALL, variant, device=device)
    keypoints = call.tensors["keypoints"].detach()
    visible = torch.rand(keypoints.shape[:-1], generator=torch.Generator().manual_seed(5)).to(device) > 0.5

    def with_keypoints(keypoints: torch.Tensor, visible: torch.Tensor | None) -> Values:
        tensors = {**call.tensors, "keypoints": keypoints.requires_grad_("keypoints" in call.differentiable)}
        return fused(Call(call.function, tensors, {**call.options, "visible": visible}, call.differentiable))

    hidden = with_keypoints(keypoints.clone(), visible)
    for x, y in ((math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0), (math.nan, math.nan)):
        absent = torch.tensor([x, y], device=device)
        assert_same_bits(hidden, with_keypoints(torch.where(visible[..., None], keypoints, absent), None))
    assert_same_bits(hidden, with_keypoints(torch.where(visible[..., None], keypoints, 1e20), visible.float()))
    if "keypoints" in call.differentiable:
        assert not hidden.gradients[call.differentiable.index("keypoints")][~visible].any()


@pytest.mark.kernel
@each_case()
def test_runs_agree_bit_for_bit(case: OpCase, dtype: torch.dtype, device: torch.device) -> None:
    call = case.call(WIDE, dtype=dtype, device=device)
    assert_same_bits(fused(call), fused(call))


@pytest.mark.kernel
@each_case()
def test_float64_is_for_the_cpu(case: OpCase, device: torch.device, pytestconfig: pytest.Config) -> None:
    call = case.call(SMALL, dtype=torch.float64, device=device)
    if device.type == "cuda":
        with pytest.raises(TypeError, match=r"got float64 on cuda:0, allowed on a GPU are float32, float16 and bfloat16"):
            call()
    elif pytestconfig.getoption("cuda_on_cpu"):  # which shows that these tests do reach the CUDA kernels
        with pytest.raises(RuntimeError, match="float64 maps are for the CPU"):
            call()
    else:
        assert call()[0].dtype == torch.float64


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch fills what it allocates with NaN, for kernels too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(8).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.kernel
@each_variant()
def test_every_result_is_written(case: OpCase, variant: str, device: torch.device) -> None:
    call = case.call(SMALL, variant, device=device)
    expected = fused(call)
    with poisoned_memory():
        assert_same_bits(fused(call), expected)


def whole_storage(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("layout", LAYOUTS[:-1])  # "expanded" cannot be written
@each_case("out")
def test_out_of_any_layout(
    case: OpCase, layout: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """`out=` gets the same values, and what lies around it stays."""
    call = case.call(shape, dtype=dtype, device=device)
    (expected,) = call()
    out = lay_out(torch.zeros_like(expected), layout)
    whole_storage(out).fill_(-7)
    (result,) = call(out=out)
    assert result is out
    assert not result.requires_grad
    torch.testing.assert_close(out, expected.detach(), rtol=torch.finfo(dtype).eps, atol=1e-30)
    out.fill_(-7)
    assert (whole_storage(out) == -7).all()


def between_fences(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """The same tensor, strides included, in memory that ends, or else begins, beside a page that nobody may touch."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    pages = -(-elements * tensor.itemsize // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (begin, begin + (pages + 1) * mmap.PAGESIZE):
        no_access = 0
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), mmap.PAGESIZE, no_access) == 0
    offset = (1 + pages) * mmap.PAGESIZE - elements * tensor.itemsize if at_end else mmap.PAGESIZE
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=elements, offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@pytest.mark.kernel
@pytest.mark.parametrize("at_end", [False, True], ids=["begin", "end"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "every_second"])
@each_variant()
def test_nothing_beside_the_tensors_is_read(case: OpCase, variant: str, layout: str, at_end: bool) -> None:
    """It would end this process with a segmentation fault."""
    for shape in (SMALL, WIDE, (1, 2, 1, 5), (1, 17, 3, 1)):
        for dtype in (torch.float32, torch.bfloat16):
            call = case.call(shape, variant, dtype=dtype, layout=layout)
            call = call.with_tensors(lambda tensor: between_fences(tensor, at_end))
            outputs = call()
            evaluate(call, outputs, [between_fences(g, at_end) for g in upstream_of(outputs, layout)])
            if "out" in inspect.signature(case.public).parameters:
                call(out=between_fences(lay_out(outputs[0].detach(), layout), at_end))


def free_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    words = Path("/proc/meminfo").read_text().split()
    return int(words[words.index("MemAvailable:") + 1]) / 2**20


@pytest.mark.kernel
@each_case()
def test_offsets_beyond_2_31_elements(case: OpCase, device: torch.device) -> None:
    if free_gib(device) < 12:
        pytest.skip("needs 12 GiB, most of them never touched on a CPU")
    call = case.call(SMALL, dtype=torch.bfloat16, device=device, layout="far_apart")
    check(case, call, "far_apart")
    if "out" in inspect.signature(case.public).parameters:
        expected = call()[0].detach()
        out = lay_out(torch.zeros_like(expected), "far_apart")
        assert torch.equal(call(out=out)[0], expected)


@pytest.mark.parametrize("height", [2**12 + 1, 2**15 + 1])
@each_case("heatmaps")
def test_maps_beyond_2_24_and_2_31_elements(case: OpCase, height: int, device: torch.device) -> None:
    """The peak is found in the last cell, whose number is neither a float32 nor a 32-bit integer."""
    width = 2 * height if height > 2**15 else height
    memory = torch.zeros(height + width - 1, device=device)
    memory[-1] = 100
    heatmaps = memory.as_strided((1, 1, height, width), (0, 0, 1, 1))  # cell (y, x) is memory[y + x]
    with torch.no_grad():
        coordinates = case.public(heatmaps)[0]
    assert coordinates.tolist() == [[[width - 1, height - 1]]]


# ---- gradients ------------------------------------------------------------------------------------------------------


@each_variant()
def test_gradcheck(case: OpCase, variant: str) -> None:
    call = case.call((1, 2, 5, 6), variant, dtype=torch.float64)
    outputs = call()
    recorded = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not recorded:
        pytest.skip("this variant has no gradient")
    assert torch.autograd.gradcheck(
        lambda *leaves: tuple(output for i, output in enumerate(call(*leaves)) if i in recorded), call.leaves()
    )


@each_case()
def test_gradient_of_a_sum(case: OpCase, device: torch.device) -> None:
    """The upstream gradient has stride 0 everywhere."""
    call = case.call(WIDE, list(case.variants)[-1], device=device)
    results = call()
    expanded = torch.autograd.grad(sum(r.sum() for r in results if r.requires_grad), call.leaves())
    results = call()
    ones = [torch.ones_like(result) for result in results]
    assert_same_bits(Values([], list(expanded)), Values([], evaluate(call, results, ones).gradients))


@each_variant()
def test_backward_twice(case: OpCase, variant: str, device: torch.device) -> None:
    call = case.call(SMALL, variant, device=device)
    outputs = [output for output in call() if output.requires_grad]
    if not outputs:
        pytest.skip("this variant has no gradient")
    upstream = upstream_of(tuple(outputs))
    first, second, third = (
        torch.autograd.grad(outputs, call.leaves(), upstream, retain_graph=retain) for retain in (True, True, False)
    )
    assert_same_bits(Values([], list(first)), Values([], list(second)))
    assert_same_bits(Values([], list(first)), Values([], list(third)))


@each_case()
def test_batched_backward(case: OpCase, device: torch.device) -> None:
    """A batch of upstream gradients at once, as a vectorised Jacobian asks for them, is one after the other."""
    call = case.call(SMALL, list(case.variants)[-1], device=device)
    outputs = [output for output in call() if output.requires_grad]
    upstream = upstream_of(tuple(outputs))
    once = torch.autograd.grad(outputs, call.leaves(), upstream, retain_graph=True)
    batches = [torch.stack((gradient, 2 * gradient)) for gradient in upstream]  # twice as much is exactly that in every dtype
    batch = torch.autograd.grad(outputs, call.leaves(), batches, is_grads_batched=True)
    for single, several in zip(once, batch, strict=True):
        assert_same_bits(Values([], [single, 2 * single]), Values([], list(several.unbind())))


@each_case()
def test_double_backward_is_refused(case: OpCase, device: torch.device) -> None:
    if case.linear:
        pytest.skip("linear: it has all derivatives")
    call = case.call(SMALL, list(case.variants)[-1], device=device)
    outputs = [output for output in call() if output.requires_grad]
    refused = pytest.raises(RuntimeError, match=r'double backward is not supported.*backend\("reference"\)')
    for retain in (True, False):
        gradients = torch.autograd.grad(
            outputs, call.leaves(), upstream_of(tuple(outputs)), create_graph=True, retain_graph=retain
        )
        with refused:
            torch.autograd.grad(sum(gradient.sum() for gradient in gradients), call.leaves(), retain_graph=retain)


@each_case()
def test_linear_ops_have_second_derivatives(case: OpCase) -> None:
    if not case.linear:
        pytest.skip("not linear")
    call = case.call((1, 2, 3, 4), list(case.variants)[-1], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(call, call.leaves())


@each_case()
def test_reference_has_second_derivatives(case: OpCase, device: torch.device) -> None:
    call = case.call(SMALL, device=device)
    outputs = [output.square() for output in call.reference() if output.requires_grad]
    gradients = torch.autograd.grad(outputs, call.leaves(), upstream_of(tuple(outputs)), create_graph=True)
    second = torch.autograd.grad(gradients, call.leaves(), upstream_of(gradients))
    assert all(gradient.any() for gradient in second)


def differentiable_results(call: Call) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The call as a function of its differentiable tensors, of which only the results that depend on them are left."""
    wanted = [result.requires_grad for result in call()]
    return lambda *tensors: tuple(itertools.compress(call(*tensors), wanted))


@each_variant()
def test_torch_func_takes_gradients(case: OpCase, variant: str, device: torch.device) -> None:
    call = case.call(SMALL, variant, device=device)
    function = differentiable_results(call)
    outputs = function(*call.leaves())
    if not outputs:
        pytest.skip("this variant has no gradient")
    upstream = tuple(upstream_of(outputs))
    gradients = torch.autograd.grad(outputs, call.leaves(), upstream)
    values, pull_back = torch.func.vjp(function, *(leaf.detach() for leaf in call.leaves()))
    assert_same_bits(
        Values([output.detach() for output in outputs], list(gradients)), Values(list(values), list(pull_back(upstream)))
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap calls the op once for each sample
@each_case()
def test_torch_func_takes_gradients_of_every_sample(case: OpCase, device: torch.device) -> None:
    call = case.call(SMALL, list(case.variants)[-1], device=device)
    function = differentiable_results(call)

    def of_squares(*tensors: torch.Tensor) -> torch.Tensor:
        return sum(result.square().sum() for result in function(*tensors))

    leaves = [leaf.detach() for leaf in call.leaves()]
    both = [torch.stack((leaf, leaf.roll(1, -1))) for leaf in leaves]
    gradients = torch.func.grad(of_squares, argnums=tuple(range(len(leaves))))
    alone = [torch.stack(pair) for pair in zip(*(gradients(*(pair[i] for pair in both)) for i in range(2)), strict=True)]
    assert_same_bits(Values([], alone), Values([], list(torch.func.vmap(gradients)(*both))))
    for pair in both:
        pair.requires_grad_()
    of_sum = torch.autograd.grad(torch.func.vmap(of_squares)(*both).sum(), both)
    assert_same_bits(Values([], alone), Values([], list(of_sum)))


@each_case()
def test_forward_mode_is_refused(case: OpCase, device: torch.device) -> None:
    call = case.call(SMALL, list(case.variants)[-1], device=device)
    function = differentiable_results(call)
    leaves = tuple(leaf.detach() for leaf in call.leaves())
    refused = pytest.raises(RuntimeError, match=r'no derivative in forward mode.*backend\("reference"\)')
    with refused:
        torch.func.jvp(function, leaves, leaves)
    with refused, forward_ad.dual_level():
        function(*(forward_ad.make_dual(leaf, leaf) for leaf in leaves))


# ---- the rest of PyTorch ----------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Collects the calls of this package's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if op.namespace == "fastpose":
            self.calls.append((op, args))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
@each_case()
def test_opcheck(case: OpCase, which: int, device: torch.device) -> None:
    """Schema, fake, autograd registration and tracing of every op that a call runs, forward and backward."""
    call = case.call((2, 3, 8, 8), list(case.variants)[which], device=device)
    with Recorder() as recorder:
        fused(call)
        if "out" in inspect.signature(case.public).parameters:
            call(out=torch.empty_like(call()[0].detach()))
    names = {op.name() for op, _ in recorder.calls}
    assert any("backward" in name or "scale" in name for name in names)
    seen = set()
    for op, args in recorder.calls:
        if op not in seen:
            seen.add(op)
            if "backward" in op.name():  # differentiating it is refused, which is checked elsewhere
                args = tree_map_only(torch.Tensor, torch.Tensor.detach, args)
            torch.library.opcheck(op, args)


@each_case()
def test_kernels_guard_their_memory(case: OpCase, device: torch.device) -> None:
    """Whoever calls the underlying ops directly, past the checks in words, gets an error and not a crash."""
    call = case.call((2, 3, 8, 8), list(case.variants)[-1], device=device)
    with Recorder() as recorder:
        fused(call)
    for op, args in recorder.calls:
        for i, argument in enumerate(args):
            if not isinstance(argument, torch.Tensor) or (op.name().startswith("fastpose::heatmap_mse_loss") and i == 0):
                continue
            for wrong in (argument.to(torch.int32), argument.flatten(), argument.to(torch.complex64)):
                if wrong.dtype != argument.dtype or wrong.dim() != argument.dim():
                    with pytest.raises(RuntimeError, match="fastpose: "):
                        op(*args[:i], wrong, *args[i + 1 :])


def compiled_matches(call: Call, backend: str, **options: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(call.function, backend=backend, fullgraph=True, **options)
    arguments = {**call.tensors, **call.options}
    outputs = compiled(**arguments)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(o for o in outputs if o is not None)
    expected = call()
    upstream = upstream_of(expected)
    assert_same_bits(evaluate(call, outputs, upstream), evaluate(call, expected, upstream))


@each_variant()
def test_compiles_as_one_graph(case: OpCase, variant: str, device: torch.device) -> None:
    compiled_matches(case.call(SMALL, variant, device=device), "aot_eager")


@pytest.mark.parametrize("case", CASES[1:3], ids=lambda case: case.name)
def test_compiles_with_inductor(case: OpCase, device: torch.device) -> None:
    compiled_matches(case.call(SMALL, device=device), "inductor")


@each_case()
def test_compiles_once_for_all_shapes(case: OpCase, device: torch.device) -> None:
    torch.compiler.reset()
    # No size is that of something else, which would then be taken for one and the same.
    calls = [case.call(shape, device=device) for shape in ((13, 11, 17, 19), (12, 10, 16, 18), (14, 15, 20, 21))]
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(calls[0].function, backend=backend, fullgraph=True, dynamic=True)
    graphs = []
    for call in calls:
        results = compiled(**{**call.tensors, **call.options})
        assert torch.equal(results if isinstance(results, torch.Tensor) else results[0], call()[0])
        graphs.append(backend.frame_count)
    assert graphs == graphs[:1] * len(calls)


@each_case()
def test_compiled_options_may_vary(case: OpCase, device: torch.device) -> None:
    """Numbers that change from call to call become inputs of the graph, which the checks of arguments must bear."""
    if not case.number:
        pytest.skip("no such option")
    torch.compiler.reset()
    call = case.call(SMALL, device=device)
    compiled = torch.compile(call.function, backend="aot_eager", fullgraph=True)
    for value in (1.0, 1.5, 2.5):
        results = compiled(**{**call.tensors, **call.options, case.number: value})
        results = results if isinstance(results, torch.Tensor) else results[0]
        torch.testing.assert_close(results, call(**{case.number: value})[0], rtol=0, atol=0, equal_nan=True)


@each_variant()
def test_exports(case: OpCase, variant: str, device: torch.device) -> None:
    call = case.call(SMALL, variant, device=device)

    class Module(torch.nn.Module):
        def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return call(*leaves)

    leaves = tuple(leaf.detach() for leaf in call.leaves())
    exported = torch.export.export(Module(), leaves).module()
    assert_same_bits(Values(list(exported(*leaves)), []), Values(list(call(*leaves)), []))


@each_case()
def test_autocast_changes_nothing(case: OpCase, dtype: torch.dtype, device: torch.device) -> None:
    """The ops take the dtypes that they get, and do their arithmetic in float32 anyway."""
    call = case.call(SMALL, dtype=dtype, device=device)
    expected = fused(call)
    with torch.autocast(device.type, torch.bfloat16):
        assert_same_bits(fused(call), expected)


@pytest.mark.cuda
@each_case()
def test_the_gpu_is_not_waited_for(case: OpCase) -> None:
    """No check reads its memory. Lists of numbers are copied to it, which waits: tensors are the way around that."""
    calls = [case.call(SMALL, variant, device="cuda") for variant in case.variants]
    for call in calls:
        if "flip_permutation" in call.options:
            call.options["flip_permutation"] = torch.tensor(call.options["flip_permutation"], device="cuda")
        fused(call)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            outputs = [output for output in call() if output.requires_grad]
            if outputs:
                torch.autograd.grad([output.sum() for output in outputs], call.leaves())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_case()
def test_threads_do_not_change_a_bit(case: OpCase) -> None:
    call = case.call((4, 16, 33, 70))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(fused(call))
    torch.set_num_threads(threads)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@each_case()
def test_meta_tensors_give_shapes(case: OpCase) -> None:
    call = case.call(SMALL, "plain")
    meta = call.with_tensors(lambda tensor: tensor.to("meta"))
    expected = call()
    for output, other in zip(meta(), expected, strict=True):
        assert (output.shape, output.dtype, output.device.type) == (other.shape, other.dtype, "meta")
