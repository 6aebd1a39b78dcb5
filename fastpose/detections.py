"""Boxes of people in images or frames, from files in the form of COCO's detections."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Box = tuple[float, float, float, float]
"""(x, y, width, height) in image pixels."""

PERSON = 1
"""COCO's category of people."""


class Detections:
    """Boxes by image.

    Args:
        boxes: by the number or name of the image, as text.
        names: the number of the image of each file name, as text, where the file gives them.
    """

    def __init__(self, boxes: dict[str, list[Box]], names: dict[str, str]) -> None:
        self.boxes = boxes
        self.names = names

    def of_file(self, file: Path) -> list[Box]:
        """The boxes in an image, whose number is that of its name in the file, or else its name read as a number."""
        if file.name in self.names:
            return self.boxes.get(self.names[file.name], [])
        stem = str(int(file.stem)) if file.stem.isascii() and file.stem.isdigit() else file.stem
        return self.boxes.get(stem, self.boxes.get(file.name, []))

    def of_frame(self, number: int) -> list[Box]:
        """The boxes in a frame of a video, whose image is its number, from 0."""
        return self.boxes.get(str(number), [])

    def check_knows(self, files: Sequence[Path]) -> None:
        """Complain if there is not one box in any of the files.

        Raises:
            ValueError: if there is none.
        """
        if files and not any(self.of_file(file) for file in files):
            raise ValueError(
                f"boxes: none is in {', '.join(file.name for file in files[:8])}{' ...' if len(files) > 8 else ''}; "
                f"the images are called {', '.join(list(self.names or self.boxes)[:8]) or 'nothing'}"
            )


def read_detections(path: Path, least_score: float = 0.0) -> Detections:
    """Read boxes of people.

    The file is a list of detections with ``image_id``, ``bbox`` (x, y, width, height), and perhaps ``score`` and
    ``category_id``; or an object with such a list in ``annotations`` and perhaps the files in ``images``, by ``id`` and
    ``file_name``. What is not of category 1 is left out.

    Args:
        path: the JSON file.
        least_score: what a detection with a score must reach.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not have this form; the message names the entry and the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a complete JSON file: {error}") from error
    images: Any = []
    if isinstance(content, dict):
        images, content = content.get("images", []), content.get("annotations")
    if not isinstance(content, list) or not isinstance(images, list):
        raise ValueError(f"{path} must hold a list of detections, or an object with a list 'annotations'")
    names = {
        Path(image["file_name"]).name: str(image["id"])
        for image in images
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and "id" in image
    }
    boxes: dict[str, list[Box]] = {}
    for number, entry in enumerate(content):
        where = f"{path}: detection {number}"
        if not isinstance(entry, dict) or "image_id" not in entry:
            raise ValueError(f"{where} must be an object with image_id and bbox, got {entry!r:.80}")
        box = _box(entry.get("bbox"), where)
        score = entry.get("score", math.inf)
        if not isinstance(score, (int, float)):
            raise ValueError(f"{where}: score must be a number, got {score!r:.80}")
        if entry.get("category_id", PERSON) == PERSON and score >= least_score:
            boxes.setdefault(str(entry["image_id"]), []).append(box)
    return Detections(boxes, names)


def _box(value: Any, where: str) -> Box:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(number, (int, float)) for number in value)
    if not numbers or not all(map(math.isfinite, value)):
        raise ValueError(f"{where}: bbox must be four finite numbers x, y, width, height, got {value!r:.80}")
    x, y, width, height = map(float, value)
    return x, y, width, height
