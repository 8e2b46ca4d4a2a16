"""Images on their way to the network: opened ahead of it, frames in the place of their clip."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import CGRSegError
from cgrseg.inference.frames import Frame, frames_of, is_video
from cgrseg.inference.overlap import read_ahead
from cgrseg.inference.segmenting import PlannedImage


@dataclass(frozen=True)
class Opened:
    """An image that was read."""

    image: NDArray[np.uint8]
    planned: PlannedImage | None
    seconds: float
    digest: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """Stands in the place of what could not be read of a clip."""

    source: Any
    error: CGRSegError


def with_frames(sources: Iterable[Any], depth: int) -> Generator[Any, None, None]:
    """Videos replaced by their frames, which are read ahead."""
    for source in sources:
        if not is_video(source):
            yield source
            continue
        frames = read_ahead(frames_of(source), depth)
        try:
            yield from frames
        except CGRSegError as error:
            yield Unreadable(source, error)
        finally:
            frames.close()


def origin_of(source: Any) -> Any:
    """What the caller gave: of a frame, the clip's path."""
    return source.source if isinstance(source, (Frame, Unreadable)) else source


def name_of(source: Any) -> str:
    """How a message calls it."""
    if isinstance(source, Frame):
        return f"{source.source}, frame {source.number}"
    return str(source) if isinstance(source, (str, Path)) else "an image in memory"
