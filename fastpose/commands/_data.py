"""The options by which commands find labelled people."""

from __future__ import annotations

from enum import Enum
from pathlib import Path


class Data(str, Enum):
    """Figures drawn on the fly, or a published data set."""

    figures = "figures"
    mpii = "mpii"
    lsp = "lsp"
    flic = "flic"
    coco = "coco"


def source_of(data: Data, root: Path | None, annotations: Path | None) -> Path:
    """The folder or the file that a published data set is read from.

    Raises:
        ValueError: neither or both are given.
        FileNotFoundError: there is no such folder.
    """
    if (root is None) == (annotations is None):
        raise ValueError(f"--data {data.value} needs --root FOLDER or --annotations FILE")
    if annotations is not None:
        return annotations
    if root is None or not root.is_dir():
        raise FileNotFoundError(f"--root: no folder {root}")
    return root


def refuse_with_figures(**options: object) -> None:
    """Options of published data sets that are given for figures.

    Raises:
        ValueError: one of them is not None.
    """
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: for published data sets, not for figures")
