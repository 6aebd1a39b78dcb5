"""The reader of FLIC, and whose left and right its labels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import flic_example, structs, write_mat, write_mat_hdf5, write_mpii_h5

from fastpose.data import Person, read_flic
from fastpose.data.flic import SIDES
from fastpose.skeletons import FLIC

COLUMNS = [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16]


def write(folder: Path, *examples: dict[str, Any]) -> Path:
    return write_mat(folder / "examples.mat", {"examples": structs(examples)})


@pytest.mark.parametrize("level", [write_mat, write_mat_hdf5])
def test_people(tmp_path: Path, level: object) -> None:
    examples = [
        flic_example(),
        flic_example(istrain=np.uint8(0), istest=np.uint8(1)),
        flic_example(istrain=np.uint8(0), filepath="b.jpg"),
    ]
    path = level(tmp_path / "examples.mat", {"examples": structs(examples)})
    people = read_flic(path)
    assert [(person.image_id, person.person_id, person.split) for person in people] == [
        ("a-movie-0001.jpg", 0, "train"),
        ("a-movie-0001.jpg", 1, "test"),
        ("b.jpg", 0, ""),
    ]
    person = people[0]
    assert person.image == tmp_path / "images" / "a-movie-0001.jpg"
    np.testing.assert_array_equal(person.keypoints, np.float32(examples[0]["coords"].T[COLUMNS] - 1))
    assert person.visible.all()
    # The hourglass code's box, counted from 0.
    np.testing.assert_array_equal(person.center, [(220.5 + 320.5) / 2 - 1, 239])
    assert person.scale == 2.2
    np.testing.assert_array_equal(person.box, [219.5, 189, 100, 180])
    right_shoulder, left_hip = (examples[0]["coords"][:, column] for column in (3, 6))
    assert person.torso_size == pytest.approx(np.linalg.norm(right_shoulder - left_hip))
    assert [found.person_id for found in read_flic(path, split="test")] == [1]


def swapped(person: Person, own: Person) -> set[str]:
    """Joints that are where the other side's are in the person's own labels."""
    order = list(FLIC.flip_permutation)
    moved = (person.keypoints != own.keypoints).any(axis=1)
    np.testing.assert_array_equal(person.keypoints[moved], own.keypoints[order][moved])
    return {FLIC.joints[joint].partition("_")[2] for joint in np.flatnonzero(moved)}


@pytest.mark.parametrize(
    ("sides", "joints"),
    [
        ("person", set()),
        ("modec", {"shoulder", "elbow", "wrist"}),
        ("joint_cnn_mrf", {"shoulder", "elbow", "wrist", "hip"}),
        ("hourglass", {"shoulder", "elbow", "wrist", "hip", "eye"}),
    ],
)
def test_sides_of_people_seen_from_behind(tmp_path: Path, sides: str, joints: set[str]) -> None:
    path = write(tmp_path, flic_example(), flic_example(behind=True))
    own = read_flic(path, sides="person")
    front, behind = read_flic(path, sides=sides)
    assert swapped(front, own[0]) == set()
    assert swapped(behind, own[1]) == joints
    assert behind.torso_size == own[1].torso_size
    assert set(SIDES) == {"person", "modec", "joint_cnn_mrf", "hourglass"}


@pytest.mark.parametrize(("crossed", "rules"), [([3], {"hourglass"}), ([3, 4], {"hourglass"}), ([9], {"joint_cnn_mrf"})])
def test_rules_test_different_joints(tmp_path: Path, crossed: list[int], rules: set[str]) -> None:
    coordinates = flic_example()["coords"]
    coordinates[0, crossed] = 400
    path = write(tmp_path, flic_example(coords=coordinates))
    (own,) = read_flic(path, sides="person")
    assert {name for name in SIDES if swapped(read_flic(path, sides=name)[0], own)} == rules


def test_modec_is_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, flic_example(behind=True))
    np.testing.assert_array_equal(read_flic(path)[0].keypoints, read_flic(path, sides="modec")[0].keypoints)


def test_joints_may_be_missing_and_outside(tmp_path: Path) -> None:
    coordinates = flic_example(behind=True)["coords"]
    coordinates[:, 0] = np.nan
    coordinates[:, 1] = (-7.5, 500)
    (person,) = read_flic(write(tmp_path, flic_example(coords=coordinates)), sides="hourglass")
    assert np.flatnonzero(~person.labelled).tolist() == [0]  # nobody knows whether the shoulders are crossed
    assert not person.visible[0]
    np.testing.assert_array_equal(person.keypoints[1], [-8.5, 499])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coords": np.zeros((2, 11))}, r"field 'coords' must be numbers of shape \(2, 29\)"),
        ({"coords": np.full((2, 29), 1e8)}, "field 'coords' must be coordinates within ±1,000,000 pixels, or NaN"),
        ({"coords": np.full((2, 29), np.inf)}, "field 'coords' must be coordinates within ±1,000,000 pixels, or NaN"),
        ({"filepath": 7.0}, "field 'filepath' must be a file name, got 7.0"),
        ({"torsobox": np.zeros((1, 3))}, r"field 'torsobox' must be finite numbers of shape \(1, 4\)"),
        ({"torsobox": np.array([[5.0, 5, 5, 9]])}, "field 'torsobox' must be x1 < x2 and y1 < y2"),
        ({"imgdims": 480.0}, r"field 'imgdims' must be finite numbers of shape \(1, 3\)"),
        ({"istrain": np.uint8(7)}, "field 'istrain' must be 0 or 1, got 7.0"),
        ({"istest": "no"}, "field 'istest' must be 0 or 1, got 'no'"),
    ],
)
def test_damage_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"examples\.mat: examples 1: {message}"):
        read_flic(write(tmp_path, flic_example(), flic_example(**changes)))


def test_foreign_files_and_arguments_are_named(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "joints.mat", {"joints": np.zeros((3, 14, 2))})
    with pytest.raises(ValueError, match=r"joints\.mat: field 'examples' is missing"):
        read_flic(path)
    with pytest.raises(ValueError, match="sides: got 'observer', allowed are 'person', 'modec', 'joint_cnn_mrf', 'hourglass'"):
        read_flic(path, sides="observer")
    with pytest.raises(ValueError, match="split must be 'train', 'test' or None, got 'val'"):
        read_flic(path, split="val")


def test_hourglass_form(tmp_path: Path) -> None:
    path = write_mpii_h5(tmp_path / "valid.h5", 2, 11, scale=np.full(2, 2.2), normalize=np.full(2, 160.0))
    person = read_flic(path)[1]
    np.testing.assert_allclose(person.center, [100, 80])
    assert (person.scale, person.torso_size, person.person_id) == (2.2, 160, 1)
    assert np.isnan(person.head_size)
    with pytest.raises(ValueError, match=r"'part' must be finite numbers of shape \(2, 11, 2\)"):
        read_flic(write_mpii_h5(tmp_path / "valid.h5", 2, 16))
