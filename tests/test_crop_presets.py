"""The published crops and augmentations: where they cut, what they change, and that both can be undone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpose.data import AUGMENTATIONS, CROPS, CropSettings, Person, PoseDataset
from fastpose.data.affine import apply_affine, compose_affine, crop_affine, flip_affine, invert_affine, warp_affine
from fastpose.data.augmentation import CropChange, recolor
from fastpose.skeletons import MPII

HEIGHT, WIDTH = 480, 720


def make_person(**changes: object) -> Person:
    rng = np.random.default_rng(0)
    fields = {
        "image": rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
        "keypoints": rng.uniform((200, 100), (400, 420), (16, 2)).astype(np.float32),
        "visible": np.ones(16, bool),
        "center": np.array([300, 240], np.float32),
        "scale": 1.5,
        "box": np.array([250, 180, 100, 160], np.float32),
    }
    return Person(**{**fields, **changes})


def shown(settings: CropSettings, person: Person) -> np.ndarray:
    """The corners of the crop, from the outer edge of the first pixel to that of the last, in image pixels."""
    center, scale = settings.locate(person, (HEIGHT, WIDTH))
    matrix = crop_affine(center, scale, settings.size, convention=settings.convention)
    edges = {"corner": (0.0, 0), "centre": (-0.5, 0), "udp": (0.0, -1)}[settings.convention]
    corners = [[edges[0], edges[0]], [edges[0] + edges[1] + settings.size[1], edges[0] + edges[1] + settings.size[0]]]
    return apply_affine(corners, invert_affine(matrix))


# What the crop shows of the person above: (left, top), (right, bottom).
EXPECTED = {
    # 1.25 · 300 pixels about (300, 240 + 15 · 1.5)
    "mpii": [[112.5, 75], [487.5, 450]],
    "mpii_udp": [[112.5, 75], [487.5, 450]],
    # 368 crop pixels, of which 1.171 / 1.5 are an image pixel
    "cpm": [[300 - 184 * 1.5 / 1.171, 240 - 184 * 1.5 / 1.171], [300 + 184 * 1.5 / 1.171, 240 + 184 * 1.5 / 1.171]],
    # scale is 480 / 368
    "lsp_cpm": [[359.5 - 240 / 1.171, 239.5 - 240 / 1.171], [359.5 + 240 / 1.171, 239.5 + 240 / 1.171]],
    # about (300, 180 + .3 · 160), and a scale of .011 · 160
    "flic_cpm": [[300 - 184 * 1.76 / 1.171, 228 - 184 * 1.76 / 1.171], [300 + 184 * 1.76 / 1.171, 228 + 184 * 1.76 / 1.171]],
    # the box made square
    "lsp": [[220, 180], [380, 340]],
    "flic": [[150, 90], [450, 390]],
    "flic_tompson": [[-0.5, -0.5], [719.5, 479.5]],
    # 100 x 160 made 120 x 160, and 1.25 times as large
    "coco": [[300 - 75, 260 - 100], [300 + 75, 260 + 100]],
    "coco_udp": [[300 - 75, 260 - 125 * 255 / 191 * 0.6], [300 + 75, 260 + 125 * 255 / 191 * 0.6]],
    "ief": [[300 - 175, 240 - 175], [300 + 175, 240 + 175]],
}


@pytest.mark.parametrize("name", [name for name in CROPS if name != "deeppose"])
def test_what_published_crops_show(name: str) -> None:
    np.testing.assert_allclose(shown(CropSettings.preset(name), make_person()), EXPECTED[name], atol=1e-4)


def test_deeppose_crops_around_the_labels() -> None:
    keypoints = np.full((16, 2), np.nan, np.float32)
    keypoints[[0, 5, 7]] = [[100, 50], [180, 250], [140, 100]]
    person = make_person(keypoints=keypoints)
    np.testing.assert_allclose(shown(CropSettings.preset("deeppose"), person), [[-10, 0], [290, 300]], atol=1e-4)


def test_presets_take_changes_and_have_the_papers_sizes() -> None:
    sizes = {name: settings.size for name, settings in CROPS.items()}
    assert {sizes[name] for name in ("cpm", "lsp_cpm", "flic_cpm")} == {(368, 368)}
    assert (sizes["coco"], sizes["ief"], sizes["deeppose"], sizes["flic_tompson"]) == (
        (256, 192),
        (224, 224),
        (220, 220),
        (240, 360),
    )
    assert CropSettings.preset("coco", size=(384, 288), seed=3) == replace(CROPS["coco"], size=(384, 288), seed=3)
    assert CropSettings.preset("mpii") == CropSettings()
    with pytest.raises(ValueError, match="name: got 'hrnet', allowed are 'mpii'"):
        CropSettings.preset("hrnet")
    with pytest.raises(ValueError, match="place: got 'face', allowed are 'person', 'box'"):
        CropSettings(place="face")
    with pytest.raises(ValueError, match="fill must be a grey level of 0 to 255, got 256"):
        CropSettings(fill=256)


def test_crops_need_what_they_go_by() -> None:
    person = make_person(box=np.full(4, np.nan, np.float32), keypoints=np.full((16, 2), np.nan, np.float32), image_id="a.jpg")
    with pytest.raises(
        ValueError, match=r"place 'torso' needs people with FLIC's box of the torso, but 'a\.jpg' has one without"
    ):
        CropSettings.preset("flic_cpm").locate(person, (HEIGHT, WIDTH))
    with pytest.raises(ValueError, match=r"place 'joints' needs people with labelled joints, but 'a\.jpg' has one without"):
        CropSettings.preset("deeppose").locate(person, (HEIGHT, WIDTH))
    # Without a box the image is the box.
    center, scale = CropSettings.preset("lsp").locate(person, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(center, [359.5, 239.5])
    assert scale == pytest.approx(719 / 200)


@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 0, 0), (256, 192)), ((5, 5, 300, 2), (256, 192)), ((5, 5, 300, 2), (192, 256))]
)
def test_thin_boxes_get_the_crops_ratio(box: tuple[float, ...], size: tuple[int, int]) -> None:
    person = make_person(box=np.array(box, np.float32))
    (left, top), (right, bottom) = shown(CropSettings(size, 1.0, 0.0, place="box"), person)
    assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0])
    assert right - left >= box[2] - 1e-9
    assert bottom - top >= box[3] - 1e-9
    assert right > left


def test_centre_convention_is_that_of_resizing_and_commutes_with_mirroring() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    matrix = crop_affine((29.5, 19.5), 40 / 200, (80, 120), convention="centre")
    np.testing.assert_allclose(apply_affine([[0.0, 0.0], [59.0, 39.0]], matrix), [[0.5, 0.5], [118.5, 78.5]])
    mirrored = warp_affine(image[:, ::-1].copy(), matrix, (80, 120))
    np.testing.assert_array_equal(mirrored[:, ::-1], warp_affine(image, matrix, (80, 120)))


@pytest.mark.parametrize("convention", ["centre", "udp"])
def test_unbiased_conventions_flip_exactly(convention: str) -> None:
    # The crop of the mirror image is the mirrored crop.
    center, width = np.array([31.0, 17.0]), 64
    crop = compose_affine(flip_affine(48), crop_affine(center, 0.2, (48, 48), convention=convention))
    mirrored_center = apply_affine(center, flip_affine(width))
    other = compose_affine(crop_affine(mirrored_center, 0.2, (48, 48), convention=convention), flip_affine(width))
    np.testing.assert_allclose(crop, other, atol=1e-12)


def test_fill_is_what_lies_outside() -> None:
    person = make_person(image=np.full((HEIGHT, WIDTH, 3), 255, np.uint8), center=np.array([0, 240], np.float32))
    for name, grey in (("mpii", 0), ("cpm", 128 / 255)):
        image = PoseDataset([person], MPII, CropSettings.preset(name))[0]["image"]
        assert (image[:, :, 0] == grey).all()
        assert (image[:, image.shape[1] // 2, -1] == 1).all()


@given(
    name=st.sampled_from(sorted(CROPS)),
    augmentation=st.sampled_from([None, *AUGMENTATIONS]),
    seed=st.integers(0, 1000),
    scale=st.floats(0.1, 8),
    box=st.tuples(st.floats(0, 600), st.floats(0, 400), st.floats(1, 700), st.floats(1, 500)),
)
def test_crops_and_augmentations_are_undone(name: str, augmentation: str | None, seed: int, scale: float, box: tuple) -> None:
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(-50, 800, (16, 2)).astype(np.float32)
    keypoints[rng.random(16) < 0.3] = np.nan
    keypoints[0] = 100
    person = make_person(image=np.zeros((40, 60, 3), np.uint8), keypoints=keypoints, scale=scale, box=np.array(box, np.float32))
    settings = CropSettings.preset(name, augmentation=augmentation, seed=seed, size=(48, 32))
    sample = PoseDataset([person], MPII, settings)[0]
    back = apply_affine(sample["keypoints"].double().numpy(), sample["crop_to_image"].double().numpy())
    # What float32 rounds: the coordinates in the crop and the map, each by at most 2^-24 of itself.
    pixels = np.abs(np.linalg.det(sample["crop_to_image"][:, :2].double().numpy())) ** 0.5
    magnitude = np.nanmax(np.abs(sample["keypoints"].numpy())) * pixels + np.abs(sample["crop_to_image"].numpy()).max()
    assert np.nanmax(np.abs(back - sample["source_keypoints"].numpy())) <= 4 * 2.0**-24 * magnitude


# ---- augmentations ---------------------------------------------------------------------------------------------------


def draw(name: str, count: int = 4000) -> list[CropChange]:
    rng = np.random.default_rng(0)
    return [AUGMENTATIONS[name].draw(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "scales", "rotation", "shift"),
    [
        ("princeton", (0.75, 1.25), 30, 0),
        ("cpm", (1 / 1.3, 1 / 0.7), 40, 0),
        ("tompson", (1 / 1.5, 1 / 0.5), 20, 0),
        ("deeppose", (0.8, 4 / 3), 0, 0.1),
        ("ief", (2**-0.125, 2**0.125), 0, 0.05),
    ],
)
def test_published_augmentations(name: str, scales: tuple[float, float], rotation: float, shift: float) -> None:
    changes = draw(name)
    factors = np.array([change.scale_factor for change in changes])
    assert scales[0] <= factors.min() < scales[0] * 1.001
    assert scales[1] * 0.999 < factors.max() <= scales[1]
    rotations = np.array([change.rotation for change in changes])
    shifts = np.array([change.shift for change in changes])
    for values, limit in ((rotations, rotation), (shifts, shift)):
        assert np.abs(values).max() <= limit
        assert np.abs(values).max() >= 0.99 * limit
        assert values.std() == pytest.approx(limit / 3**0.5, rel=0.04)  # all are uniform
    assert np.mean([change.flip for change in changes]) == pytest.approx(0.5, abs=0.025)
    assert all((change.gains == 1).all() for change in changes)


def test_zoom_is_of_the_person() -> None:
    zooms = 1 / np.array([change.scale_factor for change in draw("cpm")])
    assert zooms.mean() == pytest.approx(1, abs=0.01)
    assert np.median(zooms) == pytest.approx(1, abs=0.02)


def test_princeton_recolours_mirrored_crops_alone() -> None:
    changes = draw("princeton")
    assert all((change.jitter is not None) == change.flip for change in changes)
    jitters = np.array([change.jitter for change in changes if change.flip])
    np.testing.assert_allclose(jitters.min(0), [-72, 0.5, -0.3, 0.5], atol=0.2)
    np.testing.assert_allclose(jitters.max(0), [72, 1.5, 0.3, 1.5], atol=0.2)
    assert all(change.jitter is None for change in draw("cpm", 100))


def recoloured(color: tuple[float, float, float], *jitter: float) -> list[float]:
    change = CropChange(1.0, 0.0, False, np.zeros(2), np.ones(3), np.array(jitter))
    image = torch.tensor(color)[:, None, None].expand(3, 2, 2).clone()
    result = recolor(image, change)
    assert result.shape == (3, 2, 2)
    return result[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("color", "jitter", "expected"),
    [
        ((0.8, 0.2, 0.2), (0, 1, 0, 1), (0.8, 0.2, 0.2)),
        ((0.8, 0.2, 0.2), (120, 1, 0, 1), (0.2, 0.8, 0.2)),
        ((0.8, 0.2, 0.2), (-120, 1, 0, 1), (0.2, 0.2, 0.8)),
        ((0.8, 0.4, 0.4), (0, 0.5, 0, 1), (0.8, 0.6, 0.6)),
        ((0.8, 0.4, 0.4), (0, 10, 0, 1), (0.8, 0.0, 0.0)),
        ((0.8, 0.4, 0.3), (0, 1, -0.1, 1), (0.7, 0.3, 0.2)),
        ((0.8, 0.4, 0.3), (0, 1, 0.3, 1), (1.0, 0.7, 0.6)),
        ((0.6, 0.3, 0.3), (0, 1, 0, 0.5), (0.5, 0.35, 0.35)),
    ],
)
def test_jitter(color: tuple[float, ...], jitter: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert recoloured(color, *jitter) == pytest.approx(expected, abs=1e-6)


def test_shift_moves_the_box_by_its_side() -> None:
    person = make_person()
    settings = CropSettings(augmentation="deeppose")
    plain = PoseDataset([person], MPII, CropSettings())[0]
    for seed in range(5):
        sample = PoseDataset([person], MPII, replace(settings, seed=seed))[0]
        change = AUGMENTATIONS["deeppose"].draw(np.random.default_rng((seed, 0, 0)))
        middles = [apply_affine([[128.0, 128.0]], crop["crop_to_image"].double().numpy())[0] for crop in (sample, plain)]
        expected = 375 * change.shift
        # In a mirrored crop of the corner convention the middle is one pixel off.
        np.testing.assert_allclose(middles[0] - middles[1], expected, atol=2.0 if change.flip else 1e-3)
