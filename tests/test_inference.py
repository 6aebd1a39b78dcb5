"""compile_for_inference: the same results, for one size, with changes of the weights when they are due."""

from __future__ import annotations

import contextlib
import copy
import gc
import re
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import fastpose
from fastpose import compile_for_inference
from fastpose._streams import overlapping_branches
from fastpose.models import create_model
from fastpose.models.hourglass import Hourglass, Residuals
from fastpose.nn import HourglassResidual, _packed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def model_on(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("hourglass", stacks=2, num_joints=5, features=64, depth=1, init="torch7").eval()
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def images_for(model: nn.Module, batch: int, seed: int = 0) -> torch.Tensor:
    images = torch.rand(batch, 3, 40, 56, generator=torch.Generator().manual_seed(seed))
    return images.to(next(model.parameters()))


@torch.no_grad()
def plain(model: nn.Module, images: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    with fastpose.backend("reference"):
        return model(images, **options)


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    loose = ours[0].dtype == torch.bfloat16
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if loose else 1e-4, atol=5e-2 if loose else 1e-5)


def test_results_are_the_models(device: torch.device) -> None:
    model = model_on(device)
    images = images_for(model, 2)
    compiled = compile_for_inference(model, images)
    first, second = compiled(images), compiled(images_for(model, 2, seed=1))
    assert_same(first, plain(model, images))
    assert_same(second, plain(model, images_for(model, 2, seed=1)))
    assert not any(output.requires_grad for output in first)
    assert len(compile_for_inference(model, images, last_only=True)(images)) == 1
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert_same(compile_for_inference(model, channels_last)(images), plain(model, images))


def test_batches_are_padded_up(device: torch.device) -> None:
    model = model_on(device)
    compiled = compile_for_inference(model, images_for(model, 1), batch_sizes=[4, 2, 4])
    assert compiled.batch_sizes == (2, 4)
    for batch in (4, 1, 2, 3):
        images = images_for(model, batch, seed=batch)
        assert_same(compiled(images), plain(model, images))
    for batch in (0, 5):
        with pytest.raises(ValueError, match=rf"images: got a batch of {batch}, this model was compiled for 1 to 4"):
            compiled(images_for(model, batch))


def test_refresh_takes_weights_over(device: torch.device) -> None:
    model = model_on(device)
    images = images_for(model, 2)
    compiled = compile_for_inference(model, images)
    before = compiled(images)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5)
    after = plain(model, images)
    assert not torch.allclose(after[0], before[0], rtol=2e-2, atol=5e-2)
    assert_same(compiled(images), after if device.type == "cuda" else before)
    compiled.refresh()
    assert_same(compiled(images), after)
    model.stacks[0].head.weight = nn.Parameter(2 * model.stacks[0].head.weight.detach())
    compiled.refresh()
    assert_same(compiled(images), plain(model, images))
    model.train()
    with pytest.raises(ValueError, match=r"model: the model itself is in training mode; call model.eval\(\) first"):
        compiled.refresh()


def test_the_model_stays_as_it_is(device: torch.device) -> None:
    model = model_on(device)
    state = copy.deepcopy(model.state_dict())
    strides = [p.stride() for p in model.parameters()]
    compile_for_inference(model, images_for(model, 1))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert strides == [p.stride() for p in model.parameters()]
    assert isinstance(model.stem.residual1, HourglassResidual)


