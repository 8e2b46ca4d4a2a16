"""Size of an image as the decoder will see it, read from the header before decoding.

OpenCV decodes, and Pillow alone cannot tell what OpenCV will decode: when a TIFF has two
widths, or a PNG two headers, Pillow takes the last one, libtiff and OpenCV the first.  This
module follows these headers as the decoder does, and treats an ambiguous header as damage.
libjpeg refuses a second JPEG header itself; both sides read WebP with the same library;
BMP has one header at a fixed place.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Iterator

from cgrseg.data.image_files import open_with_pillow

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Accepted image formats, by Pillow's names; nothing else reaches a decoder."""

# Real images have some hundreds of parts; a file of empty ones would only take time.
_MOST_PARTS = 100_000
# A progressive JPEG has about ten scans.  The decoder goes through the whole image for each one,
# so that a small file with a million of them would take half an hour.
_MOST_SCANS = 100
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 322, 323  # tags of TIFF
_INTEGERS = {3: "H", 4: "I", 16: "Q"}  # types of TIFF that a size can have


def decoded_size(data: bytes, *, any_bands: bool = False) -> tuple[int, int, int]:
    """Width, height, and the pixels that the decoder makes room for (at least their product).

    Args:
        data: content of the image file.
        any_bands: also TIFF files with bands that Pillow does not know.

    Raises:
        Exception: a damaged or ambiguous header, or no image; exceptions of many classes.
    """
    if any_bands and data.startswith((b"II", b"MM")):
        across, down, *tile = _tiff(data)
        return across, down, max(across, tile[0]) * max(down, tile[1])
    with open_with_pillow(io.BytesIO(data), FORMATS) as image:
        kind, (width, height) = image.format, image.size
    room = width * height
    if kind == "PNG":
        _agree((width, height), _png(data))
    elif data.startswith(b"\xff\xd8"):  # JPEG; Pillow has a second name for some of them
        if sum(1 for _ in itertools.islice(_SCAN.finditer(data), _MOST_SCANS + 1)) > _MOST_SCANS:
            raise ValueError("too many scans")
    elif kind == "TIFF":
        across, down, *tile = _tiff(data)
        # Pillow turns the image as the file says.
        _agree(sorted((width, height)), sorted((across, down)))
        room = max(across, tile[0]) * max(down, tile[1])
    return width, height, room


def _agree(checked: object, decoded: object) -> None:
    if checked != decoded:
        raise ValueError(f"two sizes: {checked} and {decoded}")


def _png(data: bytes) -> tuple[int, int]:
    """The first chunk, which must be the only one of its kind; no chunk is longer than the file.

    OpenCV makes room for a chunk before it reads it.
    """
    place = 8
    for _ in range(_MOST_PARTS):
        length, kind = struct.unpack_from(">I4s", data, place)
        place += 12 + length
        if (kind == b"IHDR") != (place == 8 + 12 + 13) or place > len(data):
            raise ValueError("a header that is not the first chunk, or a chunk without end")
        if kind == b"IEND":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
    raise ValueError("too many chunks")


def _tiff(data: bytes) -> tuple[int, int, int, int]:
    """Width, length, and those of a tile (0 without), each given at most once."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    found: dict[int, int] = {}
    for tag, value in _entries(data, order):
        if tag in found:
            raise ValueError(f"tag {tag} is given twice")
        found[tag] = value
    tile = found.get(_TILE_WIDTH, 0), found.get(_TILE_LENGTH, 0)
    return found[_WIDTH], found[_LENGTH], *tile


def _entries(data: bytes, order: str) -> Iterator[tuple[int, int]]:
    """The tags of the first directory that say a size."""
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    offset, count, entry = {42: ("I", "H", "HHI"), 43: ("Q", "Q", "HHQ")}[version]
    place: int
    (place,) = struct.unpack_from(f"{order}{offset}", data, 4 if version == 42 else 8)
    (entries,) = struct.unpack_from(f"{order}{count}", data, place)
    place += struct.calcsize(f"{order}{count}")
    if entries > _MOST_PARTS:
        raise ValueError("too many tags")
    for _ in range(entries):
        tag, kind, values = struct.unpack_from(f"{order}{entry}", data, place)
        place += struct.calcsize(f"{order}{entry}")
        if tag in (_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH):
            if values != 1:
                raise ValueError(f"tag {tag} has {values} values")
            (value,) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", data, place)
            yield tag, value
        place += struct.calcsize(f"{order}{offset}")
