"""Frames of a video, one after another (OpenCV with the FFmpeg of its wheels)."""

from __future__ import annotations

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

from cgrseg.errors import DataError
from cgrseg.input_files import refuse_special

#: Endings of files that are taken for videos.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"),
    *(".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
)
_LOG = logging.getLogger("cgrseg.inference")

#: Rate of a clip that does not say its own.
USUAL_RATE = 25.0
# What a container says is a hint: edit lists hide frames, and a sound track may be longer than
# the pictures.  Only where more is missing than both of these was the clip cut off.
_LOOSE_SHARE = 0.1
_LOOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Frame:
    """One frame of a clip.

    Attributes:
        image: uint8 RGB (H, W, 3), upright.
        number: from 0.
        source: the clip.
    """

    image: NDArray[np.uint8]
    number: int
    source: Path


def is_video(source: object) -> bool:
    """Whether a path ends like a video, and is no folder."""
    if not isinstance(source, (str, Path)):
        return False
    return Path(source).suffix.lower() in VIDEO_SUFFIXES and not Path(source).is_dir()


class Clip:
    """A video that is open for reading; iterating gives its :class:`Frame` objects, once.

    Args:
        path: the file.

    Attributes:
        length: frames, as the container says, which may be too many; 0 where it does not.
        rate: frames per second; may be 0 or NaN where the container does not say.
        shortfall: once all was read, what is said of frames that could not be; else empty.
        cut_off: whether so many are missing that the clip must be damaged.

    Raises:
        DataError: the file is missing, or no video; while iterating: no frame can be read.
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
        # A thread may still read ahead when a signal ends the work: FFmpeg's memory must not be
        # freed under it.
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
                there, picture = self._capture.read()  # none once the clip is closed
            if not there:
                break
            image: NDArray[np.uint8] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(
                np.uint8, copy=False
            )
            yield Frame(image, number, self.path)
            number += 1
        if not number:
            raise self._damaged("no frame can be read")
        missing = self.length - number
        if missing > 0:
            rate = self.rate if math.isfinite(self.rate) and self.rate > 0 else USUAL_RATE
            self.cut_off = missing > max(_LOOSE_SHARE * self.length, _LOOSE_SECONDS * rate)
            self.shortfall = f"only {number} of {self.length} frames can be read"

    def close(self) -> None:
        """Let go of the file."""
        with self._using:
            self._capture.release()

    def __enter__(self) -> Clip:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def problem(self) -> DataError | None:
        """What is wrong with a clip that was read and is cut off; None if it is not."""
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
    """The frames of a clip; the file is closed in the end.

    Fewer frames than the container promised are told in the log.

    Raises:
        DataError: see :class:`Clip`.
    """
    with Clip(path) as clip:
        yield from clip
        if clip.shortfall:
            _LOG.warning("%s: %s, as the file counts them", path, clip.shortfall)
