"""OKS and average precision against their definition, and COCO's rules about who counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastpose.metrics import COCO_SIGMAS, Detections, KeypointAP, OKSProtocol, People, average_precision, oks
from fastpose.skeletons import COCO

NAN = math.nan
K = COCO.num_joints


def person(seed: int = 0, size: float = 100.0, at: tuple[float, float] = (200.0, 200.0)) -> torch.Tensor:
    """Joints (17, 2) of someone of that many pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(K, 2, generator=generator, dtype=torch.float64) * size + torch.tensor(at)


def box_of(joints: torch.Tensor) -> list[float]:
    low, high = joints.amin(0), joints.amax(0)
    return [*low.tolist(), *(high - low).tolist()]


# ---- OKS ------------------------------------------------------------------------------------------------------------


def test_one_joint_by_hand() -> None:
    truth = torch.full((1, K, 2), NAN)
    truth[0, 5] = torch.tensor([10.0, 20.0])
    found = torch.zeros(1, K, 2)
    found[0, 5] = torch.tensor([13.0, 24.0])
    expected = math.exp(-25 / (2 * 400 * (2 * 0.079) ** 2))
    assert oks(found, truth, torch.tensor([400.0])).item() == pytest.approx(expected, rel=1e-12)
    # Another joint with a label, found exactly, draws the mean to 1.
    truth[0, 0] = 0.0
    assert oks(found, truth, torch.tensor([400.0])).item() == pytest.approx((1 + expected) / 2, rel=1e-12)
    found[0, 5, 0] = NAN
    assert oks(found, truth, torch.tensor([400.0])).item() == 0.5


def test_someone_without_labels_is_compared_with_the_enlarged_box() -> None:
    truth = torch.full((1, K, 2), NAN)
    box = torch.tensor([[100.0, 100.0, 50.0, 80.0]])
    inside = torch.tensor([60.0, 250.0]).expand(1, K, 2)  # x from 50 to 200, y from 20 to 260
    assert oks(inside, truth, torch.tensor([400.0]), box).item() == 1
    outside = torch.tensor([47.0, 264.0]).expand(1, K, 2)
    sigmas = torch.tensor(COCO_SIGMAS, dtype=torch.float64)
    expected = torch.exp(-25 / (2 * 400 * (2 * sigmas) ** 2)).mean().item()
    assert oks(outside, truth, torch.tensor([400.0]), box).item() == pytest.approx(expected, rel=1e-9)
    assert math.isnan(oks(outside, truth, torch.tensor([400.0])).item())


def test_equals_pycocotools() -> None:
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth = torch.stack([person(seed) for seed in range(4)])
    truth[1, ::2] = NAN
    truth[3] = NAN
    found = truth.nan_to_num(nan=150.0) + torch.randn(4, K, 2, generator=torch.Generator().manual_seed(0)) * 8
    areas = torch.tensor([900.0, 5000.0, 0.0, 400.0])
    boxes = torch.tensor([box_of(person(seed)) for seed in range(4)])
    evaluation = cocoeval.COCOeval(iouType="keypoints")
    people = coco_people({7: [(joints, area.item()) for joints, area in zip(truth, areas, strict=True)]})
    for entry, box in zip(people["annotations"], boxes, strict=True):
        entry["bbox"] = box.tolist()
    evaluation._gts = {(7, 1): people["annotations"]}
    # In descending order of the scores, as the method sorts them.
    evaluation._dts = {(7, 1): [{"score": -row, "keypoints": flat(joints)} for row, joints in enumerate(found)]}
    np.testing.assert_allclose(oks(found, truth, areas, boxes), evaluation.computeOks(7, 1), rtol=1e-12, atol=1e-300)


