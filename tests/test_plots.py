"""Pictures: what is drawn is where it should be, and files are complete or absent."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fastpose import plots
from fastpose.plots import (
    SIDE_COLORS,
    SheetRow,
    draw_heatmaps,
    draw_skeleton,
    figure_sheet,
    learning_curve,
    save_image,
    threshold_curves,
)
from fastpose.skeletons import MPII, Skeleton

ARM = Skeleton(
    name="arm",
    joints=("neck", "left_shoulder", "right_shoulder"),
    edges=((0, 1), (0, 2), (1, 2)),
    flip_pairs=((1, 2),),
)
POINTS = np.array([[32.0, 10.0], [50.0, 40.0], [14.0, 40.0]])
HISTORY = {"loss": [2.0, 1.0, 0.5], "first stage": [float("nan"), 40.0, 60.0], "last stage": [20.0, 50.0, 80.0]}


def blank(height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 7, np.uint8)


def changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (before != after).any(axis=2)


# --- Skeletons ---------------------------------------------------------------------------------------------------


def test_joints_and_limbs_have_the_colour_of_their_side() -> None:
    image = blank()
    drawn = draw_skeleton(image, POINTS, ARM)
    assert (image == 7).all()
    assert drawn.shape == image.shape
    for (x, y), side in zip(POINTS.astype(int), ("centre", "left", "right"), strict=True):
        assert tuple(drawn[y, x]) == SIDE_COLORS[side]
    # The middles of neck-left, neck-right and left-right.
    for (x, y), side in (((41, 25), "left"), ((23, 25), "right"), ((32, 40), "centre")):
        np.testing.assert_allclose(drawn[y, x], SIDE_COLORS[side], atol=30)


@pytest.mark.parametrize("point", [(20.0, 31.0), (20.5, 31.25)])
def test_a_joint_is_centred_on_its_coordinates(point: tuple[float, float]) -> None:
    lone = np.full((3, 2), np.nan)
    lone[0] = point
    weight = draw_skeleton(np.zeros((64, 64, 3), np.uint8), lone, ARM).sum(axis=2, dtype=float)
    y, x = np.mgrid[:64, :64]
    centroid = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    np.testing.assert_allclose(centroid, point, atol=0.06)


def test_joints_without_a_label_and_their_limbs_are_left_out() -> None:
    points = POINTS.copy()
    points[1] = (50.0, np.nan)
    difference = changed(blank(), draw_skeleton(blank(), points, ARM))
    assert difference[10, 32]
    assert difference[25, 23]
    assert not difference[:, 38:].any()
    assert not changed(blank(), draw_skeleton(blank(), np.full((3, 2), np.nan), ARM)).any()


def test_hidden_joints_are_hollow() -> None:
    points = np.full((3, 2), np.nan)
    points[1] = (30.0, 30.0)
    filled = changed(blank(), draw_skeleton(blank(), points, ARM, visible=[True, True, True]))
    hollow = changed(blank(), draw_skeleton(blank(), points, ARM, visible=[True, False, True]))
    assert filled[30, 30]
    assert not hollow[30, 30]
    assert hollow[30, 28]


def test_joints_beyond_the_image_do_no_harm() -> None:
    points = np.array([[32.0, 32.0], [1e30, 32.0], [-1e30, -1e30]])
    difference = changed(blank(), draw_skeleton(blank(), points, ARM))
    assert difference[32, 63]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, "image"),
        ({"image": np.zeros((8, 8, 3))}, "image .*float64"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "image"),
        ({"image": [[[0, 0, 0]]]}, "image .*list"),
        ({"keypoints": np.zeros((4, 2))}, r"keypoints must be \(3, 2\) for arm, got \(4, 2\)"),
        ({"visible": [True]}, r"visible must be \(3,\), got \(1,\)"),
    ],
)
def test_wrong_skeleton_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_skeleton(**({"image": blank(), "keypoints": POINTS, "skeleton": ARM} | arguments))


# --- Heatmaps ----------------------------------------------------------------------------------------------------


def test_every_heatmap_lights_up_its_own_picture() -> None:
    heatmaps = np.zeros((5, 16, 16), np.float32)
    peaks = [(3, 4), (12, 2), (8, 8), (1, 14), (14, 14)]
    for heatmap, (x, y) in zip(heatmaps, peaks, strict=True):
        heatmap[y, x] = 1.0
    montage = draw_heatmaps(blank(64, 64), heatmaps, columns=3)
    assert montage.shape == (2 * 64, 3 * 64, 3)
    for index, (x, y) in enumerate(peaks):
        row, column = divmod(index, 3)
        picture = montage[64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)].astype(int).sum(axis=2)
        bright_y, bright_x = np.nonzero(picture > 0.9 * picture.max())
        # Cell i covers pixels 4i to 4i + 3.
        assert (bright_x.mean(), bright_y.mean()) == pytest.approx((4 * x + 1.5, 4 * y + 1.5), abs=0.51)
    assert not montage[64:, 128:].any()


def test_values_that_are_not_finite_count_as_nothing() -> None:
    heatmaps = np.zeros((1, 4, 4), np.float32)
    heatmaps[0, 1, 1] = 2.0
    broken = heatmaps.copy()
    broken[0, 3] = (np.nan, np.inf, -np.inf, -5.0)
    np.testing.assert_array_equal(draw_heatmaps(blank(), broken), draw_heatmaps(blank(), heatmaps))


def test_the_peak_sets_the_brightness() -> None:
    heatmaps = np.full((1, 4, 4), 0.5, np.float32)
    brightness = [draw_heatmaps(blank(), heatmaps, peak=peak).mean() for peak in (4.0, 1.0, 0.5)]
    assert brightness == sorted(set(brightness))
    np.testing.assert_array_equal(draw_heatmaps(blank(), heatmaps), draw_heatmaps(blank(), heatmaps, peak=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heatmaps": np.zeros((4, 4))}, "heatmaps must be .*got \\(4, 4\\)"),
        ({"heatmaps": np.zeros((0, 4, 4))}, "heatmaps"),
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"peak": 0.0}, "peak must be positive, got 0.0"),
        ({"peak": float("nan")}, "peak"),
    ],
)
def test_wrong_heatmap_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_heatmaps(**({"image": blank(), "heatmaps": np.zeros((1, 4, 4))} | arguments))


# --- Files -------------------------------------------------------------------------------------------------------


def row(**changes: NDArray) -> SheetRow:
    generator = np.random.default_rng(0)
    arguments: dict[str, NDArray] = {
        "image": generator.integers(0, 256, (96, 80, 3), dtype=np.uint8),
        "truth": generator.uniform(0, 80, (16, 2)),
        "visible": generator.random(16) < 0.8,
        "initial": generator.uniform(0, 80, (16, 2)),
        "final": generator.uniform(0, 80, (16, 2)),
        "heatmaps": generator.random((16, 24, 20), dtype=np.float32),
    }
    return SheetRow(**(arguments | changes))


def test_an_image_file_holds_the_image(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    path.write_text("old")
    save_image(image, path)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_has_the_pictures_of_its_people(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figure_sheet([row()], HISTORY, MPII, one)
    figure_sheet([row(), row()], HISTORY, MPII, two)
    assert sorted(tmp_path.iterdir()) == [one, two]
    small, large = cv2.imread(str(one)), cv2.imread(str(two))
    assert large.shape[0] > small.shape[0]
    assert large.shape[1] == small.shape[1]
    # The colours of both sides of the body and the heatmaps' brightest yellow are on the page.
    for color in (SIDE_COLORS["left"], SIDE_COLORS["right"]):
        assert (np.abs(small[..., ::-1].astype(int) - color).max(axis=2) < 8).any()


def test_the_curve_shows_what_the_history_has(tmp_path: Path) -> None:
    pictures = {}
    for name, history in (("both", HISTORY), ("loss", {"loss": HISTORY["loss"]})):
        learning_curve(history, tmp_path / f"{name}.png")
        pictures[name] = cv2.imread(str(tmp_path / f"{name}.png"))
    assert pictures["both"].shape == pictures["loss"].shape
    assert (pictures["both"] != pictures["loss"]).any()


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"last stage": [1.0]}, "history must have 'loss'"),
        ({"loss": [1.0, 2.0], "last stage": [1.0]}, "lengths"),
    ],
)
def test_a_wrong_history_is_refused(history: dict, message: str, tmp_path: Path) -> None:
    for write in (
        lambda: learning_curve(history, tmp_path / "curve.png"),
        lambda: figure_sheet([row()], history, MPII, tmp_path / "sheet.png"),
    ):
        with pytest.raises(ValueError, match=message):
            write()
    assert not list(tmp_path.iterdir())


def test_curves_of_several_methods_are_in_the_picture(tmp_path: Path) -> None:
    thresholds = (0.0, 0.1, 0.2)
    few = {"good": [0.0, 60.0, 90.0], "bad": [0.0, 20.0, 40.0]}
    many = {f"method {number}": [0.0, 2.0 * number, 3.0 * number] for number in range(12)}
    pictures = []
    for name, curves in (("few", few), ("good", {"good": few["good"]}), ("many", many)):
        threshold_curves(curves, thresholds, tmp_path / f"{name}.png", title="wrist", unit="torso")
        pictures.append(cv2.imread(str(tmp_path / f"{name}.png")))
    colored = [(np.ptp(picture.astype(int), axis=2) > 60).sum() for picture in pictures]
    assert colored[1] < colored[0] < colored[2]
    threshold_curves(few, thresholds, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("curves", "path", "message"),
    [
        ({}, "a.png", "curves must hold at least one method"),
        ({"a": [1.0]}, "a.png", "curves must have 2 values, one for each threshold, got 1 for a"),
        ({"a": [1.0, 2.0]}, "a.xyz", "path must end in one of"),
    ],
)
def test_wrong_curves_are_refused(curves: dict, path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_curves(curves, (0.0, 0.1), tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_a_sheet_without_people_or_with_wrong_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        figure_sheet([], HISTORY, MPII, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=r"keypoints must be \(16, 2\)"):
        figure_sheet([row(final=np.zeros((14, 2)))], HISTORY, MPII, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    for name in ("picture", "picture.xyz"):
        with pytest.raises(ValueError, match=name):
            save_image(blank(), tmp_path / name)
        with pytest.raises(ValueError, match=name):
            learning_curve(HISTORY, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        save_image(blank(), tmp_path / "missing" / "image.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    save_image(blank(), path)
    before = path.read_bytes()

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plots.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_image(np.zeros((3, 3, 3), np.uint8), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
