"""Pictures: skeletons and heatmaps over images, learning curves, and the page that a demonstration ends with.

Images are RGB, uint8 (H, W, 3). Keypoints are (K, 2), (x, y) in pixels with pixel i centred at i; a joint
that is not finite is not drawn. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from fastpose._files import write_atomically
from fastpose.skeletons import Side, Skeleton

Image = NDArray[np.uint8]

SIDE_COLORS: dict[Side, tuple[int, int, int]] = {
    "left": (45, 140, 255),
    "right": (255, 95, 50),
    "centre": (255, 215, 60),
}
"""RGB colour of the joints and limbs of each side of the body."""

_SUBPIXEL_BITS = 4
_HEATMAP_OPACITY = 0.9
_HEATMAP_BACKDROP = 0.45  # brightness of the image under a heatmap
_DOTS_PER_INCH = 120
_LEAST_PICTURE = 320  # pixels, below which a sheet enlarges the pictures that it draws skeletons on


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One person of :func:`figure_sheet`.

    Args:
        image: (H, W, 3) what the model saw.
        truth: (K, 2) labelled joints.
        visible: bool (K,), False where a labelled joint is hidden.
        initial: (K, 2) joints predicted by the first stage.
        final: (K, 2) joints predicted by the last stage.
        heatmaps: (K, h, w) of the last stage, covering the whole image.
    """

    image: Image
    truth: NDArray[np.floating]
    visible: NDArray[np.bool_]
    initial: NDArray[np.floating]
    final: NDArray[np.floating]
    heatmaps: NDArray[np.floating]