def test_oks_refuses_shapes() -> None:
    good, areas = torch.zeros(2, K, 2), torch.ones(2)
    for arguments, message in (
        ((good[:, :5], good, areas), "predictions must be of shape"),
        ((good, good[..., :1], areas), "keypoints must be of shape"),
        ((good, good, areas[:1]), "areas must be of shape"),
        ((good, good, areas, torch.zeros(2, 3)), "boxes must be of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            oks(*arguments)


# ---- average precision ----------------------------------------------------------------------------------------------


def flat(joints: torch.Tensor) -> list[float]:
    flags = torch.where(joints.isnan().any(1), 0.0, 2.0)
    return torch.column_stack((joints.nan_to_num(), flags)).ravel().tolist()


def coco_people(images: dict[int, list[tuple[torch.Tensor, float]]], **fields: Any) -> dict[str, Any]:
    """A COCO file of people with joints and areas in images."""
    annotations = [
        {"image_id": image, "category_id": 1, "keypoints": flat(joints), "area": area, "bbox": box_of(joints), **fields}
        for image, people in images.items()
        for joints, area in people
    ]
    return {
        "images": [{"id": image} for image in images],
        "annotations": [{"id": number, "iscrowd": 0, **entry} for number, entry in enumerate(annotations, start=1)],
        "categories": [{"id": 1, "name": "person"}],
    }


def found(joints: torch.Tensor, image: int = 1, score: float = 1.0) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "keypoints": flat(joints), "score": score}


AREA = 5000.0  # medium


def test_perfect_and_missing() -> None:
    people = coco_people({1: [(person(0), AREA)], 2: [(person(1), AREA)]})
    values = average_precision(people, [found(person(0)), found(person(1), 2)])
    assert values == pytest.approx({**dict.fromkeys(values, 1.0), "APL": -1.0, "ARL": -1.0})
    assert list(values) == ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]
    half = average_precision(people, [found(person(0))])
    assert half["AR"] == 0.5
    assert half["AP"] == pytest.approx(51 / 101)  # the recalls 0, .01, ... .50 are reached
    nothing = average_precision(people, [])
    assert (nothing["AP"], nothing["AR"], nothing["APL"]) == (0, 0, -1)


def test_a_crowd_and_the_unlabelled_count_neither_for_nor_against() -> None:
    people = coco_people({1: [(person(0), AREA), (person(1, at=(400.0, 0.0)), AREA)]})
    both = [found(person(0)), found(person(1, at=(400.0, 0.0)), score=2.0)]
    people["annotations"][1]["iscrowd"] = 1
    assert average_precision(people, both[:1])["AP"] == pytest.approx(1)
    assert average_precision(people, both)["AP"] == pytest.approx(1)
    people["annotations"][1].update(iscrowd=0, num_keypoints=0)
    assert average_precision(people, both)["AP"] == pytest.approx(1)
    del people["annotations"][1]["num_keypoints"]
    people["annotations"][1]["keypoints"] = [0.0] * (3 * K)
    assert average_precision(people, both)["AP"] == pytest.approx(1)
    people["annotations"][1]["keypoints"] = flat(person(1, at=(400.0, 0.0)))
    assert average_precision(people, both[:1])["AP"] < 1


def test_only_the_twenty_best_detections_of_an_image_count() -> None:
    people = coco_people({1: [(person(0), AREA)]})
    wrong = [found(person(0) + 1000, score=2.0) for _ in range(19)]
    assert average_precision(people, [*wrong, found(person(0))])["AR"] == 1
    assert average_precision(people, [*wrong, *wrong[:1], found(person(0))])["AR"] == 0


def test_a_joint_that_is_nowhere_is_not_similar() -> None:
    people = coco_people({1: [(person(0), AREA)]})
    result = found(person(0))
    assert average_precision(people, [result])["AR"] == 1
    result["keypoints"][0] = NAN
    # 16 of 17 joints: similar to .94, which all thresholds but the last accept.
    assert average_precision(people, [result])["AR"] == pytest.approx(0.9)
    result["keypoints"] = [NAN] * (3 * K)
    assert average_precision(people, [result])["AR"] == 0


