"""The published files: what is known of their contents, the same people in several formats, and their images."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from fastpose.data import AUGMENTATIONS, CROPS, CropSettings, Person, PoseDataset, read, read_coco, read_flic, read_lsp, read_mpii
from fastpose.data.affine import apply_affine, crop_affine, invert_affine, warp_affine
from fastpose.data.crops import read_image
from fastpose.data.flic import SIDES, is_from_behind
from fastpose.metrics import pck
from fastpose.skeletons import COCO, MPII
from fastpose.training.score import SCORES


def stack(people: list[Person], name: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([getattr(person, name) for person in people]))


# ---- MPII ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mpii(shared_data: Path) -> list[Person]:
    start = time.process_time()
    people = read_mpii(shared_data / "mpii" / "detections.mat")
    # About 0.8 s on a core of its own, of which the machine may have none free.
    assert time.process_time() - start < 6
    return people


def test_mpii_counts(mpii: list[Person]) -> None:
    labelled, visible = stack(mpii, "labelled"), stack(mpii, "visible")
    assert (len(mpii), len({person.image_id for person in mpii})) == (2958, 2729)
    assert (int(labelled.sum()), int((~labelled).sum()), int((labelled & ~visible).sum())) == (44_240, 3_088, 10_243)
    assert not (visible & ~labelled).any()
    # Of these, 32 are still negative where they are cut to whole pixels.
    assert int((stack(mpii, "keypoints") + 1 < 0).any(dim=2).sum()) == 38
    assert {person.split for person in mpii} == {"val"}
    for person in mpii:
        assert person.head_size == pytest.approx(25 * person.scale, rel=1e-6)


def test_mpii_forms_agree(mpii: list[Person], shared_data: Path) -> None:
    hourglass = read_mpii(shared_data / "mpii" / "valid.h5")
    assert len(hourglass) == len(mpii)
    assert int((stack(hourglass, "keypoints") + 1 < 0).any(dim=2).sum()) == 32
    for person, other in zip(mpii, hourglass, strict=True):
        assert (person.image, person.person_id) == (other.image, other.person_id)
        np.testing.assert_array_equal(person.labelled, other.labelled)
        np.testing.assert_array_equal(person.visible, other.visible)
        # There joints are cut to whole 1-based pixels.
        labelled = person.labelled
        np.testing.assert_array_equal(np.trunc(person.keypoints[labelled] + 1), other.keypoints[labelled] + 1)
        np.testing.assert_allclose(person.center, other.center, atol=1e-3)
        assert other.scale == pytest.approx(person.scale, rel=1e-6)
        assert other.head_size == pytest.approx(person.head_size, rel=1e-6)
    for person, other in zip(mpii, read_mpii(shared_data / "mpii" / "test_mpii.json"), strict=False):
        assert person.image == other.image
        np.testing.assert_array_equal(person.keypoints, other.keypoints)
        np.testing.assert_array_equal(person.center, other.center)
        assert other.scale == pytest.approx(person.scale, rel=1e-6)


def test_mpii_folder_of_validation_people(shared_data: Path) -> None:
    assert [len(read("mpii", shared_data / "mpii", split)) for split in ("val",)] == [2958]


def test_mpii_labels_are_those_that_are_scored(mpii: list[Person], shared_data: Path) -> None:
    truth = loadmat(shared_data / "mpii" / "detections_our_format.mat")
    points = truth["pos_gt_src"].transpose(2, 0, 1) - 1
    labelled = truth["jnt_missing"].T == 0
    keypoints, ours = stack(mpii, "keypoints").numpy(), stack(mpii, "labelled").numpy()
    np.testing.assert_array_equal(ours, labelled)
    # The other file has coordinates of 0 for 13 joints, which this one still has.
    wrong = (np.abs(np.where(labelled[..., None], keypoints - points, 0)) > 1e-3).any(axis=2)
    assert wrong.sum() == 13
    assert (points[wrong] == -1).any(axis=1).all()
    predictions = torch.from_numpy(loadmat(shared_data / "mpii" / "bearpaw-hg_s2_b1.mat")["preds"]) - 1
    lengths = torch.tensor([person.head_size for person in mpii])
    # 86.76 is published for the file with the 13 wrong ones.
    assert float(pck(predictions, torch.from_numpy(keypoints), lengths, "pytorch_pose")["total"]) == pytest.approx(
        86.76, abs=0.02
    )


# ---- LSP -------------------------------------------------------------------------------------------------------------


def test_lsp(shared_data: Path) -> None:
    people = read_lsp(shared_data / "lsp" / "LSP-joints-PC.mat")
    assert [sum(person.split == split for person in people) for split in ("train", "test")] == [1000, 1000]
    assert int((~stack(people, "visible")).sum()) == 2044
    assert bool(stack(people, "labelled").all())
    assert min(person.torso_size for person in people) == pytest.approx(2.55, abs=0.005)
    observed = read_lsp(shared_data / "lsp" / "LSP-joints-OC.mat")
    assert int((stack(people, "keypoints") != stack(observed, "keypoints")).flatten(1).any(dim=1).sum()) == 756
    test = [person for person in people if person.split == "test"]
    found = loadmat(shared_data / "lsp" / "WeiCVPR16" / "pred_keypoints_lsp_pc.mat")["pred"]  # (2, 14, 1000), bytes
    predictions = torch.from_numpy(found.astype(np.float64)).permute(2, 1, 0) - 1
    lengths = torch.tensor([person.torso_size for person in test])
    assert float(pck(predictions, stack(test, "keypoints"), lengths, SCORES["lsp"].protocol)["total"]) == pytest.approx(
        90.50, abs=0.01
    )


def test_lsp_extended(shared_data: Path) -> None:
    people = read_lsp(shared_data / "lsp" / "lspet_sample_joints.mat")
    labelled = stack(people, "labelled")
    assert (len(people), int(labelled.sum()), int((~labelled).sum())) == (400, 4866, 734)


# ---- FLIC ------------------------------------------------------------------------------------------------------------


def test_flic(shared_data: Path) -> None:
    people = read_flic(shared_data / "flic" / "examples.mat", sides="person")
    splits = [[person for person in people if person.split == split] for split in ("train", "test")]
    assert [len(split) for split in splits] == [3987, 1016]
    keypoints = [stack(split, "keypoints") for split in splits]
    for name, (tested, _) in SIDES.items():
        behind = [[bool(tested) and is_from_behind(points, tested) for points in part.numpy()] for part in keypoints]
        assert [sum(part) for part in behind] == ([0, 0] if name == "person" else [199, 48])
    # More than one person in an image.
    assert sum(person.person_id > 0 for person in people) == len(people) - len({person.image_id for person in people}) == 451
    outside = np.concatenate(keypoints)
    assert int(((outside < 0) | (outside > (719, 479))).any(axis=2).sum()) == 14


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_coco(shared_data: Path) -> None:
    path = shared_data / "coco" / "test_coco.json"
    people = read_coco(path)
    assert (len(people), len(read_coco(path, everyone=True))) == (12, 14)
    for person in people:
        height, width = read_image(person.image).shape[:2]
        x, y, w, h = person.box
        assert 0 <= x < x + w <= width - 1 + 1e-4
        assert 0 <= y < y + h <= height - 1 + 1e-4
        assert 0 < person.area <= (w + 1) * (h + 1)
        inside = person.keypoints[person.labelled]
        assert ((inside >= 0) & (inside < (width, height))).all()
    counts = {person.person_id: int(person.labelled.sum()) for person in people}
    assert counts[442619] == 17
    others = shared_data / "coco" / "faster_coco_eval" / "gt_dataset.json"
    assert [len(read_coco(others, everyone=everyone)) for everyone in (False, True)] == [11, 14]


# ---- images ----------------------------------------------------------------------------------------------------------


def people_in_images(shared_data: Path) -> list[tuple[str, list[Person]]]:
    return [
        ("mpii", read_mpii(shared_data / "mpii" / "test_mpii.json")),
        ("coco", read_coco(shared_data / "coco" / "test_coco.json")),
    ]


CROPS_OF = {
    "mpii": ("mpii", "mpii_udp", "cpm", "ief", "deeppose", "lsp"),
    "coco": ("coco", "coco_udp", "mpii", "deeppose", "lsp_cpm"),
}


def test_crops_of_real_people_are_undone(shared_data: Path) -> None:
    for name, people in people_in_images(shared_data):
        for preset in CROPS_OF[name]:
            settings = CropSettings.preset(preset)
            for person in people:
                size = read_image(person.image).shape[:2]
                matrix = crop_affine(*settings.locate(person, size), settings.size, convention=settings.convention)
                back = apply_affine(apply_affine(person.keypoints, matrix), invert_affine(matrix))
                assert np.nanmax(np.abs(back - person.keypoints)) < 1e-4


@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_augmented_crops_of_real_people_are_undone(shared_data: Path, augmentation: str | None) -> None:
    for name, people in people_in_images(shared_data):
        skeleton = {"mpii": MPII, "coco": COCO}[name]
        settings = CropSettings.preset(name, augmentation=augmentation)
        for sample in PoseDataset(people, skeleton, settings):
            flipped = bool(torch.linalg.det(sample["crop_to_image"][:, :2]) < 0)
            order = list(skeleton.flip_permutation) if flipped else slice(None)
            back = apply_affine(sample["keypoints"].double().numpy(), sample["crop_to_image"].double().numpy())
            person = people[sample["index"]]
            assert np.nanmax(np.abs(back - person.keypoints[order])) < 1e-3
            np.testing.assert_array_equal(sample["visible"], person.visible[order])
            if augmentation is None:
                # The person is in the crop; of five people of MPII and twelve of COCO all joints.
                inside = sample["keypoints"][~sample["keypoints"].isnan().any(dim=1)]
                assert (inside >= -0.5).all()
                assert (inside[:, 0] <= settings.size[1] - 0.5).all()
                assert (inside[:, 1] <= settings.size[0] - 0.5).all()


@pytest.mark.parametrize("convention", ["corner", "centre", "udp"])
def test_pixels_come_back_to_where_they_were(shared_data: Path, convention: str) -> None:
    """Where a crop of an image is mapped back, the picture is where it was: any other place fits worse."""
    for _, people in people_in_images(shared_data):
        for file in {person.image for person in people}:
            image = read_image(file).astype(np.float32)
            height, width = image.shape[:2]
            crop = crop_affine((width / 2, height / 2), 0.7, (210, 210), 20.0, convention)
            seen = warp_affine(image, crop, (210, 210))
            # Within the turned square of 140 pixels.
            part = slice(height // 2 - 45, height // 2 + 45), slice(width // 2 - 45, width // 2 + 45)
            errors = {}
            for shift in product((-0.25, 0.0, 0.25), repeat=2):
                back = invert_affine(crop)
                back[:, 2] += shift
                errors[shift] = np.abs(warp_affine(seen, back, (height, width)) - image)[part].mean()
            assert min(errors, key=lambda shift: errors[shift]) == (0, 0)


def test_every_preset_crops_a_real_image(shared_data: Path) -> None:
    (person, *_) = read_mpii(shared_data / "mpii" / "test_mpii.json")
    labels = person.keypoints[person.labelled]
    low, high = labels.min(axis=0), labels.max(axis=0)
    torso = Person(**{**person.__dict__, "box": np.array([*low, *(high - low) / 2], np.float32)})
    for name, settings in CROPS.items():
        image = PoseDataset([torso], MPII, settings)[0]["image"]
        assert image.shape == (3, *settings.size)
        assert image.std() > 0.05, name