def draw_skeleton(image: Image, keypoints: ArrayLike, skeleton: Skeleton, *, visible: ArrayLike | None = None) -> Image:
    """Draw joints and the limbs between them over a copy of an image.

    Args:
        image: uint8 (H, W, 3), RGB.
        keypoints: (K, 2); joints that are not finite and limbs that end there are left out.
        skeleton: Whose K joints these are.
        visible: bool (K,); joints that are not visible are drawn hollow. All are visible if absent.

    Returns:
        A new image of the same shape.

    Raises:
        ValueError: An array has the wrong shape or type.
    """
    _check_image(image)
    points = np.asarray(keypoints, dtype=np.float64)
    if points.shape != (skeleton.num_joints, 2):
        raise ValueError(f"keypoints must be ({skeleton.num_joints}, 2) for {skeleton.name}, got {points.shape}")
    filled = np.ones(len(points), bool) if visible is None else np.asarray(visible, dtype=bool)
    if filled.shape != (len(points),):
        raise ValueError(f"visible must be ({len(points)},), got {filled.shape}")

    canvas = np.ascontiguousarray(image).copy()
    drawn = np.isfinite(points.sum(axis=1))
    # Fixed-point coordinates far beyond the image would overflow.
    reach = 10.0 * max(canvas.shape)
    near = np.clip(np.nan_to_num(points), -reach, reach)
    fixed = np.round(near * (1 << _SUBPIXEL_BITS)).astype(int).tolist()
    thickness = max(1, round(max(canvas.shape) / 128))
    radius = (thickness + 1) << _SUBPIXEL_BITS
    sides = skeleton.sides
    for start, end in skeleton.edges:
        if drawn[start] and drawn[end]:
            # A limb between the trunk and one side belongs to that side; one across the trunk to neither.
            lateral = {sides[start], sides[end]} - {"centre"}
            color = SIDE_COLORS[lateral.pop() if len(lateral) == 1 else "centre"]
            cv2.line(canvas, fixed[start], fixed[end], color, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    for joint in np.flatnonzero(drawn):
        color = SIDE_COLORS[sides[joint]]
        width = cv2.FILLED if filled[joint] else 1
        cv2.circle(canvas, fixed[joint], radius, color, width, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def draw_heatmaps(image: Image, heatmaps: ArrayLike, *, columns: int = 4, peak: float | None = None) -> Image:
    """Lay every heatmap over the image and put the pictures side by side, row by row.

    Args:
        image: uint8 (H, W, 3), RGB.
        heatmaps: (K, h, w), each covering the whole image; values that are not finite count as 0.
        columns: Pictures in a row, at least 1.
        peak: The value shown brightest; the greatest of all maps if absent. Zero and less is not coloured.

    Returns:
        uint8 (rows · H, columns · W, 3), black where there is no map left.

    Raises:
        ValueError: An array has the wrong shape or type, or ``columns`` or ``peak`` is not positive.
    """
    _check_image(image)
    maps = np.asarray(heatmaps, dtype=np.float32)
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(f"heatmaps must be (K, h, w), none of them 0, got {maps.shape}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if peak is not None and not peak > 0:
        raise ValueError(f"peak must be positive, got {peak}")
    maps = np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)
    brightest = float(maps.max()) if peak is None else peak
    height, width = image.shape[:2]
    rows = -(-len(maps) // columns)
    montage = np.zeros((rows, height, columns, width, 3), np.uint8)
    for index, heatmap in enumerate(maps):
        strength = np.clip(heatmap / max(brightest, np.finfo(np.float32).tiny), 0.0, 1.0)
        strength = cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)
        colors = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        opacity = _HEATMAP_OPACITY * np.sqrt(strength)[..., None]
        montage[index // columns, :, index % columns] = (1 - opacity) * _HEATMAP_BACKDROP * image + opacity * colors
    return montage.reshape(rows * height, columns * width, 3)


def save_image(image: Image, path: str | Path) -> None:
    """Write an image file of the kind that the name ends in.

    Args:
        image: uint8 (H, W, 3), RGB.
        path: Where to; an existing file is replaced.

    Raises:
        ValueError: The image has the wrong shape or type, or OpenCV writes no files with such a name.
        FileNotFoundError: There is no such folder.
    """
    _check_image(image)
    path = Path(path)
    if not cv2.haveImageWriter(path.name):
        raise ValueError(f"path must end in the name of an image format such as .png or .jpg, got {path.name!r}")
    _, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    write_atomically(path, encoded.tobytes())


def learning_curve(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Write a picture of the loss and of the accuracy per epoch.

    Args:
        history: ``"loss"`` and any number of accuracies in percent under the names that the legend shows,
            each with one number per epoch; NaN where an epoch has none.
        path: A file of a kind that Matplotlib writes; an existing one is replaced.

    Raises:
        ValueError: ``history`` has no loss or its lengths differ, or the kind of file is unknown.
        FileNotFoundError: There is no such folder.
    """
    _check_history(history)
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    _plot_history(figure.add_subplot(), history)
    _save_figure(figure, path)


def threshold_curves(
    curves: Mapping[str, Sequence[float]], thresholds: Sequence[float], path: str | Path, *, title: str = "", unit: str = ""
) -> None:
    """Write a picture of the percentage of correct keypoints over the threshold, for several methods together.

    Args:
        curves: percentages at the thresholds by the name of the method; the legend names them from the best at the last
            threshold down.
        thresholds: in units of a length of the person.
        path: A file of a kind that Matplotlib writes; an existing one is replaced.
        title: Of the picture.
        unit: The length, for the axis.

    Raises:
        ValueError: There are no curves, one has not a value for each threshold, or the kind of file is unknown.
        FileNotFoundError: There is no such folder.
    """
    if not curves:
        raise ValueError("curves must hold at least one method, got none")
    for name, values in curves.items():
        if len(values) != len(thresholds):
            raise ValueError(f"curves must have {len(thresholds)} values, one for each threshold, got {len(values)} for {name}")
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(sorted(curves.items(), key=lambda item: -item[1][-1])):
        # Colours repeat after ten.
        style = ("-", "--", ":", "-.")[number // 10 % 4]
        axes.plot(thresholds, values, linestyle=style, label=f"{name}: {values[-1]:.1f}")
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"threshold ({unit})" if unit else "threshold")
    axes.set_ylabel("correct keypoints (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    _save_figure(figure, path)


def figure_sheet(rows: Sequence[SheetRow], history: Mapping[str, Sequence[float]], skeleton: Skeleton, path: str | Path) -> None:
    """Write a page: for each person truth, predictions of the first and last stage, and heatmaps; the curve.

    Args:
        rows: At least one person.
        history: As for :func:`learning_curve`.
        skeleton: Whose joints these are.
        path: A file of a kind that Matplotlib writes; an existing one is replaced.

    Raises:
        ValueError: There are no rows, an array has the wrong shape, ``history`` is not as described, or the
            kind of file is unknown.
        FileNotFoundError: There is no such folder.
    """
    if not rows:
        raise ValueError("rows must hold at least one person, got none")
    _check_history(history)
    figure = Figure(figsize=(14.0, 3.5 * len(rows) + 3.5), layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, 4)
    for index, row in enumerate(rows):
        _check_image(row.image)
        zoom = -(-_LEAST_PICTURE // max(row.image.shape[:2]))
        image = np.asarray(cv2.resize(row.image, None, fx=zoom, fy=zoom), np.uint8)
        truth, initial, final = (zoom * (np.asarray(points) + 0.5) - 0.5 for points in (row.truth, row.initial, row.final))
        pictures = {
            "truth (hollow: hidden)": draw_skeleton(image, truth, skeleton, visible=row.visible),
            "first stage": draw_skeleton(image, initial, skeleton),
            "last stage": draw_skeleton(image, final, skeleton),
            "heatmaps of the last stage": draw_heatmaps(row.image, row.heatmaps),
        }
        for column, (title, picture) in enumerate(pictures.items()):
            axes = figure.add_subplot(grid[index, column])
            axes.imshow(picture)
            axes.set_axis_off()
            if index == 0:
                axes.set_title(title)
    _plot_history(figure.add_subplot(grid[len(rows), :]), history)
    _save_figure(figure, path)


def stage_sheet(
    images: Sequence[Image],
    truth: Sequence[ArrayLike],
    stages: Mapping[str, Sequence[ArrayLike]],
    skeleton: Skeleton,
    path: str | Path,
) -> None:
    """Write a page that shows the same people after each stage of a model.

    Args:
        images: uint8 (H, W, 3) of each person, at least one.
        truth: (K, 2) labelled joints of each.
        stages: by the stage's name, (K, 2) predicted joints of each person.
        skeleton: Whose joints these are.
        path: A file of a kind that Matplotlib writes; an existing one is replaced.

    Raises:
        ValueError: There are no people, an array has the wrong shape, or the kind of file is unknown.
        FileNotFoundError: There is no such folder.
    """
    if not images:
        raise ValueError("images must hold at least one person, got none")
    columns = {"truth": truth, **stages}
    figure = Figure(figsize=(2.6 * len(columns), 2.75 * len(images)), layout="constrained")
    grid = figure.add_gridspec(len(images), len(columns))
    for column, (title, poses) in enumerate(columns.items()):
        for row, (image, pose) in enumerate(zip(images, poses, strict=True)):
            _check_image(image)
            zoom = -(-_LEAST_PICTURE // max(image.shape[:2]))
            larger = np.asarray(cv2.resize(image, None, fx=zoom, fy=zoom), np.uint8)
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(draw_skeleton(larger, zoom * (np.asarray(pose) + 0.5) - 0.5, skeleton))
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title)
    _save_figure(figure, path)


def _check_image(image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be a uint8 array (H, W, 3), got {got}")
    if 0 in image.shape:
        raise ValueError(f"image must have at least one pixel, got {image.shape}")


def _check_history(history: Mapping[str, Sequence[float]]) -> None:
    if "loss" not in history:
        raise ValueError(f"history must have 'loss', got {sorted(history)}")
    lengths = {name: len(values) for name, values in history.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"history must have one number per epoch under every name, got lengths {lengths}")


def _plot_history(axes: Axes, history: Mapping[str, Sequence[float]]) -> None:
    epochs = range(1, len(history["loss"]) + 1)
    lines = axes.plot(epochs, history["loss"], color="0.4", linestyle="--", label="loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy = axes.twinx()
    accuracy.set_ylabel("accuracy (%)")
    accuracy.set_ylim(0, 100)
    for name, values in history.items():
        if name != "loss":
            lines += accuracy.plot(epochs, values, marker=".", label=name)
    axes.legend(handles=lines, loc="center right")


def _save_figure(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    kind = path.suffix.lower().lstrip(".")
    if kind not in kinds:
        raise ValueError(f"path must end in one of .{', .'.join(sorted(kinds))}, got {path.name!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH)
    write_atomically(path, buffer.getbuffer())
