"""The layers are the ops: same values and gradients, no state, and they survive what is done to modules."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import fastpose.nn
from fastpose.ops import decode_heatmaps, gaussian_heatmap, heatmap_mse_loss, soft_argmax2d

_SIZE = (12, 16)


def _maps(seed: int, joints: int = 3) -> torch.Tensor:
    return torch.rand(2, joints, *_SIZE, generator=torch.Generator().manual_seed(seed))


_KEYPOINTS = torch.tensor([[[3.2, 4.1], [8.0, 2.7], [15.5, 11.0]], [[1.0, 1.0], [torch.nan, 5.0], [7.3, 6.6]]])
_VISIBLE = torch.tensor([[1, 1, 0], [1, 1, 1]])


@dataclass
class Case:
    op: Callable[..., Any]
    layer: Callable[..., nn.Module]
    options: dict[str, Any]
    inputs: dict[str, Any]  # float tensors among them require grad, keypoints of the loss excepted
    differentiable: tuple[str, ...]


_FLIP = {"flip_permutation": [1, 0, 2], "flip_shift": 1}
_CASES = {
    "render": Case(
        gaussian_heatmap,
        fastpose.nn.GaussianHeatmap,
        {"size": _SIZE, "sigma": [1.0, 2.0, 1.5], "radius": 4.0, "window": "disc", "amplitude": 100.0, "offset": -50.0},
        {"keypoints": _KEYPOINTS, "visible": _VISIBLE},
        ("keypoints",),
    ),
    "loss": Case(
        heatmap_mse_loss,
        fastpose.nn.HeatmapMSELoss,
        {"sigma": 1.5, "reduction": "half_batchmean", "unlabelled": "empty", "rounding": "floor", "radius": 4.0},
        {
            "predictions": [_maps(1), _maps(2)],
            "keypoints": _KEYPOINTS,
            "visible": _VISIBLE,
            "weights": torch.tensor([1.0, 0.5, 2.0]),
        },
        ("predictions",),
    ),
    "soft-argmax": Case(
        soft_argmax2d,
        fastpose.nn.SoftArgmax2d,
        {"temperature": 0.3, "covariance": True},
        {"heatmaps": _maps(3)},
        ("heatmaps",),
    ),
    "decode": Case(
        decode_heatmaps,
        fastpose.nn.DecodeHeatmaps,
        {"method": "soft_window", "radius": 3, "temperature": 0.2, **_FLIP},
        {"heatmaps": _maps(4), "flipped": _maps(5), "affine": torch.rand(2, 2, 3)},
        ("heatmaps", "flipped"),
    ),
}


@pytest.fixture(params=_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return _CASES[request.param]


def _run(function: Callable[..., Any], case: Case, **options: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, and gradients of a fixed function of them."""
    inputs = tree_map(lambda t: t.clone(), case.inputs)
    leaves = [t.requires_grad_() for name in case.differentiable for t in tree_leaves(inputs[name])]
    outputs = [t for t in tree_leaves(function(**inputs, **options)) if isinstance(t, torch.Tensor)]
    total = sum((t * torch.arange(1, t.numel() + 1).view(t.shape)).sum() for t in outputs)
    return outputs, list(torch.autograd.grad(total, leaves))


def _assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_layer_is_the_op(case: Case) -> None:
    outputs, gradients = _run(case.layer(**case.options), case)
    _assert_same((outputs, gradients), _run(case.op, case, **case.options))
    assert any(g.count_nonzero() > 0 for g in gradients)


def test_signatures_are_those_of_the_ops(case: Case) -> None:
    """A layer takes all that the op takes, with the same defaults, split into options and inputs."""
    of_op = inspect.signature(case.op).parameters
    layer = inspect.signature(case.layer.__init__).parameters
    forward = inspect.signature(case.layer.forward).parameters
    assert (layer.keys() | forward.keys()) - {"self"} == of_op.keys() - {"out"}
    for name in of_op.keys() - {"out"}:
        assert {**layer, **forward}[name].default == of_op[name].default, name


