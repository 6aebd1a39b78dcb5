"""The reader of COCO's keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import coco_annotation, coco_file, write_json

from fastpose.data import Person, read_coco
from fastpose.skeletons import COCO


def read(folder: Path, *annotations: dict[str, Any], **options: Any) -> list[Person]:
    return read_coco(write_json(folder / "people.json", coco_file(annotations)), **options)


def test_people(tmp_path: Path) -> None:
    (person,) = read(tmp_path, coco_annotation(), split="val")
    keypoints = np.array([[20.0 + 3 * joint, 30 + 5 * joint] for joint in range(17)], np.float32)
    keypoints[3] = np.nan
    np.testing.assert_array_equal(person.keypoints, keypoints)
    assert np.flatnonzero(~person.labelled).tolist() == [3]
    assert np.flatnonzero(~person.visible).tolist() == [3, 5]
    assert person.image == tmp_path / "images" / "000000000042.jpg"
    assert (person.image_id, person.person_id, person.split, person.area, person.crowd) == (42, 7, "val", 2000.5, False)
    # 60 x 100 pixels from (15, 25.5) on end 59 and 99 pixels further.
    np.testing.assert_array_equal(person.box, [15, 25.5, 59, 99])
    np.testing.assert_array_equal(person.center, [44.5, 75])
    assert person.scale == 99 / 200
    torso = keypoints[COCO.index("left_shoulder")] - keypoints[COCO.index("right_hip")]
    assert person.torso_size == pytest.approx(np.linalg.norm(torso))


def test_boxes_are_cut_off_at_the_image(tmp_path: Path) -> None:
    boxes = [[-10.0, -20.0, 100.0, 50.0], [600.0, 470.0, 100.0, 100.0], [0.0, 0.0, 640.0, 480.0], [30.0, 40.0, 1.0, 0.5]]
    people = read(tmp_path, *[coco_annotation(number, bbox=box) for number, box in enumerate(boxes)])
    expected = [[0, 0, 99, 49], [600, 470, 39, 9], [0, 0, 639, 479], [30, 40, 0, 0]]
    np.testing.assert_array_equal([person.box for person in people], expected)
    assert people[3].scale == 1 / 200


def test_who_is_left_out(tmp_path: Path) -> None:
    annotations = [
        coco_annotation(1, iscrowd=1),
        coco_annotation(2, keypoints=[0] * 51, num_keypoints=0),
        coco_annotation(3, area=0),
        coco_annotation(4, bbox=[700, 10, 50, 50]),
        coco_annotation(5, category_id=3),
        coco_annotation(6),
    ]
    assert [person.person_id for person in read(tmp_path, *annotations)] == [6]
    everyone = read(tmp_path, *annotations, everyone=True)
    assert [(person.person_id, person.crowd, bool(person.labelled.any())) for person in everyone] == [
        (1, True, True),
        (2, False, False),
        (6, False, True),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": [1, 2, 2]}, r"field 'keypoints' must be finite numbers of shape \(51,\), got \[1, 2, 2\]"),
        ({"keypoints": [1, 2, 3] * 17}, "field 'keypoints' must be x, y and a flag of 0, 1 or 2 for each joint"),
        ({"keypoints": [1, 1e9, 2] * 17}, "field 'keypoints' must be coordinates within ±1,000,000 pixels"),
        ({"bbox": [1, 2, 3]}, r"field 'bbox' must be finite numbers of shape \(4,\)"),
        ({"bbox": ["1", 2, 3, 4]}, "field 'bbox' must be finite numbers"),
        ({"area": None}, "field 'area' must be a finite number, got None"),
        ({"iscrowd": 3}, "field 'iscrowd' must be 0 or 1, got 3"),
        ({"image_id": 43}, "field 'image_id' must be the id of one of the images, got 43"),
        ({"image_id": "42"}, "field 'image_id' must be a whole number, got '42'"),
        ({"id": True}, "field 'id' must be a whole number, got True"),
        ({"category_id": None}, "field 'category_id' must be a whole number, got None"),
    ],
)
def test_damage_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"people\.json: annotations 1: {message}"):
        read(tmp_path, coco_annotation(1), coco_annotation(2, **changes))


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "people.json"
    for content, message in (
        ([1], "people.json must be an object with named fields"),
        ({"images": [], "annotations": []}, "field 'categories' is missing"),
        ({**coco_file(), "annotations": {}}, "field 'annotations' must be a list of objects"),
        ({**coco_file(), "categories": [{"id": 3, "name": "car"}]}, "must be categories with 'person' among them"),
        (
            {**coco_file(), "categories": [{"id": 1, "name": "person"}]},
            "'keypoints' must be the 17 joints of COCO in its order, got None",
        ),
        ({**coco_file(), "images": coco_file()["images"] * 2}, "images 1: field 'id' must be that of no other image, got 42"),
        ({**coco_file(), "images": [{"id": 42, "width": 640, "height": 480}]}, "images 0: field 'file_name' is missing"),
        (
            {**coco_file(), "images": [{"id": 42, "width": 0, "height": 5}]},
            "images 0: field 'width' must be a whole number of at least 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read_coco(write_json(path, content))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"people\.json is not a complete JSON file"):
        read_coco(path)
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*nowhere\.json"):
        read_coco(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="split must be 'train', 'val' or None, got 'test'"):
        read_coco(path, split="test")
