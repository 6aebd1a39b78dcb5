"""Files of predictions and labels in every form that is read, made here, and how the command scores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from fastpose.cli import app
from fastpose.data.crops import read_image
from fastpose.data.figures import Figures
from fastpose.metrics import PROTOCOLS, pck, pcp
from fastpose.score_files import Predictions, Truth, read_predictions, read_truth, save_predictions, save_truth, score_points
from fastpose.score_files.arrays import read_arrays
from fastpose.skeletons import COCO, FLIC, LSP, MPII, SKELETONS, Skeleton

PEOPLE = 7


def points_of(skeleton: Skeleton, seed: int, people: int = PEOPLE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 200, (people, skeleton.num_joints, 2))


@pytest.fixture
def lsp() -> Truth:
    return Truth(LSP, points_of(LSP, 0), 1)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)], env={"COLUMNS": "160"})


# ---- predictions: every kind of file --------------------------------------------------------------------------------


def write_mat73(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # As MATLAB does: an HDF5 file after 512 bytes of text, the axes in the opposite order.
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"
    with path.open("r+b") as file:
        file.write(text + b" " * (124 - len(text)) + b"\x00\x02IM")


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray]], None]] = {
    "v5.mat": scipy.io.savemat,
    "v73.mat": write_mat73,
    "a.h5": write_hdf5,
    "a.hdf5": write_hdf5,
    "a.npz": lambda path, arrays: np.savez(path, **arrays),
    "a.npy": lambda path, arrays: np.save(path, next(iter(arrays.values()))),
    "a.json": lambda path, arrays: path.write_text(json.dumps({name: array.tolist() for name, array in arrays.items()})),
    "a.safetensors": lambda path, arrays: save_file(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, path
    ),
}
LAYOUTS = {"NKC": (0, 1, 2), "CKN": (2, 1, 0), "KCN": (1, 2, 0), "CNK": (2, 0, 1)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_in_every_layout(tmp_path: Path, lsp: Truth, name: str, layout: str) -> None:
    points = points_of(LSP, 1)
    WRITERS[name](tmp_path / name, {"pred": points.transpose(LAYOUTS[layout])})
    read = read_predictions(tmp_path / name, lsp)
    np.testing.assert_array_equal(read.points, points)
    assert read.base == (1 if name.endswith((".mat", ".h5", ".hdf5")) else 0)
    assert f"read as {layout}" in read.notes[0]
    assert read_predictions(tmp_path / name, lsp, layout=layout, base=0).base == 0


@pytest.mark.parametrize("name", ["a.npz", "v5.mat", "a.json"])
def test_a_third_coordinate_and_flat_rows(tmp_path: Path, lsp: Truth, name: str) -> None:
    points = points_of(LSP, 1)
    with_scores = np.concatenate((points, np.ones((PEOPLE, 14, 1))), axis=2)
    for array in (with_scores, with_scores.reshape(PEOPLE, -1), points.reshape(PEOPLE, -1)):
        WRITERS[name](tmp_path / name, {"anything": array})
        np.testing.assert_array_equal(read_predictions(tmp_path / name, lsp).points, points)


def test_json_of_lists_and_of_records(tmp_path: Path, lsp: Truth) -> None:
    points = points_of(LSP, 1)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(points.tolist()))
    np.testing.assert_array_equal(read_predictions(file, lsp).points, points)
    records = [{"image": f"{number}.jpg", "keypoints": person.ravel().tolist()} for number, person in enumerate(points)]
    records[2]["keypoints"][3] = None
    file.write_text(json.dumps(records))
    points[2, 1, 1] = np.nan
    np.testing.assert_array_equal(read_predictions(file, lsp).points, points)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_small_types_stay_what_they_are(tmp_path: Path, lsp: Truth, dtype: type) -> None:
    points = points_of(LSP, 1).astype(dtype)
    scipy.io.savemat(tmp_path / "a.mat", {"pred": points})
    np.testing.assert_array_equal(read_predictions(tmp_path / "a.mat", lsp).points, points)


def test_bfloat16(tmp_path: Path, lsp: Truth) -> None:
    points = torch.from_numpy(points_of(LSP, 1)).bfloat16()
    save_file({"pred": points}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_predictions(tmp_path / "a.safetensors", lsp).points, points.double())


def test_files_with_some_of_the_joints(tmp_path: Path) -> None:
    flic, mpii = Truth(FLIC, points_of(FLIC, 0), 1), Truth(MPII, points_of(MPII, 0), 1)
    points = points_of(FLIC, 1)
    scipy.io.savemat(tmp_path / "cpm.mat", {"prediction_all": points[:, [*range(8), 10]]})
    read = read_predictions(tmp_path / "cpm.mat", flic)
    np.testing.assert_array_equal(read.points[:, [*range(8), 10]], points[:, [*range(8), 10]])
    assert np.isnan(read.points[:, 8:10]).all()
    assert any(note.startswith("joints left_shoulder, left_elbow") for note in read.notes)
    points = points_of(MPII, 1)
    scipy.io.savemat(tmp_path / "eval.mat", {"pred": points[:, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 8, 9]]})
    read = read_predictions(tmp_path / "eval.mat", mpii)
    np.testing.assert_array_equal(read.points[:, [*range(6), *range(8, 16)]], points[:, [*range(6), *range(8, 16)]])
    assert np.isnan(read.points[:, 6:8]).all()
    scipy.io.savemat(tmp_path / "three.mat", {"pred": points[:, [15, 0, 6]]})
    read = read_predictions(tmp_path / "three.mat", mpii, joints=["left_wrist", "right_ankle", "pelvis"])
    np.testing.assert_array_equal(read.points[:, [15, 0, 6]], points[:, [15, 0, 6]])


def test_sticks(tmp_path: Path, lsp: Truth) -> None:
    sticks = np.random.default_rng(1).uniform(0, 200, (PEOPLE, 10, 2, 2))
    scipy.io.savemat(tmp_path / "a.mat", {"pred": sticks.reshape(PEOPLE, 20, 2).transpose(2, 1, 0)})
    read = read_predictions(tmp_path / "a.mat", lsp, limbs=PROTOCOLS["lsp_pc"].limbs)
    np.testing.assert_array_equal(read.points, sticks)
    score = score_points("a", read, lsp, PROTOCOLS["lsp_pc"], "pcp")
    expected = pcp(torch.from_numpy(sticks), torch.from_numpy(lsp.keypoints), "lsp_pc")
    assert score.values == {name: value.item() for name, value in expected.items()}
    assert score.metric == "strict PCP@0.5"
    with pytest.raises(ValueError, match="a has the ends of limbs, whose metric is pcp, got pck"):
        score_points("a", read, lsp, PROTOCOLS["lsp_pc"])


def test_which_array(tmp_path: Path, lsp: Truth) -> None:
    points, others = points_of(LSP, 1), points_of(LSP, 2)
    file = tmp_path / "a.npz"
    np.savez(file, epoch=3, preds=points, heatmaps=np.zeros((2, 3)), note="text")
    np.testing.assert_array_equal(read_predictions(file, lsp).points, points)
    np.savez(file, target=others, preds=points)  # the known name
    np.testing.assert_array_equal(read_predictions(file, lsp).points, points)
    np.testing.assert_array_equal(read_predictions(file, lsp, variable="target").points, others)
    np.savez(file, first=others, second=points)
    with pytest.raises(ValueError, match="several arrays that could be predictions, first, second: say which"):
        read_predictions(file, lsp)
    with pytest.raises(ValueError, match=r"no array 'third' of numbers; it has first 7x14x2, second 7x14x2"):
        read_predictions(file, lsp, variable="third")


def test_ambiguous_layouts(tmp_path: Path) -> None:
    truth = Truth(LSP, points_of(LSP, 0, 14), 1)
    points = points_of(LSP, 1, 14)
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(ValueError, match=r"of shape 14x14x2 could be NKC or KNC: say which"):
        read_predictions(tmp_path / "a.npy", truth)
    np.testing.assert_array_equal(read_predictions(tmp_path / "a.npy", truth, layout="NKC").points, points)
    np.testing.assert_array_equal(read_predictions(tmp_path / "a.npy", truth, layout="KNC").points, points.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (np.zeros((6, 14, 2)), {}, r"must have predictions of 7 people, 14 joints and 2 or 3 coordinates, but has .* 6x14x2"),
        (np.zeros((7, 16, 2)), {}, r"7 people, 14 joints .* but has .* 7x16x2"),
        (np.zeros((7, 14, 4)), {}, r"but has .* 7x14x4"),
        (np.zeros((2, 14, 7)), {"layout": "NKC"}, r"coordinates as NKC, but has .* 2x14x7"),
        (np.zeros((7, 14, 2)), {"layout": "NCJ"}, r"layout must be one of NKC, NCK, .*, got 'NCJ'"),
        (np.zeros((7, 14, 2)), {"base": 2}, "base must be 0 or 1, got 2"),
        (np.zeros((7, 14, 2)), {"joints": ["nose"]}, "joint must be one of right_ankle, .*, got 'nose'"),
        (np.zeros((7, 14, 2)), {"joints": ["neck", "neck"]}, "joints must be distinct names"),
        (np.zeros((7, 14, 2)), {"joints": ["neck"]}, "7 people, 1 joints"),
        (np.zeros(0), {}, "but has .* 0"),
    ],
)
def test_predictions_that_do_not_fit(
    tmp_path: Path, lsp: Truth, points: np.ndarray, options: dict[str, Any], message: str
) -> None:
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "a.npy", lsp, **options)


@pytest.mark.parametrize("name", list(WRITERS))
def test_damaged_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with pytest.raises(FileNotFoundError, match="no file"):
        read_arrays(file)
    WRITERS[name](file, {"pred": points_of(LSP, 1)})
    content = file.read_bytes()
    for damaged in (b"", content[:10], content[: len(content) // 2], b"x" * len(content)):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is not a "):
            read_arrays(file)


# SciPy trusts what a MATLAB file says of itself, so that it is not asked to read what chance has written.
@pytest.mark.parametrize("name", ["a.h5", "a.npz", "a.npy", "a.json", "a.safetensors"])
def test_mutated_files_are_read_or_refused(tmp_path: Path, lsp: Truth, name: str) -> None:
    WRITERS[name](tmp_path / name, {"pred": points_of(LSP, 1)})
    content = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(60):
        damaged = np.frombuffer(content, np.uint8).copy()
        # The beginning says what the rest is.
        where = random.integers(0, random.choice([64, 512, len(damaged)]), random.choice([1, 2, 8]))
        damaged[where] = random.integers(0, 256, len(where))
        (tmp_path / name).write_bytes(damaged.tobytes()[: random.choice([len(content), random.integers(len(content))])])
        try:
            read = read_predictions(tmp_path / name, lsp)
        except ValueError:
            outcomes["refused"] += 1
        else:
            assert read.points.shape == (PEOPLE, 14, 2)
            outcomes["read"] += 1
    assert outcomes["refused"] > 10


def test_unknown_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"a\.txt must end in one of \.mat, \.h5, .*\.safetensors"):
        read_arrays(tmp_path / "a.txt")


def test_numpy_files_run_no_code(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="not a complete NumPy file of arrays"):
        read_arrays(tmp_path / "a.npy")


# ---- where pixels are counted from ----------------------------------------------------------------------------------


def test_predictions_move_to_the_pixels_of_the_labels(lsp: Truth) -> None:
    protocol = PROTOCOLS["lsp_pc"]
    points = lsp.keypoints + 0.0
    by_base = {base: score_points("", Predictions(points + base, base), lsp, protocol) for base in (0, 1)}
    from_zero = Truth(LSP, lsp.keypoints - 1, 0)
    for truth, shift in ((lsp, 0), (from_zero, 1)):
        for base in (0, 1):
            exact = Predictions(lsp.keypoints - 1 + base, base)
            assert score_points("", exact, truth, protocol).curves["total"][1] == 100, (shift, base)
    # A pixel off is more than the smallest thresholds allow to someone small.
    small = Truth(LSP, lsp.keypoints / 50, 1)
    assert score_points("", Predictions(small.keypoints, 1), small, protocol).values["total"] == 100
    assert score_points("", Predictions(small.keypoints, 0), small, protocol).values["total"] < 100
    assert by_base[0].values["total"] == 100


def test_saved_predictions_say_where_they_count_from(tmp_path: Path, lsp: Truth) -> None:
    points = points_of(LSP, 1).astype(np.float32)
    save_predictions(tmp_path / "a.npz", points, np.ones((PEOPLE, 14)), LSP, images=["a"] * PEOPLE)
    read = read_predictions(tmp_path / "a.npz", lsp)
    np.testing.assert_array_equal(read.points, points)
    assert (read.base, read.notes[-1]) == (0, "pixels counted from 0 (it says so)")


# ---- labels ---------------------------------------------------------------------------------------------------------


def mpii_matrices() -> dict[str, Any]:
    points = points_of(MPII, 0)
    missing = np.zeros((16, PEOPLE), np.uint8)
    missing[3, 2] = 1
    names = "rank rkne rhip lhip lkne lank pelv thor neck head rwri relb rsho lsho lelb lwri"
    corners = np.stack((np.zeros((2, PEOPLE)), np.array([[30.0] * PEOPLE, [40.0] * PEOPLE])))
    joints = np.array(names.split(), object)[None]
    return {"pos_gt_src": points.transpose(1, 2, 0), "jnt_missing": missing, "headboxes_src": corners, "dataset_joints": joints}


def test_mpii_matrices(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", mpii_matrices())
    truth = read_truth(tmp_path / "a.mat")
    assert (truth.skeleton, truth.base, len(truth)) == (MPII, 1, PEOPLE)
    assert np.isnan(truth.keypoints).sum() == 2
    assert np.isnan(truth.keypoints[2, 3]).all()
    expected = points_of(MPII, 0)
    expected[2, 3] = np.nan
    np.testing.assert_array_equal(truth.keypoints, expected)
    np.testing.assert_allclose(truth.lengths["head"], 0.6 * 50)


def structs(*records: dict[str, Any]) -> np.ndarray:
    """A struct array of MATLAB, whose structs all have the fields of the first."""
    array = np.empty((1, len(records)), [(name, object) for name in records[0]])
    array[0] = [tuple(record[name] for name in records[0]) for record in records]
    return array


def mpii_person(points: dict[int, tuple[float, float]], visible: Any = 1) -> np.ndarray:
    entries = [{"x": x, "y": y, "id": joint, "is_visible": visible} for joint, (x, y) in points.items()]
    annopoints: Any = structs({"point": structs(*entries)}) if entries else np.zeros((0, 0))
    return structs({"x1": 1, "y1": 2, "x2": 4.0, "y2": 6, "scale": 2.0, "annopoints": annopoints})


def test_mpii_structs(tmp_path: Path) -> None:
    one, two = {9: (1.5, 2.5), 0: (3.0, -4.0)}, {5: (7.0, 8.0)}
    people = [mpii_person(one), mpii_person(two, visible="1"), mpii_person({})]
    annolist = structs(*({"annorect": person} for person in people))
    scipy.io.savemat(tmp_path / "a.mat", {"annolist": annolist})
    truth = read_truth(tmp_path / "a.mat")
    assert (truth.skeleton, truth.base) == (MPII, 1)
    np.testing.assert_array_equal(truth.keypoints[0, [9, 0]], [[1.5, 2.5], [3, -4]])
    np.testing.assert_array_equal(truth.keypoints[1, 5], [7, 8])
    assert (~np.isnan(truth.keypoints)).sum() == 6
    np.testing.assert_allclose(truth.lengths["head"], 0.6 * 5)
    annolist[0, 1]["annorect"] = mpii_person({16: (1.0, 2.0)})
    scipy.io.savemat(tmp_path / "a.mat", {"annolist": annolist})
    with pytest.raises(ValueError, match=r"annolist\(2\) must have points with ids 0 to 15, got 16"):
        read_truth(tmp_path / "a.mat")
    annolist[0, 1]["annorect"] = np.concatenate(people[:2], axis=1)
    scipy.io.savemat(tmp_path / "a.mat", {"annolist": annolist})
    with pytest.raises(ValueError, match=r"a\.mat: annolist\(2\) must have one person, got 2"):
        read_truth(tmp_path / "a.mat")


def test_newells_hdf5(tmp_path: Path) -> None:
    points = np.floor(points_of(MPII, 0)) + 1
    points[1, 4] = 0
    write_hdf5(tmp_path / "valid.h5", {"part": points, "normalize": np.arange(1.0, PEOPLE + 1)})
    truth = read_truth(tmp_path / "valid.h5")
    assert (truth.skeleton, truth.base) == (MPII, 1)
    assert np.isnan(truth.keypoints[1, 4]).all()
    assert np.isnan(truth.keypoints).sum() == 2
    np.testing.assert_array_equal(truth.lengths["head"], np.arange(1.0, PEOPLE + 1))


@pytest.mark.parametrize(("images", "tested"), [(2000, slice(1000, 2000)), (30, slice(0, 30))])
def test_lsp_joints(tmp_path: Path, images: int, tested: slice) -> None:
    joints = np.random.default_rng(0).uniform(0, 200, (3, 14, images))
    joints[2] = joints[2] > 100  # hidden ones count
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    truth = read_truth(tmp_path / "joints.mat")
    assert (truth.skeleton, truth.base) == (LSP, 1)
    np.testing.assert_array_equal(truth.keypoints, joints[:2, :, tested].transpose(2, 1, 0))


def flic_example(number: int) -> dict[str, Any]:
    coords = np.full((2, 29), np.nan)
    coords[:, [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16]] = points_of(FLIC, number, 1)[0].T
    box = [[10.0, 20.0, 13.0, 24.0 + number]]
    return {"coords": coords, "torsobox": np.array(box), "istest": np.uint8(number % 2), "filepath": "a.jpg"}


def test_flic_examples(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "examples.mat", {"examples": structs(*map(flic_example, range(5)))})
    truth = read_truth(tmp_path / "examples.mat")
    assert (truth.skeleton, truth.base) == (FLIC, 1)
    np.testing.assert_array_equal(truth.keypoints, np.concatenate([points_of(FLIC, number, 1) for number in (1, 3)]))
    np.testing.assert_allclose(truth.lengths["torso_box"], [np.hypot(3, 5), np.hypot(3, 7)])


def test_flic_joints(tmp_path: Path) -> None:
    points = points_of(FLIC, 0)
    joints = np.concatenate((points, np.tile([[[3.0, 4.0]]], (PEOPLE, 1, 1))), axis=1).transpose(2, 1, 0)
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    truth = read_truth(tmp_path / "joints.mat")
    np.testing.assert_array_equal(truth.keypoints, points)
    np.testing.assert_allclose(truth.lengths["torso_box"], 5)


def test_mpii_json(tmp_path: Path) -> None:
    joints = [[2.0, 3.0]] * 16
    entry = {"image": "a.jpg", "center": [5, 5], "scale": 2.0, "joints": joints, "joints_vis": [1] * 15 + [0]}
    (tmp_path / "valid.json").write_text(json.dumps([entry]))
    truth = read_truth(tmp_path / "valid.json")
    assert truth.base == 0
    assert np.isnan(truth.keypoints[0, 15]).all()
    np.testing.assert_array_equal(truth.keypoints[0, :15], [[1, 2]] * 15)
    assert truth.lengths["head"] == [50]
    both = [
        {"img_paths": f"{split}.jpg", "objpos": [5, 5], "scale_provided": 1 + split, "isValidation": float(split),
         "joint_self": [[2.0, 3.0, 1.0]] * 16}
        for split in (0, 1)
    ]  # fmt: skip
    (tmp_path / "both.json").write_text(json.dumps(both))
    assert read_truth(tmp_path / "both.json").lengths["head"] == [50]


def test_saved_labels(tmp_path: Path) -> None:
    figures = Figures(3, size=(64, 64))[:]
    truth = Truth.of_people(figures, MPII)
    save_truth(truth, tmp_path / "truth.npz")
    read = read_truth(tmp_path / "truth.npz")
    assert (read.skeleton, read.base) == (MPII, 0)
    np.testing.assert_array_equal(read.keypoints, truth.keypoints)
    np.testing.assert_array_equal(read.lengths["head"], [figure.head_size for figure in figures])


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.mat", {"x": np.zeros(3)}, r"must have pos_gt_src and jnt_missing and .* or joints, but has x"),
        ("a.mat", {"joints": np.zeros((14, 3, 400))}, r"joints must be LSP's .*, got \(14, 3, 400\)"),
        ("a.mat", {**mpii_matrices(), "jnt_missing": np.zeros((16, 6))}, r"jnt_missing must be of shape \(16, 7\)"),
        ("a.mat", {**mpii_matrices(), "dataset_joints": np.array([["a"]], object)}, "dataset_joints must be rank, rkne"),
        ("a.h5", {"part": np.zeros((7, 14, 2)), "normalize": np.zeros(7)}, r"part must be of shape \(7, 16, 2\)"),
        ("a.npz", {"keypoints": np.zeros((7, 16, 2)), "skeleton": "mantis"}, "no labels that fastpose wrote"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, name: str, arrays: dict[str, Any], message: str) -> None:
    {"a.mat": scipy.io.savemat, "a.h5": write_hdf5, "a.npz": lambda path, arrays: np.savez(path, **arrays)}[name](
        tmp_path / name, arrays
    )
    with pytest.raises(ValueError, match=message):
        read_truth(tmp_path / name)


def test_labels_and_protocols_that_do_not_fit(lsp: Truth) -> None:
    points = Predictions(points_of(LSP, 1), 1)
    with pytest.raises(ValueError, match="the protocol is for mpii, but the labels are of lsp"):
        score_points("", points, lsp, PROTOCOLS["hrnet"])
    flic = Truth(FLIC, points_of(FLIC, 0), 1)
    with pytest.raises(ValueError, match="normalises by 'torso_box', but the labels have no lengths"):
        score_points("", Predictions(points_of(FLIC, 1), 1), flic, PROTOCOLS["human_pose_benchmark"])
    with pytest.raises(ValueError, match="metric must be one of pck, pcp, pcp-loose"):
        score_points("", points, lsp, PROTOCOLS["lsp_pc"], "oks")  # type: ignore[arg-type]
    for arguments, message in (
        ((LSP, np.zeros((7, 16, 2)), 1), "keypoints must be of shape"),
        ((LSP, np.zeros((7, 14, 2)), 2), "base must be 0 or 1"),
        ((LSP, np.zeros((7, 14, 2)), 1, {"head": np.ones(6)}), "lengths 'head' must be of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            Truth(*arguments)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, lsp: Truth) -> Path:
    """A folder of labels and of two methods' predictions of them."""
    joints = np.concatenate((lsp.keypoints, np.zeros((PEOPLE, 14, 1))), axis=2)
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints.transpose(2, 1, 0)})
    noise = np.random.default_rng(2).normal(0, 20, lsp.keypoints.shape)
    for method, factor in (("good", 0.5), ("bad", 1.5)):
        (tmp_path / method).mkdir()
        scipy.io.savemat(tmp_path / method / "pred.mat", {"pred": (lsp.keypoints + factor * noise).transpose(2, 1, 0)})
    return tmp_path


