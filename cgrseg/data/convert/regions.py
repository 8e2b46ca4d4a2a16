"""Labeled regions of an image, as annotation tools store them, and painting them.

A region keeps what its file holds (points, run lengths, an embedded PNG).  It becomes a shape, and
the shape a mask of the image's size, when it is painted: the masks of a dataset never lie in memory
together.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from cgrseg.data.convert.custom_format import ClassTable
from cgrseg.data.convert.shapes import decode_mask, encode_runs, fill_ellipse, fill_polygon
from cgrseg.data.image_files import decode_gray
from cgrseg.errors import MALFORMED, DataError

Points = Sequence[Sequence[float]]

# A bit stream of Label Studio begins with a count of 32 bits, a word size of 5 and four run sizes
# of 4 bits each.
_HEADER_BITS = 32 + 5 + 4 * 4
_RUN_SIZES = 4
# The run sizes that Label Studio itself writes, in bits.
_WRITTEN_SIZES = (3, 4, 8, 16)


class Shape(Protocol):
    """The pixels of a region."""

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) bool.

        Raises:
            ValueError and others of :data:`cgrseg.errors.MALFORMED`: it cannot be drawn.
        """


@dataclass(frozen=True)
class Region:
    """A labeled region.

    Attributes:
        name: class name, cleaned.
        where: place in the source, for messages.
        values: what the source says about its shape; picklable.
    """

    name: str
    where: str
    values: Any


ShapeReader = Callable[[Any, int, int], Shape]
"""Shape of a region's values, in an image of this height and width; raises MALFORMED errors."""


@dataclass(frozen=True)
class Polygon:
    """The union of outlines, less the holes.

    Attributes:
        outlines: (N, 2) x, y in pixels, N >= 3.
        holes: the same; pixels inside belong to the region no longer.
    """

    outlines: Sequence[Points]
    holes: Sequence[Points] = ()

    def mask(self, height: int, width: int) -> np.ndarray:
        """By the rule of :func:`cgrseg.data.convert.shapes.fill_polygon`."""
        mask = np.zeros((height, width), dtype=bool)
        for outline in self.outlines:
            mask |= fill_polygon(np.asarray(outline, np.float64), height, width)
        for hole in self.holes:
            mask &= ~fill_polygon(np.asarray(hole, np.float64), height, width)
        return mask


@dataclass(frozen=True)
class Ellipse:
    """An ellipse, or a circle.

    Attributes:
        center: x, y in pixels.
        radii: half axes along x and y before the rotation, in pixels.
        angle: clockwise rotation in degrees.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0

    def mask(self, height: int, width: int) -> np.ndarray:
        """Pixels whose center lies inside."""
        return fill_ellipse(self.center, self.radii, self.angle, height, width)


@dataclass(frozen=True)
class RowRuns:
    """Run lengths inside a box, row by row, outside first, as CVAT stores them.

    Attributes:
        counts: pixels of each run; they add up to the box.
        left: first column of the box.
        top: first row of the box.
        box_width: columns of the box.
        box_height: rows of the box.
    """

    counts: Sequence[int]
    left: int
    top: int
    box_width: int
    box_height: int

    def mask(self, height: int, width: int) -> np.ndarray:
        """The box's mask in an image."""
        _refuse_outside(self.top, self.left, self.box_height, self.box_width, height, width)
        inner = decode_mask(self.counts, self.box_width, self.box_height).T
        return placed(inner, self.top, self.left, height, width)


@dataclass(frozen=True)
class Bitmap:
    """An image in the text of a file: base64, for Supervisely compressed by zlib before.

    Its alpha channel is the mask, or where it has none every value above 0.

    Attributes:
        text: base64.
        left: first column in the image.
        top: first row in the image.
    """

    text: str
    left: int
    top: int

    def mask(self, height: int, width: int) -> np.ndarray:
        """The embedded mask in an image."""
        try:
            data = base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("the embedded mask is not base64") from error
        _refuse_outside(self.top, self.left, 1, 1, height, width)
        within = (height - self.top, width - self.left)
        # A mask takes no more bytes than its pixels in four channels, and some for the headers.
        unpacked = zlib.decompressobj()
        with contextlib.suppress(zlib.error):  # some versions of the tool leave the compression out
            data = unpacked.decompress(data, within[0] * (within[1] * 4 + 1) + 65536)
        inner = decode_gray(data, within=within, alpha=True)
        return placed(inner > 0, self.top, self.left, height, width)


@dataclass(frozen=True)
class BrushRuns:
    """Label Studio's run lengths of an RGBA image, whose alpha channel is the mask.

    Format: https://github.com/thi-ng/umbrella/tree/main/packages/rle-pack.

    Attributes:
        data: the bytes, 0..255.
    """

    data: bytes

    def mask(self, height: int, width: int) -> np.ndarray:
        """The alpha channel where it is above 0."""
        values = decode_brush_runs(self.data, most=height * width * 4)
        if len(values) != height * width * 4:
            raise ValueError(
                f"the brush mask has {len(values)} values, {height * width * 4} were expected "
                f"(four channels of {width}x{height})"
            )
        return values.reshape(height, width, 4)[..., 3] > 0