def test_blocks_are_packed_on_a_cpu() -> None:
    model = model_on(torch.device("cpu"))
    blocks = sum(isinstance(module, HourglassResidual) for module in model.modules())
    model.stem.residual1.conv1.register_forward_hook(lambda *_: None)
    model.stem.residual2.register_forward_hook(lambda *_: None)
    packed = _packed.pack_(copy.deepcopy(model))
    assert sum(isinstance(module, _packed.PackedResidual) for module in packed.modules()) == blocks - 2
    block = model.stem.residual3
    for size in ((1, 4, 4), (3, 8, 8), (2, 32, 32)):  # few pixels, and more
        for pool in (False, True):
            x = torch.randn(size[0], 32, *size[1:])
            low = torch.randn(size[0], 64, *(side // (4 if pool else 2) for side in size[1:]))
            twin = _packed.pack_(block)
            with torch.no_grad(), fastpose.backend("reference"):
                expected = block(x, pool=pool, low=low)
            torch.testing.assert_close(twin(x, pool=pool, low=low), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(twin(x[:1], pool=pool, low=low[:1]), expected[:1], rtol=1e-4, atol=1e-5)


def test_any_model_may_be_compiled(device: torch.device) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, Any]:
            return {"y": scale * self.linear(x), "name": "Model"}

    model = Model().to(device).eval()
    compiled = compile_for_inference(model, torch.zeros(2, 6, device=device), scale=3.0)
    x = torch.randn(1, 6, device=device)
    result = compiled(x)
    assert result["name"] == "Model"
    torch.testing.assert_close(result["y"], 3 * model.linear(x).detach())
    assert repr(compiled) == f"CompiledModel(Model, (B, 6) torch.float32 on {x.device}, B = 2)"


def test_the_example_is_not_kept() -> None:
    model = model_on(torch.device("cpu"))
    example = images_for(model, 2)
    kept = weakref.ref(example)
    compiled = compile_for_inference(model, example)
    del example
    gc.collect()
    assert kept() is None
    assert compiled.batch_sizes == (2,)


def test_what_is_refused() -> None:
    model = model_on(torch.device("cpu"))
    images = images_for(model, 2)
    model.stem.bn.train()
    with pytest.raises(ValueError, match=r"model: stem.bn is in training mode; call model.eval\(\) first"):
        compile_for_inference(model, images)
    model.eval()
    for arguments, error, message in (
        ((model, [1.0]), TypeError, "example: got list, allowed is a torch.Tensor"),
        ((model, images[:0]), ValueError, "example: got shape (0, 3, 40, 56), allowed is at least one dimension and one sample"),
        ((model, images.long()), TypeError, "example: got dtype torch.int64"),
        ((model, images.to("meta")), ValueError, "model: stem.conv.weight is on cpu, but the example is on meta"),
        ((len, images), TypeError, "model: got builtin_function_or_method, allowed is a torch.nn.Module"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            compile_for_inference(*arguments)
    for sizes, error in (([0], ValueError), ([1.5], TypeError)):
        with pytest.raises(error, match="batch_sizes: got"):
            compile_for_inference(model, images, batch_sizes=sizes)
    compiled = compile_for_inference(model, images)
    for wrong, error, message in (
        ([1.0], TypeError, "images: got list, allowed is a torch.Tensor"),
        (images[0], ValueError, "images: got shape (3, 40, 56), this model was compiled for (B, 3, 40, 56)"),
        (images[..., :48], ValueError, "images: got shape (2, 3, 40, 48), this model was compiled for (B, 3, 40, 56)"),
        (images.double(), TypeError, "images: got torch.float64, this model was compiled for torch.float32"),
        (images.to("meta"), ValueError, "images: is on meta, this model was compiled for cpu"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            compiled(wrong)


@needs_gpu
def test_outputs_without_copies_are_overwritten() -> None:
    model = model_on(torch.device("cuda"))
    compiled = compile_for_inference(model, images_for(model, 2), copy_outputs=False)
    first = compiled(images_for(model, 2))[0]
    second = compiled(images_for(model, 2, seed=1))[0]
    assert first.data_ptr() == second.data_ptr()


@needs_gpu
def test_a_moved_model_leaves_the_graph_as_it_was() -> None:
    model = model_on(torch.device("cuda"))
    images = images_for(model, 2)
    compiled = compile_for_inference(model, images)
    expected = compiled(images)
    model.cpu()
    torch.cuda.empty_cache()
    assert all(torch.equal(a, b) for a, b in zip(compiled(images), expected, strict=True))
    with pytest.raises(ValueError, match="is on cpu, but the example is on cuda:0"):
        compiled.refresh()


@needs_gpu
def test_an_output_without_the_batch_is_refused() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum()

    with pytest.raises(ValueError, match=r"model: returns a tensor \(\) for a batch of 2"):
        compile_for_inference(Model().eval(), torch.zeros(2, 3, device="cuda"))


@needs_gpu
def test_tuning(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTPOSE_CACHE_DIR", str(tmp_path))
    from fastpose.triton.choice import Known

    monkeypatch.setattr(Known, "_of", {})
    model = model_on(torch.device("cuda"))
    images = images_for(model, 2)
    assert_same(compile_for_inference(model, images, tune=True)(images), plain(model, images))
    assert Known.of(images.device).tuned


def test_branches_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With streams that only keep a record of what is queued."""

    class Stream:
        current: Stream

        def __init__(self, name: str = "") -> None:
            self.name = name or f"side {len(made)}"
            made.append(self)

        def wait_stream(self, other: Stream) -> None:
            record.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def stream(new: Stream) -> Any:
        before, Stream.current = Stream.current, new
        yield
        Stream.current = before

    made: list[Stream] = []
    record: list[str] = []
    Stream.current = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream.current)
    model = Hourglass(2, 16, 1).eval()
    for name, block in model.named_modules():
        if isinstance(block, Residuals):
            block.register_forward_pre_hook(lambda *_, name=name: record.append(f"{name} on {Stream.current.name}"))
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert {line.rpartition(" on ")[2] for line in record} == {"main"}
        record.clear()
        with overlapping_branches() as branches:
            result = model(x)
            assert branches.were_used
    torch.testing.assert_close(result, expected)
    assert record == [
        *("side 1 waits for main", "up1 on side 1", "low1 on main"),
        *("side 2 waits for main", "low2.up1 on side 2", "low2.low1 on main", "low2.low2 on main", "low2.low3 on main"),
        *("main waits for side 2", "low3 on main", "main waits for side 1"),
    ]
    model.train()(x).sum().backward()
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model(x))


@needs_gpu
def test_overlapping_branches_change_nothing() -> None:
    model = create_model("hourglass", stacks=2, features=64, depth=3, init="torch7").eval().to("cuda", torch.bfloat16)
    images = torch.rand(3, 3, 64, 96, device="cuda").bfloat16()
    with torch.no_grad():
        expected = model(images)
        with overlapping_branches():
            for _ in range(3):
                for ours, theirs in zip(model(images), expected, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