def test_command_prints_what_the_function_finds(files: Path, lsp: Truth) -> None:
    good = files / "good" / "pred.mat"
    result = run(good, "--truth", files / "joints.mat", "--protocol", "lsp_pc")
    assert result.exit_code == 0, result.output
    assert result.stderr == "pred: pred 2x14x7 read as CKN; pixels counted from 1 (as .mat files of this field do)\n"
    rows = {cells[1].strip(): cells[2:-1] for line in result.stdout.splitlines() if len(cells := line.split("│")) > 3}
    points = torch.from_numpy(scipy.io.loadmat(good)["pred"].transpose(2, 1, 0).copy())
    expected = pck(points, torch.from_numpy(lsp.keypoints), None, "lsp_pc")
    assert list(rows) == [*expected, "AUC total"]
    for name, value in expected.items():
        assert rows[name][0].strip() == f"{value:.2f}"
    assert rows["neck"][2].strip() == "7"
    assert int(rows["neck"][1]) == round(7 * expected["neck"].item() / 100)


def test_command_compares_methods(files: Path) -> None:
    arguments = ("--truth", files / "joints.mat", "--protocol", "lsp_pc")
    picture = files / "curve.png"
    result = run(files / "good" / "pred.mat", f"worse={files / 'bad' / 'pred.mat'}", *arguments, "--curve", picture)
    assert result.exit_code == 0, result.output
    head = next(line for line in result.stdout.splitlines() if "worse" in line)
    assert head.index("pred") < head.index("worse")
    assert read_image(picture).std() > 10
    content = json.loads(run(files / "good" / "pred.mat", files / "bad" / "pred.mat", *arguments, "--json").stdout)
    assert content["protocol"] == "lsp_pc"
    assert [method["name"] for method in content["methods"]] == ["good", "bad"]
    good, bad = content["methods"]
    assert good["values"]["total"] > bad["values"]["total"]
    assert good["auc"]["total"] == pytest.approx(np.trapezoid(good["curves"]["total"], good["thresholds"]) / 0.2)
    assert (good["thresholds"][0], good["thresholds"][-1], len(good["thresholds"])) == (0, 0.2, 21)
    many = [f"{number}={files / 'good' / 'pred.mat'}" for number in range(7)]
    printed = run(*many, *arguments).stdout
    assert "right_ankle" not in printed
    assert "AUC total" in printed


