"""PCK, PCKh, PDJ, AUC and PCP: the arithmetic on small cases, the protocols on made-up people."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpose.metrics import (
    AUC,
    PCK,
    PCP,
    PDJ,
    PROTOCOLS,
    PCKh,
    Protocol,
    area_under_curve,
    auc,
    count_hits,
    get_protocol,
    limb_distances,
    normalized_distances,
    pck,
    pcp,
    pdj,
)
from fastpose.skeletons import FLIC, LSP, MPII, Skeleton

NAN = math.nan
HEAD_PROTOCOLS = [name for name, protocol in PROTOCOLS.items() if isinstance(protocol, Protocol) and protocol.skeleton == MPII]
DISTANCE_PROTOCOLS = [name for name, protocol in PROTOCOLS.items() if isinstance(protocol, Protocol)]


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


@pytest.mark.parametrize("protocol", DISTANCE_PROTOCOLS)
@pytest.mark.parametrize("people", [0, 2])
def test_nothing_labelled(protocol: str, people: int) -> None:
    shape = (people, PROTOCOLS[protocol].skeleton.num_joints, 2)
    unlabelled = torch.full(shape, NAN)
    for summary in (pck, auc):
        values = summary(torch.zeros(shape), unlabelled, torch.ones(people), protocol)
        assert values.keys() >= set(PROTOCOLS[protocol].columns)
        assert all(math.isnan(value.item()) for value in values.values())
    if PROTOCOLS[protocol].limbs:
        assert all(math.isnan(value.item()) for value in pcp(torch.zeros(shape), unlabelled, protocol).values())


@pytest.mark.parametrize("protocol", HEAD_PROTOCOLS)
def test_pelvis_and_thorax_are_not_in_the_total(protocol: str) -> None:
    keypoints = torch.zeros(1, 16, 2)
    predictions = torch.zeros(1, 16, 2)
    predictions[:, [MPII.index("pelvis"), MPII.index("thorax")]] = 100
    summary = pck(predictions, keypoints, torch.ones(1), protocol)
    assert summary["total"].item() == 100
    assert summary["pelvis"].item() == 0


def people_of(skeleton: Skeleton, count: int = 50, seed: int = 0, unlabelled: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels (N, K, 2) about 10 pixels apart."""
    generator = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(count, skeleton.num_joints, 2, generator=generator) * 100
    keypoints[torch.rand(count, skeleton.num_joints, generator=generator) < unlabelled] = NAN
    return keypoints.nan_to_num() + torch.randn(keypoints.shape, generator=generator) * 10, keypoints


# ---- what tells the protocols apart ---------------------------------------------------------------------------------


def test_comparisons_at_exactly_the_threshold() -> None:
    # Only the elbow's error is not 0, and it is exactly the threshold.
    compared = {}
    for name in DISTANCE_PROTOCOLS:
        protocol = PROTOCOLS[name]
        keypoints = torch.zeros(1, protocol.skeleton.num_joints, 2, dtype=torch.float64)
        predictions = keypoints.clone()
        predictions[0, protocol.skeleton.index("left_elbow"), 1] = protocol.threshold
        compared[name] = pck(predictions, keypoints, torch.ones(1), name)["left_elbow"].item()
    assert [name for name, value in compared.items() if value == 0] == ["pytorch_pose", "mmpose"]


def test_heads() -> None:
    keypoints = torch.zeros(1, 16, 2)
    predictions = keypoints.clone()
    predictions[0, MPII.index("upper_neck")] = 100
    heads = {name: pck(predictions, keypoints, torch.ones(1), name)["head"].item() for name in HEAD_PROTOCOLS}
    assert heads == {"mpii_official": 50, "pytorch_pose": 100, "hrnet": 100, "mmpose": 100}


def test_hrnets_tenth_is_eleven_hundredths() -> None:
    keypoints = torch.zeros(1, 16, 2)
    predictions = keypoints + torch.tensor([0.105, 0.0])
    assert pck(predictions, keypoints, torch.ones(1), "hrnet")["total@0.1"].item() == 100
    assert pck(predictions, keypoints, torch.ones(1), "mmpose")["total@0.1"].item() == 0


