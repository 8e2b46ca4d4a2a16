"""Filling polygons: a pixel belongs when its centre lies inside.

Coordinates are continuous, (0, 0) being the image's top left corner, as LabelMe
and COCO store them: pixel (row r, column c) covers [c, c+1] x [r, r+1], and the
square (0, 0) (2, 0) (2, 2) (0, 2) is four pixels.  OpenCV's `fillPoly` draws the
outline as well, which grows every object by half a pixel.
"""

from __future__ import annotations

import numpy as np

# Larger coordinates are no drawing, and their products leave the range of numbers.
_FARTHEST = 1e7


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels inside a polygon, by the even-odd rule.

    Args:
        points: (N, 2) x, y in pixels, N >= 3; closed by itself; may reach outside.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (height, width) bool.  A centre exactly on an edge belongs to the object on its
        right, or below: neighbours that share an edge neither overlap nor leave a gap.

    Raises:
        ValueError: fewer than three points, or coordinates that are not finite or farther than
            10,000,000 pixels from the image's corner.
    """
    corners = np.asarray(points, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"a polygon needs at least three x, y points, this has {corners.shape}")
    if not (np.abs(corners) <= _FARTHEST).all():  # NaN compares false
        raise ValueError(
            f"a polygon's coordinates must be finite numbers, at most {_FARTHEST:.0f} from 0"
        )
    # Each edge toggles, in the rows whose centre it crosses, the first pixel whose
    # centre is not left of the crossing; the running parity is the inside.
    toggles = np.zeros((height, width + 1), dtype=bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        (x0, y0), (x1, y1) = (start, end) if start[1] <= end[1] else (end, start)
        first = int(np.clip(np.ceil(y0 - 0.5), 0, height))
        last = int(np.clip(np.ceil(y1 - 0.5), 0, height))
        if first == last:
            continue
        rows = np.arange(first, last)
        crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)
        toggles[rows, columns] ^= True
    return np.logical_xor.accumulate(toggles, axis=1)[:, :width]


def fill_circle(
    centre: tuple[float, float], edge: tuple[float, float], height: int, width: int
) -> np.ndarray:
    """The pixels whose centre is within a circle.

    Args:
        centre: x, y in pixels.
        edge: any point x, y on the circle.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: coordinates as :func:`fill_polygon` refuses them.
    """
    if not (np.abs([*centre, *edge]) <= _FARTHEST).all():
        raise ValueError(
            f"a circle's coordinates must be finite numbers, at most {_FARTHEST:.0f} from 0"
        )
    radius = float(np.hypot(edge[0] - centre[0], edge[1] - centre[1]))
    rows, columns = np.ogrid[:height, :width]
    return np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1]) <= radius
