"""The joint orders of the data sets, and what a skeleton refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastpose import skeletons
from fastpose.skeletons import COCO, FLIC, LSP, MPII, SKELETONS, Skeleton, get_skeleton


@pytest.mark.parametrize(("skeleton", "joints"), [(MPII, 16), (LSP, 14), (FLIC, 11), (COCO, 17)])
def test_number_of_joints(skeleton: Skeleton, joints: int) -> None:
    assert skeleton.num_joints == joints == len(skeleton.flip_permutation) == len(skeleton.sides)


@pytest.mark.parametrize(
    ("skeleton", "joint", "index"),
    [
        (MPII, "right_ankle", 0),
        (MPII, "pelvis", 6),
        (MPII, "head_top", 9),
        (MPII, "left_wrist", 15),
        (LSP, "left_ankle", 5),
        (LSP, "right_wrist", 6),
        (LSP, "head_top", 13),
        (FLIC, "left_shoulder", 0),
        (FLIC, "right_hip", 7),
        (FLIC, "nose", 10),
        (COCO, "nose", 0),
        (COCO, "left_shoulder", 5),
        (COCO, "right_ankle", 16),
    ],
)
def test_joints_are_where_the_files_have_them(skeleton: Skeleton, joint: str, index: int) -> None:
    assert skeleton.index(joint) == index


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_the_mirror_swaps_left_and_right_of_the_same_name(skeleton: Skeleton) -> None:
    swapped = {"left": "right", "right": "left"}
    for joint, mirrored in enumerate(skeleton.flip_permutation):
        side, _, rest = skeleton.joints[joint].partition("_")
        expected = f"{swapped[side]}_{rest}" if side in swapped else skeleton.joints[joint]
        assert skeleton.joints[mirrored] == expected
        assert skeleton.sides[joint] == (side if side in swapped else "centre")


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_edges_mirror_onto_edges(skeleton: Skeleton) -> None:
    edges = {frozenset(edge) for edge in skeleton.edges}
    assert len(edges) == len(skeleton.edges)
    unpaired = {edge for edge in edges if frozenset(skeleton.flip_permutation[joint] for joint in edge) not in edges}
    assert not unpaired


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": ()}, "joints"),
        ({"joints": ("a", "b", "a")}, "joints"),
        ({"edges": ((0, 3),)}, "edges .*0..2"),
        ({"edges": ((-1, 1),)}, "edges"),
        ({"edges": ((1, 1),)}, "edges"),
        ({"flip_pairs": ((0, 3),)}, "flip_pairs .*0..2"),
        ({"flip_pairs": ((0, 1), (1, 2))}, "disjoint"),
        ({"flip_pairs": ((0, 1, 2),)}, "flip_pairs"),
    ],
)
def test_wrong_skeletons_are_refused(changes: dict[str, tuple], message: str) -> None:
    arguments = {"name": "three", "joints": ("a", "b", "c"), "edges": ((0, 1),), "flip_pairs": ((1, 2),)}
    with pytest.raises(ValueError, match=message):
        Skeleton(**(arguments | changes))


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    assert get_skeleton("coco") is COCO
    with pytest.raises(ValueError, match=r"mpii, lsp, flic, coco, got 'MPII'"):
        get_skeleton("MPII")
    with pytest.raises(ValueError, match=r"right_ankle.*got 'ankle'"):
        MPII.index("ankle")


def test_the_module_needs_the_standard_library_alone() -> None:
    # -I and -S: neither the packages installed nor this one can be found.
    code = f"import runpy; runpy.run_path({skeletons.__file__!r})"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
