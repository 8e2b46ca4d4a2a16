"""Clips in, painted clips out: tiny ones, written here, read back frame by frame."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import Tensor

from cgrseg.config.schema import TestConfig
from cgrseg.errors import DataError, EnvironmentProblem
from cgrseg.inference import Predictor, predict_video
from cgrseg.inference.image_sources import kind_of
from cgrseg.inference.video import VideoReader, VideoWriter, frames_of, writable_rate
from tests.inference.fixtures import BlockBackend, photo

CLASSES = ("sky", "road", "car")
PALETTE = ((70, 130, 180), (128, 64, 128), (0, 0, 142))


def predictor() -> Predictor:
    return Predictor(BlockBackend(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """12 frames of 64x96 at 10 frames a second, lossless, each grey level of its own."""
    path = tmp_path / "clip.mkv"
    code = cv2.VideoWriter.fourcc(*"FFV1")
    writer = cv2.VideoWriter(str(path), code, 10.0, (96, 64))
    assert writer.isOpened()
    for number in range(12):
        writer.write(cv2.cvtColor(photo(64, 96, number), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_frames_come_in_order_and_in_rgb(clip: Path) -> None:
    with VideoReader(clip) as opened:
        assert (opened.length, opened.rate) == (12, 10.0)
        frames = list(opened)
    assert [frame.number for frame in frames] == list(range(12))
    for frame in frames:
        # FFV1 stores the colours with half the resolution of the brightness.
        difference = frame.image.astype(int) - photo(64, 96, frame.number)
        assert np.abs(difference).mean() < 4
    folder = clip.parent / "drive.mp4"
    folder.mkdir()
    sources = ["a/b.MP4", clip, "a.png", folder, frames[0].image]
    assert [kind_of(source) for source in sources] == [
        *("video", "video", "pattern", "folder", "object")
    ]


def test_frames_are_labelled_like_photos(clip: Path) -> None:
    expected = [predictor()(frame.image).labels for frame in frames_of(clip)]
    for batch_size in (1, 3):
        found = predictor()(clip, batch_size=batch_size)
        assert [one.frame for one in found] == list(range(12))
        assert all(one.source == clip for one in found)
        for one, labels in zip(found, expected, strict=True):
            assert np.array_equal(one.labels, labels)


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".avi", ".mov", ".mkv"])
def test_painted_clip_has_every_frame_in_its_place(clip: Path, tmp_path: Path, ending: str) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "painted" / f"out{ending}"
    report = predict_video(
        predictor(), clip, out, opacity=0.5, batch_size=2, progress=lambda *a: steps.append(a)
    )
    assert (report.frames, report.problem) == (12, None)
    assert steps == [(done, 12) for done in range(1, 13)]
    with VideoReader(out) as painted:
        assert painted.rate == pytest.approx(10.0)
        shown = [frame.image for frame in painted]
    assert len(shown) == 12
    expected = [predictor()(frame.image).overlay(0.5) for frame in frames_of(clip)]
    for number, picture in enumerate(shown):
        distances = [np.abs(picture.astype(int) - other).mean() for other in expected]
        assert int(np.argmin(distances)) == number and distances[number] < 15
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert report.speed.images == 10 and report.speed.once > 0  # the first two went together


def test_odd_sizes_lose_a_line_at_most(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, 5.0) as writer:
        for number in range(3):
            writer.add(photo(33, 47, number))
    assert [frame.image.shape for frame in frames_of(path)] == [(32, 46, 3)] * 3


def test_damaged_clip_gives_what_could_be_read(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.avi", tmp_path / "broken.avi"
    with VideoWriter(whole, 5.0) as writer:
        for number in range(60):
            writer.add(photo(64, 96, number))
    content = bytearray(whole.read_bytes())
    half = len(content) // 2
    content[half : len(content) - 2000] = bytes(len(content) - 2000 - half)  # the index stays
    broken.write_bytes(content)
    report = predict_video(predictor(), broken, tmp_path / "out.mp4")
    assert report.problem is not None
    text = str(report.problem)
    assert "broken.avi" in text and "frames can be read" in text and "ffmpeg" in text
    assert 20 < report.frames < 60
    assert len(list(frames_of(tmp_path / "out.mp4"))) == report.frames


def promise(clip: Path, seconds: float) -> None:
    """Let a Matroska file say that it is longer than its pictures."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3  # Duration, 8 bytes, in milliseconds
    struct.pack_into(">d", content, at, seconds * 1000)
    clip.write_bytes(content)


