"""Connected regions of a label map: their outlines, holes, masks and scores.

Two pixels belong to one region when they have the same label and are joined through shared edges.
An outline runs through the midpoints of the pixel edges between a region and its neighbors, so
every pixel center is at least 0.3535 pixels (half of a diagonal step) away.  The algorithm of
Douglas and Peucker simplifies it: a point is dropped when it lies within the tolerance of the line
that replaces it.  A tolerance up to `EXACT_TOLERANCE` therefore moves no pixel center to the other
side: filled by pixel centers (:func:`cgrseg.data.convert.shapes.fill_polygon`), the outlines give
the label map back.  With any tolerance, the line between two regions is the same for both.

Coordinates are those of :mod:`cgrseg.data.convert.shapes`: (0, 0) is the top left corner of the
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

EXACT_TOLERANCE = 0.35
"""Largest tolerance in pixels, to two digits, that moves no pixel to another region."""

Labels = NDArray[np.integer]
Outline = NDArray[np.float64]

# A side of a pixel is walked with the region on the right: its top, right, bottom and left.  Per
# side: the step of row and column along it, and the one to the neighbor across it.
_ALONG = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
_ACROSS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
# From a pixel's row and column to the end corner of its side, and to twice the side's midpoint.
_END_CORNER = np.array([(0, 1), (1, 1), (1, 0), (0, 0)])
_MIDPOINT = np.array([(0, 1), (1, 2), (2, 1), (1, 0)])


@dataclass(frozen=True)
class TracedRegion:
    """A connected region of a label map.

    Attributes:
        value: label of its pixels.
        score: mean confidence of its pixels, 0..1; None: unknown.
        left: first column of its box.
        top: first row of its box.
        mask: its pixels in its box, (rows, columns) bool.
        outline: (N, 2) x, y in pixels, N >= 3, clockwise on the screen.
        holes: outlines of the holes, counterclockwise on the screen.
    """

    value: int
    score: float | None
    left: int
    top: int
    mask: NDArray[np.bool_]
    outline: Outline
    holes: tuple[Outline, ...] = ()

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def joined_outline(self) -> Outline:
        """One closed line around the region, for tools whose polygons have no holes.

        A cut of no width leads from the outline to each hole and back.
        """
        if not self.holes:
            return self.outline
        cuts: dict[int, list[Outline]] = {}
        for hole in self.holes:
            start = int(np.argmin(hole[:, 0]))
            nearest = int(np.argmin(((self.outline - hole[start]) ** 2).sum(axis=1)))
            cuts.setdefault(nearest, []).append(np.roll(hole, -start, axis=0))
        parts: list[Outline] = []
        for number, point in enumerate(self.outline):
            parts.append(point[None])
            for hole in cuts.get(number, ()):
                parts += [hole, hole[:1], point[None]]
        return np.concatenate(parts)


def connected_regions(
    labels: Labels, num_classes: int
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Number the connected regions of a label map in the order of their first pixels, row by row.

    Args:
        labels: (H, W).
        num_classes: labels from this number on (ignored pixels) belong to no region.

    Returns:
        Number of the region of each pixel (H, W), -1: none; and the label of each region.
    """
    regions = np.full(labels.shape, -1, dtype=np.int32)
    found = 0
    for value in np.unique(labels):
        if value < num_classes:
            inside = labels == value
            count, parts = cv2.connectedComponents(inside.view(np.uint8), connectivity=4)
            regions[inside] = parts[inside] + (found - 1)
            found += count - 1
    # OpenCV's own order is not documented.
    covered = np.flatnonzero(regions >= 0)[::-1]
    first = np.empty(found, dtype=np.intp)
    first[regions.flat[covered]] = covered  # the last of several values stays: the first pixel
    order = np.argsort(first)
    place = np.full(found + 1, -1, dtype=np.int32)
    place[order] = np.arange(found, dtype=np.int32)
    return place[regions], labels.ravel()[first[order]].astype(np.intp)


