"""Data sets by name: which files are found under a folder, and training on each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
    write_mpii_h5,
)
from typer.testing import CliRunner

from fastpose.checkpoints import CODEC_KEY, CROP_KEY, SKELETON_KEY, read_metadata, save_weights
from fastpose.cli import app
from fastpose.codec import HeatmapCodec
from fastpose.data import CROPS, DATASETS, Person, read
from fastpose.models import create_model
from fastpose.plots import save_image
from fastpose.prediction import Predictor
from fastpose.training import published_data
from fastpose.training.score import SCORES


def under(root: Path, *folders: str) -> Path:
    folder = root.joinpath(*folders)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def release(root: Path) -> None:
    images = [("a.jpg", [mpii_rect(), mpii_rect()], 1), ("c.jpg", [mpii_rect()], 1), ("d.jpg", [mpii_rect()], 0)]
    write_mat(under(root, "mpii_human_pose_v1_u12_2") / "mpii_human_pose_v1_u12_1.mat", mpii_release(images))
    rows = {"RELEASE_img_index": np.array([[1]]), "RELEASE_person_index": np.array([[2]])}
    write_mat(root / "detections.mat", rows)


def hrnet(root: Path, folder: str = "annot", train: str = "train.json", val: str = "valid.json") -> None:
    write_json(under(root, folder) / train, [hrnet_entry(image="t.jpg")] * 3)
    write_json(root / folder / val, [hrnet_entry(image="v.jpg")] * 2)


def pytorch_pose(root: Path) -> None:
    entries = [pytorch_pose_entry(img_paths=f"{name}.jpg", isValidation=float(name == "v")) for name in "ttv"]
    write_json(root / "mpii_annotations.json", entries)


def newell(root: Path) -> None:
    for name, people in (("train", 3), ("valid", 2), ("test", 1)):
        write_mpii_h5(under(root, "annot") / f"{name}.h5", people)


def mmpose(root: Path) -> None:
    hrnet(root, "annotations", "mpii_train.json", "mpii_val.json")


@pytest.mark.parametrize(
    ("make", "images", "counts"),
    [
        (release, "images", {"train": 1, "val": 1, "test": 1}),
        (hrnet, "images", {"train": 3, "val": 2}),
        (mmpose, "images", {"train": 3, "val": 2}),
        (pytorch_pose, "images", {"train": 2, "val": 1}),
        (newell, "images", {"train": 3, "val": 2, "test": 1}),
    ],
)
def test_mpii_folders(tmp_path: Path, make: Callable[[Path], None], images: str, counts: dict[str, int]) -> None:
    make(tmp_path)
    for split in ("train", "val", "test"):
        if split not in counts:
            with pytest.raises(
                FileNotFoundError, match=f"holds no annotations of mpii for '{split}'; it should hold images/ and"
            ):
                read("mpii", tmp_path, split)
            continue
        people = read("mpii", tmp_path, split)
        assert len(people) == counts[split]
        assert {person.split for person in people} == {split}
        assert {person.image.parent for person in people} == {tmp_path / images}
    assert len(read("mpii", tmp_path)) == sum(counts.values())
    assert len(read("mpii", tmp_path, ("train", "val"))) == counts["train"] + counts["val"]
    assert read("mpii", tmp_path, "train", images="elsewhere")[0].image.parent == Path("elsewhere")


def test_official_mpii_needs_to_know_who_validates(tmp_path: Path) -> None:
    release(tmp_path)
    (tmp_path / "detections.mat").unlink()
    assert [person.image_id for person in read("mpii", tmp_path, "test")] == ["d.jpg"]
    with pytest.raises(FileNotFoundError, match=r"mpii_human_pose_v1_u12_1\.mat with detections\.mat or valid\.h5"):
        read("mpii", tmp_path, "train")
    write_mpii_h5(tmp_path / "valid.h5", 1, index=np.array([0.0]), person=np.array([0.0]))
    assert [(person.image_id, person.person_id) for person in read("mpii", tmp_path, "val")] == [("a.jpg", 0)]


def test_images_beside_the_annotations_come_first(tmp_path: Path) -> None:
    hrnet(tmp_path)
    under(tmp_path, "annot", "images")
    assert read("mpii", tmp_path, "train")[0].image.parent == tmp_path / "annot" / "images"


@pytest.mark.parametrize(
    ("folder", "extended"), [("", "lspet"), ("lsp_dataset", "lspet_dataset"), ("lsp", "hr-lspet"), ("lsp", None)]
)
def test_lsp_folders(tmp_path: Path, folder: str, extended: str | None) -> None:
    write_mat(under(tmp_path, folder) / "joints.mat", {"joints": lsp_joints(2000)})
    under(tmp_path, folder, "images")
    if extended:
        write_mat(under(tmp_path, extended) / "joints.mat", {"joints": lspet_joints(4)})
        under(tmp_path, extended, "images")
    train, test = (read("lsp", tmp_path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1004 if extended else 1000, 1000)
    assert test[0].image == tmp_path / folder / "images" / "im1001.jpg"
    if extended:
        assert train[-1].image == tmp_path / extended / "images" / "im00004.jpg"


@pytest.mark.parametrize("folder", ["", "FLIC"])
def test_flic_folders(tmp_path: Path, folder: str) -> None:
    examples = [flic_example(), flic_example(istrain=np.uint8(0), istest=np.uint8(1), behind=True)]
    write_mat(under(tmp_path, folder) / "examples.mat", {"examples": structs(examples)})
    assert [len(read("flic", tmp_path, split)) for split in ("train", "test")] == [1, 1]
    own, swapped = (read("flic", tmp_path, "test", sides=sides)[0] for sides in ("person", "hourglass"))
    assert (own.keypoints != swapped.keypoints).any()


def test_flic_folder_of_the_hourglass_code(tmp_path: Path) -> None:
    write_mpii_h5(under(tmp_path, "annot") / "train.h5", 3, 11)
    write_mpii_h5(tmp_path / "annot" / "valid.h5", 2, 11)
    assert [len(read("flic", tmp_path, split)) for split in ("train", "test")] == [3, 2]


@pytest.mark.parametrize(("year", "within"), [(2017, ""), (2014, "images")])
def test_coco_folders(tmp_path: Path, year: int, within: str) -> None:
    for split, people in (("train", 3), ("val", 2)):
        annotations = [coco_annotation(number) for number in range(people)]
        write_json(under(tmp_path, "annotations") / f"person_keypoints_{split}{year}.json", coco_file(annotations))
        under(tmp_path, within, f"{split}{year}")
    for split, people in (("train", 3), ("val", 2)):
        found = read("coco", tmp_path, split)
        assert [(person.split, person.person_id) for person in found] == [(split, number) for number in range(people)]
        assert found[0].image == tmp_path / within / f"{split}{year}" / "000000000042.jpg"


def test_read_names_what_is_wrong(tmp_path: Path) -> None:
    for name, data in DATASETS.items():
        with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no annotations of {name}; it should hold .*images"):
            read(name, tmp_path)
        with pytest.raises(FileNotFoundError, match=r"nowhere\.mat"):
            read(name, tmp_path / "nowhere.mat")
        assert data.crop in CROPS
        assert SCORES[name].protocol.skeleton == data.skeleton
    with pytest.raises(ValueError, match="name: got 'ski', allowed are 'mpii', 'lsp', 'flic', 'coco'"):
        read("ski", tmp_path)
    with pytest.raises(ValueError, match="split must be 'train', 'val' or None, got 'test'"):
        read("coco", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="holds no annotations of coco for 'train', 'val'; it should hold"):
        read("coco", tmp_path, ("val", "train"))
    with pytest.raises(ValueError, match=r"split: got \('train', 'val'\), allowed for a file is one, .*a\.json is no folder"):
        read("coco", tmp_path / "a.json", ("train", "val"))


def test_a_file_of_several_parts_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytorch_pose(tmp_path)
    calls = []
    data = DATASETS["mpii"]

    def count(*arguments: object, **options: object) -> list[Person]:
        calls.append(arguments)
        return data.read(*arguments, **options)

    monkeypatch.setitem(DATASETS, "mpii", replace(data, read=count))
    assert len(read("mpii", tmp_path, ("train", "val"))) == 3
    assert len(calls) == 1


# ---- training --------------------------------------------------------------------------------------------------------


def draw_images(people: list[Person]) -> None:
    for number, image in enumerate({person.image for person in people}):
        image.parent.mkdir(parents=True, exist_ok=True)
        save_image(np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8), image)


def make_lsp(root: Path) -> None:
    write_mat(root / "joints.mat", {"joints": lsp_joints()})
    draw_images(read("lsp", root / "joints.mat"))


def make_flic(root: Path) -> None:
    examples = [flic_example(), flic_example(istrain=np.uint8(0), istest=np.uint8(1))]
    write_mat(root / "examples.mat", {"examples": structs(examples)})
    draw_images(read("flic", root))


def make_coco(root: Path) -> None:
    for split in ("train", "val"):
        people = [coco_annotation(), coco_annotation(8, keypoints=[0] * 51)]
        write_json(under(root, "annotations") / f"person_keypoints_{split}2017.json", coco_file(people))
        under(root, f"{split}2017")
    draw_images(read("coco", root))


def make_mpii(root: Path) -> None:
    hrnet(root)
    draw_images(read("mpii", root))


SMALL = [
    "--recipe", "hourglass-demo", "--set", 'model_options={"stacks": 1, "features": 8, "depth": 1}',
    "--set", "input_size=[32, 32]", "--steps", "1", "--batch-size", "2", "--precision", "fp32", "--workers", "0",
]  # fmt: skip


def train(out: Path, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["train", *SMALL, "--out", str(out), *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("name", "make", "joint", "title"),
    [
        ("mpii", make_mpii, "ankle", "PCKh@0.5 (%)"),
        ("lsp", make_lsp, "knee", "PCK@0.2 (%)"),
        ("flic", make_flic, "wrist", "PCK@0.2 (%)"),
        ("coco", make_coco, "hip", "PCK@0.05 (%)"),
    ],
)
def test_trains_on_the_folder(tmp_path: Path, name: str, make: Callable[[Path], None], joint: str, title: str) -> None:
    make(tmp_path)
    # A file of three images is no LSP with its split.
    source = ("--annotations", tmp_path / "joints.mat") if name == "lsp" else ("--root", tmp_path)
    output = train(tmp_path / "run", "--data", name, *source)
    assert title in output
    assert any(line.split("│")[1].strip() == joint for line in output.splitlines() if line.count("│") > 2)
    weights = tmp_path / "run" / "weights.safetensors"
    metadata = read_metadata(weights)
    assert (metadata["fastpose.skeleton"], metadata["fastpose.crop"]) == (name, DATASETS[name].crop)
    predictor = Predictor.load(weights, device="cpu")
    assert predictor.crops == replace(CROPS[DATASETS[name].crop], size=(32, 32))
    image = np.zeros((100, 120, 3), np.uint8)
    person = predictor.person_in_box(image, (20, 30, 40, 61))
    center, scale = predictor.crops.locate(person, (100, 120))
    np.testing.assert_allclose(center, [39.5, 60])
    # MPII's scale is of all rows there are, COCO's box from the first to the last.
    sides = {"mpii": 1.25 * 61, "lsp": 60, "flic": 61, "coco": 1.25 * 60}
    assert 200 * scale == pytest.approx(sides[name])
    (pose,) = predictor.predict([person], flip_test=False)
    assert pose.keypoints.shape == (DATASETS[name].skeleton.num_joints, 2)


def test_place_of_a_centre_and_scale(tmp_path: Path) -> None:
    make_coco(tmp_path)
    train(tmp_path / "run", "--data", "coco", "--root", tmp_path)
    predictor = Predictor.load(tmp_path / "run" / "weights.safetensors", device="cpu")
    person = predictor.person_at(np.zeros((100, 120, 3), np.uint8), (50, 40), 0.3)
    center, scale = predictor.crops.locate(person, (100, 120))
    np.testing.assert_allclose(center, [50, 40])
    assert scale == pytest.approx(0.3 * 1.25)


def test_weights_with_another_crop_are_refused(tmp_path: Path) -> None:
    codec = HeatmapCodec.preset("msra", 32)
    metadata = {CODEC_KEY: json.dumps(codec.to_dict()), SKELETON_KEY: "lsp", CROP_KEY: "face"}
    path = tmp_path / "weights.safetensors"
    save_weights(create_model("hourglass", stacks=1, features=8, depth=1, num_joints=14), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"weights\.safetensors names a codec, skeleton or crop that .* got 'face'"):
        Predictor.load(path, device="cpu")


def test_data_of_a_folder_and_of_files(tmp_path: Path) -> None:
    hrnet(tmp_path)
    annotations = tmp_path / "annot" / "train.json"
    assert [len(part) for part in (published_data("mpii", tmp_path).train, published_data("mpii", tmp_path).validation)] == [3, 2]
    data = published_data("mpii", annotations)
    assert (len(data.train), data.train) == (3, data.validation)
    data = published_data("mpii", annotations, tmp_path / "pictures", tmp_path / "annot" / "valid.json")
    assert (len(data.train), len(data.validation)) == (3, 2)
    assert data.validation[0].image == tmp_path / "pictures" / "v.jpg"
    examples = [flic_example(), flic_example(istrain=np.uint8(0), istest=np.uint8(1)), flic_example(istrain=np.uint8(0))]
    data = published_data("flic", write_mat(tmp_path / "examples.mat", {"examples": structs(examples)}))
    assert ([person.split for person in data.train], [person.split for person in data.validation]) == (["train"], ["test"])
    assert (data.crop, data.score.name, data.skeleton.name) == ("flic", "PCK@0.2", "flic")
    with pytest.raises(ValueError, match="name: got 'figures'"):
        published_data("figures", tmp_path)


def test_people_without_labels_do_not_train(tmp_path: Path) -> None:
    unlabelled = {"part": np.concatenate([np.full((1, 16, 2), 9.0), np.full((1, 16, 2), -1.0)])}
    for name in ("train", "valid"):
        write_mpii_h5(tmp_path / f"{name}.h5", 2, **unlabelled)
    data = published_data("mpii", tmp_path)
    assert (len(data.train), len(data.validation)) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "lsp"), "--data lsp needs --root FOLDER or --annotations FILE"),
        (("--data", "coco", "--root", "a", "--annotations", "b"), "--data coco needs --root FOLDER or --annotations FILE"),
        (("--data", "flic", "--root", "nowhere"), "--root: no folder nowhere"),
        (("--data", "flic", "--root", "."), "holds no annotations of flic for 'test', 'train'; it should hold examples.mat"),
        (("--data", "figures", "--root", "."), "for published data sets, not for figures"),
    ],
)
def test_complaints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", *arguments, "--out", "out"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_images_are_named_together(tmp_path: Path) -> None:
    hrnet(tmp_path)
    result = CliRunner().invoke(app, ["train", *SMALL, "--data", "mpii", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert f"2 image file(s) missing: {tmp_path / 'images' / 't.jpg'}, {tmp_path / 'images' / 'v.jpg'}" in result.stderr