def test_layer_has_no_state(case: Case) -> None:
    layer = case.layer(**case.options)
    assert not layer.state_dict()
    assert not [*layer.parameters(), *layer.buffers()]
    before = dict(layer.options)
    _run(layer, case)
    assert layer.options == before


def test_layer_keeps_no_hold_on_lists() -> None:
    sigma = [1.0, 2.0, 1.5]
    layer = fastpose.nn.GaussianHeatmap(8, sigma)
    before = layer(_KEYPOINTS)
    sigma[0] = 9.0
    _assert_same(layer(_KEYPOINTS), before)


def test_repr_makes_the_layer_again(case: Case) -> None:
    layer = case.layer(**case.options)
    again = eval(repr(layer), vars(fastpose.nn))
    assert repr(again) == repr(layer)
    _assert_same(_run(again, case), _run(layer, case))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_do_the_same(case: Case, copied: Callable[[nn.Module], nn.Module]) -> None:
    layer = case.layer(**case.options)
    _assert_same(_run(copied(layer), case), _run(layer, case))


def test_compiles_in_one_graph(case: Case) -> None:
    layer = case.layer(**case.options)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_run(compiled, case), _run(layer, case))


def test_exports(case: Case) -> None:
    layer = case.layer(**case.options)
    exported = torch.export.export(layer, (), case.inputs).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(**case.inputs), layer(**case.inputs))


def test_autocast_changes_nothing(case: Case) -> None:
    """Arithmetic is in float32 whatever autocast says; maps in half precision are taken as they are."""
    layer = case.layer(**case.options)
    plain = _run(layer, case)
    with torch.autocast("cpu", torch.bfloat16):
        _assert_same(_run(layer, case), plain)


def test_decode_without_flip_test_leaves_the_flip_options_alone() -> None:
    layer = fastpose.nn.DecodeHeatmaps(**_FLIP)
    _assert_same(layer(_maps(0)), decode_heatmaps(_maps(0)))


@pytest.mark.parametrize(
    ("layer", "arguments", "error", "message"),
    [
        ("GaussianHeatmap", {"size": 0, "sigma": 1.0}, ValueError, r"size\[0\]: got 0"),
        ("GaussianHeatmap", {"size": 8, "sigma": -1.0}, ValueError, r"sigma: got -1\.0"),
        ("GaussianHeatmap", {"size": 8, "sigma": [1.0, 0.0]}, ValueError, r"sigma\[1\]: got 0\.0"),
        ("GaussianHeatmap", {"size": 8, "sigma": 1.0, "dtype": torch.int32}, TypeError, "dtype: got torch.int32"),
        ("HeatmapMSELoss", {"sigma": 1.0, "reduction": "none"}, ValueError, "reduction: got 'none'"),
        ("HeatmapMSELoss", {"sigma": 1.0, "window": "round"}, ValueError, "window: got 'round'"),
        ("SoftArgmax2d", {"temperature": 0.0}, ValueError, r"temperature: got 0\.0"),
        ("DecodeHeatmaps", {"method": "taylor"}, ValueError, "method: got 'taylor'"),
        ("DecodeHeatmaps", {"flip_permutation": [0, 0]}, ValueError, r"flip_permutation: got \[0, 0\]"),
        ("DecodeHeatmaps", {"flip_shift": -1}, ValueError, "flip_shift: got -1"),
        ("DecodeHeatmaps", {"blur_size": 4}, ValueError, "blur_size: got 4"),
    ],
)
def test_wrong_options_are_refused_at_once(layer: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(fastpose.nn, layer)(**arguments)


def test_layers_fit_into_a_model() -> None:
    """In a module of its own, moved, cast and saved with it."""
    model = nn.ModuleDict({"loss": fastpose.nn.HeatmapMSELoss(1.5), "head": nn.Conv2d(3, 3, 1)})
    model.to(torch.float64).train()
    prediction = model["head"](_maps(0).double())
    model["loss"](prediction, _KEYPOINTS).backward()
    assert model["head"].weight.grad.dtype == torch.float64
    assert set(model.state_dict()) == {"head.weight", "head.bias"}
