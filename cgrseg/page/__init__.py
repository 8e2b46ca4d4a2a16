"""The page that labels images, in plain JavaScript: for `cgrseg web` and `--format web`.

Both deliver the same files, and under the name `labels.js` their own way to get label maps:
`labels_from_server.js` or `labels_in_browser.js` with its `worker.js`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from cgrseg.data.synthetic import make_scene
from cgrseg.input_files import read_input

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
"""Media type of each of the files, by suffix."""

MAX_CLASSES = 256
"""Classes that an indexed PNG can hold."""

MAX_PIXELS = 40_000_000
"""Default limit of the pixels of one image."""

MAX_INPUT_PIXELS = 2_000_000
"""Default limit of the pixels of the network's input."""

MAX_FRAMES = 600
"""Default limit of the frames that are labeled for one recorded video."""

_SHARED = ("style.css", "app.js", "icon.svg", "index.html")
_EXAMPLE = (11, 0, (480, 640))  # seed, number, height and width of a synthetic scene


@functools.cache
def page_files(labels: str, *others: str) -> dict[str, bytes]:
    """Content of the files of a page, by name; `index.html` is the last.

    Args:
        labels: file that is delivered as `labels.js`.
        others: further files.
    """
    folder = Path(__file__).parent
    done, example = cv2.imencode(".jpg", make_scene(*_EXAMPLE)[0][:, :, ::-1].copy())
    assert done
    found = {"labels.js": read_input(folder / labels), "example.jpg": example.tobytes()}
    return found | {name: read_input(folder / name) for name in (*others, *_SHARED)}


def class_table(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Classes as the page reads them: id, name and color RGB 0..255."""
    return [
        {"id": number, "name": name, "color": list(color)}
        for number, (name, color) in enumerate(zip(classes, palette, strict=True))
    ]
