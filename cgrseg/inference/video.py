"""Reading and writing videos frame by frame: memory does not grow with their length.

OpenCV's wheels bring their own FFmpeg.  It decodes what cameras and phones record (H.264, H.265,
VP9, AV1 and more).  For license reasons it cannot encode H.264, so the suffix chooses another
codec: MPEG-4 part 2 (.mp4, .m4v, .mov, .mkv), VP8 (.webm, which browsers show) or Motion-JPEG
(.avi).  Sound is not copied.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError, EnvironmentProblem
from cgrseg.files import atomic_path
from cgrseg.input_files import refuse_special

_LOG = logging.getLogger("cgrseg.inference")
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v"}
_CODECS |= {".webm": "VP80", ".avi": "MJPG"}
#: Suffixes that can be written.
WRITTEN_SUFFIXES = tuple(_CODECS)
#: Suffixes of files that count as videos.
VIDEO_SUFFIXES = (*_CODECS, ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")

_DEFAULT_RATE = 25.0  # where a video does not state its rate
_HIGHEST_RATE = 1000.0
# OpenCV writes a rate as a decimal fraction; MPEG-4 part 2 has 16 bits for its numerator.
_HIGHEST_NUMERATOR = 65535
# The frame count of a container is a hint: edit lists hide frames, and a sound track may be longer
# than the video.  A video is cut off only if more frames are missing than both of these.
_LOOSE_SHARE = 0.1
_LOOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        image: uint8 RGB (H, W, 3), upright.
        number: counted from 0.
        source: the video file.
    """

    image: NDArray[np.uint8]
    number: int
    source: Path


class VideoReader:
    """A video open for reading; iterating gives its :class:`Frame` objects once.

    Attributes:
        length: number of frames that the container states, possibly too many; 0 if it states none.
        rate: frames per second; may be 0 or NaN if the container states none.
        shortfall: after the last frame, a phrase about unreadable frames; empty if there are none.
        cut_off: whether so many frames are missing that the video must be damaged.

    Raises:
        DataError: a missing file or no video; while iterating, no frame can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            refuse_special(path)
        except OSError as error:
            raise DataError(
                path,
                found=f"the file cannot be read ({error.strerror or error})",
                expected="a video",
                remedy="check the path and the permissions",
            ) from error
        # A thread may still read ahead when a signal ends the work: it must not lose FFmpeg's
        # memory while it reads.
        self._using = threading.Lock()
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            self._capture.release()
            raise self._damaged("it cannot be opened as a video")
        self.length = max(0, round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.shortfall = ""
        self.cut_off = False

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        while True:
            with self._using:
                there, pixels = self._capture.read()  # none after closing
            if not there:
                break
            image: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(
                np.uint8, copy=False
            )
            yield Frame(image, number, self.path)
            number += 1
        if not number:
            raise self._damaged("no frame can be read")
        missing = self.length - number
        if missing > 0:
            rate = self.rate if math.isfinite(self.rate) and self.rate > 0 else _DEFAULT_RATE
            self.cut_off = missing > max(_LOOSE_SHARE * self.length, _LOOSE_SECONDS * rate)
            self.shortfall = f"only {number} of {self.length} frames can be read"

    def close(self) -> None:
        """Close the file."""
        with self._using:
            self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def problem(self) -> DataError | None:
        """Error of a video that was read and is cut off; else None."""
        return self._damaged(self.shortfall) if self.cut_off else None

    def _damaged(self, found: str) -> DataError:
        return DataError(
            self.path,
            found=found,
            expected=f"a whole video ({', '.join(VIDEO_SUFFIXES)})",
            remedy="play it to see whether it is damaged; `ffmpeg -i IN OUT.mp4` rewrites what "
            "can be saved and other formats",
        )


def frames_of(path: str | Path) -> Iterator[Frame]:
    """The frames of a video; the file is closed at the end.

    A warning is logged when frames are missing that the container states.

    Raises:
        DataError: see :class:`VideoReader`.
    """
    with VideoReader(path) as video:
        yield from video
        if video.shortfall:
            _LOG.warning("%s: %s, as the file counts them", path, video.shortfall)


def writable_rate(rate: float) -> float:
    """The rate closest to a video's that every format can hold; 25 for an impossible rate."""
    if not math.isfinite(rate) or not 0 < rate <= _HIGHEST_RATE:
        return _DEFAULT_RATE
    for digits in (3, 2, 1):
        rounded = round(rate, digits)
        if rounded * 10**digits <= _HIGHEST_NUMERATOR:
            return rounded or _DEFAULT_RATE
    return float(round(rate))


class VideoWriter:
    """A video file that appears complete when the block ends without an error, else not at all.

    Args:
        path: target; its suffix chooses the format.
        rate: frames per second; see :func:`writable_rate`.

    Raises:
        DataError: a suffix that cannot be written.
        EnvironmentProblem: on leaving the block, when frames are missing on the disk.
    """

    def __init__(self, path: Path | str, rate: float) -> None:
        self.path = Path(path)
        self.frames = 0
        self._rate = writable_rate(rate)
        self._writer: cv2.VideoWriter | None = None
        # A thread may still encode when a signal ends the work, as in `VideoReader`.
        self._using = threading.Lock()
        self._closed = False
        self._exit = contextlib.ExitStack()
        self._partial = self.path
        if self.path.suffix.lower() not in _CODECS:
            raise DataError(
                self.path,
                found=f"the suffix {self.path.suffix or '(none)'}",
                expected=f"one of {', '.join(_CODECS)}",
                remedy="choose .mp4, or .webm for a video that browsers show",
            )

    def __enter__(self) -> VideoWriter:
        self._partial = self._exit.enter_context(atomic_path(self.path))
        return self

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 RGB (H, W, 3), of the size of the first frame.

        An odd last row or column is dropped, as the formats require.
        """
        pixels = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        with self._using:
            if self._closed:
                return
            if self._writer is None:
                self._writer = self._start(*frame.shape[:2])
            self._writer.write(pixels)
        self.frames += 1

    def _start(self, height: int, width: int) -> cv2.VideoWriter:
        code = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self._partial), code, self._rate, (width, height))
        if not writer.isOpened():
            raise self._not_written(
                f"the encoder could not be started for {width}x{height} at {self._rate:g} "
                "frames per second",
                "see whether OpenCV said more above; choose another suffix",
            )
        return writer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._using:
            self._closed = True
            if self._writer is not None:
                self._writer.release()
        if kind is None:
            # OpenCV does not report a full disk: count the frames in the file.
            try:
                self._check()
            except EnvironmentProblem as problem:
                self._exit.__exit__(type(problem), problem, None)
                raise
        self._exit.__exit__(kind, error, trace)

    def _check(self) -> None:
        written = cv2.VideoCapture(str(self._partial))
        there = round(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        # WebM states its length in milliseconds only.
        if there < self.frames - 1 - self.frames // 100 or not there:
            raise self._not_written(
                f"{there} of {self.frames} frames are in the file",
                "free space on the disk, or choose another suffix",
            )

    def _not_written(self, found: str, remedy: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            self.path,
            found=found,
            expected="a video with every frame",
            remedy=f"{remedy} ({', '.join(sorted(_CODECS))})",
        )
