"""Poses for video files: an overlay video and what is written about each frame."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

# What FFmpeg has to say about a damaged file is said in one error here. It is read when OpenCV first opens a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from fastpose.data.records import Person
from fastpose.plots import Image, draw_skeleton
from fastpose.pose_files import IMAGE_SUFFIXES, describe
from fastpose.prediction import Predictor

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Files that are taken for videos; others are where they are no images that OpenCV knows."""

_CODEC = "mp4v"
_FRAMES_AT_A_TIME = 32
# The number of frames that a container tells may be an estimate from its duration, off by a few.
_LEAST_SHARE_OF_FRAMES = 0.98
_FRAMES_OFF = 2
_DEFAULT_RATE = 25.0  # of files that tell none

LocateInFrame = Callable[[int, Image], list[Person]]
"""Finds the people to predict in a frame, from its number and its pixels."""


@dataclass(frozen=True)
class Video:
    """A video file.

    Attributes:
        path: the file.
        frames: how many it says that it has; 0 if it does not say.
        rate: frames a second.
    """

    path: Path
    frames: int
    rate: float


def is_video(path: Path) -> bool:
    """Whether a file is to be read as a video rather than as an image."""
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or (suffix not in IMAGE_SUFFIXES and path.is_file() and not cv2.haveImageReader(str(path)))


def open_video(path: Path) -> Video:
    """Look at a video file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a video that OpenCV can read.
    """
    with _reading(path) as capture:
        frames, rate = (capture.get(fact) for fact in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    return Video(path, max(0, round(frames)), rate if 0 < rate < 1000 else _DEFAULT_RATE)


def predict_video(
    predictor: Predictor, video: Video, locate: LocateInFrame, out: Path, *, flip_test: bool = True
) -> Iterator[int]:
    """Write the poses in a video: ``NAME.jsonl``, one line for each frame, and the video ``NAME.overlay.mp4``.

    A line has ``frame``, its number from 0, ``time`` in seconds, and what `fastpose.pose_files.describe` says. Both files
    appear under their names only when the whole video has been dealt with. Its sides are even: an odd last row or column is
    left out.

    Args:
        predictor: what predicts.
        video: see `open_video`.
        locate: finds the people in each frame.
        out: folder to write to, made if it does not exist.
        flip_test: see `Predictor.predict`.

    Yields:
        How many frames have been dealt with since the last time.

    Raises:
        ValueError: if the video holds no frames, ends before the number of frames that it tells, or people cannot be
            located in a frame.
        OSError: if the files cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    text, overlay = out / f"{video.path.stem}.jsonl", out / f"{video.path.stem}.overlay.mp4"
    unfinished = [path.with_name(f".{os.getpid()}.{path.name}") for path in (text, overlay)]
    try:
        done = 0
        with _reading(video.path) as capture, unfinished[0].open("w", encoding="utf-8") as lines:
            frames = _frames(capture)
            writer: cv2.VideoWriter | None = None
            try:
                while batch := list(islice(frames, _FRAMES_AT_A_TIME)):
                    writer = writer or _writer(unfinished[1], video, batch[0])
                    _predict_batch(predictor, video, locate, batch, done, lines, writer, flip_test)
                    done += len(batch)
                    yield len(batch)
            finally:
                if writer is not None:
                    writer.release()
        if done < max(1, _LEAST_SHARE_OF_FRAMES * video.frames - _FRAMES_OFF):
            raise ValueError(f"{video.path} ends after {done} of {video.frames} frames; it is damaged or empty")
        for path, finished in zip(unfinished, (text, overlay), strict=True):
            path.replace(finished)
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)


def _predict_batch(
    predictor: Predictor,
    video: Video,
    locate: LocateInFrame,
    batch: list[Image],
    first: int,
    lines: IO[str],
    writer: cv2.VideoWriter,
    flip_test: bool,
) -> None:
    located = [locate(number, image) for number, image in enumerate(batch, start=first)]
    poses = iter(predictor.predict([person for people in located for person in people], flip_test=flip_test))
    for number, (image, people) in enumerate(zip(batch, located, strict=True), start=first):
        found = list(islice(poses, len(people)))
        size = (image.shape[0], image.shape[1])
        facts = {"frame": number, "time": round(number / video.rate, 6)}
        described = describe(found, video.path.name, size, predictor.skeleton)
        lines.write(json.dumps({**facts, **described}, allow_nan=False) + "\n")
        drawn = image
        for pose in found:
            drawn = draw_skeleton(drawn, pose.keypoints, predictor.skeleton)
        writer.write(np.ascontiguousarray(drawn[..., ::-1]))


@contextmanager
def _reading(path: Path) -> Iterator[cv2.VideoCapture]:
    if not path.is_file():
        raise FileNotFoundError(f"no video file {path}")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path} is not a video that OpenCV can read; it may be damaged or empty")
        yield capture
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[Image]:
    while True:
        read, frame = capture.read()
        if not read:
            return
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


def _writer(path: Path, video: Video, image: Image) -> cv2.VideoWriter:
    height, width = image.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODEC), video.rate, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path.parent}: OpenCV cannot write a video there (codec {_CODEC}, {width} x {height} pixels)")
    return writer
