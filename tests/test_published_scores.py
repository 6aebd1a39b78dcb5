"""Published predictions against published labels: every number to the last printed digit, every count of hits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastpose.cli import app
from fastpose.codec import HeatmapCodec
from fastpose.data.crops import CropSettings, PoseDataset
from fastpose.data.mpii import read_mpii
from fastpose.metrics import PROTOCOLS, pck
from fastpose.score_files import Predictions, Truth, read_predictions, read_truth, score_points
from fastpose.score_files.arrays import read_arrays
from fastpose.skeletons import MPII

# Names of the cases, with the protocol and metric that each convention is called here.
CASES = {
    "MPII bearpaw hg_s2_b1": ("pytorch_pose", "pck"),
    "LSP-PC PCK Fan et al., CVPR'15": ("lsp_pc", "pck"),
    "LSP-PC PCK Wei et al., CVPR'16": ("lsp_pc", "pck"),
    "LSP-PC PCP Fan et al., CVPR'15": ("lsp_pc", "pcp"),
    "LSP-PC PCP Wei et al., CVPR'16": ("lsp_pc", "pcp"),
    "LSP Wei preds PC on PC GT loose": ("lsp_pc", "pcp-loose"),
    "LSP Wei preds PC on OC GT strict": ("lsp_oc", "pcp"),
    "FLIC PCK Chen et al., NIPS'14": ("human_pose_benchmark", "pck"),
    "COCO faster_coco_eval fixture": ("coco", "pck"),
}
COLUMNS = {
    "Head": "head", "Sho": "shoulder", "Elb": "elbow", "Wri": "wrist", "Hip": "hip", "Knee": "knee", "Ank": "ankle",
    "Mean": "total", "Total": "total", "Torso": "torso", "ULeg": "upper_leg", "LLeg": "lower_leg", "UArm": "upper_arm",
    "FArm": "forearm",
}  # fmt: skip


def expected(shared_data: Path) -> dict[str, dict[str, Any]]:
    return {case["id"]: case for case in json.loads((shared_data / "expected.json").read_text())}


def run_score(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["score", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["methods"][0]


def test_there_is_a_test_for_every_published_case(shared_data: Path) -> None:
    assert set(CASES) == set(expected(shared_data))


@pytest.mark.parametrize("case", CASES)
def test_published_number(case: str, shared_data: Path) -> None:
    published = expected(shared_data)[case]
    protocol, metric = CASES[case]
    truth = shared_data / published["gt"].split("[")[0].split(" ")[0]
    score = run_score(shared_data / published["pred"], "--truth", truth, "--protocol", protocol, "--metric", metric)
    found = [
        score["auc"]["total"] if name == "AUC" else score["values"][COLUMNS.get(name, name)] for name in published["columns"]
    ]
    if protocol == "coco":
        assert [score["values"][name] for name in published["columns"]] == published["pycocotools"]
        return
    # Four decimals were recorded; what was printed has been rounded from these, either way at a 5.
    assert [round(value, 4) for value in found] == published["computed"]
    half_a_digit = 0.005 if protocol == "pytorch_pose" else 0.05
    for value, printed in zip(found, published["published"] or [None] * len(found), strict=True):
        assert printed is None or abs(value - printed) <= half_a_digit + 1e-9
    counts = published["counts"]
    assert list(score["hits"].values()) == counts["hits"]
    assert list(score["counted"].values()) == counts.get("valid", [counts.get("n")] * len(counts["hits"]))


# ---- MPII's validation set ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mpii(shared_data: Path) -> Path:
    pytest.importorskip("scipy.io")
    return shared_data / "mpii"


@pytest.fixture(scope="module")
def val(mpii: Path) -> Truth:
    return read_truth(mpii / "detections_our_format.mat")


@pytest.fixture(scope="module")
def integers(mpii: Path) -> Truth:
    """Labels without fractions, as the hourglass authors have them."""
    return read_truth(mpii / "valid.h5")


@pytest.fixture(scope="module")
def hourglass(mpii: Path, val: Truth) -> Predictions:
    return read_predictions(mpii / "bearpaw-hg_s2_b1.mat", val)


@pytest.fixture(scope="module")
def tompson(mpii: Path, val: Truth) -> Predictions:
    return read_predictions(mpii / "detections_our_format.mat", val)


def test_the_official_numbers_of_tompson(val: Truth, tompson: Predictions) -> None:
    # Tompson et al., CVPR 2015, on the validation set, by evalMPII and by their own script.
    official = score_points("", tompson, val, PROTOCOLS["mpii_official"])
    assert [round(official.values[name], 2) for name in official.columns] == [
        96.66, 92.71, 83.36, 76.74, 81.93, 73.36, 65.45, 84.29, 82.34,
    ]  # fmt: skip
    assert round(official.auc["total"], 2) == 55.78
    assert round(score_points("", tompson, val, PROTOCOLS["pytorch_pose"]).values["total"], 2) == 81.46
    assert round(score_points("", tompson, val, PROTOCOLS["mmpose"]).values["total@0.1"], 2) == 28.97


def test_scoring_the_validation_set_takes_no_time(val: Truth, hourglass: Predictions) -> None:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        score_points("", hourglass, val, PROTOCOLS["mpii_official"])
        seconds.append(time.process_time() - start)
    assert len(val) == 2958
    assert min(seconds) < 0.5


def test_three_files_of_the_same_labels(mpii: Path, val: Truth, integers: Truth, hourglass: Predictions) -> None:
    # Newell's have no fractions; detections.mat has 13 joints that are damaged in the one that all publish on.
    annolist = read_truth(mpii / "detections.mat")
    for other in (annolist, integers):
        assert len(other) == len(val)
        np.testing.assert_array_equal(np.isnan(other.keypoints), np.isnan(val.keypoints))
        np.testing.assert_allclose(other.lengths["head"], val.lengths["head"], rtol=1e-6)
    labelled = ~np.isnan(val.keypoints[..., 0])
    offsets = np.abs(annolist.keypoints - val.keypoints)[labelled].max(axis=1)
    assert (offsets > 1e-3).sum() == 13
    # Up to one pixel of rounding, and the same 13 joints.
    assert (np.abs(integers.keypoints - annolist.keypoints)[labelled].max(axis=1) < 1.001).all()
    totals = [
        round(score_points("", hourglass, truth, PROTOCOLS["mpii_official"]).values["total"], 1) for truth in (annolist, val)
    ]
    assert totals == [87.3, 87.3]


@pytest.mark.parametrize(
    ("mistake", "total"),
    # By the same predictions: what the mean of 14 joints, 86.76, becomes.
    [
        ("none", 86.76),
        ("pooled", 87.30),
        ("pelvis and thorax too", 87.67),
        ("a pixel less", 86.53),
        ("unlabelled joints", 81.01),
        ("no hidden joints", 91.90),
        ("whole diagonal", 92.56),
        ("head top to neck", 90.52),
        ("labels without fractions", 86.76),
    ],
)
def test_mistakes_show(mistake: str, total: float, val: Truth, integers: Truth, hourglass: Predictions, mpii: Path) -> None:
    protocol = PROTOCOLS["hrnet" if mistake == "pooled" else "pytorch_pose"]
    points, keypoints, heads = hourglass.points, val.keypoints.copy(), val.lengths["head"]
    if mistake == "a pixel less":
        points = points - 1
    elif mistake == "unlabelled joints":
        keypoints = read_arrays(mpii / "detections_our_format.mat")["pos_gt_src"].transpose(2, 0, 1)
    elif mistake == "no hidden joints":
        keypoints[read_arrays(mpii / "valid.h5")["visible"] == 0] = np.nan
    elif mistake == "whole diagonal":
        heads = heads / 0.6
    elif mistake == "head top to neck":
        heads = np.linalg.norm(keypoints[:, MPII.index("head_top")] - keypoints[:, MPII.index("upper_neck")], axis=1)
    elif mistake == "labels without fractions":
        keypoints = integers.keypoints
    score = score_points("", Predictions(points, 1), Truth(MPII, keypoints, 1, {"head": heads}), protocol)
    everything = np.mean([score.values[joint] for joint in MPII.joints])
    assert round(everything if mistake == "pelvis and thorax too" else score.values["total"], 2) == total
    assert round(score.values["head"], 2) == 95.80 or mistake not in ("none", "pooled", "pelvis and thorax too")
    assert round(score.values["head"], 2) == 95.84 or mistake != "labels without fractions"


def test_lsp_mistakes_show(shared_data: Path) -> None:
    """The mutations of the person-centric score of Wei et al., 90.50."""
    truth = read_truth(shared_data / "lsp" / "LSP-joints-PC.mat")
    file = shared_data / "lsp" / "WeiCVPR16" / "pred_keypoints_lsp_pc.mat"
    wei = read_predictions(file, truth)

    def total(points: np.ndarray, truth: Truth = truth, pair: tuple[str, str] = ("left_shoulder", "right_hip")) -> float:
        protocol = PROTOCOLS["lsp_pc"]
        index = [protocol.skeleton.index(joint) for joint in pair]
        torso = np.linalg.norm(truth.keypoints[:, index[0]] - truth.keypoints[:, index[1]], axis=1)
        values = pck(torch.from_numpy(points), torch.from_numpy(truth.keypoints), torch.from_numpy(torso), protocol)
        return round(values["total"].item(), 2)

    assert total(wei.points) == 90.50
    assert total(wei.points - 1) == 90.19
    assert total(wei.points, pair=("right_shoulder", "left_hip")) == 90.60
    assert total(wei.points, read_truth(shared_data / "lsp" / "LSP-joints-OC.mat")) == 72.64


# ---- five real people -----------------------------------------------------------------------------------------------


def test_published_predictions_of_five_people(mpii: Path, val: Truth, hourglass: Predictions, tompson: Predictions) -> None:
    # They are the first five of the validation set; the JSON has them in HRNet's form, 0-based once read.
    people = read_truth(mpii / "test_mpii.json")
    np.testing.assert_allclose(people.keypoints + 1, val.keypoints[:5], atol=1e-4)
    np.testing.assert_allclose(people.lengths["head"], val.lengths["head"][:5], rtol=1e-6)
    for predictions in (hourglass, tompson):
        first = Predictions(predictions.points[:5], predictions.base)
        by_json = score_points("", first, people, PROTOCOLS["mpii_official"])
        rows = Truth(MPII, val.keypoints[:5], 1, {"head": val.lengths["head"][:5]})
        by_matrices = score_points("", first, rows, PROTOCOLS["mpii_official"])
        assert by_json.hits == by_matrices.hits
        # Two of them have no labels for their ankles.
        ankles = {"right_ankle": 3, "left_ankle": 3}
        assert by_json.counted == by_matrices.counted == {**dict.fromkeys(MPII.joints, 5), **ankles}
        assert by_json.values["total"] > 90


@pytest.mark.parametrize("preset", ["torch7_hourglass", "msra", "udp"])
def test_perfect_heatmaps_of_five_people_score_full_marks(mpii: Path, preset: str) -> None:
    """Image, crop, perfect heatmaps, decoding back to the image, score."""
    people = read_mpii(mpii / "test_mpii.json")
    codec = HeatmapCodec.preset(preset, 256)
    settings = CropSettings(size=(256, 256), convention="udp" if codec.mapping == "udp" else "corner")
    samples = [PoseDataset(people, MPII, settings)[number] for number in range(5)]
    crops = torch.stack([sample["crop_to_image"] for sample in samples])
    decoded = codec.decode(codec.encode(torch.stack([sample["keypoints"] for sample in samples])), affine=crops)
    truth = Truth.of_people(people, MPII)
    protocol = PROTOCOLS["hrnet"]
    score = score_points("", Predictions(decoded.coordinates.double().numpy(), 0), truth, protocol)
    assert score.values["total"] == 100
    assert score.values["total@0.1"] == 100 or preset == "torch7_hourglass"
    errors = np.linalg.norm(decoded.coordinates.numpy() - truth.keypoints, axis=2)
    cell = np.array([person.scale * 250 / 64 for person in people])[:, None]
    # The published sub-pixel errors: within a cell, and none for unbiased coordinates.
    assert np.nanmax(errors / cell) < (0.01 if preset == "udp" else 1.0)
