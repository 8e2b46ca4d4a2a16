"""Clips in and painted clips out, frame by frame: memory does not grow with their length.

OpenCV's own wheels read and write video (its FFmpeg comes with them).  They decode what
cameras and phones record (H.264, H.265, VP9, AV1 and more); H.264 they cannot encode for
reasons of licence, so that the ending chooses among what they can: MPEG-4 part 2 (.mp4,
.m4v, .mov, .mkv), VP8 (.webm, which browsers show) and Motion-JPEG (.avi).  Sound is not
carried over.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError, EnvironmentProblem, option
from cgrseg.files import atomic_path
from cgrseg.inference.frames import USUAL_RATE, Clip
from cgrseg.inference.overlap import Behind, read_ahead
from cgrseg.inference.prediction import Prediction, Speed
from cgrseg.inference.predictor import Predictor
from cgrseg.locks import locking
from cgrseg.progress import Progress

_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v"}
_CODECS |= {".webm": "VP80", ".avi": "MJPG"}
#: Endings that can be written.
WRITTEN_SUFFIXES = tuple(_CODECS)
_HIGHEST_RATE = 1000.0
# OpenCV makes a decimal fraction of a rate; MPEG-4 part 2 has 16 bits for its numerator.
_HIGHEST_NUMERATOR = 65535


@dataclass(frozen=True)
class VideoReport:
    """What became of a clip.

    Attributes:
        source: the clip.
        target: the painted one.
        frames: that were painted and written.
        speed: of the network.
        problem: set if the clip is cut off after these frames: it promised many more.
        note: what else is said of frames that the clip promised and has not; else empty.
    """

    source: Path
    target: Path
    frames: int
    speed: Speed
    problem: DataError | None = None
    note: str = ""


def writable_rate(rate: float) -> float:
    """The closest rate to a clip's that every format can hold; 25 for one that cannot be."""
    if not math.isfinite(rate) or not 0 < rate <= _HIGHEST_RATE:
        return USUAL_RATE
    for digits in (3, 2, 1):
        rounded = round(rate, digits)
        if rounded * 10**digits <= _HIGHEST_NUMERATOR:
            return rounded or USUAL_RATE
    return float(round(rate))


class VideoWriter:
    """A video file that is there once the block ends without an error, whole; else not at all.

    Args:
        path: target; its ending chooses the format.
        rate: frames per second; see :func:`writable_rate`.

    Raises:
        DataError: an ending that cannot be written.
        EnvironmentProblem: on leaving the block, when not all frames reached the disk.
    """

    def __init__(self, path: Path | str, rate: float) -> None:
        self.path = Path(path)
        self.frames = 0
        self._rate = writable_rate(rate)
        self._writer: cv2.VideoWriter | None = None
        # A thread may still encode when a signal ends the work, see `Clip`.
        self._using = threading.Lock()
        self._closed = False
        self._exit = contextlib.ExitStack()
        self._partial = self.path
        if self.path.suffix.lower() not in _CODECS:
            raise DataError(
                self.path,
                found=f"the ending {self.path.suffix or '(none)'}",
                expected=f"one of {', '.join(_CODECS)}",
                remedy="choose .mp4, or .webm for a clip that browsers show",
            )

    def __enter__(self) -> VideoWriter:
        self._partial = self._exit.enter_context(atomic_path(self.path))
        return self

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 RGB (H, W, 3), as large as the first one.

        An odd last row or column is left out, as the formats want it.
        """
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        with self._using:
            if self._closed:
                return
            if self._writer is None:
                self._writer = self._start(*frame.shape[:2])
            self._writer.write(picture)
        self.frames += 1

    def _start(self, height: int, width: int) -> cv2.VideoWriter:
        code = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self._partial), code, self._rate, (width, height))
        if not writer.isOpened():
            raise self._not_written(
                f"the encoder could not be started for {width}x{height} at {self._rate:g} "
                "frames per second",
                "see whether OpenCV said more above; choose another ending",
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
            # OpenCV does not say when a disk is full: count what can be read again.
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
        # WebM tells its length in milliseconds only.
        if there < self.frames - 1 - self.frames // 100 or not there:
            raise self._not_written(
                f"{there} of {self.frames} frames are in the file",
                "free space on the disk, or choose another ending",
            )

    def _not_written(self, found: str, remedy: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            self.path,
            found=found,
            expected="a video with every frame",
            remedy=f"{remedy} ({', '.join(sorted(_CODECS))})",
        )


@locking(lambda given: Path(given["out"]).parent)
def predict_video(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    opacity: float = 0.5,
    overwrite: bool = False,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> VideoReport:
    """Paint the labels over every frame of a clip.

    Frames are read, labelled and written at the same time.  The rate is the clip's average
    one; sound is not carried over.  Of a clip that can be read in part only, the frames until
    there are written, and the report says so; any other problem leaves the target as it was.

    Args:
        predictor: labels the frames.
        source: the clip.
        out: target, whose ending chooses the format (see the module).
        opacity: of the labels, 0..1.
        overwrite: replace a file that is there.
        batch_size: frames that go through the network together.
        progress: called with frames done and frames in all (as the clip says).

    Raises:
        DataError: a clip that cannot be read at all, a target that is there already, or a
            frame of which the network makes NaN or infinite values.
        EnvironmentProblem: the target cannot be written.
    """
    source, out = Path(source), Path(out)
    _check_target(source, out, overwrite)
    painted = 0
    speed = Speed()
    with (
        Clip(source) as clip,
        contextlib.closing(read_ahead(clip, 4 * batch_size)) as frames,
        VideoWriter(out, clip.rate) as writer,
        Behind(threads=1, waiting=4 * batch_size) as encoding,
    ):

        def paint(found: Prediction) -> None:
            writer.add(found.overlay(opacity))

        for _, found in predictor.stream(frames, batch_size=batch_size):
            if not isinstance(found, Prediction):
                raise found
            encoding.add(paint, found)
            speed.add(found.timing)
            painted += 1
            if progress is not None:
                progress(painted, max(painted, clip.length))
    note = "" if clip.cut_off else clip.shortfall
    return VideoReport(source, out, painted, speed, clip.problem(), note)


def _check_target(source: Path, out: Path, overwrite: bool) -> None:
    same = out.exists() and source.exists() and os.path.samefile(source, out)
    if same or (out.exists() and not overwrite):
        raise DataError(
            out,
            found="the clip itself" if same else "a file of that name",
            expected="a name that is free",
            remedy="choose another name"
            + ("" if same else f", or replace it with {option('--overwrite')}"),
        )
