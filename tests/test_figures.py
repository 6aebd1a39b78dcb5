"""The drawn people: the same for everyone, labelled exactly, and plausible."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fastpose.data import figures
from fastpose.data.anatomy import PARTS
from fastpose.data.body import Body, Build, make_body, sample_build
from fastpose.data.figures import Figure, Figures, paint_people
from fastpose.data.paint import outline_solids, paint_solids
from fastpose.data.poses import Pose, sample_pose
from fastpose.data.records import Person
from fastpose.skeletons import MPII

LIGHT = np.array([0.3, -0.5])
GREY = 128


def assert_same(one: Person, other: Person) -> None:
    for attribute in ("image", "keypoints", "visible", "center"):
        np.testing.assert_array_equal(getattr(one, attribute), getattr(other, attribute))
    assert (one.scale, one.head_size, one.image_id) == (other.scale, other.head_size, other.image_id)


def no_collation(batch: list[Person]) -> list[Person]:
    return batch


def is_whole(person: Person) -> bool:
    """Whether all of the figure is in the picture: all joints, and no pixel of it on the rim."""
    rim = np.concatenate([person.image[[0, -1]].reshape(-1, 3), person.image[:, [0, -1]].reshape(-1, 3)])
    return bool(np.isfinite(person.keypoints).all() and (rim == GREY).all())


def joint(body: Body, name: str) -> NDArray[np.float64]:
    return body.joints[MPII.index(name)]


def hidden_joints(people: Sequence[Body], nearness: Sequence[float]) -> set[str]:
    """Paint bodies with their pelvises in the middle of a picture; the names of the first one's hidden joints."""
    image = np.zeros((256, 256, 3), np.uint8)
    drawn = [Figure(body, np.array([128.0, 120.0]), 30.0, near) for body, near in zip(people, nearness, strict=True)]
    hidden = paint_people(np.random.default_rng(0), image, drawn, LIGHT)
    return {name for name, is_hidden in zip(MPII.joints, hidden, strict=True) if is_hidden}


# --- The same for everyone ---------------------------------------------------------------------------------------


def test_a_figure_depends_on_seed_and_index_alone() -> None:
    some = Figures(20, seed=3, size=(96, 96))
    more = Figures(1_000_000_000, seed=3, size=(96, 96))
    expected = some[7]
    for _ in range(3):
        some[11]
    assert_same(some[7], expected)
    assert_same(more[7], expected)
    assert_same(pickle.loads(pickle.dumps(some))[7], expected)


def test_workers_draw_what_the_main_process_draws() -> None:
    data = Figures(12, seed=1, size=(64, 64))
    loader = DataLoader(data, batch_size=3, num_workers=2, collate_fn=no_collation)  # type: ignore[arg-type]
    drawn = [person for batch in loader for person in batch]
    assert len(drawn) == 12
    for index, person in enumerate(drawn):
        assert_same(person, data[index])


def test_seeds_and_indices_give_different_figures() -> None:
    keypoints = [Figures(4, seed=seed, size=(64, 64))[index].keypoints for seed in (0, 1) for index in range(4)]
    assert len({points.tobytes() for points in keypoints}) == 8


def test_a_sequence_of_its_length() -> None:
    data = Figures(3, size=(32, 32))
    assert len(list(data)) == len(data) == 3
    assert_same(data[-1], data[2])
    assert [person.image_id for person in data[1:]] == [1, 2]
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"size": (31, 64)}, "size must be .*32.*got"),
        ({"size": (64,)}, "size"),
        ({"max_people": 0}, "max_people must be 1 to 3, got 0"),
        ({"max_people": 4}, "max_people"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Figures(**arguments)


# --- Labels ------------------------------------------------------------------------------------------------------


def test_labels_of_many_figures_are_sane() -> None:
    height, width = 100, 140
    people = Figures(150, size=(height, width))[:]
    assert all(person.image.shape == (height, width, 3) for person in people)
    points = np.stack([person.keypoints for person in people])
    visible = np.stack([person.visible for person in people])
    labelled = np.isfinite(points).all(axis=2)
    assert not (visible & ~labelled).any()
    inside = points[labelled]
    assert (inside >= -0.5).all()
    assert (inside < (width - 0.5, height - 0.5)).all()
    # Most joints are in the picture but not all, and most of those are seen but not all.
    assert 0.9 < labelled.mean() < 1.0
    assert 0.8 < visible[labelled].mean() < 0.98
    # MPII has the left shoulder at the right of the right one in 72 % of its people.
    shoulders = points[:, MPII.index("left_shoulder"), 0] - points[:, MPII.index("right_shoulder"), 0]
    assert 0.55 < (shoulders > 0).mean() < 0.85


def test_scale_and_head_size_are_those_of_mpii() -> None:
    for person in Figures(20, seed=2, size=(64, 64)):
        # 200 · scale = 4.8 diagonals and head size = 0.6 diagonals.
        assert person.head_size == pytest.approx(25.0 * person.scale)
        middle = (np.nanmin(person.keypoints, axis=0) + np.nanmax(person.keypoints, axis=0)) / 2
        np.testing.assert_allclose(person.center, middle - (0, 6 * person.scale), rtol=1e-5)


def test_the_head_of_an_upright_body_fits_its_box_like_those_of_mpii() -> None:
    body = make_body(Pose({}), Build())
    length = np.linalg.norm(joint(body, "head_top") - joint(body, "upper_neck"))
    # Medians over MPII's validation set: 0.7995 and 0.769.
    assert length / np.hypot(*body.head_box) == pytest.approx(0.7995, abs=0.01)
    assert body.head_box[0] / body.head_box[1] == pytest.approx(0.769, abs=0.01)


# --- Exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [(20.0, 30.0), (20.3, 29.6), (20.5, 30.5), (19.9, 30.1)])
@pytest.mark.parametrize("radius", [3.0, 8.0])
def test_a_ball_is_painted_where_it_is_and_as_large(center: tuple[float, float], radius: float) -> None:
    image, labels = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), -1, np.int16)
    axes = np.broadcast_to(radius * np.eye(2, 3), (1, 2, 2, 3))
    outlines = outline_solids(np.full((1, 2, 2), center), axes, np.array([1e-9, 0.0]))
    # Bright enough for every band to be white.
    paint_solids(image, outlines, np.full((1, 3), 1000.0), labels)
    weight = image[..., 0] / 255.0
    y, x = np.mgrid[:64, :64]
    centroid = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    np.testing.assert_allclose(centroid, center, atol=0.06)
    assert np.sqrt(weight.sum() / np.pi) == pytest.approx(radius, abs=0.15)
    assert labels[30, 20] == 0


