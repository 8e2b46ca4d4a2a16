"""Read and write image files.  Label maps: :mod:`cgrseg.data.label_files`.

OpenCV decodes images, since the published numbers were made with its arithmetic.  Decoders fill
the missing part of a truncated file with gray; here a truncated file is an error.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgrseg.addresses import Address
from cgrseg.errors import DataError
from cgrseg.files import atomic_write
from cgrseg.input_files import open_input, read_input
from cgrseg.surroundings import raise_machine_problem

Bytes8 = NDArray[np.uint8]
Reduction = Literal[1, 2, 4, 8]

MAX_PIXELS = 1 << 30
"""Pixels of the largest image that is read: OpenCV's own limit."""

FULL_BITS = 16
"""Bits of a 16-bit image where nothing else is said."""

JPEG_MAGIC = b"\xff\xd8"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# OpenCV 4.11 and newer decode to RGB directly, which saves a pass over the pixels.
_RGB_FLAG: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)
_REDUCED = {
    1: cv2.IMREAD_COLOR if _RGB_FLAG is None else _RGB_FLAG,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_DARK_BITS = 3  # an image with this many unused bits or more is too dark to be meant
_LOG = logging.getLogger("cgrseg.data")
_PILLOW_LIMIT = threading.Lock()
_FETCH_AGAIN = "fetch or copy this file again"
_LISTED = "`cgrseg data check` lists all such files"


def read_image(
    path: Path | str | Address, *, reduce: Reduction = 1, bits: int = FULL_BITS
) -> Bytes8:
    """Read an image file as 8-bit RGB.

    EXIF orientation is applied; gray becomes three equal channels; the alpha channel is
    left out; of 16-bit values the upper 8 of `bits` are kept; CMYK JPEGs are converted as other
    viewers do (inverted values, Adobe's convention).  JPEG has no checksums: damage within
    its pixel data gives wrong colors and cannot be detected.

    Args:
        path: a path or an address (:mod:`cgrseg.addresses`) of any format that OpenCV reads:
            JPEG, PNG, BMP, TIFF, WebP and others.
        reduce: JPEG only: decode at this fraction of both sides (rounded up), which is
            faster and smooths differently than a resize.
        bits: number of bits that the values of 16-bit images use, 8..16: with 12, 4095 becomes
            255.  8-bit images are not changed.

    Returns:
        (H, W, 3), C-contiguous, 0..255, RGB.

    Raises:
        DataError: the file is missing, empty, truncated or not an image.
    """
    return decode_image(read_content(path, "an image"), path, reduce=reduce, bits=bits)


def decode_image(
    data: bytes, name: Path | str | Address, *, reduce: Reduction = 1, bits: int = FULL_BITS
) -> Bytes8:
    """Decode the content of an image file, as :func:`read_image` does.

    Args:
        data: content of the file; not empty.
        name: name of the file in messages.
        reduce: see :func:`read_image`.
        bits: see :func:`read_image`.

    Raises:
        DataError: the image is truncated, or not an image.
    """
    refuse_truncated(name, data)
    deep_png = data.startswith(PNG_MAGIC) and len(data) > 25 and data[24] == FULL_BITS
    if reduce == 1 and (bits < FULL_BITS or deep_png):
        wide = _decode(data, name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if wide.dtype == np.uint16:
            used = int(wide.max()).bit_length()
            if used <= bits - _DARK_BITS:
                _warn_dark(bits, max(used, 8))
            scaled = np.minimum(wide >> (bits - 8), 255).astype(np.uint8)
            return np.asarray(cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    pixels = _decode(data, name, _REDUCED[reduce])
    if reduce != 1 or _RGB_FLAG is None:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, dtype=np.uint8)


def decode_unchanged(data: bytes, name: Path | str | Address, *, alpha: bool) -> NDArray[Any]:
    """Decode an image file with its own channels and type.

    Args:
        data: content of the file; not empty.
        name: name of the file in messages.
        alpha: keep the alpha channel; EXIF orientation is then not applied.

    Returns:
        (H, W), or (H, W, C) with red, green and blue in this order, and alpha last.

    Raises:
        DataError: it cannot be decoded.
    """
    flags = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    pixels = _decode(data, name, flags)
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return pixels
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]


@functools.cache  # once per process and kind
def _warn_dark(bits: int, used: int) -> None:
    _LOG.warning(
        f"16-bit images whose values use {used} bits are read with {bits} bits, so the network "
        f"gets 0 to {2**used - 1 >> (bits - 8)} of 255; if that is not meant, train and predict "
        f"with test.image_bits={used}"
    )


def _decode(data: bytes, name: Path | str | Address, flags: int) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise_machine_problem(error, name)
        raise _undecodable(name, str(error).strip().splitlines()[-1]) from error
    if pixels is None:
        raise _undecodable(name, "no decoder understands it")
    return pixels


def used_bits(path: Path | str) -> int:
    """Bits that the largest value of a 16-bit image needs, 0..16; 8 for other images.

    Raises:
        DataError: as :func:`read_image`.
    """
    path = Path(path)
    pixels = _decode(read_content(path, "an image"), path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return int(pixels.max()).bit_length() if pixels.dtype == np.uint16 else 8


def decode_gray(data: bytes, within: tuple[int, int], *, alpha: bool = False) -> Bytes8:
    """A small image inside another file, as gray.

    Args:
        data: an encoded image, such as a PNG.
        within: largest height and width; compared before anything is decoded.
        alpha: give the alpha channel instead, where there is one.

    Returns:
        (H, W), 0..255.

    Raises:
        ValueError: not an image, damaged, or larger than `within`.
    """
    try:
        with open_with_pillow(io.BytesIO(data)) as picture:
            width, height = picture.size
    except Exception as error:  # Pillow's parsers raise errors of any class
        raise ValueError("the embedded bytes are not an image") from error
    if height > within[0] or width > within[1]:
        raise ValueError(f"the embedded image of {width}x{height} pixels reaches outside the image")
    try:
        flags = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_GRAYSCALE
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is not None and pixels.ndim == 3:
        pixels = pixels[..., 3] if pixels.shape[2] == 4 else pixels.max(axis=2)
    if pixels is None or pixels.shape != (height, width) or pixels.dtype != np.uint8:
        raise ValueError("the embedded image is damaged")
    return np.asarray(pixels, np.uint8)


@contextlib.contextmanager
def open_with_pillow(
    source: Path | str | IO[bytes], formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open a file, or a stream of its bytes, with Pillow, however large the image.

    Pillow refuses more than 179 megapixels, to protect servers from uploads; aerial and
    microscope images have more.  The limit belongs to the whole process, so it is lifted only
    while the header is read, by one thread at a time.

    Args:
        source: path or stream.
        formats: names of the formats to try; None: every format that Pillow knows.
    """
    with contextlib.ExitStack() as opened:
        if isinstance(source, (str, Path)):
            source = opened.enter_context(open_input(source))
        with _PILLOW_LIMIT:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = opened.enter_context(Image.open(source, formats=formats))
            finally:
                Image.MAX_IMAGE_PIXELS = before
        yield picture


def is_jpeg(path: Path | str) -> bool:
    """Whether a file begins as a JPEG, whatever its name; False where it cannot be read."""
    try:
        with open_input(Path(path)) as stream:
            return stream.read(len(JPEG_MAGIC)) == JPEG_MAGIC
    except OSError:
        return False


def write_image(path: Path | str, image: Bytes8, *, quality: int = 92) -> None:
    """Write 8-bit RGB (H, W, 3) in the format of the name's ending, as an atomic write.

    Args:
        path: target, for example `.png` or `.jpg`.
        image: RGB, 0..255.
        quality: JPEG and WebP quality, 1..100.

    Raises:
        DataError: a format that OpenCV cannot write.
        EnvironmentProblem: it cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    settings: list[int] = []
    if suffix in (".jpg", ".jpeg"):
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    elif suffix == ".webp":
        settings = [cv2.IMWRITE_WEBP_QUALITY, quality]
    try:
        done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    except cv2.error:
        done = False
    if not done:
        raise DataError(
            path,
            found=f"images cannot be written as {suffix or 'a file without ending'}",
            expected=".png, .jpg, .webp, .bmp or .tif",
            remedy="choose another file name",
        )
    with atomic_write(path) as stream:
        stream.write(encoded.tobytes())


def read_content(path: Path | str | Address, what: str) -> bytes:
    """Content of a file that is not empty; `what` says in messages what was expected.

    This decides how a path or an address is read.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    address = Address.of(path)
    try:
        data = read_input(str(path)) if address is None else address.read(what)
    except OSError as error:
        raise DataError(
            path,
            found=f"the file cannot be read ({error.strerror or error})",
            expected=what,
            remedy="check the path and the permissions",
        ) from error
    if not data:
        raise DataError(path, found="the file is empty", expected=what, remedy=_FETCH_AGAIN)
    return data


def refuse_truncated(path: Path | str | Address, data: bytes) -> None:
    """Raise DataError where a JPEG or a PNG has no end marker."""
    if data.startswith(JPEG_MAGIC):
        complete = data.rfind(b"\xff\xd9") > _start_of_scan(data)
    else:
        complete = not data.startswith(PNG_MAGIC) or data.rfind(b"IEND") > 0
    if not complete:
        raise DataError(
            path,
            found=f"the file ends early, after {len(data)} bytes",
            expected="a complete image",
            remedy=f"{_FETCH_AGAIN}; {_LISTED}",
        )


def _start_of_scan(data: bytes) -> int:
    """Offset of a JPEG's first scan: a thumbnail before it has an end marker of its own."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:
            return place
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def _undecodable(path: Path | str | Address, reason: str) -> DataError:
    return DataError(
        path,
        found=f"the image cannot be decoded ({reason})",
        expected="a complete image file such as JPEG or PNG",
        remedy=f"fetch or convert this file again; {_LISTED}",
    )
