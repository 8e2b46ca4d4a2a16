"""The page's files, read once at the start: no request opens a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cgrseg.data.synthetic import make_scene

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_EXAMPLE_SEED, _EXAMPLE_SIZE = 11, (480, 640)  # height and width in pixels


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: for the header `Content-Type`.
    """

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """All files of the page, with an example image, by their paths on the server."""
    files = {
        f"/{name}": PageFile((_FOLDER / name).read_bytes(), kind) for name, kind in _TYPES.items()
    }
    files["/"] = files.pop("/index.html")
    files["/example.jpg"] = PageFile(_example(), "image/jpeg")
    return files


def _example() -> bytes:
    image, _ = make_scene(_EXAMPLE_SEED, 0, _EXAMPLE_SIZE)
    done, content = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]))
    assert done  # an array of ours always has a form that can be encoded
    return content.tobytes()
