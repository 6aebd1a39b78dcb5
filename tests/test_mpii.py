"""The MPII reader: both JSON forms, made by the tests and real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpose.data.mpii import read_mpii
from fastpose.data.records import Person

JOINTS = [[float(10 * joint + 1), float(5 * joint + 2)] for joint in range(16)]


def hrnet_entry(**changes: Any) -> dict[str, Any]:
    joints = [*JOINTS[:3], [-1.0, -1.0], *JOINTS[4:]]
    labelled = [1] * 3 + [0] + [1] * 12
    entry = {
        "image": "a.jpg",
        "center": [101.0, 51.0],
        "scale": 2.0,
        "joints": joints,
        "joints_vis": labelled,
    }
    return {**entry, **changes}


def pytorch_pose_entry(**changes: Any) -> dict[str, Any]:
    joints = [[x, y, 1.0] for x, y in JOINTS]
    joints[3] = [0.0, 0.0, 1.0]
    joints[5][2] = 0.0
    entry = {
        "img_paths": "a.jpg",
        "isValidation": 0.0,
        "objpos": [101.0, 51.0],
        "scale_provided": 2.0,
        "joint_self": joints,
    }
    return {**entry, **changes}


def write(folder: Path, entries: object) -> Path:
    path = folder / "people.json"
    path.write_text(json.dumps(entries))
    return path


def check_common(person: Person, folder: Path) -> None:
    assert person.image == folder / "images" / "a.jpg"
    expected = np.array(JOINTS, np.float32) - 1
    expected[3] = np.nan
    np.testing.assert_array_equal(person.keypoints, expected)
    assert person.keypoints.dtype == np.float32
    np.testing.assert_array_equal(person.center, [100, 50])
    assert person.scale == 2
    assert person.head_size == 50
    assert person.image_id == "a.jpg"


def test_hrnet_form(tmp_path: Path) -> None:
    people = read_mpii(write(tmp_path, [hrnet_entry(), hrnet_entry(image="b.jpg"), hrnet_entry()]))
    check_common(people[0], tmp_path)
    np.testing.assert_array_equal(people[0].visible, np.arange(16) != 3)
    assert [(person.image_id, person.person_id) for person in people] == [
        ("a.jpg", 0),
        ("b.jpg", 0),
        ("a.jpg", 1),
    ]


def test_pytorch_pose_form(tmp_path: Path) -> None:
    (person,) = read_mpii(write(tmp_path, [pytorch_pose_entry()]))
    check_common(person, tmp_path)
    np.testing.assert_array_equal(person.visible, ~np.isin(np.arange(16), [3, 5]))


def test_a_joint_on_the_border_is_labelled(tmp_path: Path) -> None:
    joints = [[0.0, 7.0, 1.0], [-3.0, 0.0, 0.0], *[[0.0, 0.0, 0.0]] * 14]
    (person,) = read_mpii(write(tmp_path, [pytorch_pose_entry(joint_self=joints)]))
    np.testing.assert_array_equal(person.keypoints[:2], [[-1, 6], [-4, -1]])
    assert np.isnan(person.keypoints[2:]).all()


def test_split(tmp_path: Path) -> None:
    path = write(tmp_path, [pytorch_pose_entry(isValidation=flag) for flag in (1.0, 0.0, 1.0)])
    assert [person.person_id for person in read_mpii(path)] == [0, 1, 2]
    assert [person.person_id for person in read_mpii(path, split="val")] == [0, 2]
    assert [person.person_id for person in read_mpii(path, split="train")] == [1]
    with pytest.raises(ValueError, match="split must be None"):
        read_mpii(write(tmp_path, [hrnet_entry()]), split="val")
    with pytest.raises(ValueError, match="split must be 'train', 'val' or None, got 'test'"):
        read_mpii(path, split="test")  # type: ignore[arg-type]


def test_image_folder(tmp_path: Path) -> None:
    (person,) = read_mpii(write(tmp_path, [hrnet_entry()]), images=tmp_path / "elsewhere")
    assert person.image == tmp_path / "elsewhere" / "a.jpg"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (hrnet_entry(center=[1.0]), r"'center' must be finite numbers of shape \(2,\), got \[1\.0\]"),
        (hrnet_entry(scale="big"), "'scale' must be a finite number, got 'big'"),
        (hrnet_entry(scale=-1.0), "'scale' must be a positive number, got -1"),
        (hrnet_entry(scale=float("nan")), "'scale' must be a finite number, got nan"),
        (hrnet_entry(joints=JOINTS[:14]), r"'joints' must be finite numbers of shape \(16, 2\)"),
        (hrnet_entry(joints=[[1.0], *JOINTS[1:]]), "'joints' must be finite"),
        (hrnet_entry(joints_vis=[1] * 15), "'joints_vis' must be"),
        (hrnet_entry(image=""), "'image' must be a file name"),
        ({"image": "a.jpg", "center": [1.0, 2.0]}, "'joints' is missing; it must be finite numbers"),
        (pytorch_pose_entry(objpos=None), "'objpos' must be"),
        (pytorch_pose_entry(scale_provided=0.0), "'scale_provided' must be a positive number"),
        (pytorch_pose_entry(joint_self=[]), r"'joint_self' must be finite numbers of shape \(16, 3\)"),
        ([1, 2], "must be an object with named fields"),
    ],
)
def test_damaged_fields_are_named(tmp_path: Path, entry: Any, message: str) -> None:
    good = pytorch_pose_entry() if "objpos" in entry else hrnet_entry()
    with pytest.raises(ValueError, match=rf"people\.json: person 1.*{message}"):
        read_mpii(write(tmp_path, [good, entry]))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, [hrnet_entry()])
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match=r"people\.json is not a complete JSON file"):
        read_mpii(path)
    for content in ([], {"images": []}):
        with pytest.raises(ValueError, match=r"people\.json must hold a list of one or more people"):
            read_mpii(write(tmp_path, content))
    with pytest.raises(ValueError, match=r"person 0 must name its image.*image or img_paths; it has file"):
        read_mpii(write(tmp_path, [{"file": "a.jpg"}]))
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        read_mpii(tmp_path / "nothing.json")


def test_real_people_are_those_of_the_hourglass_validation_set(shared_data: Path) -> None:
    h5py = pytest.importorskip("h5py")
    people = read_mpii(shared_data / "mpii" / "test_mpii.json")
    assert len(people) == 5
    with h5py.File(shared_data / "mpii" / "valid.h5") as file:
        for row, person in enumerate(people):
            assert isinstance(person.image, Path)
            assert person.image.is_file()
            # There the box is enlarged already, and coordinates are cut to whole 1-based pixels.
            assert file["scale"][row] == pytest.approx(1.25 * person.scale, rel=1e-6)
            moved = person.center + 1 + [0, 15 * person.scale]
            np.testing.assert_allclose(file["center"][row], moved, atol=1e-3)
            assert file["normalize"][row] == pytest.approx(person.head_size, rel=1e-5)
            labelled = ~np.isnan(person.keypoints).any(axis=1)
            np.testing.assert_array_equal(labelled, (file["part"][row] != 0).any(axis=1))
            np.testing.assert_array_equal(np.trunc(person.keypoints[labelled] + 1), file["part"][row][labelled])
