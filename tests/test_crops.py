"""Affine crops, augmentation, and the data set of crops."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastpose.data.affine import (
    apply_affine,
    compose_affine,
    crop_affine,
    flip_affine,
    invert_affine,
    warp_affine,
)
from fastpose.data.augmentation import AUGMENTATIONS
from fastpose.data.crops import CropSettings, PoseDataset, read_image
from fastpose.data.mpii import read_mpii
from fastpose.data.records import Person
from fastpose.skeletons import MPII

FLIP = list(MPII.flip_permutation)


def make_person(image: np.ndarray | Path, keypoints: np.ndarray, scale: float = 1.0) -> Person:
    return Person(
        image=image,
        keypoints=keypoints.astype(np.float32),
        visible=np.isfinite(keypoints).all(axis=1),
        center=np.array([200.0, 150.0], np.float32),
        scale=scale,
        head_size=25.0 * scale,
        image_id="a picture",
        person_id=3,
    )


@pytest.fixture
def person() -> Person:
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(100, 300, (16, 2))
    keypoints[[2, 9]] = np.nan
    return make_person(rng.integers(0, 256, (300, 400, 3), np.uint8), keypoints)


# Geometry


def test_corner_convention() -> None:
    matrix = crop_affine((300.0, 200.0), 2.0, (256, 256))
    zoom = 256 / 400
    expected = (np.array([[310.0, 180.0]]) - [300, 200]) * zoom + 128
    np.testing.assert_allclose(apply_affine([[310.0, 180.0]], matrix), expected, rtol=1e-12)


def test_udp_convention_maps_pixel_centers_of_the_corners() -> None:
    matrix = crop_affine((300.0, 200.0), 2.0, (256, 256), convention="udp")
    corners = apply_affine([[100.0, 0.0], [500.0, 400.0]], matrix)
    np.testing.assert_allclose(corners, [[0.0, 0.0], [255.0, 255.0]], atol=1e-10)


@pytest.mark.parametrize("size", [(192, 256), (256, 192)])
def test_box_just_fits_into_an_oblong_crop(size: tuple[int, int]) -> None:
    matrix = crop_affine((300.0, 200.0), 1.0, size)
    low, high = apply_affine([[200.0, 100.0], [400.0, 300.0]], matrix)
    np.testing.assert_allclose(high - low, [192, 192])
    np.testing.assert_allclose((low + high) / 2, [size[1] / 2, size[0] / 2])


def test_positive_rotation_is_anticlockwise_as_seen() -> None:
    matrix = crop_affine((50.0, 50.0), 0.5, (100, 100), rotation=90.0)
    np.testing.assert_allclose(apply_affine([[80.0, 50.0]], matrix), [[50.0, 20.0]], atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    center=st.tuples(st.floats(-500, 2000), st.floats(-500, 2000)),
    scale=st.floats(0.1, 20),
    rotation=st.floats(-180, 180),
    size=st.tuples(st.integers(8, 512), st.integers(8, 512)),
    convention=st.sampled_from(["corner", "udp"]),
    flip=st.booleans(),
)
def test_inverse_is_exact(center, scale, rotation, size, convention, flip) -> None:
    matrix = crop_affine(center, scale, size, rotation, convention)
    if flip:
        matrix = compose_affine(flip_affine(size[1]), matrix)
    points = np.random.default_rng(0).uniform(-2000, 4000, (50, 2))
    back = apply_affine(apply_affine(points, matrix), invert_affine(matrix))
    assert np.abs(back - points).max() < 1e-8
    mapped = apply_affine(points, compose_affine(matrix, invert_affine(matrix)))
    assert np.abs(mapped - points).max() < 1e-8


def test_compose_applies_the_first_map_first() -> None:
    first = crop_affine((30.0, 40.0), 0.3, (64, 64), rotation=20)
    second = crop_affine((10.0, 20.0), 0.7, (96, 128), rotation=-50, convention="udp")
    points = np.random.default_rng(0).uniform(0, 100, (10, 2))
    np.testing.assert_allclose(
        apply_affine(points, compose_affine(second, first)), apply_affine(apply_affine(points, first), second)
    )


def test_flip_is_an_involution_and_mirrors_the_pixels() -> None:
    flip = flip_affine(7)
    np.testing.assert_array_equal(compose_affine(flip, flip), [[1, 0, 0], [0, 1, 0]])
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(warp_affine(image, flip, (5, 7)), image[:, ::-1])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"center": (np.nan, 0.0)}, "center"),
        ({"center": (1.0, 2.0, 3.0)}, "center"),
        ({"scale": 0.0}, "scale"),
        ({"scale": np.nan}, "scale"),
        ({"size": (256, 1)}, "size"),
        ({"rotation": np.inf}, "rotation"),
        ({"convention": "hrnet"}, "convention"),
    ],
)
def test_refuses_bad_boxes(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        crop_affine(**{"center": (0.0, 0.0), "scale": 1.0, "size": (256, 256), **arguments})


def test_refuses_to_undo_a_collapse() -> None:
    with pytest.raises(ValueError, match="invertible"):
        invert_affine(np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]))


# Pixels follow points


def dot_image(position: np.ndarray, sigma: float, size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    squares = (x - position[0]) ** 2 + (y - position[1]) ** 2
    return np.round(255 * np.exp(-squares / (2 * sigma**2))).astype(np.uint8)


def centroid(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weights = image.astype(np.float64)
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("convention", ["corner", "udp"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [100, 200, 511, 512, 700, 1500], ids=lambda side: f"side{side}")
def test_the_image_follows_the_points(side: int, flip: bool, convention: str) -> None:
    size = (256, 256)
    rng = np.random.default_rng(side)
    for _ in range(3):
        position = rng.uniform(750, 850, 2)
        center = position + rng.uniform(-side / 5, side / 5, 2)
        matrix = crop_affine(center, side / 200, size, rng.uniform(-60, 60), convention)
        if flip:
            matrix = compose_affine(flip_affine(size[1]), matrix)
        image = dot_image(position, sigma=max(3, side / 80), size=(1600, 1601))
        found = centroid(warp_affine(image, matrix, size))
        assert np.abs(found - apply_affine(position, matrix)).max() < 0.1


def test_shrinking_averages_fine_texture() -> None:
    stripes = np.zeros((800, 800), np.uint8)
    stripes[:, ::2] = 255
    crop = warp_affine(stripes, crop_affine((400.0, 400.0), 4.0, (100, 100)), (100, 100))
    assert np.abs(crop[10:-10, 10:-10].astype(float) - 127.5).max() < 3


def test_outside_of_the_image_is_black() -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    crop = warp_affine(white, crop_affine((0.0, 10.0), 0.1, (20, 20)), (20, 20))
    assert (crop[:, :9] == 0).all()
    assert (crop[:, 11:] == 255).all()


# Augmentation


@pytest.mark.parametrize(
    ("name", "scales", "rotated", "gains"),
    [
        ("torch7_hourglass", (2**-0.5, 2**0.5), 0.4, (0.6, 1.4)),
        ("pytorch_pose", (0.75, 1.25), 0.6, (0.8, 1.2)),
    ],
)
def test_published_augmentations(name: str, scales: tuple[float, float], rotated: float, gains: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    changes = [AUGMENTATIONS[name].draw(rng) for _ in range(4000)]
    factors = np.array([change.scale_factor for change in changes])
    assert (factors.min(), factors.max()) == pytest.approx(scales)
    assert np.median(factors) == pytest.approx(1, abs=0.02)
    rotations = np.array([change.rotation for change in changes])
    assert (rotations.min(), rotations.max()) == (-60, 60)
    assert (rotations != 0).mean() == pytest.approx(rotated, abs=0.025)
    # A normal distribution clipped at 2 standard deviations keeps 0.96 of its own one.
    assert rotations[rotations != 0].std() == pytest.approx(0.96 * 30, rel=0.04)
    assert np.mean([change.flip for change in changes]) == pytest.approx(0.5, abs=0.025)
    drawn = np.array([change.gains for change in changes])
    assert gains[0] <= drawn.min() < gains[0] + 0.01
    assert gains[1] - 0.01 < drawn.max() <= gains[1]
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05


# The data set


def test_sample(person: Person) -> None:
    sample = PoseDataset([person], MPII, CropSettings(size=(64, 96)))[0]
    assert sample["image"].shape == (3, 64, 96)
    assert sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min() < sample["image"].max() <= 1
    assert sample["keypoints"].dtype == torch.float32
    np.testing.assert_array_equal(sample["source_keypoints"], person.keypoints)
    np.testing.assert_array_equal(sample["visible"], person.visible)
    assert sample["keypoints"].isnan().all(dim=1).tolist() == np.isnan(person.keypoints[:, 0]).tolist()
    assert sample["head_size"].item() == 25.0
    assert (sample["image_id"], sample["person_id"], sample["index"]) == ("a picture", 3, 0)


def test_box_is_enlarged_and_moved_down(person: Person) -> None:
    sample = PoseDataset([person], MPII, CropSettings(size=(256, 256)))[0]
    middle = apply_affine([[128.0, 128.0]], sample["crop_to_image"].double().numpy())
    np.testing.assert_allclose(middle, [[200.0, 165.0]], atol=1e-4)
    # The side of 200 becomes 250.
    assert sample["crop_to_image"][0, 0].item() == pytest.approx(250 / 256)


@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_crop_to_image_undoes_the_whole_chain(person: Person, augmentation: str | None) -> None:
    people = [person] * 40
    for sample in PoseDataset(people, MPII, CropSettings(augmentation=augmentation)):
        back = apply_affine(sample["keypoints"].numpy(), sample["crop_to_image"].double().numpy())
        difference = np.abs(back - sample["source_keypoints"].numpy())
        assert np.nanmax(difference) < 1e-3


def test_mirrored_crops_swap_left_and_right(person: Person) -> None:
    dataset = PoseDataset([person] * 40, MPII, CropSettings(augmentation="torch7_hourglass"))
    mirrored = 0
    for sample in dataset:
        flip = torch.linalg.det(sample["crop_to_image"][:, :2]) < 0
        order = FLIP if flip else list(range(16))
        np.testing.assert_array_equal(sample["source_keypoints"], person.keypoints[order])
        np.testing.assert_array_equal(sample["visible"], person.visible[order])
        mirrored += bool(flip)
    assert 10 < mirrored < 30


def test_samples_depend_on_seed_epoch_and_index_alone(person: Person) -> None:
    def image(dataset: PoseDataset, index: int = 0) -> torch.Tensor:
        return dataset[index]["image"]

    def dataset(seed: int, epoch: int) -> PoseDataset:
        result = PoseDataset([person] * 3, MPII, CropSettings((32, 32), augmentation="pytorch_pose", seed=seed))
        result.set_epoch(epoch)
        return result

    reference = image(dataset(5, 2))
    later = dataset(5, 2)
    image(later, 2)
    assert torch.equal(image(later), reference)
    assert torch.equal(image(later, -3), reference)
    for other in (image(dataset(6, 2)), image(dataset(5, 3)), image(dataset(5, 2), 1)):
        assert not torch.equal(other, reference)


def test_living_workers_see_the_epoch(person: Person) -> None:
    dataset = PoseDataset([person] * 2, MPII, CropSettings((32, 32), augmentation="pytorch_pose"))
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True)
    for epoch in (0, 7):
        dataset.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["image"], torch.stack([dataset[0]["image"], dataset[1]["image"]]))
    assert batch["image_id"] == ["a picture"] * 2
    assert batch["crop_to_image"].shape == (2, 2, 3)


def test_colour_gains_apply_to_each_channel() -> None:
    gray = np.full((300, 400, 3), 100, np.uint8)
    grays = make_person(gray, np.zeros((16, 2)), scale=0.3)
    sample = PoseDataset([grays], MPII, CropSettings((16, 16), augmentation="torch7_hourglass"))[0]
    levels = sample["image"][:, 8, 8] / (100 / 255)
    assert ((levels > 0.6) & (levels < 1.4)).all()
    assert len(set(levels.tolist())) == 3


def test_reads_rgb_files(tmp_path: Path, person: Person) -> None:
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), np.full((300, 400, 3), (0, 0, 255), np.uint8))
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])
    sample = PoseDataset([make_person(path, person.keypoints, 0.5)], MPII, CropSettings((8, 8)))[0]
    assert sample["image"][:, 4, 4].tolist() == [1, 0, 0]


def test_names_missing_and_damaged_files(tmp_path: Path, person: Person) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no picture")
    people = [make_person(path, person.keypoints) for path in (damaged, tmp_path / "a.jpg", tmp_path / "b.jpg")]
    with pytest.raises(FileNotFoundError, match=r"2 image.*a\.jpg.*b\.jpg"):
        PoseDataset(people, MPII, CropSettings())
    dataset = PoseDataset(people[:1], MPII, CropSettings())
    with pytest.raises(ValueError, match=r"damaged\.jpg is not an image"):
        dataset[0]
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"damaged\.jpg"):
        dataset[0]


def test_refuses_bad_settings_and_records(person: Person) -> None:
    with pytest.raises(ValueError, match=r"torch7_hourglass, pytorch_pose.*'hourglass'"):
        CropSettings(augmentation="hourglass")
    for name, value in {"enlargement": 0.0, "size": (0, 256), "convention": "hrnet", "seed": -1}.items():
        with pytest.raises(ValueError, match=name):
            CropSettings(**{name: value})
    lsp = make_person(np.zeros((9, 9, 3), np.uint8), np.zeros((14, 2)))
    with pytest.raises(ValueError, match=r"people\[1\] must have the 16 joints of mpii, got 14"):
        PoseDataset([person, lsp], MPII, CropSettings())
    dataset = PoseDataset([person], MPII, CropSettings())
    with pytest.raises(ValueError, match="epoch"):
        dataset.set_epoch(-1)
    with pytest.raises(IndexError):
        dataset[1]


def test_records_made_on_demand_are_checked_on_demand(person: Person) -> None:
    class Endless:
        made = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: int) -> Person:
            self.made += 1
            return person if index < 5 else make_person(np.zeros((9, 9, 3), np.uint8), np.zeros((14, 2)))

    people = Endless()
    dataset = PoseDataset(people, MPII, CropSettings((32, 32)))  # type: ignore[arg-type]
    assert people.made == 0
    assert dataset[4]["index"] == 4
    with pytest.raises(ValueError, match=r"people\[5\]"):
        dataset[5]


def test_real_people(shared_data: Path) -> None:
    people = read_mpii(shared_data / "mpii" / "test_mpii.json")
    for name in (None, *AUGMENTATIONS):
        for sample in PoseDataset(people, MPII, CropSettings(augmentation=name)):
            person = people[sample["index"]]
            back = apply_affine(sample["keypoints"].numpy(), sample["crop_to_image"].double().numpy())
            order = FLIP if torch.linalg.det(sample["crop_to_image"][:, :2]) < 0 else slice(None)
            assert np.nanmax(np.abs(back - person.keypoints[order])) < 1e-3
            if name is None:
                labelled = sample["keypoints"][~sample["keypoints"].isnan().any(dim=1)]
                assert (labelled >= 0).all()
                assert (labelled < 256).all()
    for person in people:
        matrix = crop_affine(person.center, person.scale, (256, 256))
        back = apply_affine(apply_affine(person.keypoints, matrix), invert_affine(matrix))
        assert np.nanmax(np.abs(back - person.keypoints)) < 1e-4
        assert math.isclose(person.head_size, 25 * person.scale)
