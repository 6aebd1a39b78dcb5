"""Readers against truncated and altered files: a clear error or records that are possible; never anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from annotation_files import (
    coco_annotation,
    coco_file,
    flic_example,
    hrnet_entry,
    lsp_joints,
    lspet_joints,
    mpii_rect,
    mpii_release,
    pytorch_pose_entry,
    structs,
    write_json,
    write_mat,
    write_mat_hdf5,
    write_mpii_h5,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpose.data import Person, read_coco, read_flic, read_lsp, read_mpii
from fastpose.data._fields import LARGEST_COORDINATE, DataError

RELEASE = [("a.jpg", [mpii_rect(), mpii_rect()], 1), ("b.jpg", None, 1), ("c.jpg", [mpii_rect()], 0)]
FLIC_VARIABLES = {"examples": structs([flic_example(), flic_example(True)])}


class Form(NamedTuple):
    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], list[Person]]


def plain(path: Path, variables: dict[str, Any]) -> Path:
    return write_mat(path, variables, compressed=False)


FORMS = [
    Form("mpii.mat", lambda path: write_mat(path, mpii_release(RELEASE)), read_mpii),
    Form("mpii_plain.mat", lambda path: plain(path, mpii_release(RELEASE)), read_mpii),
    Form("mpii_73.mat", lambda path: write_mat_hdf5(path, mpii_release(RELEASE[:1])), read_mpii),
    Form("mpii.h5", write_mpii_h5, read_mpii),
    Form("hrnet.json", lambda path: write_json(path, [hrnet_entry()] * 2), read_mpii),
    Form("pytorch_pose.json", lambda path: write_json(path, [pytorch_pose_entry()] * 2), read_mpii),
    Form("lsp.mat", lambda path: plain(path, {"joints": lsp_joints()}), read_lsp),
    Form("lspet.mat", lambda path: write_mat(path, {"joints": lspet_joints()}), read_lsp),
    Form("lsp_73.mat", lambda path: write_mat_hdf5(path, {"joints": lsp_joints()}), read_lsp),
    Form("flic.mat", lambda path: plain(path, FLIC_VARIABLES), read_flic),
    Form("flic_73.mat", lambda path: write_mat_hdf5(path, FLIC_VARIABLES), read_flic),
    Form("flic.h5", lambda path: write_mpii_h5(path, skeleton_joints=11), read_flic),
    Form("coco.json", lambda path: write_json(path, coco_file([coco_annotation(1), coco_annotation(2)])), read_coco),
]


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A way to damage a file: cut it off, or change, drop, repeat or insert bytes at a few places."""
    places = st.floats(0, 1, exclude_max=True)
    if draw(st.integers(0, 4)) == 0:
        share = draw(places)
        return lambda content: content[: int(share * len(content))]
    tokens = st.sampled_from([b"\0", b"\xff", b"\x7f", b"1", b"9", b"-", b"{", b"[", b'"', b",", b"e", b"null", b"NaN", b"1e999"])
    byte = st.one_of(tokens, st.binary(min_size=1, max_size=4))
    kinds = st.sampled_from(["replace", "replace", "replace", "insert", "drop", "repeat"])
    changes = draw(st.lists(st.tuples(kinds, places, byte, st.integers(1, 64)), min_size=1, max_size=6))

    def apply(content: bytes) -> bytes:
        for kind, share, new, length in changes:
            at = int(share * len(content))
            if kind == "replace":
                content = content[:at] + new + content[at + len(new) :]
            elif kind == "insert":
                content = content[:at] + new + content[at:]
            elif kind == "drop":
                content = content[:at] + content[at + length :]
            else:
                content = content[: at + length] + content[at:]
        return content

    return apply


def check_possible(people: list[Person]) -> None:
    for person in people:
        assert isinstance(person.image, Path)
        assert person.image_id != ""
        numbers = np.concatenate([person.keypoints.ravel(), person.center, person.box, [person.scale]])
        assert not np.isinf(numbers).any()
        assert np.nanmax(np.abs(numbers)) <= 16 * LARGEST_COORDINATE + 16
        assert str(person.image).isprintable()
        assert not (person.visible & ~person.labelled).any()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_damage_is_an_error_or_possible_records(form: Form, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = form.write(tmp_path / form.name)
    check_possible(form.read(path))
    content = path.read_bytes()
    messages: list[str] = []

    @settings(max_examples=request.config.getoption("damaged_files"))
    @given(damage())
    def attempt(change: Callable[[bytes], bytes]) -> None:
        path.write_bytes(change(content))
        try:
            people = form.read(path)
        except (DataError, FileNotFoundError) as error:
            messages.append(str(error))
        else:
            check_possible(people)

    attempt()
    assert messages
    assert all(form.name in message for message in messages)
