"""Filling polygons and circles, and the run-length masks of COCO.

Coordinates are continuous, (0, 0) being the image's top left corner, as LabelMe and COCO store
them: pixel (row r, column c) covers [c, c+1] x [r, r+1], and the square (0, 0) (2, 0) (2, 2)
(0, 2) is four pixels.  A pixel belongs to a shape when its center lies inside.  OpenCV's `fillPoly`
draws the outline as well, which grows every object by half a pixel.

A run-length mask is read column by column; runs alternate between outside and inside, starting
outside.  The runs come as a list of numbers, or as a string: six bits per character (ASCII
48..111), of which the lowest five hold the value and the sixth says that more follow; the top value
bit of the last one is the sign, and from the fourth run on each is stored as the difference to the
run two before it.  Format: COCO's `maskApi.c`, written by P. Dollar and T.-Y. Lin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Larger coordinates are no drawing, and their products leave the range of numbers.
_FARTHEST = 1e7
# Seven characters hold 34 bits and a sign: more than any image has pixels.
_MOST_BITS = 35


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels inside a polygon, by the even-odd rule.

    Args:
        points: (N, 2) x, y in pixels, N >= 3; closed by itself; may reach outside.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (height, width) bool.  A center exactly on an edge belongs to the object on its
        right, or below: neighbors that share an edge neither overlap nor leave a gap.

    Raises:
        ValueError: fewer than three points, or coordinates that are not finite or farther than
            10,000,000 pixels from the image corner.
    """
    corners = np.asarray(points, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"a polygon needs at least three x, y points, this has {corners.shape}")
    if not (np.abs(corners) <= _FARTHEST).all():  # NaN compares false
        raise ValueError(
            f"a polygon's coordinates must be finite numbers, at most {_FARTHEST:.0f} from 0"
        )
    # Each edge toggles, in the rows whose center it crosses, the first pixel whose
    # center is not left of the crossing; the running parity is the inside.
    others = np.roll(corners, -1, axis=0)
    downwards = (corners[:, 1] <= others[:, 1])[:, None]
    (x0, y0), (x1, y1) = (
        np.where(downwards, corners, others).T,
        np.where(downwards, others, corners).T,
    )
    first = np.clip(np.ceil(y0 - 0.5), 0, height).astype(np.intp)
    crossed = np.clip(np.ceil(y1 - 0.5), 0, height).astype(np.intp) - first
    inside = np.zeros((height, width), dtype=bool)
    if not crossed.any():
        return inside
    edge = np.repeat(np.arange(len(corners)), crossed)
    rows = np.arange(len(edge)) + (first - np.cumsum(crossed) + crossed)[edge]
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossings = x0[edge] + (rows + 0.5 - y0[edge]) * slope
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)
    # Outside its box, nothing is inside.
    top, left = rows.min(), columns.min()
    box = (rows.max() + 1 - top, columns.max() + 1 - left)
    toggles = np.bincount((rows - top) * box[1] + columns - left, minlength=box[0] * box[1])
    parity = np.logical_xor.accumulate(toggles.reshape(box) % 2 == 1, axis=1)
    place = inside[top : top + box[0], left : left + box[1]]
    place[:] = parity[:, : place.shape[1]]
    return inside


def fill_circle(
    center: tuple[float, float], edge: tuple[float, float], height: int, width: int
) -> np.ndarray:
    """The pixels whose center is within a circle.

    Args:
        center: x, y in pixels.
        edge: any point x, y on the circle.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: coordinates as :func:`fill_polygon` refuses them.
    """
    if not (np.abs([*center, *edge]) <= _FARTHEST).all():
        raise ValueError(
            f"a circle's coordinates must be finite numbers, at most {_FARTHEST:.0f} from 0"
        )
    radius = float(np.hypot(edge[0] - center[0], edge[1] - center[1]))
    rows, columns = np.ogrid[:height, :width]
    return np.hypot(columns + 0.5 - center[0], rows + 0.5 - center[1]) <= radius


def fill_ellipse(
    center: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    height: int,
    width: int,
) -> np.ndarray:
    """The pixels whose center is within an ellipse.

    Args:
        center: x, y in pixels.
        radii: half axes along x and y before the rotation, in pixels, at least 0.
        angle: clockwise rotation in degrees.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: coordinates as :func:`fill_polygon` refuses them, or a negative radius.
    """
    if not (np.abs([*center, *radii, angle]) <= _FARTHEST).all() or min(radii) < 0:
        raise ValueError(
            f"an ellipse's numbers must be finite, at most {_FARTHEST:.0f} from 0, its radii "
            "not negative"
        )
    rows, columns = np.ogrid[:height, :width]
    x, y = columns + 0.5 - center[0], rows + 0.5 - center[1]
    turn = np.deg2rad(angle)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.hypot(along / radii[0], across / radii[1]) <= 1)


def decode_counts(text: str) -> list[int]:
    """The runs that a compressed string stands for.

    Raises:
        ValueError: a character outside the alphabet, or a string that breaks off.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} is not part of a run-length string")
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > _MOST_BITS:
            raise ValueError("the run-length string holds a number that no image reaches")
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = shift = 0
    if shift:
        raise ValueError("the run-length string breaks off in the middle of a number")
    return counts


def encode_counts(counts: Sequence[int]) -> str:
    """Runs as a compressed string, which :func:`decode_counts` reads."""
    found = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            found.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(found)


def encode_runs(inside: np.ndarray) -> list[int]:
    """Lengths of the runs of a one-dimensional bool array, outside first."""
    ends = np.flatnonzero(np.diff(inside)) + 1
    runs = np.diff(np.concatenate([[0], ends, [len(inside)]])).tolist()
    return [0, *runs] if inside[0] else runs


def decode_mask(counts: str | bytes | Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask that runs stand for.

    Args:
        counts: a compressed string, or the runs themselves.
        height: rows.
        width: columns.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: runs that are negative or do not add up to height x width.
    """
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs: Any = decode_counts(counts) if isinstance(counts, str) else counts
    lengths = np.asarray(runs)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError("runs must be a list of whole numbers, none of them negative")
    # In Python's numbers: a sum of 64 bits can wrap around to the number of pixels.
    covered = sum(lengths.tolist())
    if covered != height * width:
        raise ValueError(
            f"the runs cover {covered} pixels, the mask has {height * width} ({width}x{height})"
        )
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T
