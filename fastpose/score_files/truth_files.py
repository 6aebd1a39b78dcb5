"""The labels that benchmarks score against, out of the arrays of their files: nothing is shifted, nothing rounded.

These readers take what scoring needs and no more: no images, no boxes to crop by, no training people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose.skeletons import FLIC, LSP, MPII, Skeleton

Labels = tuple[Skeleton, NDArray[np.float64], int, dict[str, NDArray[np.float64]]]
"""Skeleton, keypoints (N, K, 2), number of the first pixel, lengths (N,) by name."""

_HEAD_SIZE = 0.6  # of the diagonal of the head box
_MPII_NAMES = "rank, rkne, rhip, lhip, lkne, lank, pelv, thor, neck, head, rwri, relb, rsho, lsho, lelb, lwri"
_LSP_IMAGES, _LSP_TRAINING = 2000, 1000
_FLIC_COLUMNS = (0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16)  # of the 29 joints those that are labelled


def read_mpii_json(path: Path) -> Labels:
    """MPII in the JSON of HRNet or pytorch-pose, 0-based."""
    from fastpose.data.mpii import read_mpii

    split = "val" if '"isValidation"' in path.read_text(encoding="utf-8") else None
    people = read_mpii(path, split=split)
    keypoints = np.stack([person.keypoints for person in people]).astype(np.float64)
    return MPII, keypoints, 0, {"head": np.array([person.head_size for person in people])}


def _read_mpii_matrices(arrays: Mapping[str, Any]) -> Labels:
    """``detections_our_format.mat`` of Tompson et al. and pytorch-pose."""
    people = arrays["pos_gt_src"].shape[-1]
    _expect(arrays, pos_gt_src=(16, 2, people), jnt_missing=(16, people), headboxes_src=(2, 2, people))
    if "dataset_joints" in arrays:
        names = ", ".join(arrays["dataset_joints"])
        if names != _MPII_NAMES:
            raise ValueError(f"dataset_joints must be {_MPII_NAMES}, got {names}")
    keypoints = arrays["pos_gt_src"].transpose(2, 0, 1).astype(np.float64)
    keypoints[arrays["jnt_missing"].T != 0] = np.nan
    corners = arrays["headboxes_src"].astype(np.float64)
    return MPII, keypoints, 1, {"head": _HEAD_SIZE * np.linalg.norm(corners[1] - corners[0], axis=0)}


def _read_mpii_annolist(arrays: Mapping[str, Any]) -> Labels:
    """``detections.mat``: MPII's own structs, one person for each image."""
    images = arrays["annolist"]
    keypoints = np.full((len(images), MPII.num_joints, 2), np.nan)
    heads = np.empty(len(images))
    for number, image in enumerate(images):
        people = image["annorect"]
        if len(people) != 1:
            raise ValueError(f"annolist({number + 1}) must have one person, got {len(people)}")
        person = people[0]
        heads[number] = _HEAD_SIZE * np.hypot(person["x2"] - person["x1"], person["y2"] - person["y1"])
        # Who has no joints has an empty array in place of the struct.
        for point in person["annopoints"][0]["point"] if len(person["annopoints"]) else ():
            if point["id"] not in range(MPII.num_joints):
                raise ValueError(f"annolist({number + 1}) must have points with ids 0 to 15, got {point['id']}")
            keypoints[number, int(point["id"])] = point["x"], point["y"]
    return MPII, keypoints, 1, {"head": heads}


def _read_mpii_hdf5(arrays: Mapping[str, Any]) -> Labels:
    """``valid.h5`` of Newell et al.: coordinates without their fractions, 0 where there is no label."""
    people = len(arrays["part"])
    _expect(arrays, part=(people, 16, 2), normalize=(people,))
    keypoints = arrays["part"].astype(np.float64)
    keypoints[(keypoints == 0).all(axis=2)] = np.nan
    return MPII, keypoints, 1, {"head": arrays["normalize"].astype(np.float64)}


def _read_joints(arrays: Mapping[str, Any]) -> Labels:
    """LSP's joints, or FLIC's with the size of the torso's box in a last column."""
    joints = arrays["joints"]
    if joints.ndim == 3 and joints.shape[:2] == (2, 12):
        size = joints[:, 11].astype(np.float64)
        return FLIC, joints[:, :11].transpose(2, 1, 0).astype(np.float64), 1, {"torso_box": np.hypot(*size)}
    if joints.ndim == 3 and joints.shape[:2] == (3, 14):
        # A third row of 1 says that the joint is occluded; it counts all the same.
        tested = joints[:2, :, _LSP_TRAINING:] if joints.shape[2] == _LSP_IMAGES else joints[:2]
        return LSP, tested.transpose(2, 1, 0).astype(np.float64), 1, {}
    raise ValueError(f"joints must be LSP's (3, 14, N) or FLIC's (2, 12, N), got {joints.shape}")


def _read_flic_examples(arrays: Mapping[str, Any]) -> Labels:
    """FLIC's own ``examples``."""
    tested = [example for example in arrays["examples"] if example["istest"]]
    if not tested:
        raise ValueError("examples must have some with istest, got none")
    for number, example in enumerate(tested):
        shapes = np.shape(example["coords"]), np.size(example["torsobox"])
        if shapes != ((2, 29), 4):
            raise ValueError(f"test example {number + 1} must have coords (2, 29) and a torsobox of 4, got {shapes}")
    keypoints = np.stack([example["coords"][:, _FLIC_COLUMNS].T for example in tested]).astype(np.float64)
    boxes = np.stack([example["torsobox"].ravel() for example in tested]).astype(np.float64)
    return FLIC, keypoints, 1, {"torso_box": np.hypot(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])}


def _expect(arrays: Mapping[str, Any], **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        if np.shape(arrays[name]) != shape:
            raise ValueError(f"{name} must be of shape {shape}, got {np.shape(arrays[name])}")


READERS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Labels]] = {
    ("pos_gt_src", "jnt_missing", "headboxes_src"): _read_mpii_matrices,
    ("annolist",): _read_mpii_annolist,
    ("part", "normalize"): _read_mpii_hdf5,
    ("examples",): _read_flic_examples,
    ("joints",): _read_joints,
}
"""By the arrays that a file has what reads it."""
