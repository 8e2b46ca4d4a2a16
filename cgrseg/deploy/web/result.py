"""A prediction as what a browser shows: pictures inside the page, names, shares, a download."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError, explain
from cgrseg.files import explained
from cgrseg.inference import Prediction

_SHOWN = 1280
"""Longest side in pixels of the pictures in the page; the download has the photo's own size."""
_JPEG_SIDE = 65_500
"""The encoder's limit, a little below the format's."""


def label_png(prediction: Prediction) -> bytes:
    """The label map as an indexed PNG, as `cgrseg predict` writes it."""
    with explained(tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.png"
        prediction.save_labels(path)
        return path.read_bytes()


def overlay_jpeg(prediction: Prediction, opacity: float) -> bytes:
    """The photo with the labels over it.

    Raises:
        DataError: a side is longer than any JPEG's.
    """
    height, width = prediction.labels.shape
    if max(height, width) > _JPEG_SIDE:
        raise DataError(
            explain(
                "overlay",
                found=f"{width}x{height} pixels",
                expected=f"at most {_JPEG_SIDE} in width and height, as JPEG has",
                remedy="ask for labels or shares, or make the photo smaller",
            )
        )
    return _encoded(".jpg", prediction.overlay(opacity)[:, :, ::-1])


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Size, and the share of every class that occurs, largest first."""
    height, width = prediction.labels.shape
    return {"width": width, "height": height, "shares": prediction.shares}


def as_html(prediction: Prediction, name: str) -> str:
    """What the page shows for a photo.

    Args:
        prediction: of the photo.
        name: of the photo, for the download.
    """
    labels = prediction.labels
    height, width = labels.shape
    factor = min(1.0, _SHOWN / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    photo = cv2.resize(prediction.image, size, interpolation=cv2.INTER_AREA)
    nearest = cv2.resize(labels.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
    ids = nearest.astype(np.uint16)
    paint = np.asarray(prediction.palette, np.uint8)[ids]
    # Two bytes of the class id as red and green: read back by the page under the pointer.
    coded = np.dstack([np.zeros_like(ids), ids >> 8, ids & 255]).astype(np.uint8)
    names = html.escape(json.dumps(list(prediction.classes)), quote=True)
    stem = html.escape(Path(name).stem[:80] or "photo", quote=True)
    rows = []
    shares = prediction.shares
    for which, share in shares.items():
        red, green, blue = prediction.palette[prediction.classes.index(which)]
        rows.append(
            f'<tr><td><span class="cgrseg-swatch" style="background:rgb({red},{green},{blue})">'
            f"</span>{html.escape(which)}</td><td>{100 * share:.1f} %</td></tr>"
        )
    return (
        f'<div class="cgrseg-view" data-classes="{names}">'
        '<div class="cgrseg-stage">'
        f'<img class="cgrseg-photo" alt="the photo" src="{_uri("jpeg", photo[:, :, ::-1])}">'
        f'<img class="cgrseg-paint" alt="its labels" src="{_uri("png", paint[:, :, ::-1])}">'
        f'<img class="cgrseg-ids" alt="" src="{_uri("png", coded)}">'
        '<div class="cgrseg-tip" role="status"></div></div>'
        f'<a class="cgrseg-download" download="{stem}_labels.png" '
        f'href="data:image/png;base64,{base64.b64encode(label_png(prediction)).decode()}">'
        f"Download the label map (PNG, {width}×{height})</a>"
        '<table class="cgrseg-legend"><thead><tr><th>class</th><th>share</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _uri(kind: str, picture: NDArray[np.generic]) -> str:
    """A BGR picture as a data URI."""
    content = base64.b64encode(_encoded(f".{kind}", picture)).decode()
    return f"data:image/{kind};base64,{content}"


def _encoded(suffix: str, picture: NDArray[np.generic]) -> bytes:
    done, content = cv2.imencode(suffix, np.ascontiguousarray(picture))
    assert done  # an array of ours always has a form that can be encoded
    return content.tobytes()