def region_scores(
    labels: Labels, confidence: NDArray[np.float32], num_classes: int
) -> NDArray[np.float64]:
    """Mean confidence 0..1 of each region of :func:`connected_regions`."""
    regions, values = connected_regions(labels, num_classes)
    place = regions.ravel() + 1
    count = np.bincount(place, minlength=len(values) + 1)
    total = np.bincount(place, confidence.ravel(), minlength=len(values) + 1)
    return total[1:] / count[1:]


def trace_regions(
    labels: Labels,
    num_classes: int,
    tolerance: float = EXACT_TOLERANCE,
    scores: Sequence[float] | None = None,
) -> list[TracedRegion]:
    """The connected regions of a label map with their outlines.

    Args:
        labels: (H, W).
        num_classes: labels from this number on (ignored pixels) belong to no region.
        tolerance: largest distance in pixels of a dropped point of an outline, at least 0.
        scores: as :func:`region_scores` gives them; None, or another number of them: unknown.
    """
    regions, values = connected_regions(labels, num_classes)
    if scores is not None and len(scores) != len(values):
        scores = None
    outer: dict[int, _Line] = {}
    holes: dict[int, list[Outline]] = {}
    for line in _outlines(regions, tolerance):
        if line.is_hole:
            holes.setdefault(line.region, []).append(line.points)
        else:
            outer[line.region] = line
    found = []
    for number, value in enumerate(values.tolist()):
        left, top, right, bottom = outer[number].box
        mask = regions[top:bottom, left:right] == number
        score = None if scores is None else float(scores[number])
        own = tuple(holes.get(number, ()))
        found.append(TracedRegion(value, score, left, top, mask, outer[number].points, own))
    return found


@dataclass(frozen=True)
class _Line:
    """A closed line around a region or one of its holes.

    Attributes:
        region: number of the region.
        points: (N, 2) x, y in pixels.
        is_hole: whether the region lies outside.
        box: left, top, right and bottom of the pixels inside.
    """

    region: int
    points: Outline
    is_hole: bool
    box: tuple[int, int, int, int]


def _outlines(regions: NDArray[np.int32], tolerance: float) -> list[_Line]:
    """The lines around the regions and their holes."""
    around = np.pad(regions, 1, constant_values=-1)
    inner = around[1:-1, 1:-1]
    differs = np.stack(
        [
            inner
            != around[1 + down : 1 + down + len(regions), 1 + right : 1 + right + inner.shape[1]]
            for down, right in _ACROSS
        ]
    )
    side, row, column = np.nonzero(differs & (inner >= 0))
    own = inner[row, column]
    pixel = np.stack([row, column], axis=1)

    # The next side: around the same pixel, straight on, or across the corner.
    ahead = pixel + _ALONG[side]
    diagonal = ahead + _ACROSS[side]
    turns = around[ahead[:, 0] + 1, ahead[:, 1] + 1] != own
    straight = ~turns & (around[diagonal[:, 0] + 1, diagonal[:, 1] + 1] != own)
    next_pixel = np.where(turns[:, None], pixel, np.where(straight[:, None], ahead, diagonal))
    next_side = (side + np.where(turns, 1, np.where(straight, 0, 3))) % 4
    height, width = regions.shape
    key = (side * height + row) * width + column  # ascending
    following = np.searchsorted(
        key, (next_side * height + next_pixel[:, 0]) * width + next_pixel[:, 1]
    )

    # Lines of three or more regions meet where more than two of the four pixels' borders do.
    corner = pixel + _END_CORNER[side]
    ring = [
        around[corner[:, 0] + down, corner[:, 1] + right]
        for down, right in ((0, 0), (0, 1), (1, 1), (1, 0))
    ]
    borders = sum((ring[k] != ring[k - 1]).astype(int) for k in range(4))
    meets = borders > 2
    points = (2 * pixel + _MIDPOINT[side])[:, ::-1].astype(np.float64)  # twice x, y
    rank = points[:, 1] * (2 * width + 1) + points[:, 0]

    loops: list[NDArray[np.intp]] = []
    first: list[int] = []
    last: list[int] = []
    total = 0
    for loop in _cycles(following.tolist()):
        ends = np.flatnonzero(meets[loop])
        if len(ends):
            loop = np.roll(loop, -(ends[0] + 1))
            stops = np.flatnonzero(meets[loop])
            first += [total, *(total + stops[:-1] + 1).tolist()]
            last += (total + stops).tolist()
        else:
            # Both sides of the line must begin, and be divided, at the same points.
            loop = np.roll(loop, -int(np.argmin(rank[loop])))
            away = ((points[loop] - points[loop[0]]) ** 2).sum(axis=1)
            far = np.flatnonzero(away == away.max())
            middle = total + int(far[np.argmin(rank[loop[far]])])
            loop = np.append(loop, loop[0])
            first += [total, middle]
            last += [middle, total + len(loop) - 1]
        loops.append(loop)
        total += len(loop)
    if not loops:
        return []
    order = np.concatenate(loops)
    keep = _simplified(points[order], rank[order], np.array(first), np.array(last), 2 * tolerance)
    found = []
    start = 0
    for loop in loops:
        kept = loop[keep[start : start + len(loop)]]
        start += len(loop)
        if loop[0] == loop[-1]:
            loop, kept = loop[:-1], kept[:-1]
        x, y = points[loop].T / 2
        area = float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
        box = (int(x.min()), int(y.min()), int(np.ceil(x.max())), int(np.ceil(y.max())))
        # A region smaller than the tolerance keeps its points.
        line = points[kept if len(kept) > 2 else loop] / 2
        found.append(_Line(int(own[loop[0]]), line, area < 0, box))
    return found


