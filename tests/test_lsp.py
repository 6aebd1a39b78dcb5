"""The readers of LSP and LSP-extended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotation_files import lsp_joints, lspet_joints, write_mat, write_mat_hdf5

from fastpose.data import read_lsp
from fastpose.skeletons import LSP

SHOULDER, HIP = LSP.index("left_shoulder"), LSP.index("right_hip")


@pytest.mark.parametrize("level", [write_mat, write_mat_hdf5])
def test_lsp(tmp_path: Path, level: object) -> None:
    joints = lsp_joints()
    people = read_lsp(level(tmp_path / "joints.mat", {"joints": joints}))
    assert [person.image for person in people] == [tmp_path / "images" / f"im000{number}.jpg" for number in (1, 2, 3)]
    for row, person in enumerate(people):
        points = joints[:2, :, row].T
        np.testing.assert_array_equal(person.keypoints, np.float32(points - 1))
        np.testing.assert_array_equal(person.visible, joints[2, :, row] == 0)
        np.testing.assert_allclose(person.center, (points.min(0) + points.max(0)) / 2 - 1, rtol=1e-6)
        assert person.scale == pytest.approx((points.max(0) - points.min(0)).max() / 200)
        assert person.torso_size == pytest.approx(np.linalg.norm(points[SHOULDER] - points[HIP]), rel=1e-6)
        assert (person.image_id, person.split) == (person.image.name, "")
    assert np.flatnonzero(~people[1].visible).tolist() == [4]
    assert people[1].labelled.all()


@pytest.mark.parametrize("level", [write_mat, write_mat_hdf5])
def test_lsp_extended_has_other_axes_and_flags(tmp_path: Path, level: object) -> None:
    joints = lspet_joints()
    people = read_lsp(level(tmp_path / "joints.mat", {"joints": joints}), split="train")
    assert [person.image.name for person in people] == ["im00001.jpg", "im00002.jpg", "im00003.jpg"]
    for row, person in enumerate(people):
        labelled = joints[:, 2, row] == 1
        np.testing.assert_array_equal(person.labelled, labelled)
        np.testing.assert_array_equal(person.visible, labelled)
        np.testing.assert_array_equal(person.keypoints[labelled], np.float32(joints[labelled, :2, row] - 1))
    assert np.flatnonzero(~people[1].labelled).tolist() == [4]
    with pytest.raises(ValueError, match=r"split must be None or one of 'train', as nobody in .*joints\.mat is of 'test'"):
        read_lsp(tmp_path / "joints.mat", split="test")


def test_a_labelled_joint_may_be_outside_and_nobody_without_labels_is_read(tmp_path: Path) -> None:
    joints = lspet_joints()
    joints[0, :, 0] = (-2.5, -1.5, 1)
    joints[:, 2, 1] = 0
    joints[:, 2, 2] = np.arange(14) == 5
    people = read_lsp(write_mat(tmp_path / "joints.mat", {"joints": joints}))
    assert [person.image_id for person in people] == ["im00001.jpg", "im00003.jpg"]
    np.testing.assert_array_equal(people[0].keypoints[0], [-3.5, -2.5])
    assert people[1].scale == 1 / 200
    assert np.isnan(people[1].torso_size)


def test_standard_split(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "joints.mat", {"joints": lsp_joints(2000)})
    train, test = (read_lsp(path, split=split) for split in ("train", "test"))
    assert (train[0].image_id, train[-1].image_id) == ("im0001.jpg", "im1000.jpg")
    assert (test[0].image_id, test[-1].image_id) == ("im1001.jpg", "im2000.jpg")
    with pytest.raises(ValueError, match="split must be 'train', 'test' or None, got 'val'"):
        read_lsp(path, split="val")


def test_png_images(tmp_path: Path) -> None:
    (tmp_path / "im00001.png").touch()
    path = write_mat(tmp_path / "joints.mat", {"joints": lspet_joints()})
    assert read_lsp(path, tmp_path)[2].image == tmp_path / "im00003.png"


def test_one_image(tmp_path: Path) -> None:
    (person,) = read_lsp(write_mat(tmp_path / "joints.mat", {"joints": lsp_joints(1)[:, :, 0]}))
    assert person.image_id == "im0001.jpg"


def test_damage_is_named(tmp_path: Path) -> None:
    shapes = r"of shape \(3, 14, N\), as in LSP, or \(14, 3, N\), as in LSP-extended"
    for joints, message in (
        (np.zeros((3, 16, 5)), rf"variable 'joints' must be numbers {shapes}, got \(3, 16, 5\)"),
        ("text", rf"variable 'joints' must be numbers {shapes}, got 'text'"),
    ):
        with pytest.raises(ValueError, match=rf"joints\.mat: {message}"):
            read_lsp(write_mat(tmp_path / "joints.mat", {"joints": joints}))
    with pytest.raises(ValueError, match=rf"joints\.mat: variable 'joints' must be numbers {shapes}, got None"):
        read_lsp(write_mat(tmp_path / "joints.mat", {"other": 1.0}))
    for axis, value, message in (
        (0, np.nan, r"coordinates must be within ±1,000,000 pixels, got \[nan, "),
        (1, 1e9, r"coordinates must be within ±1,000,000 pixels, got \[.*1000000000\.0\]"),
        (2, 2.0, r"flags must be 0 or 1, got 2\.0"),
        (2, np.nan, r"flags must be 0 or 1, got nan"),
    ):
        joints = lsp_joints()
        joints[axis, 4, 1] = value
        with pytest.raises(ValueError, match=rf"joints\.mat: 'joints' of image 2, left_knee: {message}"):
            read_lsp(write_mat(tmp_path / "joints.mat", {"joints": joints}))