@pytest.mark.parametrize(
    ("start", "end"),
    [("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist")],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_limbs_end_at_their_joints(side: str, start: str, end: str) -> None:
    names = (f"{side}_{start}", f"{side}_{end}")
    part = next(index for index, part in enumerate(PARTS) if part.joints == names)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        body = make_body(sample_pose(rng), sample_build(rng))
        figure = Figure(body, np.array([128.4, 127.7]), 20.0, 0.0)
        (own,) = np.flatnonzero(body.parts == part)
        image, labels = np.zeros((256, 256, 3), np.uint8), np.full((256, 256), -1, np.int16)
        outlines = outline_solids(figure.balls[[own]], figure.axes[[own]], LIGHT)
        paint_solids(image, outlines, np.full((1, 3), 1000.0), labels)
        y, x = np.nonzero(image[..., 0] > 127)
        joints = figure.joints[[MPII.index(name) for name in names]]
        along = (joints[1] - joints[0]) / np.linalg.norm(joints[1] - joints[0])
        reach = np.stack([x, y], axis=1) @ along
        # The limb is a hull of two spheres around the joints: it ends one radius beyond each.
        radii = np.linalg.norm(figure.axes[own, :, 0], axis=1)
        assert reach.min() == pytest.approx(min(joints @ along - radii), abs=1.0)
        assert reach.max() == pytest.approx(max(joints @ along + radii), abs=1.0)


def test_an_upright_figure_is_drawn_around_its_keypoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "sample_pose", lambda rng: Pose({}))
    # Some are too large for the picture; it must not be all.
    people = [person for person in Figures(12, size=(200, 200), clutter=False, max_people=1) if is_whole(person)]
    assert len(people) > 5
    for person in people:
        y, x = np.nonzero((person.image != GREY).any(axis=2))
        names = ("pelvis", "head_top", "left_ankle", "left_shoulder")
        pelvis, head_top, ankle, shoulder = (person.keypoints[MPII.index(name)] for name in names)
        assert (x.min() + x.max()) / 2 == pytest.approx(pelvis[0], abs=1.0)
        assert y.min() == pytest.approx(head_top[1], abs=1.5)
        assert ankle[1] < y.max() < ankle[1] + 0.4 * person.head_size / 0.75
        assert shoulder[0] < x.max() < shoulder[0] + 0.4 * person.head_size / 0.75


def test_visible_joints_lie_on_the_figure() -> None:
    for person in Figures(40, seed=4, size=(160, 160), clutter=False, max_people=1):
        drawn = (person.image != GREY).any(axis=2)
        for name, point, visible in zip(MPII.joints, person.keypoints, person.visible, strict=True):
            if visible:
                x, y = np.round(point).astype(int)
                # The top of the head is on the rim; the others are within.
                margin = 2 if name == "head_top" else 0
                around = drawn[max(0, y - margin) : y + margin + 1, max(0, x - margin) : x + margin + 1]
                assert around.any(), name


# --- Bodies ------------------------------------------------------------------------------------------------------


def test_left_and_right_change_places_between_front_and_back() -> None:
    front, back = make_body(Pose({}), Build()), make_body(Pose({}, (0.0, 180.0, 0.0)), Build())
    for name in ("shoulder", "hip", "ankle"):
        assert joint(front, f"right_{name}")[0] < joint(front, f"left_{name}")[0]
        assert joint(back, f"right_{name}")[0] > joint(back, f"left_{name}")[0]