def decode_brush_runs(data: bytes, most: int) -> np.ndarray:
    """The values that Label Studio's run lengths stand for.

    Args:
        data: a bit stream: count of values (32 bits), word size - 1 (5), four run sizes - 1
            (4 each); then blocks of a flag (1: one value repeated, 0: values), the number of a
            run size (2), the length - 1, and one value or as many as the length says.
        most: largest count that is accepted.

    Returns:
        uint8 (count,).

    Raises:
        ValueError: more values than `most`, words of more than 8 bits, or a stream that breaks
            off or holds more than its count.
    """
    bits = len(data) * 8
    padded = data + bytes(5)
    position = 0

    def read(size: int) -> int:
        nonlocal position
        start, offset = divmod(position, 8)
        position += size
        if position > bits:
            raise ValueError("the brush mask breaks off in the middle")
        window = int.from_bytes(padded[start : start + 5], "big")
        return window >> (40 - offset - size) & ((1 << size) - 1)

    if bits < _HEADER_BITS:
        raise ValueError("the brush mask is shorter than its header")
    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(_RUN_SIZES)]
    if count > most or word > 8:
        raise ValueError(f"the brush mask has {count} values of {word} bits; {most} of 8 fit")
    values = np.empty(count, dtype=np.uint8)
    filled = 0
    while filled < count:
        is_run = read(1)
        length = read(sizes[read(2)]) + 1
        if filled + length > count:
            raise ValueError("the brush mask holds more values than it says")
        if is_run:
            values[filled : filled + length] = read(word)
        else:
            values[filled : filled + length] = [read(word) for _ in range(length)]
        filled += length
    return values


def encode_brush_runs(inside: np.ndarray) -> bytes:
    """Label Studio's run lengths of a mask, which :func:`decode_brush_runs` reads.

    Args:
        inside: bool (H, W); all four channels of the image become 255 there, and 0 elsewhere.
    """
    bits = [f"{inside.size * 4:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _WRITTEN_SIZES)]
    value = 0
    for run in encode_runs(inside.ravel()):
        left = run * 4
        while left:
            length = min(left, 1 << _WRITTEN_SIZES[-1])
            left -= length
            kind = next(k for k, size in enumerate(_WRITTEN_SIZES) if length <= 1 << size)
            bits.append(f"1{kind:02b}{length - 1:0{_WRITTEN_SIZES[kind]}b}{value:08b}")
        value ^= 255
    text = "".join(bits)
    size = (len(text) + 7) // 8
    return int(text.ljust(size * 8, "0"), 2).to_bytes(size, "big")


def corners(
    left: float, top: float, right: float, bottom: float, *, angle: float = 0.0, pivot: Any = None
) -> Points:
    """Corners of a box, rotated clockwise by degrees around a point (default: its center)."""
    x, y = pivot or ((left + right) / 2, (top + bottom) / 2)
    turn = np.deg2rad(angle)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    box = [(left, top), (right, top), (right, bottom), (left, bottom)]
    if not angle:
        return box
    return [
        (x + (px - x) * cos - (py - y) * sin, y + (px - x) * sin + (py - y) * cos) for px, py in box
    ]


def paint(
    regions: Sequence[Region],
    shape_of: ShapeReader,
    table: ClassTable,
    size: tuple[int, int],
    *,
    smaller_on_top: bool,
    tool: str,
) -> np.ndarray:
    """Label map of regions, each over those before it.

    Args:
        regions: the lowest first.
        shape_of: gives the shape of a region.
        table: label value of each class.
        size: height and width.
        smaller_on_top: order by area instead, the largest lowest.
        tool: where a region is mended, for the message.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: a region that cannot be drawn, or whose class the table does not have.
    """
    labels = np.full(size, table.unlabeled, dtype=np.uint8)
    masks: list[tuple[np.ndarray, int]] = []
    for region in regions:
        try:
            value = table.value(region.name)
        except KeyError:
            raise DataError(
                region.where,
                found=f"the class {region.name!r}",
                expected=f"one of {', '.join(table.classes)}",
                remedy="correct it, add it at the end of the class names, or --ignore "
                f"{region.name!r}",
            ) from None
        try:
            mask = shape_of(region.values, *size).mask(*size)
        except (cv2.error, *MALFORMED) as error:
            raise DataError(
                region.where,
                found=f"it cannot be drawn ({type(error).__name__}: {error})",
                expected="a shape or mask of the image",
                remedy=f"correct or remove it in {tool}, and export again",
            ) from error
        if smaller_on_top:
            masks.append((mask, value))
        else:
            labels[mask] = value
    for mask, value in sorted(masks, key=lambda each: -int(each[0].sum())):
        labels[mask] = value
    return labels


def _refuse_outside(top: int, left: int, rows: int, columns: int, height: int, width: int) -> None:
    inside = 0 <= top <= height - rows and 0 <= left <= width - columns
    if not inside or rows < 1 or columns < 1:
        raise ValueError(
            f"the mask of {columns}x{rows} pixels at column {left}, row {top} leaves the image of "
            f"{width}x{height}"
        )


def placed(inner: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A mask of an image of this size from the mask of a box whose corner is at `top`, `left`."""
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return mask
