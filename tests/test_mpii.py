"""The MPII reader in all forms, made by the tests and real, and the writers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import (
    EMPTY,
    JOINTS,
    MPII_JOINTS,
    hrnet_entry,
    mpii_point,
    mpii_rect,
    mpii_release,
    pytorch_pose_entry,
    structs,
    write_mat,
    write_mat_hdf5,
    write_mpii_h5,
)
from scipy.io import loadmat

from fastpose.data.mpii import read_mpii, write_mpii, write_mpii_predictions
from fastpose.data.records import Person


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
    with pytest.raises(ValueError, match=r"split must be None or one of 'train', 'val', as nobody in .*json is of 'test'"):
        read_mpii(path, split="test")
    with pytest.raises(ValueError, match="split must be None"):
        read_mpii(write(tmp_path, [hrnet_entry()]), split="val")
    with pytest.raises(ValueError, match="split must be 'train', 'val', 'test' or None, got 'valid'"):
        read_mpii(path, split="valid")


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
        (
            {"image": "a.jpg", "center": [1.0, 2.0], "scale": 2.0, "joints_vis": [1] * 16},
            "'joints' is missing; it must be finite numbers",
        ),
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


def test_numbers_that_pass_for_labels_are_refused(tmp_path: Path) -> None:
    for value, message in (
        (["1", "2"], "'center' must be finite numbers"),
        ([True, False], "'center' must be finite numbers"),
        ([1e7, 0.0], r"'center' must be coordinates within ±1,000,000 pixels, got \[10000000\.0"),
        ([10**400, 0], "'center' must be finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            read_mpii(write(tmp_path, [hrnet_entry(center=value)]))
    for scale in (1e-9, 1e9):
        with pytest.raises(ValueError, match=f"'scale' must be a number of 0.001 to 5000, got {scale}"):
            read_mpii(write(tmp_path, [hrnet_entry(scale=scale)]))
    for name in ("a\0.jpg", "\ud800.jpg", "a\n.jpg"):
        with pytest.raises(ValueError, match="'image' must be a file name"):
            read_mpii(write(tmp_path, [hrnet_entry(image=name)]))


def test_pytorch_pose_names_its_people(tmp_path: Path) -> None:
    (person,) = read_mpii(write(tmp_path, [pytorch_pose_entry(people_index=3.0)]))
    assert person.person_id == 2
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="'people_index' must be a whole number of at least 1"):
            read_mpii(write(tmp_path, [pytorch_pose_entry(people_index=wrong)]))
    with pytest.raises(ValueError, match="'isValidation' must be 0 or 1, got 2"):
        read_mpii(write(tmp_path, [pytorch_pose_entry(isValidation=2.0)]))


# ---- the official file -----------------------------------------------------------------------------------------------


def write_release(path: Path, rects: list[Any], training: int = 1) -> Path:
    return write_mat(path, mpii_release([("a.jpg", rects, training)]))


@pytest.mark.parametrize("level", [write_mat, write_mat_hdf5])
def test_official_form(tmp_path: Path, level: Any) -> None:
    path = level(tmp_path / "mpii.mat", mpii_release([("a.jpg", [mpii_rect()], 1), ("b.jpg", [mpii_rect()], 0)]))
    person, other = read_mpii(path)
    assert person.image == tmp_path / "images" / "a.jpg"
    np.testing.assert_array_equal(person.keypoints, np.float32(MPII_JOINTS - 1))
    assert person.visible.all()
    np.testing.assert_array_equal(person.center, [100, 50])
    assert person.scale == 50 / 24
    assert person.head_size == pytest.approx(0.6 * 50)
    assert person.head_size / person.scale != pytest.approx(25)  # it is measured, and only in real files as large
    assert person.torso_size == pytest.approx(np.linalg.norm(MPII_JOINTS[13] - MPII_JOINTS[2]))
    assert (person.split, other.split) == ("train", "test")
    assert [found.image_id for found in read_mpii(path, split="test")] == ["b.jpg"]


def test_points_come_in_any_order_and_number(tmp_path: Path) -> None:
    order = [9, 3, 0, 12]
    (person,) = read_mpii(write_release(tmp_path / "a.mat", [mpii_rect([mpii_point(joint) for joint in order])]))
    assert np.flatnonzero(person.labelled).tolist() == sorted(order)
    np.testing.assert_array_equal(person.keypoints[order], np.float32(MPII_JOINTS[order] - 1))


def test_visibility_comes_in_all_forms(tmp_path: Path) -> None:
    given = [np.uint8(1), np.uint8(0), "1", "0", EMPTY, 1.0]
    points = [mpii_point(joint, is_visible=value) for joint, value in enumerate(given)]
    (person,) = read_mpii(write_release(tmp_path / "a.mat", [mpii_rect(points)]))
    assert person.visible[:6].tolist() == [True, False, True, False, True, True]
    assert person.labelled[:6].all()
    points = [{name: value for name, value in mpii_point(0).items() if name != "is_visible"}]
    (person,) = read_mpii(write_release(tmp_path / "a.mat", [mpii_rect(points)]))
    assert person.visible[0]


def test_negative_and_fractional_coordinates_are_labels(tmp_path: Path) -> None:
    (person,) = read_mpii(write_release(tmp_path / "a.mat", [mpii_rect([mpii_point(0, x=-3.5, y=np.int16(-1))])]))
    np.testing.assert_array_equal(person.keypoints[0], [-4.5, -2])


def test_people_without_points_place_or_scale(tmp_path: Path) -> None:
    rects = [
        mpii_rect(annopoints=EMPTY),
        mpii_rect(objpos=EMPTY),
        mpii_rect(scale=EMPTY),
        mpii_rect(x1=EMPTY),
        mpii_rect(annopoints=structs([{"point": EMPTY}])),
    ]
    people = read_mpii(write_release(tmp_path / "a.mat", rects))
    assert [person.person_id for person in people] == [0, 3, 4]
    assert [person.labelled.any() for person in people] == [False, True, False]
    assert [person.split for person in people] == ["", "train", ""]
    assert [np.isnan(person.head_size) for person in people] == [False, True, False]
    bare = [{"objpos": structs([{"x": 7.0, "y": 8.0}]), "scale": 1.5}]
    (person,) = read_mpii(write_release(tmp_path / "a.mat", bare, training=0))
    assert (person.split, person.labelled.any(), person.scale) == ("test", False, 1.5)
    assert np.isnan([person.head_size, person.torso_size]).all()


@pytest.mark.parametrize("form", ["mat", "h5"])
def test_validation_people_of_the_official_file(tmp_path: Path, form: str) -> None:
    images = [
        ("a.jpg", [mpii_rect(), mpii_rect()], 1),
        ("b.jpg", None, 1),
        ("c.jpg", [mpii_rect()], 1),
        ("d.jpg", [mpii_rect()], 0),
    ]
    path = write_mat(tmp_path / "mpii.mat", mpii_release(images))
    if form == "mat":
        held_out = write_mat(tmp_path / "val.mat", {"RELEASE_img_index": [[1.0]], "RELEASE_person_index": [[2.0]]})
    else:
        held_out = write_mpii_h5(tmp_path / "val.h5", 1, index=np.array([0.0]), person=np.array([1.0]))
    people = read_mpii(path, validation=held_out)
    named = [(person.image_id, person.person_id, person.split) for person in people]
    assert named == [("a.jpg", 0, ""), ("a.jpg", 1, "val"), ("c.jpg", 0, "train"), ("d.jpg", 0, "test")]
    assert [person.person_id for person in read_mpii(path, split="val", validation=held_out)] == [1]
    with pytest.raises(ValueError, match=r"as nobody in .*mpii\.mat is of 'val'"):
        read_mpii(path, split="val")


def test_files_that_do_not_say_who_validates(tmp_path: Path) -> None:
    path = write_release(tmp_path / "mpii.mat", [mpii_rect()])
    held_out = write_mat(tmp_path / "val.mat", {"RELEASE_img_index": [[1.0, 2.0]], "RELEASE_person_index": [[0.0, 1.0]]})
    with pytest.raises(ValueError, match=r"val\.mat: field 'RELEASE_person_index' must be 2 whole numbers from 1 on"):
        read_mpii(path, validation=held_out)
    with pytest.raises(ValueError, match=r"val\.h5: field 'person' must be 3 whole numbers from 0 on"):
        read_mpii(path, validation=write_mpii_h5(tmp_path / "val.h5", person=None))


def detections(path: Path, people: int = 3, **changes: Any) -> Path:
    rows = structs([{"annorect": structs([mpii_rect()])} for _ in range(people)])
    indices = {"RELEASE_img_index": np.array([[7, 7, 9]]), "RELEASE_person_index": np.array([[1, 3, 1]])}
    return write_mat(path, {"annolist": rows, **indices, **changes})


def test_rows_of_validation_people(tmp_path: Path) -> None:
    path = detections(tmp_path / "detections.mat")
    (tmp_path / "valid_images.txt").write_text("a.jpg\na.jpg\nb.jpg\n")
    people = read_mpii(path, tmp_path / "elsewhere")
    assert [(p.image, p.person_id, p.split) for p in people] == [
        (tmp_path / "elsewhere" / "a.jpg", 0, "val"),
        (tmp_path / "elsewhere" / "a.jpg", 2, "val"),
        (tmp_path / "elsewhere" / "b.jpg", 0, "val"),
    ]
    names = tmp_path / "names.txt"
    names.write_text("a.jpg\nb.jpg")
    with pytest.raises(ValueError, match="the names of the images must be 3, one for each row, got 2"):
        read_mpii(path, names=names)
    (tmp_path / "valid_images.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"detections\.mat does not name its images, and there is no file .*valid_images\.txt"
    ):
        read_mpii(path)
    names.write_text("a.jpg\n\nb.jpg")
    with pytest.raises(ValueError, match=r"names\.txt must hold one image name a line, got ''"):
        read_mpii(path, names=names)
    nobody = structs([{"annorect": structs([mpii_rect(), mpii_rect()])}] * 3)
    with pytest.raises(ValueError, match=r"annolist 0: field 'annorect' must be one person with a place and a scale, got 2"):
        read_mpii(detections(tmp_path / "b.mat", annolist=nobody), names=write_names(tmp_path, 3))


def write_names(folder: Path, count: int) -> Path:
    (folder / "some.txt").write_text("\n".join(f"{number}.jpg" for number in range(count)))
    return folder / "some.txt"


def test_annolist_with_image_names_alone(tmp_path: Path) -> None:
    release = mpii_release([("a.jpg", [mpii_rect(), mpii_rect()], 1)])["RELEASE"]
    people = read_mpii(write_mat(tmp_path / "a.mat", {"annolist": release[0, 0]["annolist"]}))
    assert [(person.image_id, person.person_id, person.split) for person in people] == [("a.jpg", 0, ""), ("a.jpg", 1, "")]


@pytest.mark.parametrize(
    ("rect", "message"),
    [
        (
            mpii_rect([mpii_point(0, x="left")]),
            "annolist 0: annorect 0: annopoints: point 0: field 'x' must be a finite number, got 'left'",
        ),
        (mpii_rect([mpii_point(0, y=np.nan)]), "field 'y' must be a finite number, got nan"),
        (mpii_rect([mpii_point(0, y=2e6)]), "field 'y' must be a coordinate within ±1,000,000 pixels, got 2000000.0"),
        (mpii_rect([mpii_point(0, id=16.0)]), "field 'id' must be a joint of 0 to 15 that no other point has, got 16"),
        (
            mpii_rect([mpii_point(3), mpii_point(3)]),
            "point 1: field 'id' must be a joint of 0 to 15 that no other point has, got 3",
        ),
        (mpii_rect([mpii_point(0, id=0.5)]), "field 'id' must be a whole number of at least 0, got 0.5"),
        (mpii_rect([mpii_point(0, is_visible="yes")]), "field 'is_visible' must be 0, 1 or empty, got 'yes'"),
        (mpii_rect([mpii_point(0, is_visible=2.0)]), "field 'is_visible' must be 0, 1 or empty, got 2.0"),
        (mpii_rect(scale=-1.0), "annorect 0: field 'scale' must be a positive number, got -1.0"),
        (mpii_rect(objpos=7.0), "field 'objpos' must be one struct, got 7.0"),
        (mpii_rect(objpos=structs([{"x": 1.0}])), "objpos: field 'y' is missing; it must be a finite number"),
        (mpii_rect(annopoints="none"), "field 'annopoints' must be one struct, got 'none'"),
        (mpii_rect(x2="wide"), "field 'x2' must be a finite number, got 'wide'"),
    ],
)
def test_damaged_structs_are_named(tmp_path: Path, rect: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"mpii\.mat: RELEASE: .*{message}"):
        read_mpii(write_release(tmp_path / "mpii.mat", [rect]))


def test_foreign_matlab_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.mat: field 'annolist' is missing; it must be a list of objects"):
        read_mpii(write_mat(tmp_path / "a.mat", {"joints": np.zeros((3, 14, 2))}))
    release = mpii_release([("a.jpg", [mpii_rect()], 1)])["RELEASE"]
    release[0, 0]["img_train"] = np.ones((1, 2))
    with pytest.raises(ValueError, match=r"a\.mat: RELEASE: field 'img_train' must be a finite number"):
        read_mpii(write_mat(tmp_path / "a.mat", {"RELEASE": release}))


# ---- the hourglass code's form ---------------------------------------------------------------------------------------


def test_hourglass_form_undoes_the_enlargement(tmp_path: Path) -> None:
    part = np.full((2, 16, 2), 7.0)
    part[0, 3] = 0
    part[0, 4] = (0, 5)
    part[1] = -1
    visible = np.ones((2, 16))
    visible[0, [3, 5]] = 0
    path = write_mpii_h5(tmp_path / "valid.h5", 2, part=part, visible=visible)
    person, unlabelled = read_mpii(path)
    np.testing.assert_array_equal(person.center, [100, 50])
    assert (person.scale, person.head_size, person.image_id, person.person_id) == (2, 50, "00000.jpg", 0)
    assert np.flatnonzero(~person.labelled).tolist() == [3]
    assert np.flatnonzero(~person.visible).tolist() == [3, 5]
    np.testing.assert_array_equal(person.keypoints[4], [-1, 4])
    assert (unlabelled.labelled.any(), unlabelled.person_id) == (False, 1)
    assert np.isnan(unlabelled.head_size)
    with pytest.raises(ValueError, match=r"split must be None, as .*valid\.h5 does not say who belongs to 'val'"):
        read_mpii(path, split="val")


def test_hourglass_form_with_names_as_letters_or_beside(tmp_path: Path) -> None:
    letters = np.zeros((2, 16))
    letters[:, :5] = list(b"a.jpg")
    assert read_mpii(write_mpii_h5(tmp_path / "a.h5", 2, imgname=letters))[1].image_id == "a.jpg"
    path = write_mpii_h5(tmp_path / "train.h5", 2, imgname=None)
    (tmp_path / "train_images.txt").write_text("b.jpg\nc.jpg\n")
    assert [person.image_id for person in read_mpii(path)] == ["b.jpg", "c.jpg"]
    (tmp_path / "train_images.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.h5 does not name its images, .*train_images\.txt"):
        read_mpii(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": None}, r"dataset 'part' is missing; it must be joints of shape \(N, 16, 2\)"),
        (
            {"part": np.zeros((3, 14, 2))},
            r"'part' must be finite numbers of shape \(3, 16, 2\), got float64 of shape \(3, 14, 2\)",
        ),
        ({"scale": None}, "dataset 'scale' is missing"),
        ({"scale": np.array([1.0, 0.0, 1.0])}, "row 1: field 'scale' must be a positive number, got 0.0"),
        (
            {"center": np.array([[1.0, 2], [np.nan, 4], [5, 6]])},
            r"dataset 'center', row 1, must be numbers within ±1,000,000, got \[nan",
        ),
        ({"visible": np.full((3, 16), b"x")}, "'visible' must be finite numbers"),
        ({"imgname": np.array([b"a", b"", b"c"])}, "'imgname' must be 3 file names, got ''"),
        ({"imgname": np.array([b"a", b"\xff", b"c"])}, "'imgname' must be 3 names: 'utf-8' codec"),
        ({"imgname": np.array([b"a", b"b"])}, "the names of the images must be 3, one for each row, got 2"),
        ({"imgname": np.array([1.0, 2.0, 3.0])}, "'imgname' must be 3 names, as text or as the numbers of their letters"),
    ],
)
def test_damaged_hdf5_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"valid\.h5.*{message}"):
        read_mpii(write_mpii_h5(tmp_path / "valid.h5", **changes))


def test_foreign_hdf5_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"a\.h5 is not a complete HDF5 file"):
        read_mpii(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match=r"no HDF5 file .*b\.h5"):
        read_mpii(tmp_path / "b.h5")


# ---- writers ---------------------------------------------------------------------------------------------------------


def test_written_people_are_read_as_they_were(tmp_path: Path) -> None:
    entries = [pytorch_pose_entry(isValidation=1.0, people_index=2.0), pytorch_pose_entry(scale_provided=0.3)]
    people = read_mpii(write(tmp_path, entries))
    write_mpii(tmp_path / "again.json", people)
    for person, again in zip(people, read_mpii(tmp_path / "again.json"), strict=True):
        for name in ("keypoints", "visible", "center"):
            np.testing.assert_array_equal(getattr(again, name), getattr(person, name))
        for name in ("image", "scale", "head_size", "image_id", "person_id", "split"):
            assert getattr(again, name) == getattr(person, name)
    written = json.loads((tmp_path / "again.json").read_text())
    assert written[0]["objpos"] == [101, 51]
    assert written[0]["joint_self"][3] == [0, 0, 0]
    in_memory = replace(people[0], image=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"people\[1\] must have 16 joints and an image file"):
        write_mpii(tmp_path / "again.json", [people[0], in_memory])


def test_written_predictions_count_from_1(tmp_path: Path) -> None:
    keypoints = np.random.default_rng(0).uniform(0, 500, (3, 16, 2))
    keypoints[0, 0] = np.nan
    write_mpii_predictions(tmp_path / "preds.mat", keypoints)
    np.testing.assert_array_equal(loadmat(tmp_path / "preds.mat")["preds"], keypoints + 1)
    with pytest.raises(ValueError, match=r"keypoints must be of shape \(N, 16, 2\), got \(3, 14, 2\)"):
        write_mpii_predictions(tmp_path / "preds.mat", keypoints[:, :14])


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
