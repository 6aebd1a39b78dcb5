"""SyncBatchNorm in the residual block: two processes train as one would on both their batches."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from residual_blocks import make_block, make_maps
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from fastpose.nn import HourglassResidual

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this PyTorch has no torch.distributed")

CHANNELS = (8, 16)
SIZE = (4, 6)


def _synchronised(channels: tuple[int, int] = CHANNELS) -> HourglassResidual:
    return nn.SyncBatchNorm.convert_sync_batchnorm(make_block(*channels).double())


def _one_batch_alone(block: nn.Module) -> None:
    block.bn2.eval()


def _cumulative(block: nn.Module) -> None:
    for name in ("bn1", "bn2", "bn3"):
        getattr(block, name).momentum = None


def _only_one_synchronised(block: nn.Module) -> None:
    for name in ("bn1", "bn3"):
        synchronised = getattr(block, name)
        local = nn.BatchNorm2d(synchronised.num_features).double()
        local.load_state_dict(synchronised.state_dict())
        setattr(block, name, local)


CHANGES = {"as it is": lambda block: None, "one frozen": _one_batch_alone, "cumulative": _cumulative}
SHARES = {"alike": (2, 2), "unlike": (3, 1), "one has none": (4, 0)}


def _maps(rank: int, share: tuple[int, int], channels: int, seed: int) -> torch.Tensor:
    whole = make_maps(sum(share), channels, *SIZE, seed=seed).double()
    return whole.split(share)[rank]


def _step(block: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = block(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad}


def _state(block: HourglassResidual) -> dict[str, torch.Tensor]:
    gradients = {f"gradient of {name}": p.grad for name, p in block.named_parameters()}
    return gradients | {name: b.clone() for name, b in block.named_buffers()}


def _run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {}
    for share_name, share in SHARES.items():
        for change_name, change in CHANGES.items():
            block = _synchronised()
            change(block)
            x, dy = _maps(rank, share, CHANNELS[0], 1), _maps(rank, share, CHANNELS[1], 2)
            path = block.training_path(x)
            step = _step(block, x, dy)
            for parameter in block.parameters():
                distributed.all_reduce(parameter.grad)
            results[share_name, change_name] = step | _state(block) | {"path": path.name}
    # Under DistributedDataParallel, which takes no SyncBatchNorm on the CPU and averages the gradients.
    block = make_block(*CHANNELS).double()
    x, dy = _maps(rank, SHARES["unlike"], CHANNELS[0], 1), _maps(rank, SHARES["unlike"], CHANNELS[1], 2)
    results["DDP"] = _step(DistributedDataParallel(block), x, dy) | _state(block)
    # One normalisation that others do not share, compiled, and torch's own in evaluation.
    block = _synchronised()
    _only_one_synchronised(block)
    compiled = copy.deepcopy(block)
    results["mixed"] = _step(block, x, dy) | _state(block)
    results["compiled"] = _step(torch.compile(compiled, fullgraph=True, backend="aot_eager"), x, dy) | _state(compiled)
    block = _synchronised().eval()
    results["eval"] = _step(block, x, dy) | _state(block)
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes got, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_run_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _joint(share: tuple[int, int], change: str = "as it is") -> dict[str, torch.Tensor]:
    """One process, torch's own layers, the whole batch."""
    block = make_block(*CHANNELS).double()
    CHANGES[change](block)
    block.recompute = False
    x, dy = (make_maps(sum(share), c, *SIZE, seed=seed).double() for c, seed in zip(CHANNELS, (1, 2), strict=True))
    return _step(block, x, dy) | _state(block)


def _assert_equal(got: dict, expected: dict, share: tuple[int, int], rank: int) -> None:
    for name, tensor in expected.items():
        if name in ("y", "dx"):
            tensor = tensor.split(share)[rank]
        torch.testing.assert_close(got[name], tensor, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("share", SHARES)
def test_equals_one_process_with_all_samples(ranks: list[dict], share: str, change: str, rank: int) -> None:
    got = ranks[rank][share, change]
    assert got.pop("path") == "recompute"
    _assert_equal(got, _joint(SHARES[share], change), SHARES[share], rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_under_distributed_data_parallel(ranks: list[dict], rank: int) -> None:
    alone = []
    for of_rank in range(2):
        block = make_block(*CHANNELS).double()
        x, dy = _maps(of_rank, SHARES["unlike"], CHANNELS[0], 1), _maps(of_rank, SHARES["unlike"], CHANNELS[1], 2)
        alone.append(_step(block, x, dy) | _state(block))
    for name, tensor in alone[rank].items():
        if name.startswith("gradient"):
            tensor = (tensor + alone[1 - rank][name]) / 2
        torch.testing.assert_close(ranks[rank]["DDP"][name], tensor, rtol=1e-12, atol=1e-12)


def test_only_one_of_the_normalisations_is_shared(ranks: list[dict]) -> None:
    one, other = (rank["mixed"] for rank in ranks)
    assert torch.equal(one["bn2.running_var"], other["bn2.running_var"])
    assert not torch.equal(one["bn1.running_var"], other["bn1.running_var"])


@pytest.mark.parametrize("rank", [0, 1])
def test_compiles_without_a_graph_break(ranks: list[dict], rank: int) -> None:
    torch.testing.assert_close(ranks[rank]["compiled"], ranks[rank]["mixed"], rtol=0, atol=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_evaluation_shares_nothing(ranks: list[dict], rank: int) -> None:
    block = make_block(*CHANNELS).double().eval()
    x, dy = _maps(rank, SHARES["unlike"], CHANNELS[0], 1), _maps(rank, SHARES["unlike"], CHANNELS[1], 2)
    torch.testing.assert_close(ranks[rank]["eval"], _step(block, x, dy) | _state(block), rtol=1e-12, atol=1e-12)


def test_alone_it_is_a_batch_normalisation() -> None:
    block = _synchronised()
    x, dy = (make_maps(2, c, *SIZE, seed=seed).double() for c, seed in zip(CHANNELS, (1, 2), strict=True))
    torch.testing.assert_close(_step(block, x, dy) | _state(block), _joint((2, 0)), rtol=1e-10, atol=1e-10)
