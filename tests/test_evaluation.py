"""Evaluation of models whose heatmaps are known: stages, scales, mirrors, and files that score the same again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from fastpose.checkpoints import CROP_KEY, save_weights
from fastpose.cli import app
from fastpose.codec import HeatmapCodec
from fastpose.data.crops import PoseDataset
from fastpose.data.figures import Figures
from fastpose.data.records import Person
from fastpose.evaluation import coco_results, evaluate
from fastpose.metrics import PROTOCOLS
from fastpose.models import create_model
from fastpose.multi_scale import _predict, predict_stages
from fastpose.prediction import CODEC_KEY, SKELETON_KEY, Predictor
from fastpose.score_files import read_predictions, read_truth, score_points
from fastpose.skeletons import COCO, LSP, MPII, Skeleton

HANDS = Skeleton("hands", ("right_hand", "left_hand"), edges=((0, 1),), flip_pairs=((0, 1),))


class BrightSpots(nn.Module):
    """Finds the bright spots in the left and in the right half of the picture; its first stage is some cells off."""

    def __init__(self, shift: int = 0, joints: int = 2) -> None:
        super().__init__()
        self.shift = shift
        self.joints = joints

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        spots = functional.avg_pool2d(images[:, :1], 4)
        left, right = spots.clone(), spots.clone()
        middle = spots.shape[-1] // 2
        left[..., middle:], right[..., :middle] = 0, 0
        exact = torch.cat([left, right] * (self.joints // 2) + [left] * (self.joints % 2), 1)
        return [exact.roll(self.shift, -1), exact]


def codec_of(mapping: str) -> HeatmapCodec:
    return HeatmapCodec(input_size=(128, 128), heatmap_size=(32, 32), sigma=2.0, mapping=mapping, method="dark")


POINTS = np.array([[[110.0, 120.0], [190.5, 90.25]], [[60.0, 100.0], [101.0, 141.0]], [[200.0, 70.0], [280.0, 130.0]]])
CENTERS = ((150, 100), (80, 110), (240, 95))
SCALES = (0.7, 0.6, 0.8)


def spot_people(points: np.ndarray = POINTS) -> list[Person]:
    y, x = np.mgrid[:240, :320]
    people = []
    for spots, center, scale in zip(points, CENTERS, SCALES, strict=True):
        bright = np.max([np.exp(-((x - px) ** 2 + (y - py) ** 2) / 200) for px, py in spots], 0)
        image = np.repeat(np.round(255 * bright).astype(np.uint8)[..., None], 3, axis=2)
        keypoints = spots.astype(np.float32)
        people.append(Person(image, keypoints, np.ones(2, bool), np.array(center, np.float32), scale, head_size=10.0))
    return people


def all_stages(predictor: Predictor, **options: Any) -> np.ndarray:
    batches = list(predict_stages(predictor, spot_people(), batch_size=2, **options))
    assert [batch.coordinates.shape[1] for batch in batches] == [2, 1]
    return np.concatenate([batch.coordinates for batch in batches], axis=1)


@pytest.mark.parametrize("flip_test", [False, True])
def test_stages_are_those_of_the_predictor(flip_test: bool) -> None:
    predictor = Predictor(BrightSpots(shift=1), codec_of("centre"), HANDS, "cpu")
    found = all_stages(predictor, flip_test=flip_test)
    assert found.shape == (2, 3, 2, 2)
    for stage in (0, 1):
        poses = predictor.predict(spot_people(), flip_test=flip_test, stage=stage)
        np.testing.assert_allclose(found[stage], np.stack([pose.keypoints for pose in poses]), atol=1e-4)


@pytest.mark.parametrize("mapping", ["centre", "corner", "udp"])
@pytest.mark.parametrize("flip_test", [False, True])
def test_several_scales_agree_on_where_things_are(mapping: str, flip_test: bool) -> None:
    predictor = Predictor(BrightSpots(), codec_of(mapping), HANDS, "cpu")
    # The other crops alone are exact; their maps are averaged on the cells of the first without a shift.
    one = all_stages(predictor, flip_test=flip_test)[-1]
    several = all_stages(predictor, flip_test=flip_test, scales=(1.0, 0.8, 1.25))[-1]
    other = all_stages(predictor, flip_test=flip_test, scales=(1.25,))[-1]
    # "corner" with pooling is off by half a pixel of a cell, which is what a network learns to make up for.
    tolerance = 0.3 if mapping == "centre" else 4.0
    np.testing.assert_allclose(one, POINTS, atol=tolerance)
    np.testing.assert_allclose(other, POINTS, atol=tolerance * 1.25)
    low, high = np.minimum(one, other) - 0.6, np.maximum(one, other) + 0.6
    assert ((several > low) & (several < high)).all()


def test_the_same_scale_twice_changes_nothing() -> None:
    predictor = Predictor(BrightSpots(), codec_of("udp"), HANDS, "cpu")
    np.testing.assert_allclose(all_stages(predictor, scales=(0.9, 0.9, 0.9)), all_stages(predictor, scales=(0.9,)), atol=1e-2)


def test_what_a_closer_crop_does_not_show_is_left_to_the_others() -> None:
    predictor = Predictor(BrightSpots(), codec_of("centre"), HANDS, "cpu")
    person = spot_people()[0]
    # Twice as close, neither spot is in the crop.
    (batch,) = predict_stages(predictor, [person], scales=(1.0, 0.4), flip_test=False)
    np.testing.assert_allclose(batch.coordinates[-1, 0], POINTS[0], atol=0.3)
    (alone,) = predict_stages(predictor, [person], flip_test=False)
    np.testing.assert_allclose(batch.scores[-1], alone.scores[-1], rtol=0.05)


def test_crops_that_show_other_places_agree_in_the_mirror_too() -> None:
    predictor = Predictor(BrightSpots(), codec_of("centre"), HANDS, "cpu")
    person = spot_people()[0]
    moved = replace(person, center=person.center + np.array([9, -14], np.float32))
    crops = [PoseDataset([entry], HANDS, predictor.crops)[0] for entry in (person, moved)]
    views = [(crop["image"][None], crop["crop_to_image"][None]) for crop in crops]
    for order in (views, views[::-1]):
        found = _predict(predictor.model, predictor.codec, HANDS, order, flip_test=True)
        np.testing.assert_allclose(found.coordinates[-1, 0], POINTS[0], atol=0.3)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (float("nan"),)])
def test_refuses_scales(scales: tuple[float, ...]) -> None:
    predictor = Predictor(BrightSpots(), codec_of("centre"), HANDS, "cpu")
    with pytest.raises(ValueError, match="scales: got"):
        list(predict_stages(predictor, spot_people(), scales=scales))


# ---- evaluation -----------------------------------------------------------------------------------------------------


class KnowsFigures(nn.Module):
    """Has seen the labels: its last stage draws them, its first one is 2 cells to the right."""

    def __init__(self, codec: HeatmapCodec, keypoints: torch.Tensor) -> None:
        super().__init__()
        self.maps = codec.encode(keypoints)
        self.next = 0

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.maps[self.next : self.next + len(images)]
        self.next += len(images)
        return [maps.roll(2, -1), maps]


@pytest.fixture(scope="module")
def figures() -> list[Person]:
    return Figures(5, seed=3, size=(64, 64))[:]


@pytest.fixture
def knowing(figures: list[Person]) -> Predictor:
    codec = HeatmapCodec.preset("udp", 64)
    crops = PoseDataset(figures, MPII, Predictor(nn.Identity(), codec, MPII, "cpu").crops)
    knowing = KnowsFigures(codec, torch.stack([crops[number]["keypoints"] for number in range(5)]))
    return Predictor(knowing, codec, MPII, "cpu")


def test_every_stage_is_scored_and_scores_the_same_from_files(knowing: Predictor, figures: list[Person], tmp_path: Path) -> None:
    counts: list[int] = []
    evaluation = evaluate(knowing, figures, flip_test=False, batch_size=2, progress=counts.append)
    assert counts == [2, 2, 1]
    first, last = evaluation.scores
    assert (first.name, last.name, last.metric) == ("stage 1", "stage 2", "PCKh@0.5")
    assert last.values["total"] == 100
    assert first.values["total"] < 100
    assert sum(last.counted.values()) == sum(int((~np.isnan(figure.keypoints[:, 0])).sum()) for figure in figures)
    evaluation.save(tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert sorted(file.name for file in out.iterdir()) == ["scores.json", "stage-1.npz", "stage-2.npz", "truth.npz"]
    assert [score["values"]["total"] for score in json.loads((out / "scores.json").read_text())] == [
        first.values["total"], 100,
    ]  # fmt: skip
    truth = read_truth(out / "truth.npz")
    for score in (first, last):
        read = read_predictions(out / f"{score.name.replace(' ', '-')}.npz", truth)
        again = score_points(score.name, read, truth, PROTOCOLS["mpii_official"])
        assert (again.values, again.hits, again.counted) == (score.values, score.hits, score.counted)
    arguments = ["score", str(out / "stage-1.npz"), str(out / "stage-2.npz"), "--truth", str(out / "truth.npz")]
    printed = CliRunner().invoke(app, [*arguments, "--protocol", "mpii_official", "--json"])
    assert [method["hits"] for method in json.loads(printed.stdout)["methods"]] == [first.hits, last.hits]


def test_the_last_stage_alone(knowing: Predictor, figures: list[Person]) -> None:
    (score,) = evaluate(knowing, figures, "pytorch_pose", flip_test=False, all_stages=False).scores
    assert (score.name, score.values["total"]) == ("stage 2", 100)


def test_evaluation_refuses(knowing: Predictor, figures: list[Person]) -> None:
    with pytest.raises(ValueError, match="people must hold at least one person"):
        evaluate(knowing, [])
    with pytest.raises(ValueError, match="protocol lsp_pc is for lsp, but the model predicts mpii"):
        evaluate(knowing, figures, "lsp_pc")
    with pytest.raises(ValueError, match="normalises by 'head', but the labels have no lengths"):
        evaluate(knowing, [replace(figure, head_size=float("nan")) for figure in figures])
    coco = Predictor(BrightSpots(joints=17), codec_of("centre"), COCO, "cpu")
    person = coco.person_in_box(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="protocol coco needs the annotations"):
        evaluate(coco, [person])
    hands = Predictor(BrightSpots(), codec_of("centre"), HANDS, "cpu")
    with pytest.raises(ValueError, match="protocol must be given for the joints of hands"):
        evaluate(hands, spot_people())
    lsp = Predictor(BrightSpots(joints=14), codec_of("centre"), LSP, "cpu")
    assert evaluate(lsp, [lsp.person_in_box(np.zeros((32, 32, 3), np.uint8))]).scores[0].metric == "PCK@0.2"


def test_coco_is_evaluated_by_average_precision(tmp_path: Path) -> None:
    predictor = Predictor(BrightSpots(joints=17), codec_of("centre"), COCO, "cpu")
    spots = spot_people()[0]
    joints = np.concatenate([POINTS[0]] * 9)[:17].astype(np.float32)
    person = replace(spots, keypoints=joints, visible=np.ones(17, bool), image_id=42)
    annotation = {
        "id": 1, "image_id": 42, "category_id": 1, "area": 3000.0, "bbox": [90, 70, 130, 70], "iscrowd": 0,
        "keypoints": np.column_stack((joints, np.full(17, 2.0))).ravel().tolist(),
    }  # fmt: skip
    people = {"images": [{"id": 42}], "annotations": [annotation], "categories": [{"id": 1, "name": "person"}]}
    evaluation = evaluate(predictor, [person], annotations=people, flip_test=False)
    assert evaluation.scores[-1].values["AP"] == pytest.approx(1)
    evaluation.save(tmp_path)
    (result,) = json.loads((tmp_path / "stage-2.json").read_text())
    assert (result["image_id"], result["category_id"], len(result["keypoints"])) == (42, 1, 51)
    assert 0.5 < result["score"] <= 1
    assert result == coco_results([person], evaluation.points[-1], evaluation.joint_scores[-1])[0]


def test_scores_of_people_leave_out_unsure_joints() -> None:
    person = spot_people()[0]
    scores = np.array([[0.1, 0.8], [0.1, 0.2]])
    results = coco_results([person, person], np.zeros((2, 2, 2)), scores)
    assert [result["score"] for result in results] == [0.8, 0.0]


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("hourglass", stacks=2, features=8, depth=2)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    codec = HeatmapCodec.preset("msra", 64)
    save_weights(model, path, metadata={CODEC_KEY: json.dumps(codec.to_dict()), SKELETON_KEY: "mpii"})
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "120"})


def test_command_on_figures(weights: Path, tmp_path: Path) -> None:
    result = run(weights, "--data", "figures", "--people", 3, "--scales", "1,0.9", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "stack 1" in result.stdout
    assert "mpii_official" in result.stdout
    assert len(read_truth(tmp_path / "out" / "truth.npz")) == 3
    alone = run(weights, "--data", "figures", "--people", 3, "--last-stage", "--no-flip-test", "--json", "--protocol", "hrnet")
    (score,) = json.loads(alone.stdout)
    assert (score["name"], score["counted"]["pelvis"]) == ("stack 2", 3)
    assert "total@0.1" in score["values"]


def test_command_on_mpii(weights: Path, shared_data: Path) -> None:
    annotations = shared_data / "mpii" / "test_mpii.json"
    result = run(weights, "--data", "mpii", "--annotations", annotations, "--people", 2, "--json")
    assert result.exit_code == 0, result.output
    assert [score["counted"]["pelvis"] for score in json.loads(result.stdout)] == [2, 2]


def test_command_on_coco(tmp_path: Path, shared_data: Path) -> None:
    torch.manual_seed(0)
    model = create_model("hourglass", stacks=1, features=8, depth=2, num_joints=17)
    metadata = {CODEC_KEY: json.dumps(HeatmapCodec.preset("msra", (64, 48)).to_dict()), SKELETON_KEY: "coco", CROP_KEY: "coco"}
    save_weights(model, tmp_path / "weights.safetensors", metadata=metadata)
    coco = shared_data / "coco"
    arguments = ("--data", "coco", "--annotations", coco / "test_coco.json", "--images", coco / "images", "--json")
    result = run(tmp_path / "weights.safetensors", *arguments)
    assert result.exit_code == 0, result.output
    (score,) = json.loads(result.stdout)
    assert 0 <= score["values"]["AP"] < 0.2  # fresh weights know nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "mpii"), "--data mpii needs --root FOLDER or --annotations FILE"),
        (("--data", "figures", "--split", "val"), "--split: for published data sets, not for figures"),
        (("--data", "figures", "--scales", "1;2"), "--scales must be S,S,... in numbers, got '1;2'"),
        (("--data", "figures", "--people", "2", "--scales", "0"), "scales: got 0"),
        (("--data", "figures", "--people", "2", "--protocol", "lsp_pc"), "is for lsp, but the model predicts mpii"),
        (("--data", "mpii", "--annotations", "nowhere.json"), "nowhere.json"),
    ],
)
def test_command_complaints(weights: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = run(weights, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