def test_mmpose_computes_in_single_precision() -> None:
    keypoints = torch.zeros(1, 16, 2, dtype=torch.float64)
    predictions = keypoints + torch.tensor([0.5 - 1e-10, 0.0], dtype=torch.float64)
    assert pck(predictions, keypoints, torch.ones(1), "mmpose")["total"].item() == 0
    assert pck(predictions, keypoints, torch.ones(1), "pytorch_pose")["total"].item() == 100


def flic_person(**joints: tuple[float, float]) -> torch.Tensor:
    person = torch.zeros(1, FLIC.num_joints, 2)
    for joint, point in joints.items():
        person[0, FLIC.index(joint)] = torch.tensor(point)
    return person


FACING = {
    "left_shoulder": (60.0, 0.0), "right_shoulder": (20.0, 0.0), "left_elbow": (70.0, 40.0), "right_elbow": (10.0, 40.0),
    "left_wrist": (75.0, 80.0), "right_wrist": (5.0, 80.0), "left_hip": (50.0, 90.0), "right_hip": (30.0, 90.0),
    "left_eye": (42.0, -30.0), "right_eye": (38.0, -30.0), "nose": (40.0, -25.0),
}  # fmt: skip


def mirrored(joints: dict[str, tuple[float, float]], parts: tuple[str, ...] = ()) -> dict[str, tuple[float, float]]:
    """With left and right exchanged, everywhere or for some parts."""
    other = {"left": "right", "right": "left"}
    return {
        name: joints[f"{other[side]}_{part}"] if part and (not parts or part in parts) else point
        for name, point in joints.items()
        for side, _, part in [name.partition("_")]
    }


def test_labels_of_people_who_turn_their_back() -> None:
    facing, turned = flic_person(**FACING), flic_person(**mirrored(FACING))
    modec, cpm, plain = (PROTOCOLS[name] for name in ("flic_modec", "flic_cpm", "human_pose_benchmark"))
    for protocol in (modec, cpm, plain):
        assert torch.equal(protocol.relabelled(facing), facing)
    assert torch.equal(plain.relabelled(turned), turned)
    assert torch.equal(cpm.relabelled(turned), facing)
    assert torch.equal(modec.relabelled(turned), flic_person(**mirrored(FACING, ("hip", "eye"))))
    # With arms crossed behind the back the wrists are on the other side.
    crossed = flic_person(**mirrored(mirrored(FACING), ("wrist",)))
    assert torch.equal(modec.relabelled(crossed), crossed)
    assert torch.equal(cpm.relabelled(crossed), flic_person(**mirrored(mirrored(mirrored(FACING), ("wrist",)))))
    both = torch.cat((facing, turned))
    assert torch.equal(cpm.relabelled(cpm.relabelled(both)), cpm.relabelled(both))
    assert torch.equal(modec.relabelled(modec.relabelled(both)), modec.relabelled(both))


def test_torso_is_that_of_the_labels() -> None:
    # Left shoulder to right hip: 30 and 90 pixels, of which a fifth is 18.97.
    keypoints = flic_person(**FACING)
    predictions = keypoints.clone()
    for name, elbow in (("flic_cpm", 18.9), ("flic_modec", 18.9)):
        predictions[0, FLIC.index("left_elbow"), 0] = 70 + elbow
        assert pck(predictions, keypoints, None, name)["left_elbow"].item() == 100
        predictions[0, FLIC.index("left_elbow"), 0] = 70 + 19
        assert pck(predictions, keypoints, None, name)["left_elbow"].item() == 0
    predictions[0, FLIC.index("left_elbow"), 0] = 70 + 19
    assert pck(predictions, keypoints, torch.tensor([100.0]), "human_pose_benchmark")["left_elbow"].item() == 100


@pytest.mark.parametrize("torso", [0.0, NAN])
def test_torso_of_no_length(torso: float) -> None:
    predictions, keypoints = people_of(LSP, 2, unlabelled=0)
    keypoints[0, LSP.index("right_hip")] = keypoints[0, LSP.index("left_shoulder")] + torso
    predictions[:] = keypoints.nan_to_num()
    values = pck(predictions, keypoints, None, "lsp_pc")
    # Without a length all joints of the first person are wrong; if it is not known, they are not counted.
    assert values["left_knee"].item() == (50 if torso == 0 else 100)


# ---- PCP ------------------------------------------------------------------------------------------------------------

TRUE_LIMB = torch.tensor([[[[0.0, 0.0], [10.0, 0.0]]]])


