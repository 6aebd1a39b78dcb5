"""Poses for image files: which files there are, and what is written about each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastpose._files import write_atomically
from fastpose.data.crops import read_image
from fastpose.data.records import Person
from fastpose.plots import Image, draw_skeleton, save_image
from fastpose.prediction import Pose, Predictor
from fastpose.skeletons import Skeleton

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Files of a folder that are taken for images."""

_OVERLAY_SUFFIX = ".overlay.jpg"
_IMAGES_AT_A_TIME = 32

Locate = Callable[[Path, Image], list[Person]]
"""Finds the people to predict in an image, from its file's path and its pixels."""


def list_images(paths: Sequence[Path]) -> list[Path]:
    """Name the image files among files and folders.

    Args:
        paths: files, taken as they are, and folders, whose image files are taken in order of their names, but not the
            pictures that `predict_files` wrote.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if a folder holds no images, or two images have the same name up to the ending, so that
            they would be written to the same files.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if _is_image(file))
            if not found:
                raise ValueError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"no image file or folder {path}")
    repeated = [stem for stem, count in Counter(file.stem for file in files).items() if count > 1]
    if repeated:
        raise ValueError(f"images must differ in their names, but several are called {', '.join(repeated)}")
    return files


def predict_files(
    predictor: Predictor, files: Sequence[Path], locate: Locate, out: Path, *, flip_test: bool = True
) -> Iterator[Exception | None]:
    """Write the poses in image files: ``NAME.json``, see `describe`, and the picture ``NAME.overlay.jpg``.

    Args:
        predictor: what predicts.
        files: images, see `list_images`.
        locate: finds the people in each.
        out: folder to write to, made if it does not exist.
        flip_test: see `Predictor.predict`.

    Yields:
        For each file None when it has been dealt with, or the error if the image could not be read or the people
        could not be located in it; nothing is written for such a file.
    """
    for start in range(0, len(files), _IMAGES_AT_A_TIME):
        located: list[tuple[Path, Image, list[Person]]] = []
        for file in files[start : start + _IMAGES_AT_A_TIME]:
            try:
                image = read_image(file)
                located.append((file, image, locate(file, image)))
            except (ValueError, OSError) as error:
                yield error
        everyone = [person for _, _, people in located for person in people]
        poses = iter(predictor.predict(everyone, flip_test=flip_test))
        for file, image, people in located:
            _write(out, file, image, list(islice(poses, len(people))), predictor.skeleton)
            yield None


def describe(poses: Sequence[Pose], name: str, size: tuple[int, int], skeleton: Skeleton) -> dict[str, Any]:
    """Put the poses in one image into words that JSON has.

    Args:
        poses: of all people in the image.
        name: of the image.
        size: (height, width) of the image in pixels.
        skeleton: names the joints.

    Returns:
        ``image``, ``size`` (height, width), ``skeleton``, and ``persons``, each with its ``center``, ``scale`` and
        ``keypoints``: by joint name ``x`` and ``y`` in image pixels (0-based, pixel i centred at i) and
        ``score``; None where a number is not finite, which JSON cannot say.
    """
    persons = [
        {
            "center": [_number(value) for value in pose.person.center],
            "scale": pose.person.scale,
            "keypoints": {
                joint: {"x": _number(x), "y": _number(y), "score": _number(score)}
                for joint, (x, y), score in zip(skeleton.joints, pose.keypoints, pose.scores, strict=True)
            },
        }
        for pose in poses
    ]
    return {"image": name, "size": list(size), "skeleton": skeleton.name, "persons": persons}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.endswith(_OVERLAY_SUFFIX)


def _write(out: Path, file: Path, image: Image, poses: Sequence[Pose], skeleton: Skeleton) -> None:
    size = (image.shape[0], image.shape[1])
    overlay = image
    for pose in poses:
        overlay = draw_skeleton(overlay, pose.keypoints, skeleton)
    text = json.dumps(describe(poses, file.name, size, skeleton), indent=1, allow_nan=False)
    out.mkdir(parents=True, exist_ok=True)
    save_image(overlay, out / f"{file.stem}{_OVERLAY_SUFFIX}")
    write_atomically(out / f"{file.stem}.json", text.encode())


def _number(value: np.floating) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