def test_command_options(files: Path) -> None:
    arguments = (files / "bad" / "pred.mat", "--truth", files / "joints.mat", "--protocol", "lsp_oc", "--json")

    def score(*more: object) -> dict[str, Any]:
        result = run(*arguments, *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["methods"][0]

    plain = score()
    assert plain["metric"] == "PCK@0.2"
    assert score("--threshold", 0.1)["values"]["total"] < plain["values"]["total"]
    assert score("--base", 0)["values"] != plain["values"]
    assert score("--layout", "CKN", "--variable", "pred")["values"] == plain["values"]
    assert score("--joints", ",".join(LSP.joints[::-1]))["values"]["total"] < plain["values"]["total"]
    strict, loose = score("--metric", "pcp"), score("--metric", "pcp-loose")
    assert (strict["metric"], loose["metric"]) == ("strict PCP@0.5", "loose PCP@0.5")
    assert strict["values"]["total"] < loose["values"]["total"]
    assert strict["curves"] == {}


def test_command_scores_coco(tmp_path: Path) -> None:
    joints = [[float(number), 2.0 * number, 2] for number in range(17)]
    flat = [value for joint in joints for value in joint]
    person = {"id": 1, "image_id": 5, "category_id": 1, "area": 2000.0, "bbox": [0, 0, 16, 32], "keypoints": flat, "iscrowd": 0}
    people = {"images": [{"id": 5}], "annotations": [person], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "people.json").write_text(json.dumps(people))
    (tmp_path / "found.json").write_text(json.dumps([{"image_id": 5, "category_id": 1, "score": 1.0, "keypoints": flat}]))
    arguments = (tmp_path / "found.json", "--truth", tmp_path / "people.json", "--protocol", "coco")
    assert json.loads(run(*arguments, "--json").stdout)["methods"][0]["values"]["AP50"] == pytest.approx(1)
    printed = run(*arguments).stdout
    assert "1.0000" in printed
    assert "-1.0000" in printed
    for extra in (("--metric", "pcp"), ("--base", 1), ("--curve", tmp_path / "a.png")):
        result = run(*arguments, *extra)
        assert result.exit_code == 2
        assert f"{extra[0]} does not go with --protocol coco" in result.stderr
    swapped = run(tmp_path / "people.json", "--truth", tmp_path / "found.json", "--protocol", "coco")
    assert "must hold COCO's annotations, an object, got a list" in swapped.stderr
    assert "COCO's results, a list, got a dict" in run(tmp_path / "people.json", *arguments[1:]).stderr
    mpii = run(tmp_path / "found.json", "--truth", tmp_path / "people.json", "--protocol", "hrnet")
    assert "has COCO's form; the protocol for it is coco" in mpii.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--protocol", "lsp"), "protocol must be one of mpii_official, pytorch_pose"),
        (("--protocol", "hrnet"), "the protocol is for mpii, but the labels are of lsp"),
        (("--protocol", "lsp_pc", "--layout", "abc"), "layout must be one of"),
        (("--protocol", "lsp_pc", "--variable", "x"), "no array 'x' of numbers; it has pred 2x14x7"),
        (("--protocol", "lsp_pc", "--threshold", "-1"), "threshold must be a finite number"),
        (("--protocol", "lsp_pc", "--metric", "pcp", "--curve", "a.png"), "--curve draws PCK, but --metric is pcp"),
        (("--protocol", "lsp_pc", "--curve", "{files}/a.png", "--curve-of", "x"), "--curve-of must be one of right_ankle"),
        (("--protocol", "lsp_pc", "--curve", "{files}/a.xyz"), "must end in one of"),
    ],
)
def test_command_complaints(files: Path, extra: tuple[str, ...], message: str) -> None:
    words = [word.format(files=files) for word in extra]
    result = run(files / "good" / "pred.mat", "--truth", files / "joints.mat", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(files.glob("*.png"))


def test_methods_of_the_same_name(files: Path) -> None:
    good = files / "good" / "pred.mat"
    result = run(good, good, "--truth", files / "joints.mat", "--protocol", "lsp_pc")
    assert result.exit_code == 2
    assert "several are called pred; give NAME=FILE" in result.stderr


def test_every_skeleton_has_a_protocol() -> None:
    assert {protocol.skeleton for protocol in PROTOCOLS.values()} == set(SKELETONS.values())
    assert PROTOCOLS["coco"].skeleton == COCO
