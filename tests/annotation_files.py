"""Small annotation files in the published formats, with the irregularities that the real ones have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import savemat

from fastpose.skeletons import COCO

JOINTS = [[float(10 * joint + 1), float(5 * joint + 2)] for joint in range(16)]
"""Of MPII's JSON files, from 1."""
MPII_JOINTS = np.array([[10.0 * joint + 1.25, 5.0 * joint + 2] for joint in range(16)])
"""Of its MATLAB file, likewise."""


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


def structs(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A struct array in one row, as SciPy writes it."""
    array = np.zeros((1, len(rows)), [(name, "O") for name in rows[0]] if rows else [])
    for number, row in enumerate(rows):
        array[0, number] = tuple(row.values())
    return array


EMPTY = np.zeros((0, 0))


def mpii_point(joint: int, **changes: Any) -> dict[str, Any]:
    x, y = MPII_JOINTS[joint]
    return {"x": x, "y": y, "id": np.uint8(joint), "is_visible": np.uint8(1), **changes}


def mpii_rect(points: Sequence[Mapping[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    if points is None:
        points = [mpii_point(joint) for joint in range(16)]
    fields = {
        "x1": np.uint16(100),
        "y1": np.uint16(50),
        "x2": np.uint16(130),
        "y2": np.uint16(90),
        "annopoints": structs([{"point": structs(points)}]),
        "scale": 50 / 24,
        "objpos": structs([{"x": np.uint16(101), "y": 51.0}]),
    }
    return {**fields, **changes}


def mpii_release(images: Sequence[tuple[str, Sequence[Mapping[str, Any]] | None, int]]) -> dict[str, Any]:
    """The official file's variable, from each image's name, people (None: no struct) and whether it is for training."""
    annolist = [
        {"image": structs([{"name": name}]), "annorect": EMPTY if rects is None else structs(rects)} for name, rects, _ in images
    ]
    in_training = np.array([[training for *_, training in images]], np.uint8)
    return {"RELEASE": structs([{"annolist": structs(annolist), "img_train": in_training, "version": "12"}])}


def write_mat(path: Path, variables: Mapping[str, Any], compressed: bool = True) -> Path:
    savemat(path, dict(variables), do_compression=compressed, long_field_names=True)
    return path


def write_mat_hdf5(path: Path, variables: Mapping[str, Any]) -> Path:
    """Write level 7.3 as MATLAB does: HDF5 behind a header, with references to the elements of structs and cells."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = file.create_group("#refs#")

        def put(parent: h5py.Group, name: str, value: Any) -> None:
            array = np.asarray(value)
            if array.size == 0 or (isinstance(value, str) and not value):
                item = parent.create_dataset(name, data=np.array(array.shape, np.uint64))
                item.attrs["MATLAB_empty"] = np.uint8(1)
                kind = "char" if isinstance(value, str) else "double"
            elif isinstance(value, str):
                item = parent.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
                kind = "char"
            elif array.dtype.names and array.size == 1:
                item = parent.create_group(name)
                for field in array.dtype.names:
                    put(item, field, array.ravel()[0][field])
                kind = "struct"
            elif array.dtype.names:
                item = parent.create_group(name)
                for field in array.dtype.names:
                    item.create_dataset(field, data=refer([element[field] for element in array.ravel(order="F")]))
                kind = "struct"
            elif array.dtype == object:
                item = parent.create_dataset(name, data=refer(array.ravel(order="F").tolist()))
                kind = "cell"
            else:
                item = parent.create_dataset(name, data=np.atleast_2d(array).T)
                kind = {"f": "double", "u": "uint8"}.get(array.dtype.kind, "int32")
            item.attrs["MATLAB_class"] = np.bytes_(kind)

        def refer(values: Sequence[Any]) -> np.ndarray:
            targets = np.empty((len(values), 1), h5py.ref_dtype)
            for number, value in enumerate(values):
                name = f"r{len(references)}"
                put(references, name, value)
                targets[number, 0] = references[name].ref
            return targets

        for name, value in variables.items():
            put(file, name, value)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def write_mpii_h5(path: Path, people: int = 3, skeleton_joints: int = 16, **changes: Any) -> Path:
    """The hourglass code's form; what is None is left out."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "part": np.trunc(rng.uniform(20, 400, (people, skeleton_joints, 2))),
        "visible": np.ones((people, skeleton_joints)),
        "center": np.tile([101.0, 51.0 + 30.0], (people, 1)),
        "scale": np.full(people, 2.5),
        "normalize": np.full(people, 50.0),
        "imgname": np.array([f"{number // 2:05}.jpg".encode() for number in range(people)]),
        "index": np.arange(people) // 2 * 1.0,
        "person": np.arange(people) % 2 * 1.0,
    }
    with h5py.File(path, "w") as file:
        for name, value in {**columns, **changes}.items():
            if value is not None:
                file[name] = value
    return path


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def lsp_joints(images: int = 3) -> np.ndarray:
    """LSP's array, with joint 4 of the image in the middle hidden."""
    joints = np.random.default_rng(0).uniform(5, 150, (3, 14, images))
    joints[2] = 0
    joints[2, 4, images // 2] = 1
    return joints


def lspet_joints(images: int = 3) -> np.ndarray:
    """The extended set's array, with joint 4 of image 1 not labelled."""
    joints = np.random.default_rng(1).uniform(5, 150, (14, 3, images))
    joints[:, 2] = 1
    joints[4, :, 1] = (-26.0, -3.5, 0.0)
    return joints


def flic_example(behind: bool = False, **changes: Any) -> dict[str, Any]:
    """One of FLIC's structs; the left side is right of the right one unless the person is seen from behind."""
    coordinates = np.full((2, 29), np.nan)
    right = [(300, 200), (310, 280), (330, 340), (240, 201), (220, 281), (215, 341), (290, 360)]
    coordinates[:, :7] = np.array(right, float).T
    coordinates[:, [9, 12, 13, 16]] = np.array([(250.0, 361.0), (280.5, 150.0), (265.0, 151.0), (272.0, 165.0)]).T
    if behind:
        coordinates[0] = 540 - coordinates[0]
    fields = {
        "poselet_hit_idx": np.array([[48], [148]], np.uint16),
        "moviename": "a-movie",
        "coords": coordinates,
        "filepath": "a-movie-0001.jpg",
        "imgdims": np.array([[480, 720, 3]], np.uint16),
        "currframe": np.int32(6361),
        "torsobox": np.array([[220.5, 190.0, 320.5, 370.0]], np.float32),
        "istrain": np.uint8(1),
        "istest": np.uint8(0),
    }
    return {**fields, **changes}


def coco_annotation(identifier: int = 7, **changes: Any) -> dict[str, Any]:
    keypoints = [[20 + 3 * joint, 30 + 5 * joint, 2] for joint in range(17)]
    keypoints[3] = [0, 0, 0]
    keypoints[5][2] = 1
    fields = {
        "id": identifier,
        "image_id": 42,
        "category_id": 1,
        "iscrowd": 0,
        "area": 2000.5,
        "bbox": [15.0, 25.5, 60.0, 100.0],
        "num_keypoints": 16,
        "keypoints": [number for joint in keypoints for number in joint],
    }
    return {**fields, **changes}


def coco_file(annotations: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "images": [{"id": 42, "file_name": "000000000042.jpg", "width": 640, "height": 480}],
        "annotations": [coco_annotation()] if annotations is None else list(annotations),
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.joints)}],
    }
