"""Labels to score against: what is common to the files of all benchmarks, and which file is whose."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastpose.metrics import Protocol
from fastpose.score_files import truth_files
from fastpose.score_files.arrays import Arrays, read_arrays, read_json, save_arrays
from fastpose.skeletons import FLIC, Skeleton, get_skeleton


@dataclass(frozen=True, eq=False)
class Truth:
    """Labels of N people.

    Attributes:
        skeleton: whose K joints these are.
        keypoints: (x, y) in float64, (N, K, 2), exactly as published; NaN where a joint has no label.
        base: number of the first pixel, 0 or 1.
        lengths: normalisers (N,) in pixels by the names of `fastpose.metrics.Protocol.normalizer`.

    Raises:
        ValueError: if a shape is not as above.
    """

    skeleton: Skeleton
    keypoints: NDArray[np.float64]
    base: int
    lengths: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        joints = self.skeleton.num_joints
        if self.keypoints.ndim != 3 or self.keypoints.shape[1:] != (joints, 2):
            raise ValueError(f"keypoints must be of shape (N, {joints}, 2) for {self.skeleton.name}, got {self.keypoints.shape}")
        for name, lengths in self.lengths.items():
            if lengths.shape != (len(self),):
                raise ValueError(f"lengths {name!r} must be of shape ({len(self)},), got {lengths.shape}")
        if self.base not in (0, 1):
            raise ValueError(f"base must be 0 or 1, got {self.base}")

    def __len__(self) -> int:
        return len(self.keypoints)

    @classmethod
    def of_people(cls, people: Sequence[Any], skeleton: Skeleton) -> Truth:
        """Take the labels of records.

        Args:
            people: `fastpose.data.Person` records, at least one.
            skeleton: whose joints they have.
        """
        heads = np.array([person.head_size for person in people], np.float64)
        keypoints = np.stack([person.keypoints for person in people]).astype(np.float64)
        lengths = {} if np.isnan(heads).all() else {"head": heads}
        if skeleton == FLIC:  # whose boxes are those of torsos
            sides = np.stack([person.box[2:] for person in people]).astype(np.float64)
            lengths["torso_box"] = np.hypot(*sides.T)
        return cls(skeleton, keypoints, 0, lengths)

    def normalizer(self, protocol: Protocol) -> torch.Tensor | None:
        """The lengths that a protocol needs beside the joints; None if it needs none.

        Raises:
            ValueError: if the protocol is of another skeleton, or these labels have no such lengths.
        """
        if protocol.skeleton != self.skeleton:
            raise ValueError(f"the protocol is for {protocol.skeleton.name}, but the labels are of {self.skeleton.name}")
        if not isinstance(protocol.normalizer, str):
            return None
        if protocol.normalizer not in self.lengths:
            raise ValueError(
                f"the protocol normalises by {protocol.normalizer!r}, but the labels have "
                + (f"only {', '.join(map(repr, self.lengths))}" if self.lengths else "no lengths")
            )
        return torch.from_numpy(np.ascontiguousarray(self.lengths[protocol.normalizer]))


def read_truth(path: str | os.PathLike[str]) -> Truth:
    """Read the labels of a benchmark's people, as they are published.

    - MPII: ``detections_our_format.mat`` (``pos_gt_src``, ``jnt_missing``, ``headboxes_src``; also HRNet's
      ``gt_valid.mat``), ``detections.mat`` (``annolist``), the hourglass authors' ``valid.h5``, and the two JSON forms of
      `fastpose.data.read_mpii`, of which the validation split is taken where the file has it.
    - LSP: ``joints`` (3, 14, 2000), of which the test half is taken.
    - FLIC: ``examples``, of which the test people are taken, or ``joints`` (2, 12, 1016) of human-pose-benchmark.
    - What `save_truth` wrote.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or has none of these forms; the message names what it has.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict) and "annotations" in content:
            raise ValueError(f"{path} has COCO's form; the protocol for it is coco")
        return Truth(*truth_files.read_mpii_json(path))
    arrays = read_arrays(path)
    if "keypoints" in arrays and "skeleton" in arrays:
        return _saved(arrays, path)
    for fields, reader in truth_files.READERS.items():
        if all(name in arrays for name in fields):
            try:
                return Truth(*reader(arrays))
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path} must have {' or '.join(' and '.join(fields) for fields in truth_files.READERS)}, "
        f"but has {', '.join(arrays) or 'no arrays'}"
    )


def save_truth(truth: Truth, path: str | os.PathLike[str]) -> None:
    """Write labels to an .npz file for `read_truth`.

    Raises:
        FileNotFoundError: if its folder does not exist.
    """
    lengths = {f"{_LENGTH}{name}": values for name, values in truth.lengths.items()}
    save_arrays(path, {"keypoints": truth.keypoints, "skeleton": truth.skeleton.name, "base": truth.base, **lengths})


_LENGTH = "length_"


def _saved(arrays: Arrays, path: Path) -> Truth:
    lengths = {name.removeprefix(_LENGTH): values for name, values in arrays.items() if name.startswith(_LENGTH)}
    try:
        return Truth(get_skeleton(str(arrays["skeleton"])), arrays["keypoints"], int(arrays["base"]), lengths)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no labels that fastpose wrote: {error}") from error
