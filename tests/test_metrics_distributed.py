"""The same numbers on one process and on two, of which one has most of the people, and for some metrics all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from fastpose.metrics import AUC, PCK, PCP, PDJ, Detections, KeypointAP, PCKh, People
from fastpose.skeletons import COCO, FLIC, LSP, MPII, Skeleton

COUNT = 23
# Where the first process stops: in the middle, and with nobody left for the second one.
SPLITS = (16, COUNT)


def people_of(skeleton: Skeleton) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(COUNT, skeleton.num_joints, 2, generator=generator) * 100
    predictions = keypoints + torch.randn(keypoints.shape, generator=generator) * 10
    keypoints[torch.rand(keypoints.shape[:2], generator=generator) < 0.2] = float("nan")
    return predictions, keypoints, 20 + torch.arange(float(COUNT))


def scores(start: int, stop: int) -> dict[str, Any]:
    """All metrics of these people, and of those of the other processes."""
    values = {}
    for name, skeleton, metric in (
        ("PCKh", MPII, PCKh()),
        ("PCK", LSP, PCK("lsp_pc")),
        ("PDJ", FLIC, PDJ("flic_modec")),
        ("AUC", MPII, AUC("hrnet")),
    ):
        predictions, keypoints, lengths = (entry[start:stop] for entry in people_of(skeleton))
        if stop > start:
            metric.update(predictions, keypoints, lengths)
        values[name] = metric.compute()
    predictions, keypoints, areas = (entry[start:stop] for entry in people_of(LSP))
    limbs = PCP("lsp_oc")
    limbs.update(predictions, keypoints)
    values["PCP"] = limbs.compute()
    predictions, keypoints, areas = (entry[start:stop] for entry in people_of(COCO))
    images = torch.arange(COUNT)[start:stop] // 3
    average = KeypointAP()
    if stop > start:
        boxes = torch.tensor([0.0, 0.0, 100.0, 100.0]).expand(stop - start, 4)
        average.update(Detections(images, predictions, areas), People(images, keypoints, 100 * areas, boxes))
    values["AP"] = average.compute()
    return plain(values)


def plain(values: Any) -> Any:
    """Numbers in full, as text, so that NaN equals NaN."""
    return {name: plain(value) for name, value in values.items()} if isinstance(values, dict) else repr(values.item())


def process(rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = [scores(0, split) if rank == 0 else scores(split, COUNT) for split in SPLITS]
    torch.save(found, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Processes import this module by its name.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    torch.multiprocessing.spawn(process, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    expected = scores(0, COUNT)
    for rank in (0, 1):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert found == expected
