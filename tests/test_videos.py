"""Predictions for videos and for detected boxes: what is written, frame by frame, and what is left of damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastpose.checkpoints import save_weights
from fastpose.cli import app
from fastpose.codec import HeatmapCodec
from fastpose.data.records import Person
from fastpose.detections import read_detections
from fastpose.models import create_model
from fastpose.plots import Image, save_image
from fastpose.prediction import CODEC_KEY, SKELETON_KEY, Predictor
from fastpose.skeletons import MPII
from fastpose.video_files import is_video, open_video, predict_video

RATE = 12.5
SIZE = (48, 64)


def write_video(path: Path, frames: int, codec: str = "MJPG") -> Path:
    """A grey video that grows brighter by 10 with every frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, SIZE[::-1])
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((*SIZE, 3), 10 * (number % 20), np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("hourglass", stacks=1, features=8, depth=2)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    codec = HeatmapCodec.preset("msra", 64)
    save_weights(model, path, metadata={CODEC_KEY: json.dumps(codec.to_dict()), SKELETON_KEY: "mpii"})
    return path


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.load(weights, "cpu")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


# ---- videos ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec", "count"), [("a.avi", "MJPG", 35), ("a.mp4", "mp4v", 6), ("a.mkv", "mp4v", 6)])
def test_every_frame_is_dealt_with(tmp_path: Path, predictor: Predictor, name: str, codec: str, count: int) -> None:
    video = open_video(write_video(tmp_path / name, count, codec))
    assert video.rate == RATE
    seen: list[tuple[int, float]] = []

    def locate(number: int, image: Image) -> list[Person]:
        seen.append((number, float(image.mean())))
        # Two people in the first frame, nobody in the second.
        return [predictor.person_in_box(image)] * ((2, 0)[number] if number < 2 else 1)

    out = tmp_path / "deep" / "out"
    # Frames go 32 at a time.
    assert list(predict_video(predictor, video, locate, out)) == ([32, 3] if count == 35 else [count])
    assert [number for number, _ in seen] == list(range(count))
    np.testing.assert_allclose([mean for _, mean in seen], [10 * (number % 20) for number in range(count)], atol=4)
    assert sorted(path.name for path in out.iterdir()) == ["a.jsonl", "a.overlay.mp4"]
    lines = read_lines(out / "a.jsonl")
    assert [line["frame"] for line in lines] == list(range(count))
    assert lines[5]["time"] == 5 / RATE
    assert [len(line["persons"]) for line in lines[:3]] == [2, 0, 1]
    assert (lines[0]["image"], lines[0]["size"], lines[0]["skeleton"]) == (name, list(SIZE), "mpii")
    assert list(lines[0]["persons"][0]["keypoints"]) == list(MPII.joints)
    overlay = cv2.VideoCapture(str(out / "a.overlay.mp4"))
    frames = []
    while (read := overlay.read())[0]:
        frames.append(read[1].astype(float))
    assert len(frames) == count
    assert frames[0].shape == (*SIZE, 3)
    assert overlay.get(cv2.CAP_PROP_FPS) == pytest.approx(RATE)
    # A skeleton is drawn over the third frame and none over the second.
    assert frames[2].std() > 4 * frames[1].std()


def test_poses_are_those_of_images(tmp_path: Path, predictor: Predictor) -> None:
    video = open_video(write_video(tmp_path / "a.avi", 2))
    found: list[Image] = []

    def locate(number: int, image: Image) -> list[Person]:
        found.append(image)
        return [predictor.person_in_box(image)]

    list(predict_video(predictor, video, locate, tmp_path / "out", flip_test=False))
    (pose,) = predictor.predict([predictor.person_in_box(found[1])], flip_test=False)
    joint = read_lines(tmp_path / "out" / "a.jsonl")[1]["persons"][0]["keypoints"]["pelvis"]
    np.testing.assert_allclose([joint["x"], joint["y"]], pose.keypoints[MPII.index("pelvis")], rtol=1e-5)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no video file .*a\.mp4"):
        open_video(tmp_path / "a.mp4")
    content = write_video(tmp_path / "good.mp4", 20, "mp4v").read_bytes()
    for damaged in (b"", b"no video", content[: len(content) // 2]):
        (tmp_path / "a.mp4").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.mp4 is not a video that OpenCV can read; it may be damaged or empty"):
            open_video(tmp_path / "a.mp4")


def test_nothing_is_left_of_a_video_that_ends_too_early(tmp_path: Path, predictor: Predictor) -> None:
    content = write_video(tmp_path / "a.avi", 60).read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    video = open_video(tmp_path / "a.avi")
    out = tmp_path / "out"
    if video.frames < 60:  # the end of the file holds the index, from which FFmpeg knows it
        video = type(video)(video.path, 60, video.rate)
    with pytest.raises(ValueError, match=r"a\.avi ends after \d+ of 60 frames; it is damaged or empty"):
        list(predict_video(predictor, video, lambda number, image: [], out))
    assert not list(out.iterdir())


def test_a_video_without_frames(tmp_path: Path, predictor: Predictor) -> None:
    write_video(tmp_path / "a.avi", 0)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="damaged or empty"):
        list(predict_video(predictor, open_video(tmp_path / "a.avi"), lambda number, image: [], out))
    assert not out.exists() or not list(out.iterdir())


def test_nothing_is_left_when_it_is_stopped(tmp_path: Path, predictor: Predictor) -> None:
    video = open_video(write_video(tmp_path / "a.avi", 40))
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jsonl").write_text("before")
    running = predict_video(predictor, video, lambda number, image: [], out)
    assert next(running) == 32
    running.close()
    assert [path.name for path in out.iterdir()] == ["a.jsonl"]
    assert (out / "a.jsonl").read_text() == "before"

    def locate(number: int, image: Image) -> list[Person]:
        return [predictor.person_in_box(image, (0, 0, 0, 0))]

    with pytest.raises(ValueError, match="positive width, height"):
        list(predict_video(predictor, video, locate, out))
    assert [path.name for path in out.iterdir()] == ["a.jsonl"]


def test_what_is_taken_for_a_video(tmp_path: Path) -> None:
    for name, video in (("a.MP4", True), ("a.jpg", False), ("a.webm", True), ("folder", False)):
        assert is_video(tmp_path / name) is video
    (tmp_path / "a.dat").write_bytes(write_video(tmp_path / "a.avi", 2).read_bytes())
    assert is_video(tmp_path / "a.dat")
    save_image(np.zeros((8, 8, 3), np.uint8), tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.dat")
    assert not is_video(tmp_path / "b.dat")


def test_command_on_videos_and_images(weights: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 3)
    save_image(np.zeros((*SIZE, 3), np.uint8), tmp_path / "b.png")
    result = run(weights, tmp_path / "a.avi", tmp_path / "b.png", "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.jsonl", "a.overlay.mp4", "b.json", "b.overlay.jpg",
    ]  # fmt: skip
    result = run(weights, tmp_path / "a.avi", "--box", "10,5,20,40", "--out", tmp_path / "box", "--no-flip-test")
    assert result.exit_code == 0, result.output
    assert [line["persons"][0]["scale"] for line in read_lines(tmp_path / "box" / "a.jsonl")] == [0.2] * 3


def test_command_goes_on_after_a_damaged_video(weights: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "empty.avi", 0)
    write_video(tmp_path / "good.avi", 2)
    result = run(weights, tmp_path / "empty.avi", tmp_path / "good.avi", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "empty.avi" in result.stderr
    assert "damaged or empty" in result.stderr
    assert result.stderr.count("\n") == 1


# ---- boxes ----------------------------------------------------------------------------------------------------------


def write_boxes(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_boxes_by_number_name_and_list_of_images(tmp_path: Path) -> None:
    one, two, other = [1, 2, 3, 4.5], [5, 6, 7, 8], [0, 0, 9, 9]
    entries = [
        {"image_id": 785, "bbox": one, "score": 0.9, "category_id": 1},
        {"image_id": 785, "bbox": two, "score": 0.3, "category_id": 1},
        {"image_id": 785, "bbox": other, "score": 0.9, "category_id": 18},
        {"image_id": "b.png", "bbox": other},
    ]
    found = read_detections(write_boxes(tmp_path / "a.json", entries))
    assert found.of_file(Path("x/000000000785.jpg")) == [tuple(one), tuple(two)]
    assert found.of_frame(785) == [tuple(one), tuple(two)]
    assert found.of_file(Path("b.png")) == [tuple(other)]
    assert found.of_file(Path("786.jpg")) == found.of_frame(0) == []
    assert read_detections(tmp_path / "a.json", 0.5).of_frame(785) == [tuple(one)]
    listed = {"images": [{"id": 785, "file_name": "folder/c.jpg"}], "annotations": entries}
    assert read_detections(write_boxes(tmp_path / "a.json", listed)).of_file(Path("c.jpg")) == [tuple(one), tuple(two)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "must hold a list of detections"),
        ({"images": []}, "must hold a list of detections"),
        ([{"bbox": [1, 2, 3, 4]}], "detection 0 must be an object with image_id and bbox"),
        ([{"image_id": 1}], "detection 0: bbox must be four finite numbers x, y, width, height, got None"),
        ([{"image_id": 1, "bbox": [1, 2, 3]}], "detection 0: bbox must be four"),
        ([{"image_id": 1, "bbox": [1, 2, 3, float("nan")]}], "detection 0: bbox must be four"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "a"}], "detection 0: score must be a number"),
    ],
)
def test_boxes_that_are_none(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_detections(write_boxes(tmp_path / "a.json", content))


def test_files_of_boxes_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        read_detections(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(ValueError, match=r"a\.json is not a complete JSON file"):
        read_detections(tmp_path / "a.json")


def test_command_takes_boxes_of_images_and_frames(weights: Path, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        save_image(np.zeros((*SIZE, 3), np.uint8), tmp_path / name)
    write_video(tmp_path / "a.avi", 3)
    entries = [
        {"image_id": 1, "bbox": [0, 0, 20, 40], "score": 0.9},
        {"image_id": 1, "bbox": [30, 0, 20, 30], "score": 0.6},
        {"image_id": 1, "bbox": [30, 0, 20, 30], "score": 0.4},
    ]
    boxes = write_boxes(tmp_path / "boxes.json", entries)
    out = tmp_path / "out"
    result = run(weights, tmp_path / "1.png", tmp_path / "2.png", tmp_path / "a.avi", "--boxes", boxes, "--out", out)
    assert result.exit_code == 0, result.output
    assert [person["scale"] for person in json.loads((out / "1.json").read_text())["persons"]] == [0.2, 0.15]
    assert json.loads((out / "2.json").read_text())["persons"] == []
    assert [len(line["persons"]) for line in read_lines(out / "a.jsonl")] == [0, 2, 0]
    every = run(weights, tmp_path / "1.png", "--boxes", boxes, "--least-score", 0, "--out", out)
    assert every.exit_code == 0
    assert len(json.loads((out / "1.json").read_text())["persons"]) == 3
    nobody = run(weights, tmp_path / "2.png", "--boxes", boxes, "--out", tmp_path / "no")
    assert nobody.exit_code == 2
    assert "boxes: none is in 2.png; the images are called 1" in nobody.stderr
    both = run(weights, tmp_path / "1.png", "--boxes", boxes, "--box", "1,2,3,4", "--out", tmp_path / "no")
    assert "--box and --boxes exclude each other" in both.stderr


def test_people_detected_in_real_images(weights: Path, shared_data: Path, tmp_path: Path) -> None:
    coco = shared_data / "coco"
    boxes = coco / "test_coco_det_AP_H_56.json"
    result = run(weights, coco / "images", "--boxes", boxes, "--least-score", 0.9, "--out", tmp_path, "--no-flip-test")
    assert result.exit_code == 0, result.output
    sure = [entry for entry in json.loads(boxes.read_text()) if entry["score"] >= 0.9]
    for image in (coco / "images").iterdir():
        described = json.loads((tmp_path / f"{image.stem}.json").read_text())
        assert len(described["persons"]) == sum(entry["image_id"] == int(image.stem) for entry in sure) > 0
