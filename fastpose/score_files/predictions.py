"""Predictions out of published files: which array, which axis is what, which joint is which, where counting starts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose.metrics import Limbs
from fastpose.score_files.arrays import MATLAB_LIKE, UNNAMED, Arrays, read_arrays, save_arrays
from fastpose.score_files.truth import Truth
from fastpose.skeletons import FLIC, LSP, MPII, Skeleton

LAYOUTS = tuple("".join(axes) for axes in itertools.permutations("NKC"))
"""Orders of the axes: N people, K joints, C coordinates."""

_NAMES = ("preds", "pred", "prediction_all", "predictions", "pos_pred_src", "keypoints")
"""Under which published files keep predictions, in case that several arrays would do."""

_SOME_JOINTS: dict[str, tuple[str, ...]] = {
    # evalMPII's matrices have no pelvis and thorax, and LSP's order.
    MPII.name: (*LSP.joints[:12], "upper_neck", "head_top"),
    # The Convolutional Pose Machines predict no eyes.
    FLIC.name: (*FLIC.joints[:8], "nose"),
}
"""Joints of files that lack some of a skeleton's, which are told by their number."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the people of a file of labels.

    Attributes:
        points: float64, joints (N, K, 2) in the order of the skeleton, NaN where a file lacks one; or ends of limbs
            (N, L, 2, 2).
        base: number of the first pixel, 0 or 1.
        notes: what was taken for granted in reading the file, in words.
    """

    points: NDArray[np.float64]
    base: int
    notes: tuple[str, ...] = ()


def read_predictions(
    path: str | os.PathLike[str],
    truth: Truth,
    *,
    limbs: Limbs | None = None,
    variable: str | None = None,
    layout: str | None = None,
    base: int | None = None,
    joints: Sequence[str] | None = None,
) -> Predictions:
    """Read predicted joints, or limbs as two ends each, in the order of the labels' people.

    Args:
        path: file of a kind that `fastpose.score_files.arrays.read_arrays` reads.
        truth: what will be scored against.
        limbs: those that sticks may be of; None: there must be joints.
        variable: name of the array in the file; None: the one that fits.
        layout: order of its axes, such as ``"NKC"``; None: the one that fits. A third coordinate, such as a score, is left
            out.
        base: number of the first pixel, 0 or 1; None: what the file says of itself, or else 1 for MATLAB and HDF5 files and
            0 for others.
        joints: names of the file's joints in its order; None: those of the skeleton, or a known part of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, if no array fits or several do, or an argument is not as above.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if base not in (None, 0, 1):
        raise ValueError(f"base must be 0 or 1, got {base}")
    path = Path(path)
    arrays = read_arrays(path)
    orders = _orders(truth.skeleton, joints)
    sticks = 2 * len(limbs.ends) if limbs else 0
    counts = {*orders, sticks} if sticks else {*orders}
    name, order, array = _find(arrays, path, len(truth), counts, variable, layout)
    notes = [f"{'' if name == UNNAMED else name + ' '}{_shape(arrays[name])} read as {order}"]
    points = array[..., :2].astype(np.float64)
    if points.shape[1] == sticks and sticks not in orders:
        points = points.reshape(len(points), -1, 2, 2)
        notes.append("two ends for each limb")
    else:
        names = orders[points.shape[1]]
        if names != truth.skeleton.joints:
            notes.append(f"joints {', '.join(names)}")
            points = _in_order(points, names, truth.skeleton)
    if base is None:
        base, why = _base(arrays, path)
        notes.append(f"pixels counted from {base} ({why})")
    return Predictions(points, base, tuple(notes))


def save_predictions(
    path: str | os.PathLike[str], points: NDArray[Any], scores: NDArray[Any], skeleton: Skeleton, **others: Any
) -> None:
    """Write predictions to an .npz file for `read_predictions`.

    Args:
        path: the file.
        points: predicted (x, y) in 0-based image pixels, (N, K, 2).
        scores: (N, K).
        skeleton: whose joints these are.
        **others: more arrays to keep, such as whose predictions these are.

    Raises:
        FileNotFoundError: if its folder does not exist.
    """
    save_arrays(path, {"preds": points, "scores": scores, "skeleton": skeleton.name, "base": 0, **others})