def limb_hit(first: float, second: float, mode: str) -> bool:
    predicted = TRUE_LIMB + torch.tensor([[[[0.0, first], [0.0, second]]]])
    return (limb_distances(predicted, TRUE_LIMB, mode) <= 0.5).item()  # type: ignore[arg-type]


def test_strict_and_loose_limbs() -> None:
    assert limb_hit(5, 5, "strict")
    assert not limb_hit(5.001, 0, "strict")
    assert not limb_hit(0, 5.001, "strict")
    assert limb_hit(10, 0, "loose")
    assert not limb_hit(10, 0.001, "loose")


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_limbs_that_cannot_be_judged(mode: str) -> None:
    nowhere = TRUE_LIMB.clone()
    nowhere[..., 0, 0] = NAN
    point = torch.zeros_like(TRUE_LIMB)
    assert limb_distances(nowhere, TRUE_LIMB, mode).item() == math.inf  # type: ignore[arg-type]
    assert math.isnan(limb_distances(TRUE_LIMB, nowhere, mode).item())  # type: ignore[arg-type]
    assert math.isnan(limb_distances(nowhere, nowhere, mode).item())  # type: ignore[arg-type]
    assert limb_distances(point, point, mode).item() == math.inf  # type: ignore[arg-type]


def test_pcp_of_joints_and_of_sticks() -> None:
    predictions, keypoints = people_of(LSP, unlabelled=0)
    limbs = PROTOCOLS["lsp_pc"].limbs
    assert limbs is not None
    values = pcp(predictions, keypoints, "lsp_pc")
    sticks = limbs.locate(predictions, LSP)
    assert sticks.shape == (50, 10, 2, 2)
    assert pcp(sticks, keypoints, "lsp_pc") == values
    assert torch.equal(sticks[:, 0], predictions[:, :2].double())
    assert torch.equal(sticks[:, 9, 0], predictions[:, 2:4].double().mean(1))
    assert 0 < values["total"] < 100
    assert values["upper_leg"] == (values["left_upper_leg"] + values["right_upper_leg"]) / 2
    ten = [value for name, value in values.items() if name in limbs.ends]
    assert values["total"].item() == pytest.approx(torch.stack(ten).mean().item())
    loose = pcp(predictions, keypoints, "lsp_pc", "loose")
    assert all(loose[name] >= value for name, value in values.items())


# ---- PDJ, AUC -------------------------------------------------------------------------------------------------------


def test_pdj_is_pck_at_every_fraction() -> None:
    predictions, keypoints = people_of(LSP)
    values = pdj(predictions, keypoints, None, "lsp_pc", (0.1, 0.2))
    assert values[0.2] == pck(predictions, keypoints, None, "lsp_pc")
    at_a_tenth = replace(PROTOCOLS["lsp_pc"], threshold=0.1)
    assert values[0.1] == pck(predictions, keypoints, None, at_a_tenth)
    assert values[0.1]["total"] < values[0.2]["total"]


def test_area_under_a_known_curve() -> None:
    assert area_under_curve(torch.tensor([0.0, 100.0, 100.0]), (0.0, 0.1, 0.2)).item() == pytest.approx(75)
    # Errors that are spread evenly up to the last threshold have half the area.
    keypoints = torch.zeros(1000, 14, 2, dtype=torch.float64)
    predictions = keypoints.clone()
    predictions[:, :, 0] = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000 * 0.2
    values = auc(predictions, keypoints, torch.ones(1000), "lsp_pc")
    assert values["total"].item() == pytest.approx(50)
    assert values["left_knee"].item() == pytest.approx(50)


# ---- modules --------------------------------------------------------------------------------------------------------


def plain(values: Any) -> Any:
    """Numbers in full, as text, so that NaN equals NaN."""
    return {name: plain(value) for name, value in values.items()} if isinstance(values, dict) else repr(values.item())


