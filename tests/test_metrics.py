"""PCK and PCKh: the arithmetic on small cases, the protocols on published predictions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpose.metrics import (
    PROTOCOLS,
    PCKh,
    Protocol,
    count_hits,
    get_protocol,
    normalized_distances,
    pck,
)
from fastpose.skeletons import MPII, Skeleton

NAN = math.nan


def distances_of(prediction: list[float], truth: list[float], length: float) -> float:
    return normalized_distances(torch.tensor([[prediction]]), torch.tensor([[truth]]), torch.tensor([length])).item()


def test_distances() -> None:
    assert distances_of([3.0, 4.0], [0.0, 0.0], 10.0) == 0.5
    assert math.isnan(distances_of([3.0, 4.0], [NAN, 0.0], 10.0))
    assert math.isnan(distances_of([3.0, 4.0], [0.0, 0.0], NAN))
    assert math.isnan(distances_of([NAN, 4.0], [0.0, NAN], 10.0))
    assert math.isnan(distances_of([NAN, 4.0], [0.0, 0.0], NAN))


@pytest.mark.parametrize(
    ("prediction", "length"),
    [([NAN, 0.0], 10.0), ([0.0, math.inf], 10.0), ([0.0, 0.0], 0.0), ([3.0, 4.0], 0.0), ([3.0, 4.0], -10.0)],
)
def test_hopeless_predictions_are_wrong_but_counted(prediction: list[float], length: float) -> None:
    assert distances_of(prediction, [0.0, 0.0], length) == math.inf


def test_unsigned_predictions_do_not_wrap_around() -> None:
    predictions = torch.tensor([[[2, 250]]], dtype=torch.uint8)
    keypoints = torch.tensor([[[5, 254]]], dtype=torch.uint8)
    assert normalized_distances(predictions, keypoints, torch.ones(1)).item() == 5.0


def test_a_joint_exactly_at_the_threshold() -> None:
    distances = normalized_distances(torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2), torch.tensor([10.0]))
    assert [count.item() for count in count_hits(distances, 0.5, "<=")] == [1, 1]
    assert [count.item() for count in count_hits(distances, 0.5, "<")] == [0, 1]
    assert PROTOCOLS["mpii_official"].comparison == "<="
    assert PROTOCOLS["pytorch_pose"].comparison == "<"


PAIR = Skeleton(name="pair", joints=("a", "b", "c"), edges=((0, 1),), flip_pairs=())


def pair_protocol(reduction: str) -> Protocol:
    return Protocol(PAIR, 0.5, "<=", {"ab": ("a", "b")}, {"total": ("a", "b", "c")}, reduction)  # type: ignore[arg-type]


@pytest.mark.parametrize(("reduction", "total"), [("pooled", 100 * 5 / 8), ("mean_of_joints", (50 + 75) / 2)])
def test_reductions(reduction: str, total: float) -> None:
    summary = pair_protocol(reduction).summarize(torch.tensor([2, 3, 0]), torch.tensor([4, 4, 0]))
    assert summary["a"].item() == 50
    assert summary["b"].item() == 75
    assert summary["ab"].item() == 62.5
    assert math.isnan(summary["c"].item())
    assert summary["total"].item() == total


def test_pooling_weighs_joints_by_their_labels() -> None:
    hits, counted = torch.tensor([1, 0, 0]), torch.tensor([1, 3, 0])
    assert pair_protocol("pooled").summarize(hits, counted)["total"].item() == 25
    assert pair_protocol("mean_of_joints").summarize(hits, counted)["total"].item() == 50


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("people", [0, 2])
def test_nothing_labelled(protocol: str, people: int) -> None:
    summary = pck(torch.zeros(people, 16, 2), torch.full((people, 16, 2), NAN), torch.ones(people), protocol)
    assert all(math.isnan(value.item()) for value in summary.values())


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_pelvis_and_thorax_are_not_in_the_total(protocol: str) -> None:
    keypoints = torch.zeros(1, 16, 2)
    predictions = torch.zeros(1, 16, 2)
    predictions[:, [MPII.index("pelvis"), MPII.index("thorax")]] = 100
    summary = pck(predictions, keypoints, torch.ones(1), protocol)
    assert summary["total"].item() == 100
    assert summary["pelvis"].item() == 0


def test_metric_adds_up_over_batches_and_processes() -> None:
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(50, 16, 2, generator=generator) * 100
    keypoints[torch.rand(50, 16, generator=generator) < 0.2] = NAN
    predictions = keypoints.nan_to_num() + torch.randn(50, 16, 2, generator=generator) * 10
    heads = 10 + 20 * torch.rand(50, generator=generator)
    expected = pck(predictions, keypoints, heads, "mpii_official")

    replicas = [PCKh(), PCKh()]
    for batch in range(0, 50, 7):
        rows = slice(batch, batch + 7)
        replicas[batch % 2].update(predictions[rows], keypoints[rows], heads[rows])
    # What torchmetrics does across processes: gather every state and reduce it by its own function.
    for state, reduction in replicas[0]._reductions.items():
        gathered = torch.stack([getattr(replica, state) for replica in replicas])
        assert gathered.dtype == torch.int64
        setattr(replicas[0], state, reduction(gathered))
    result = replicas[0].compute()
    assert result.keys() == expected.keys()
    assert {name: value.item() for name, value in result.items()} == {name: value.item() for name, value in expected.items()}
    replicas[1].reset()
    assert replicas[1].counted.sum() == 0


def test_refuses_bad_input() -> None:
    good = torch.zeros(2, 16, 2)
    with pytest.raises(ValueError, match="keypoints must be of shape"):
        normalized_distances(good, torch.zeros(2, 16), torch.ones(2))
    with pytest.raises(ValueError, match="predictions must have the shape"):
        normalized_distances(good[:1], good, torch.ones(2))
    with pytest.raises(ValueError, match="lengths must be of shape"):
        normalized_distances(good, good, torch.ones(2, 16))
    with pytest.raises(ValueError, match="threshold must be positive"):
        count_hits(torch.zeros(2, 16), 0.0)
    with pytest.raises(ValueError, match="comparison must be"):
        count_hits(torch.zeros(2, 16), 0.5, "=<")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of mpii_official, pytorch_pose"):
        get_protocol("mpii")
    with pytest.raises(ValueError, match="one for each joint of mpii"):
        pck(good[:, :14], good[:, :14], torch.ones(2), "mpii_official")


def test_functions_do_not_need_torchmetrics() -> None:
    code = "import sys, fastpose.metrics; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def mpii_val(shared_data: Path) -> dict[str, torch.Tensor]:
    io = pytest.importorskip("scipy.io")
    file = io.loadmat(shared_data / "mpii" / "detections_our_format.mat")
    keypoints = torch.from_numpy(file["pos_gt_src"].transpose(2, 0, 1).copy())
    keypoints[torch.from_numpy(file["jnt_missing"].T != 0)] = NAN
    corners = file["headboxes_src"]
    return {
        "keypoints": keypoints,
        "head_sizes": torch.from_numpy(0.6 * np.linalg.norm(corners[1] - corners[0], axis=0)),
        "tompson": torch.from_numpy(file["pos_pred_src"].transpose(2, 0, 1).copy()),
        "hourglass": torch.from_numpy(io.loadmat(shared_data / "mpii" / "bearpaw-hg_s2_b1.mat")["preds"]),
    }


def printed(summary: dict[str, torch.Tensor], names: list[str]) -> list[float]:
    return [round(summary[name].item(), 2) for name in names]


COLUMNS = ["head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"]


def test_hourglass_predictions_score_as_published(mpii_val: dict[str, torch.Tensor], shared_data: Path) -> None:
    cases = json.loads((shared_data / "expected.json").read_text())
    expected = next(case for case in cases if case["pred"] == "mpii/bearpaw-hg_s2_b1.mat")
    metric = PCKh("pytorch_pose")
    for rows in torch.arange(len(mpii_val["keypoints"])).split(1000):
        metric.update(mpii_val["hourglass"][rows], mpii_val["keypoints"][rows], mpii_val["head_sizes"][rows])
    assert metric.hits.tolist() == expected["counts"]["hits"]
    assert metric.counted.tolist() == expected["counts"]["valid"]
    assert printed(metric.compute(), [*COLUMNS, "total"]) == expected["published"]

    official = pck(mpii_val["hourglass"], mpii_val["keypoints"], mpii_val["head_sizes"], "mpii_official")
    assert printed(official, ["total"]) == [87.30]


def test_tompson_predictions_score_as_published(mpii_val: dict[str, torch.Tensor]) -> None:
    # Tompson et al., CVPR 2015, on the validation set, by both scripts.
    people = (mpii_val["tompson"], mpii_val["keypoints"], mpii_val["head_sizes"])
    official = pck(*people, "mpii_official")
    assert printed(official, [*COLUMNS, "upper_body", "total"]) == [
        96.66, 92.71, 83.36, 76.74, 81.93, 73.36, 65.45, 84.29, 82.34,
    ]  # fmt: skip
    assert printed(pck(*people, "pytorch_pose"), ["total"]) == [81.46]
