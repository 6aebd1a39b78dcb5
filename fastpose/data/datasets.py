"""The published data sets by name: what their people are like, and where their files lie under a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from fastpose import _check
from fastpose.data._splits import check_split, of_split
from fastpose.data.coco import read_coco
from fastpose.data.flic import read_flic
from fastpose.data.lsp import read_lsp
from fastpose.data.mpii import read_mpii
from fastpose.data.records import Person
from fastpose.skeletons import COCO, FLIC, LSP, MPII, Skeleton


@dataclass(frozen=True)
class Source:
    """One annotation file of a split.

    Attributes:
        file: the file.
        images: folder of its images.
        split: which of its people; None if all are of the split.
        options: other arguments of the reader.
    """

    file: Path
    images: Path
    split: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoseData:
    """A published data set.

    Attributes:
        name: of the data set.
        skeleton: its joints.
        splits: names of its parts, those to learn from first and those to validate on second.
        crop: how its people are cut out by default, a name in `fastpose.data.crop_settings.CROPS`.
        read: its reader.
        find: the files of a split under a folder; none if they are not there.
        layouts: the files that ``find`` looks for, in words.
    """

    name: str
    skeleton: Skeleton
    splits: tuple[str, ...]
    crop: str
    read: Callable[..., list[Person]]
    find: Callable[[Path, str], list[Source]]
    layouts: str


def read(
    name: str,
    source: str | os.PathLike[str],
    split: str | Sequence[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Person]:
    """Read a data set from one of its annotation files, or from the folder in which all of its files lie.

    Args:
        name: ``"mpii"``, ``"lsp"``, ``"flic"`` or ``"coco"``.
        source: the file, or the folder; ``DATASETS[name].layouts`` says which files are looked for.
        split: which part, see ``DATASETS[name].splits``, or which parts of a folder; None: everyone in the file, or all
            parts that are in the folder.
        images: folder of the images; by default where the layout has it, or the folder ``images`` beside the file.
        **options: of `read_mpii`, `read_lsp`, `read_flic` or `read_coco`.

    Returns:
        One record for each person. The image files are not opened.

    Raises:
        FileNotFoundError: if there is no such file or folder, or the folder does not hold the split.
        ValueError: if a file is damaged or another, or a name is unknown.
    """
    _check.option("name", name, DATASETS)
    data, source = DATASETS[name], Path(source)
    parts = data.splits if split is None else (split,) if isinstance(split, str) else tuple(split)
    for part in parts:
        check_split(part, data.splits)
    if not source.is_dir():
        if split is not None and len(parts) != 1:
            raise ValueError(f"split: got {parts}, allowed for a file is one, {source} is no folder")
        return data.read(source, images, None if split is None else parts[0], **options)
    sources = [(part, found) for part in parts for found in data.find(source, part)]
    missing = set(parts) - {part for part, _ in sources}
    if missing and (split is not None or not sources):
        wanted = f" for {', '.join(map(repr, sorted(missing)))}" if split is not None else ""
        raise FileNotFoundError(f"{source} holds no annotations of {name}{wanted}; it should hold {data.layouts}")
    people: list[Person] = []
    in_files: dict[Path, list[Person]] = {}  # one file may have several parts
    for part, found in sources:
        if found.file not in in_files:
            folder = found.images if images is None else images
            in_files[found.file] = data.read(found.file, folder, **{**found.options, **options})
        chosen = of_split(in_files[found.file], found.split, found.file)
        people += [person if person.split else replace(person, split=part) for person in chosen]
    return people


def _existing(root: Path, folders: Sequence[str], names: Sequence[str]) -> Iterator[Path]:
    """Those files that exist, the first names first."""
    for name, folder in product(names, folders):
        if (root / folder / name).is_file():
            yield root / folder / name


def _images(root: Path, file: Path) -> Path:
    """The folder ``images`` beside a file if there is one, else that of the root."""
    beside = file.parent / "images"
    return beside if beside.is_dir() else root / "images"


_OFFICIAL = ("mpii_human_pose_v1_u12_1.mat",)
_MPII_FOLDERS = ("", "annot", "annotations", "mpii_human_pose_v1_u12_2")
_MPII_FILES = {
    "train": ("mpii_annotations.json", "train.json", "mpii_train.json", "train.h5"),
    "val": ("mpii_annotations.json", "valid.json", "mpii_val.json", "valid.h5"),
    "test": ("test.h5",),
}


_LSP_FOLDERS = ("", "lsp", "lsp_dataset", "lsp_dataset_original")
_LSPET_FOLDERS = ("lspet", "lspet_dataset", "hr-lspet")


def _find_mpii(root: Path, split: str) -> list[Source]:
    held_out = next(_existing(root, _MPII_FOLDERS, ("detections.mat", "valid.h5")), None)
    for file in _existing(root, _MPII_FOLDERS, _OFFICIAL):
        if held_out is not None or split == "test":
            return [Source(file, _images(root, file), split, {"validation": held_out})]
    for file in _existing(root, _MPII_FOLDERS, _MPII_FILES[split]):
        return [Source(file, _images(root, file), split if file.name == "mpii_annotations.json" else None)]
    return []


def _find_lsp(root: Path, split: str) -> list[Source]:
    names = ("joints.mat",)
    own = [Source(file, _images(root, file), split) for file in _existing(root, _LSP_FOLDERS, names)]
    extended = [Source(file, _images(root, file)) for file in _existing(root, _LSPET_FOLDERS, names)]
    return own[:1] + (extended[:1] if split == "train" else [])


def _find_flic(root: Path, split: str) -> list[Source]:
    folders = ("", "flic", "FLIC", "annot")
    for file in _existing(root, folders, ("examples.mat",)):
        return [Source(file, _images(root, file), split)]
    for file in _existing(root, folders, ({"train": "train.h5", "test": "valid.h5"}[split],)):
        return [Source(file, _images(root, file))]
    return []


def _find_coco(root: Path, split: str) -> list[Source]:
    for year, folder in product((2017, 2014), ("annotations", "")):
        file = root / folder / f"person_keypoints_{split}{year}.json"
        if file.is_file():
            within = root / "images" / f"{split}{year}"
            return [Source(file, within if within.is_dir() else root / f"{split}{year}")]
    return []


DATASETS: dict[str, PoseData] = {
    data.name: data
    for data in (
        PoseData(
            "mpii",
            MPII,
            ("train", "val", "test"),
            "mpii",
            read_mpii,
            _find_mpii,
            f"images/ and, beside it or in {', '.join(_MPII_FOLDERS[1:])}: {_OFFICIAL[0]} with detections.mat or valid.h5, "
            "which say who is to validate on; or mpii_annotations.json; or train.json and valid.json; or mpii_train.json and "
            "mpii_val.json; or train.h5, valid.h5 and test.h5",
        ),
        PoseData(
            "lsp",
            LSP,
            ("train", "test"),
            "lsp",
            read_lsp,
            _find_lsp,
            "joints.mat and images/, here or in lsp, lsp_dataset or lsp_dataset_original; and those of LSP-extended in lspet, "
            "lspet_dataset or hr-lspet",
        ),
        PoseData(
            "flic",
            FLIC,
            ("train", "test"),
            "flic",
            read_flic,
            _find_flic,
            "examples.mat and images/, here or in flic or FLIC; or annot/train.h5 and annot/valid.h5",
        ),
        PoseData(
            "coco",
            COCO,
            ("train", "val"),
            "coco",
            read_coco,
            _find_coco,
            "annotations/person_keypoints_train2017.json and _val2017.json (or 2014) and the folders train2017 and val2017, "
            "here or in images",
        ),
    )
}
"""The data sets by name."""
