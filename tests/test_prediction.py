"""From images to poses: crops, decoding and flip test together, with networks whose heatmaps are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fastpose.checkpoints import save_weights
from fastpose.codec import HeatmapCodec
from fastpose.data.affine import apply_affine, crop_affine
from fastpose.models import create_model
from fastpose.plots import Image, save_image
from fastpose.pose_files import describe, list_images, predict_files
from fastpose.prediction import CODEC_KEY, SKELETON_KEY, Pose, Predictor
from fastpose.skeletons import MPII, Skeleton

HANDS = Skeleton("hands", ("right_hand", "left_hand"), edges=((0, 1),), flip_pairs=((0, 1),))
CODEC = HeatmapCodec(input_size=(128, 128), heatmap_size=(32, 32), sigma=2.0, mapping="centre", method="dark")


class BrightSpots(nn.Module):
    """Takes the bright spot in the left half of the picture for the right hand, the other one for the left.

    Its last output is off by some cells to the right; the one before is exact.
    """

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        spots = functional.avg_pool2d(images[:, :1], 4)
        left, right = spots.clone(), spots.clone()
        middle = spots.shape[-1] // 2
        left[..., middle:], right[..., :middle] = 0, 0
        exact = torch.cat((left, right), 1)
        return [exact, exact.roll(self.shift, -1)]


def draw_spots(points: np.ndarray, size: tuple[int, int] = (240, 320)) -> Image:
    y, x = np.mgrid[: size[0], : size[1]]
    spots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 10.0**2)) for px, py in points]
    return np.repeat(np.round(255 * np.max(spots, 0)).astype(np.uint8)[..., None], 3, axis=2)


POINTS = np.array([[[110.0, 120.0], [190.5, 90.25]], [[60.0, 100.0], [101.0, 141.0]], [[200.0, 70.0], [280.0, 130.0]]])
CENTERS = ((150, 100), (80, 110), (240, 95))
SCALES = (0.7, 0.6, 0.8)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(BrightSpots(), CODEC, HANDS, "cpu")


def spot_people(predictor: Predictor) -> list:
    return [
        predictor.person_at(draw_spots(points), center, scale)
        for points, center, scale in zip(POINTS, CENTERS, SCALES, strict=True)
    ]


@pytest.mark.parametrize("flip_test", [False, True])
def test_keypoints_are_in_image_pixels(predictor: Predictor, flip_test: bool) -> None:
    people = spot_people(predictor)
    poses = predictor.predict(people, flip_test=flip_test)
    assert [pose.person for pose in poses] == people
    for pose, points in zip(poses, POINTS, strict=True):
        np.testing.assert_allclose(pose.keypoints, points, atol=0.15)
        assert pose.scores.shape == (2,)
        assert (pose.scores > 0.7).all()


def test_batches_change_nothing(predictor: Predictor) -> None:
    people = spot_people(predictor)
    for one, other in zip(predictor.predict(people), predictor.predict(people, batch_size=2), strict=True):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="batch_size"):
        predictor.predict(people, batch_size=0)


def test_flip_test_cancels_a_bias_to_one_side() -> None:
    predictor = Predictor(BrightSpots(shift=1), CODEC, HANDS, "cpu")
    people = spot_people(predictor)
    cell = np.array([200 * scale * 1.25 / 32 for scale in SCALES])
    biased = predictor.predict(people, flip_test=False)
    errors = np.stack([pose.keypoints for pose in biased]) - POINTS
    np.testing.assert_allclose(errors[..., 0], np.repeat(cell[:, None], 2, 1), atol=0.2)
    for pose, points in zip(predictor.predict(people, flip_test=True), POINTS, strict=True):
        np.testing.assert_allclose(pose.keypoints, points, atol=0.2)


def test_stage_chooses_the_output() -> None:
    predictor = Predictor(BrightSpots(shift=1), CODEC, HANDS, "cpu")
    for pose, points in zip(predictor.predict(spot_people(predictor), flip_test=False, stage=0), POINTS, strict=True):
        np.testing.assert_allclose(pose.keypoints, points, atol=0.15)


@pytest.mark.parametrize(("preset", "convention"), [("udp", "udp"), ("torch7_hourglass", "corner")])
def test_crops_meet_the_codec(preset: str, convention: str) -> None:
    codec = HeatmapCodec.preset(preset, (128, 96))
    crops = Predictor(BrightSpots(), codec, HANDS, "cpu").crops
    assert (crops.size, crops.convention, crops.augmentation) == ((128, 96), convention, None)


def test_box_is_the_middle_of_its_crop(predictor: Predictor) -> None:
    box = (40.0, 20.0, 60.0, 120.0)
    person = predictor.person_in_box(np.zeros((240, 320, 3), np.uint8), box)
    crops = predictor.crops
    center = person.center + np.array([0, crops.shift_down * person.scale])
    matrix = crop_affine(center, person.scale * crops.enlargement, crops.size)
    # The first and the last row of the box are a tenth of the crop from its borders.
    rows = apply_affine([[40 + 29.5, 20], [40 + 29.5, 139]], matrix)
    np.testing.assert_allclose(rows[:, 0], 64, atol=1e-4)
    np.testing.assert_allclose(rows.mean(0), 64, atol=1e-4)
    np.testing.assert_allclose(rows[1, 1] - rows[0, 1], 119 / 150 * 128, atol=1e-4)


def test_without_a_box_the_whole_image_is_the_person(predictor: Predictor) -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    whole, explicit = predictor.person_in_box(image), predictor.person_in_box(image, (0, 0, 320, 240))
    np.testing.assert_array_equal(whole.center, explicit.center)
    assert whole.scale == explicit.scale == 1.6
    assert np.isnan(whole.keypoints).all()
    assert not whole.visible.any()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 0, 5), "positive width, height"),
        ((0, 0, 5, -1), "positive width, height"),
        ((0, float("nan"), 5, 5), "finite"),
        ((320, 0, 5, 5), "outside of the image of 320 x 240"),
        ((0, -5, 5, 5), "outside"),
    ],
)
def test_refuses_boxes(predictor: Predictor, box: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.person_in_box(np.zeros((240, 320, 3), np.uint8), box)


def test_refuses_people_of_another_skeleton_and_unknown_devices(predictor: Predictor) -> None:
    other = Predictor(BrightSpots(), CODEC, MPII, "cpu")
    with pytest.raises(ValueError, match="2 joints of hands, got 16"):
        predictor.predict(spot_people(other))
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device: got '{device}'"):
            Predictor(BrightSpots(), CODEC, HANDS, device)


# ---- weights --------------------------------------------------------------------------------------------------------


def tiny_hourglass() -> nn.Module:
    torch.manual_seed(0)
    return create_model("hourglass", stacks=1, features=8, depth=2)


def test_loads_what_training_saves(tmp_path: Path) -> None:
    codec = HeatmapCodec.preset("msra", 64)
    model = tiny_hourglass()
    path = tmp_path / "weights.safetensors"
    save_weights(model, path, metadata={CODEC_KEY: json.dumps(codec.to_dict()), SKELETON_KEY: "mpii"})
    loaded = Predictor.load(path, "cpu")
    assert (loaded.codec, loaded.skeleton) == (codec, MPII)
    assert not loaded.model.training
    original = Predictor(model, codec, MPII, "cpu")
    person = original.person_in_box(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    (expected,), (pose,) = original.predict([person]), loaded.predict([person])
    np.testing.assert_array_equal(pose.keypoints, expected.keypoints)
    np.testing.assert_array_equal(pose.scores, expected.scores)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"metadata fastpose\.codec, fastpose\.skeleton"),
        ({CODEC_KEY: "{", SKELETON_KEY: "mpii"}, "cannot be built"),
        ({CODEC_KEY: "{}", SKELETON_KEY: "mpii"}, "cannot be built"),
        ({CODEC_KEY: json.dumps(CODEC.to_dict()), SKELETON_KEY: "mantis"}, "cannot be built.*mantis"),
    ],
)
def test_refuses_weights_that_do_not_say_how_to_decode(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(tiny_hourglass(), path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        Predictor.load(path, "cpu")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_of_poses(tmp_path: Path, predictor: Predictor) -> None:
    folder, out = tmp_path / "images", tmp_path / "deep" / "out"
    folder.mkdir()
    for index, points in enumerate(POINTS):
        save_image(draw_spots(points), folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    files = list_images([folder])
    assert [file.name for file in files] == ["0.png", "1.png", "2.png", "broken.jpg"]

    def locate(file: Path, image: Image) -> list:
        index = int(file.stem)
        # The same person twice in the first image, nobody in the last.
        return [predictor.person_at(image, CENTERS[index], SCALES[index])] * (2 - index)

    results = list(predict_files(predictor, files, locate, out))
    assert [str(error) for error in results if error] == [
        f"{folder / 'broken.jpg'} is not an image that OpenCV can read; it may be damaged"
    ]
    assert len(results) == 4
    assert sorted(file.name for file in out.iterdir()) == [
        f"{index}.{ending}" for index in range(3) for ending in ("json", "overlay.jpg")
    ]
    for index, points in enumerate(POINTS):
        result = json.loads((out / f"{index}.json").read_text())
        assert (result["image"], result["size"], result["skeleton"]) == (f"{index}.png", [240, 320], "hands")
        assert len(result["persons"]) == 2 - index
        for person in result["persons"]:
            assert person["center"] == list(CENTERS[index])
            keypoints = [(joint["x"], joint["y"]) for joint in person["keypoints"].values()]
            assert list(person["keypoints"]) == list(HANDS.joints)
            np.testing.assert_allclose(keypoints, points, atol=0.15)


def test_numbers_that_json_lacks(predictor: Predictor) -> None:
    person = predictor.person_in_box(np.zeros((8, 8, 3), np.uint8))
    pose = Pose(np.array([[np.nan, 1.5], [np.inf, 2]], np.float32), np.array([np.nan, 0.5], np.float32), person)
    described = describe([pose], "a.png", (8, 8), HANDS)
    assert described["persons"][0]["keypoints"] == {
        "right_hand": {"x": None, "y": 1.5, "score": None},
        "left_hand": {"x": None, "y": 2.0, "score": 0.5},
    }
    json.dumps(described, allow_nan=False)


def test_refuses_lists_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        list_images([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        list_images([tmp_path / "nowhere.jpg"])
    for name in ("a.jpg", "a.png", "a.overlay.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"several are called a$"):
        list_images([tmp_path])
    assert list_images([tmp_path / "a.png"]) == [tmp_path / "a.png"]