def test_a_mirrored_pose_gives_the_mirrored_body() -> None:
    for seed in range(5):
        pose = sample_pose(np.random.default_rng(seed))
        opposite = {"left": "right", "right": "left"}
        mirrored = {}
        for segment, (x, y, z) in pose.angles.items():
            side, _, rest = segment.partition("_")
            mirrored[f"{opposite[side]}_{rest}" if side in opposite else segment] = (x, -y, -z)
        pitch, turn, roll = pose.view
        body = make_body(pose, Build())
        mirror = make_body(Pose(mirrored, (pitch, -turn, -roll)), Build())
        permutation = list(MPII.flip_permutation)
        np.testing.assert_allclose(mirror.joints[permutation], body.joints * (-1, 1, 1), atol=1e-9)


def test_elbows_and_knees_bend_the_way_they_do() -> None:
    bent = {"left_forearm": (-90.0, 0.0, 0.0), "left_shin": (90.0, 0.0, 0.0)}
    body = make_body(Pose(bent), Build())
    assert joint(body, "left_wrist")[2] > joint(body, "left_elbow")[2] + 0.9
    assert joint(body, "left_ankle")[2] < joint(body, "left_knee")[2] - 0.9
    for seed in range(200):
        angles = sample_pose(np.random.default_rng(seed)).angles
        for side in ("left", "right"):
            assert angles[f"{side}_forearm"][0] <= 0.0
            assert angles[f"{side}_shin"][0] >= 0.0


def test_bones_keep_their_length_in_every_pose() -> None:
    straight = make_body(Pose({}), Build())
    rigid = [edge for edge in MPII.edges if not set(edge) & {6, 7}] + [(6, 2), (6, 3)]
    for seed in range(5):
        posed = make_body(sample_pose(np.random.default_rng(seed)), Build())
        for start, end in rigid:
            length, expected = (np.linalg.norm(body.joints[start] - body.joints[end]) for body in (posed, straight))
            assert length == pytest.approx(expected)


# --- Who hides what ----------------------------------------------------------------------------------------------


def test_a_person_in_front_hides_the_one_behind() -> None:
    body = make_body(Pose({}), Build())
    assert hidden_joints([body], [0.0]) == set()
    assert hidden_joints([body, body], [0.0, -10.0]) == set()
    assert hidden_joints([body, body], [0.0, 10.0]) == set(MPII.joints)


@pytest.mark.parametrize(("turn", "far"), [(90.0, "left"), (-90.0, "right")])
def test_from_the_side_the_near_limbs_hide_the_far_ones(turn: float, far: str) -> None:
    near = "right" if far == "left" else "left"
    hidden = hidden_joints([make_body(Pose({}, (0.0, turn, 0.0)), Build())], [0.0])
    assert hidden >= {f"{far}_{name}" for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")}
    # The near hip is behind the hand that hangs before it.
    assert hidden.isdisjoint(f"{near}_{name}" for name in ("shoulder", "elbow", "wrist", "knee", "ankle"))


def test_an_arm_before_the_chest_hides_it_from_the_front_alone() -> None:
    folded = {"left_arm": (-90.0, -90.0, 0.0), "left_forearm": (-90.0, 0.0, 0.0)}
    front = hidden_joints([make_body(Pose(folded), Build())], [0.0])
    back = hidden_joints([make_body(Pose(folded, (0.0, 180.0, 0.0)), Build())], [0.0])
    assert "thorax" in front
    assert "left_wrist" not in front
    assert "left_wrist" in back
    assert "thorax" not in back


# --- The scene ---------------------------------------------------------------------------------------------------


def test_without_clutter_the_background_is_plain() -> None:
    plain, cluttered = (Figures(5, size=(64, 64), clutter=clutter, max_people=1) for clutter in (False, True))
    for index in range(5):
        assert (plain[index].image == GREY).all(axis=2).mean() > 0.4
        assert (cluttered[index].image == GREY).all(axis=2).mean() < 0.1


def test_bystanders_come_as_often_as_they_should_and_leave_the_person_in_place() -> None:
    alone, company = (Figures(40, size=(64, 64), clutter=False, max_people=people) for people in (1, 3))
    different = 0
    for one, several in zip(alone, company, strict=True):
        np.testing.assert_array_equal(one.keypoints, several.keypoints)
        outside = (one.image == GREY).all(axis=2) & (several.image != GREY).any(axis=2)
        different += bool(outside.any())
    # 45 % of the pictures have bystanders, of whom few are beyond the edges.
    assert 10 <= different <= 26


@pytest.mark.parametrize("size", [(32, 32), (48, 160), (160, 48)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    person = Figures(3, size=size)[1]
    assert person.image.shape == (*size, 3)
    assert np.isfinite(person.keypoints).any()
