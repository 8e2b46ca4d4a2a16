"""Image sizes, and resizing of whole images or of a window of the result.

Sizes follow mmcv 1.6 (`rescale_size`: one factor for both sides, rounded half up).
Resizing follows OpenCV: bilinear for images, nearest for labels.

Only a window: bilinear interpolation looks at a few source pixels per output pixel,
so a crop of a resized image needs only its own part of the source.  OpenCV resizes whole
images, and places output column d at source position (d + 0.5) * scale - 0.5.  A cut-out
of the source therefore gives the same samples if it begins at a whole source pixel that
is also the start of an output column: d * scale must be whole.  The nearest such column
to the left of the wanted ones (column 0 always is one) starts the cut-out, and the
surplus is thrown away after resizing.  "Whole" allows 1/640 of a pixel, which changes no
value by more than one gray level: each of the two axes shifts a value by at most
255 / 640.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""(H, W, C): uint8 RGB, or uint8, uint16 or float32 values of other channels."""
Labels = NDArray[np.uint8]
Size = tuple[int, int]
"""Height, width in pixels."""

_PHASE_TOLERANCE = 1.0 / 640.0


@dataclass(frozen=True)
class Window:
    """A rectangle in pixels of a resized image."""

    top: int
    left: int
    height: int
    width: int

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The part of (H, W, ...) inside the window, as a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]


def scaled_size(size: Size, scale: tuple[float, float]) -> Size:
    """The largest size of the same aspect ratio within a scale.

    Args:
        size: height, width of the image.
        scale: long side, short side in pixels (in either order).

    Returns:
        Height, width, each `int(side * factor + 0.5)` and at least 1.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def round_up(length: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is at least `length`."""
    return -(-length // divisor) * divisor


def resize_image(image: Image, size: Size) -> Image:
    """Resize (H, W, C) bilinearly to height, width."""
    if image.shape[:2] == size:
        return image
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops a single channel


def resize_label(labels: Labels, size: Size) -> Labels:
    """Resize (H, W) by nearest neighbor to height, width."""
    if labels.shape == size:
        return labels
    resized = cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, dtype=np.uint8)


def nearest_table(source: int, target: int) -> NDArray[np.intp]:
    """Source index of each of `target` output indices of a nearest-neighbor resize.

    It is read off OpenCV itself, by resizing a row that holds its own indices, so it is
    what :func:`resize_label` does, to the last rounding.
    """
    row = np.arange(source, dtype=np.float32)[None]
    table = cv2.resize(row, (target, 1), interpolation=cv2.INTER_NEAREST)[0]
    return np.asarray(table).astype(np.intp)


def resize_label_window(
    labels: Labels, rows: NDArray[np.intp], columns: NDArray[np.intp], window: Window
) -> Labels:
    """`window.of(resize_label(labels, size))`, reading only what it needs.

    Args:
        labels: (H, W).
        rows: `nearest_table` of the height.
        columns: `nearest_table` of the width.
        window: inside the resized map.
    """
    wanted_rows = rows[window.top : window.top + window.height]
    wanted_columns = columns[window.left : window.left + window.width]
    # Whole rows are copied many times faster than single pixels, so columns become rows.
    first = wanted_columns[0]
    kept = labels[wanted_rows, first : wanted_columns[-1] + 1]
    turned = cv2.transpose(kept)[wanted_columns - first]
    return np.asarray(cv2.transpose(turned), dtype=np.uint8)


def resize_image_window(image: Image, size: Size, window: Window) -> Image:
    """`window.of(resize_image(image, size))` within one gray level, reading only its part.

    Args:
        image: (H, W, C).
        size: height, width of the whole resized image.
        window: inside it.
    """
    height, width = image.shape[:2]
    rows, top = _source_part(height, size[0], window.top, window.height)
    columns, left = _source_part(width, size[1], window.left, window.width)
    source = image[rows, columns]
    if (height, width) == size or source.shape == image.shape:
        return window.of(resize_image(image, size))
    factors = {"fx": size[1] / width, "fy": size[0] / height}
    part = cv2.resize(source, None, **factors, interpolation=cv2.INTER_LINEAR)
    if part.shape == source.shape:
        # OpenCV copies where both sizes agree, even if the factors are not quite 1.
        return window.of(resize_image(image, size))
    inner = Window(window.top - top, window.left - left, window.height, window.width)
    return inner.of(part.reshape(*part.shape[:2], image.shape[2]))


def _source_part(source: int, target: int, start: int, length: int) -> tuple[slice, int]:
    """Part of one source axis, and the output index at which its resized form starts."""
    scale = source / target
    # Enlarging, the first output samples lie before the center of the first pixel and
    # would be clamped to it; keep them out of the wanted part.
    margin = max(0, math.ceil(0.5 / scale - 0.5))
    first = begin = 0
    if start > margin:
        candidates = np.arange(start - margin, 0, -1)
        positions = candidates * scale
        whole = np.flatnonzero(np.abs(positions - np.rint(positions)) <= _PHASE_TOLERANCE)
        if whole.size:
            first = int(candidates[whole[0]])
            begin = round(first * scale)
    end = min(source, math.ceil((start + length + 0.5) * scale) + 2)
    return slice(begin, end), first