def _cycles(following: list[int]) -> list[NDArray[np.intp]]:
    """Cycles of a permutation."""
    found = []
    seen = bytearray(len(following))
    for start in range(len(following)):
        if not seen[start]:
            cycle = []
            place = start
            while not seen[place]:
                seen[place] = 1
                cycle.append(place)
                place = following[place]
            found.append(np.array(cycle, dtype=np.intp))
    return found


def _simplified(
    points: Outline,
    rank: NDArray[np.float64],
    first: NDArray[np.intp],
    last: NDArray[np.intp],
    tolerance: float,
) -> NDArray[np.bool_]:
    """Which points Douglas and Peucker's algorithm keeps, on all lines at once.

    Args:
        points: (N, 2), line after line.
        rank: order of points that are equally far away, the same for both directions of a line.
        first: place of the first point of each line.
        last: place of its last point.
        tolerance: in units of the points.
    """
    keep = np.zeros(len(points), dtype=bool)
    keep[first] = keep[last] = True
    while True:
        long = last - first > 1
        first, last = first[long], last[long]
        if not len(first):
            return keep
        lengths = last - first - 1
        starts = np.cumsum(lengths) - lengths
        line = np.repeat(np.arange(len(first)), lengths)
        place = np.arange(len(line)) + (first + 1 - starts)[line]
        distance = _squared_distance(points[place], points[first[line]], points[last[line]])
        farthest = np.maximum.reduceat(distance, starts)
        ranked = np.where(distance == farthest[line], rank[place], np.inf)
        chosen = ranked == np.minimum.reduceat(ranked, starts)[line]
        middle = place[chosen]
        split = farthest > tolerance**2
        middle = middle[split]
        keep[middle] = True
        first = np.concatenate([first[split], middle])
        last = np.concatenate([middle, last[split]])


def _squared_distance(points: Outline, start: Outline, end: Outline) -> NDArray[np.float64]:
    """Squared distance of each point to its segment, the same when the ends change places."""
    along, to_point, to_end = end - start, points - start, points - end
    length = (along**2).sum(axis=1)
    across = along[:, 0] * to_point[:, 1] - along[:, 1] * to_point[:, 0]
    beside = ((along * to_point).sum(axis=1) > 0) & ((along * to_end).sum(axis=1) < 0)
    nearest_end = np.minimum((to_point**2).sum(axis=1), (to_end**2).sum(axis=1))
    return np.where(beside, across**2 / np.where(length > 0, length, 1), nearest_end)