def test_other_skeletons() -> None:
    sigmas = (0.05, 0.1)
    joints = torch.tensor([[0.0, 0.0], [70.0, 70.0]])
    people = coco_people({1: [(joints, AREA)]})
    assert average_precision(people, [found(joints)], sigmas)["AP"] == pytest.approx(1)
    with pytest.raises(ValueError, match="51 numbers, x, y and v of 17 joints"):
        average_precision(people, [found(joints)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, r: p.pop("images"), "must have a list 'images'"),
        (lambda p, r: p["images"].append({}), "image 1: id missing"),
        (lambda p, r: p["annotations"][0].pop("area"), "annotation 0: area missing"),
        (lambda p, r: p["annotations"][0].update(image_id=9), "annotation 0: there is no image 9"),
        (lambda p, r: p["annotations"][0].update(keypoints=[1.0]), "annotation 0: keypoints must be 51 numbers"),
        (lambda p, r: r.append(3), "detection 1 must be an object"),
        (lambda p, r: p["annotations"][0].update(area="a"), "annotation 0: area must be a number and bbox four, got 'a'"),
        (lambda p, r: p["annotations"][0].update(bbox=[1, 2, 3]), r"annotation 0: .* bbox four, got 5000.0 and \[1, 2, 3\]"),
        (lambda p, r: r[0].pop("score"), "detection 0: score missing"),
        (lambda p, r: r[0].update(score=None), "detection 0: score must be a number, got None"),
        (lambda p, r: r[0].update(image_id=9), "detection 0: the annotations have no image 9"),
        (lambda p, r: r[0].update(keypoints=["a"] * 51), "detection 0: keypoints must be 51 numbers"),
    ],
)
def test_refuses_malformed_files(change: Any, message: str) -> None:
    people, results = coco_people({1: [(person(0), AREA)]}), [found(person(0))]
    change(people, results)
    with pytest.raises(ValueError, match=message):
        average_precision(people, results)


def test_arguments_stay_as_they_are() -> None:
    people, results = coco_people({1: [(person(0), AREA)]}), [found(person(0))]
    before = repr((people, results))
    average_precision(people, results)
    assert repr((people, results)) == before


# ---- the module -----------------------------------------------------------------------------------------------------


def test_module_equals_function_in_whatever_order() -> None:
    images = {image: [(person(image), AREA), (person(image + 50, 200.0, (0.0, 0.0)), 20_000.0)] for image in range(1, 6)}
    generator = torch.Generator().manual_seed(0)
    noisy = [
        (image, joints + torch.randn(K, 2, generator=generator) * 6, torch.rand(1, generator=generator).item())
        for image, people in images.items()
        for joints, _ in people
    ]
    people = coco_people(images)
    expected = average_precision(people, [found(joints, image, score) for image, joints, score in noisy])
    assert 0 < expected["AP"] < 1
    for order in (1, -1):
        metric = KeypointAP()
        for image, joints, score in noisy[::order]:
            metric.update(Detections(torch.tensor([image]), joints[None], torch.tensor([score], dtype=torch.float64)), None)
        for image, those in images.items():
            joints = torch.stack([joints for joints, _ in those])
            boxes = torch.tensor([box_of(entry) for entry in joints], dtype=torch.float64)
            areas = torch.tensor([area for _, area in those])
            metric.update(None, People(torch.tensor([image] * len(those)), joints, areas, boxes))
        assert {name: value.item() for name, value in metric.compute().items()} == expected
        assert len(metric.detections) == 10
        metric.reset()
        assert not metric.detections


def test_module_refuses() -> None:
    metric = KeypointAP()
    ids, joints = torch.tensor([1, 2]), torch.zeros(2, K, 2)
    with pytest.raises(ValueError, match="scores of detections must be of shape"):
        metric.update(Detections(ids, joints, torch.ones(3)), None)
    with pytest.raises(ValueError, match="keypoints of detections must be of shape"):
        metric.update(Detections(ids, joints[:, :3], torch.ones(2)), None)
    with pytest.raises(ValueError, match="boxes of people must be of shape"):
        metric.update(None, People(ids, joints, torch.ones(2), torch.ones(2, 3)))
    with pytest.raises(ValueError, match="such as 'coco', got 'mpii_official'"):
        KeypointAP("mpii_official")
    assert KeypointAP(OKSProtocol(COCO, COCO_SIGMAS)).protocol == KeypointAP().protocol


def test_module_without_anybody() -> None:
    metric = KeypointAP()
    metric.update(None, None)
    assert metric.compute()["AP"] == -1