def test_number_of_frames_in_the_container_is_a_hint(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    promise(clip, 1.9)
    with caplog.at_level(logging.WARNING, "cgrseg.inference"):
        assert len(predictor()(clip)) == 12
    assert "only 12 of 19 frames" in caplog.text and "clip.mkv" in caplog.text
    report = predict_video(predictor(), clip, tmp_path / "short.mp4")
    assert (report.frames, report.problem) == (12, None) and "12 of 19" in report.note
    promise(clip, 6)
    cut = predict_video(predictor(), clip, tmp_path / "cut.mp4")
    assert cut.frames == 12 and cut.note == "" and "12 of 60" in str(cut.problem)
    assert len(predictor()(clip)) == 12


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (120.0013, 120.0),
        (119.88012, 119.88),
        (29.97003, 29.97),
        (23.976024, 23.976),
        (999.97, 1000.0),
        (90000.0, 25.0),
        (0.0, 25.0),
        (1e-5, 25.0),
        (float("nan"), 25.0),
        (float("inf"), 25.0),
    ],
)
def test_every_rate_can_be_written(tmp_path: Path, rate: float, expected: float) -> None:
    assert writable_rate(rate) == pytest.approx(expected)
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, rate) as writer:
        for number in range(3):
            writer.add(photo(32, 48, number))
    with VideoReader(path) as written:
        assert written.rate == pytest.approx(expected) and len(list(written)) == 3


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_leaves_nothing_behind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.mp4.*cannot be opened as a video"):
        predict_video(predictor(), path, tmp_path / "out" / "painted.mp4")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.mp4"]
    found = list(predictor().stream([path, photo(40, 40)], on_error="yield"))
    assert found[0][0] == path and isinstance(found[0][1], DataError)
    assert not isinstance(found[1][1], DataError)
    with pytest.raises(DataError, match="No such file"):
        predict_video(predictor(), tmp_path / "missing.mp4", tmp_path / "painted.mp4")


def test_nothing_is_overwritten_unasked(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"mine")
    with pytest.raises(DataError, match="a name that is free"):
        predict_video(predictor(), clip, out)
    assert out.read_bytes() == b"mine"
    before = clip.read_bytes()
    with pytest.raises(DataError, match="the video itself"):
        predict_video(predictor(), clip, clip, overwrite=True)
    assert clip.read_bytes() == before
    assert predict_video(predictor(), clip, out, overwrite=True).frames == 12
    with pytest.raises(DataError, match=r"\.mp4"):
        predict_video(predictor(), clip, tmp_path / "out.gif")


def test_an_error_on_the_way_leaves_the_old_file(clip: Path, tmp_path: Path) -> None:
    class Failing(BlockBackend):
        def logits(self, batch: Tensor) -> Tensor:
            if len(self.seen) == 5:
                raise RuntimeError("the machine burns")
            return super().logits(batch)

    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    failing = Predictor(Failing(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    with pytest.raises(RuntimeError, match="burns"):
        predict_video(failing, clip, out, overwrite=True)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "out.mp4"]


def test_a_frame_that_the_network_fails_at_is_no_damage(clip: Path, tmp_path: Path) -> None:
    class Overflowing(BlockBackend):
        def logits(self, batch: Tensor) -> Tensor:
            found = super().logits(batch)
            return found * float("nan") if len(self.seen) == 5 else found

    out = tmp_path / "out.mp4"
    out.write_bytes(b"old and whole")
    failing = Predictor(Overflowing(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    with pytest.raises(DataError, match=r"clip\.mkv, frame 4"):
        predict_video(failing, clip, out, overwrite=True)
    assert out.read_bytes() == b"old and whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "out.mp4"]


def test_an_encoder_that_does_not_start_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentProblem, match=r"(?s)encoder.*1x1 at 5.*another suffix"),
        VideoWriter(tmp_path / "out.mp4", 5.0) as writer,
    ):
        writer.add(photo(1, 1))
    assert not list(tmp_path.iterdir())


def test_frames_that_did_not_reach_the_disk_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV is silent about a full disk; here the file is cut short before it is looked at."""
    path = tmp_path / "full.avi"
    check = VideoWriter._check

    def cut(self: VideoWriter) -> None:
        with self._partial.open("rb+") as stream:
            stream.truncate(3000)
        check(self)

    monkeypatch.setattr(VideoWriter, "_check", cut)
    with (
        pytest.raises(EnvironmentProblem, match="frames are in the file"),
        VideoWriter(path, 5.0) as writer,
    ):
        for number in range(30):
            writer.add(photo(64, 96, number))
    assert list(tmp_path.iterdir()) == []