def _orders(skeleton: Skeleton, joints: Sequence[str] | None) -> dict[int, tuple[str, ...]]:
    """The joints that a file can have, by their number."""
    if joints is None:
        known = (skeleton.joints, _SOME_JOINTS.get(skeleton.name, skeleton.joints))
        return {len(names): names for names in known}
    if not joints or len(set(joints)) != len(joints):
        raise ValueError(f"joints must be distinct names, got {', '.join(joints)}")
    for joint in joints:
        skeleton.index(joint)
    return {len(joints): tuple(joints)}


def _find(
    arrays: Arrays, path: Path, people: int, counts: set[int], variable: str | None, layout: str | None
) -> tuple[str, str, NDArray[Any]]:
    """The array that holds the predictions: its name, its layout, and it laid out as NKC."""
    numeric = {name: value for name, value in arrays.items() if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"}
    found = ", ".join(f"{name} {_shape(value)}" for name, value in arrays.items()) or "no arrays"
    if variable is not None:
        if variable not in numeric:
            raise ValueError(f"{path} has no array {variable!r} of numbers; it has {found}")
        numeric = {variable: numeric[variable]}
    arrangements = {name: _arrangements(array, people, counts, layout) for name, array in numeric.items()}
    fitting = {name: fits for name, fits in arrangements.items() if fits}
    if len(fitting) > 1:
        known = [name for name in _NAMES if name in fitting]
        if len(known) != 1:
            raise ValueError(f"{path} has several arrays that could be predictions, {', '.join(fitting)}: say which (variable)")
        fitting = {known[0]: fitting[known[0]]}
    if not fitting:
        wanted = f"{people} people, {' or '.join(map(str, sorted(counts)))} joints and 2 or 3 coordinates"
        raise ValueError(f"{path} must have predictions of {wanted}{' as ' + layout if layout else ''}, but has {found}")
    ((name, fits),) = fitting.items()
    if len(fits) > 1:
        raise ValueError(f"{path}: {name} of shape {_shape(numeric[name])} could be {' or '.join(fits)}: say which (layout)")
    ((order, array),) = fits.items()
    return name, order, array


def _arrangements(array: NDArray[Any], people: int, counts: set[int], layout: str | None) -> dict[str, NDArray[Any]]:
    """The layouts that an array can have, with the array laid out as NKC."""
    if array.ndim == 2 and array.shape[0] == people:  # coordinates one after the other
        options = [(joints, size) for joints in counts for size in (2, 3) if joints * size == array.shape[1]]
        return {f"N{joints}x{size}": array.reshape(people, joints, size) for joints, size in options}
    if array.ndim != 3:
        return {}
    fits = {}
    for order in LAYOUTS if layout is None else (layout,):
        laid_out = array.transpose([order.index(axis) for axis in "NKC"])
        if laid_out.shape[0] == people and laid_out.shape[1] in counts and laid_out.shape[2] in (2, 3):
            fits[order] = laid_out
    return fits


def _in_order(points: NDArray[np.float64], names: Sequence[str], skeleton: Skeleton) -> NDArray[np.float64]:
    ordered = np.full((len(points), skeleton.num_joints, 2), np.nan)
    ordered[:, [skeleton.index(name) for name in names]] = points
    return ordered


def _base(arrays: Arrays, path: Path) -> tuple[int, str]:
    stated = np.asarray(arrays.get("base"))
    if stated.size == 1 and stated.item() in (0, 1):
        return int(stated.item()), "it says so"
    kind = path.suffix.lower()
    return (1, f"as {kind} files of this field do") if kind in MATLAB_LIKE else (0, f"as {kind} files do")


def _shape(value: Any) -> str:
    return "x".join(map(str, np.shape(value))) if isinstance(value, np.ndarray) and value.ndim else type(value).__name__