MODULES = {
    "PCKh": (lambda: PCKh(), MPII, lambda p, k, lengths: pck(p, k, lengths, "mpii_official")),
    "PCK hrnet": (lambda: PCK("hrnet"), MPII, lambda p, k, lengths: pck(p, k, lengths, "hrnet")),
    "PDJ": (lambda: PDJ("lsp_pc"), LSP, lambda p, k, lengths: pdj(p, k, lengths, "lsp_pc")),
    "AUC": (lambda: AUC("flic_cpm"), FLIC, lambda p, k, lengths: auc(p, k, lengths, "flic_cpm")),
    "PCP": (lambda: PCP("lsp_oc", "loose"), LSP, lambda p, k, lengths: pcp(p, k, "lsp_oc", "loose")),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_add_up_over_batches(name: str) -> None:
    make, skeleton, function = MODULES[name]
    predictions, keypoints = people_of(skeleton)
    lengths = 10 + torch.arange(50.0)
    metric = make()
    for rows in torch.arange(50).split(7):
        extra = () if name == "PCP" else (lengths[rows],)
        metric.update(predictions[rows], keypoints[rows], *extra)
    result, expected = metric.compute(), function(predictions, keypoints, lengths)
    assert plain(result) == plain(expected)
    assert metric.hits.dtype == torch.int64
    metric.reset()
    assert metric.counted.sum() == 0


def test_refuses_bad_input() -> None:
    good = torch.zeros(2, 16, 2)
    with pytest.raises(ValueError, match="keypoints must be of shape"):
        normalized_distances(good, torch.zeros(2, 16), torch.ones(2))
    with pytest.raises(ValueError, match="predictions must have the shape"):
        normalized_distances(good[:1], good, torch.ones(2))
    with pytest.raises(ValueError, match="lengths must be of shape"):
        normalized_distances(good, good, torch.ones(2, 15))
    for threshold in (-0.1, NAN, math.inf, (0.1, -0.1)):
        with pytest.raises(ValueError, match="threshold must be a finite number of at least 0"):
            count_hits(torch.zeros(2, 16), threshold)
    with pytest.raises(ValueError, match="comparison must be"):
        count_hits(torch.zeros(2, 16), 0.5, "=<")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of mpii_official, pytorch_pose"):
        get_protocol("mpii")
    with pytest.raises(ValueError, match=r"keypoints must be of shape \(N, 16, 2\), the joints of mpii"):
        pck(good[:, :14], good[:, :14], torch.ones(2), "mpii_official")
    with pytest.raises(ValueError, match="one for each joint of mpii"):
        PROTOCOLS["mpii_official"].summarize(torch.zeros(14), torch.zeros(14))
    with pytest.raises(ValueError, match="lengths must be given, as this protocol normalises by 'head'"):
        pck(good, good, None, "mpii_official")
    with pytest.raises(ValueError, match="must normalise by the head"):
        PCKh("lsp_pc")
    with pytest.raises(ValueError, match="for which see average_precision"):
        pck(good, good, None, "coco")
    with pytest.raises(ValueError, match="that of mpii has none"):
        pcp(good, good, "hrnet")
    lsp = torch.zeros(2, 14, 2)
    with pytest.raises(ValueError, match=r"predictions must be of shape \(2, 14, 2\) or \(2, 10, 2, 2\), got \(2, 13, 2\)"):
        pcp(lsp[:, :13], lsp, "lsp_pc")
    with pytest.raises(ValueError, match="predictions must have the shape of ends"):
        pcp(torch.zeros(2, 9, 2, 2), lsp, "lsp_pc")
    with pytest.raises(ValueError, match="mode must be 'strict' or 'loose'"):
        pcp(lsp, lsp, "lsp_pc", "relaxed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two or more increasing"):
        area_under_curve(torch.zeros(2), (0.2, 0.1))
    with pytest.raises(ValueError, match=r"percentages must be of shape \(3,\)"):
        area_under_curve(torch.zeros(2), (0.0, 0.1, 0.2))


def test_functions_do_not_need_torchmetrics() -> None:
    code = "import sys, fastpose.metrics; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_of_protocols_is_true() -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 9 and cells[1].startswith("`"):
            rows.update(dict.fromkeys(cells[1].replace("`", "").split(", "), cells))
    assert set(rows) == set(PROTOCOLS)
    for name in DISTANCE_PROTOCOLS:
        protocol, (_, _, joints, _, hit, head, total, also, _) = PROTOCOLS[name], rows[name]
        assert (joints.lower(), hit) == (protocol.skeleton.name, f"d {protocol.comparison} {protocol.threshold}")
        assert head == " and ".join(joint.replace("_", " ") for joint in protocol.columns.get("head", ()))
        assert total.startswith("mean") == (protocol.reduction == "mean_of_joints")
        assert ("PCP" in also) == (protocol.limbs is not None)
        assert all(f"{threshold:.2f}" in also for threshold in protocol.also.values())
