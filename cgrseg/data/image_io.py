"""Reading and writing images and label maps, whole or with an error that names the file.

Images are decoded by OpenCV, whose arithmetic the published numbers were made with.  So
are label PNGs, since OpenCV's decoder verifies their checksums; palette files are handed
to it as grey ones, which gives the indices instead of the colours.  Decoders forgive
truncated files by filling in grey; here a truncated file is an error.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from cgrseg.errors import DataError
from cgrseg.files import atomic_write
from cgrseg.input_files import open_input, read_input
from cgrseg.provenance import content_digest
from cgrseg.surroundings import raise_machine_problem

Bytes8 = NDArray[np.uint8]

# OpenCV 4.11 and newer decode to RGB directly, which saves a pass over the pixels.
_RGB_FLAG: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)
_REDUCED = {
    1: cv2.IMREAD_COLOR if _RGB_FLAG is None else _RGB_FLAG,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3  # colour types of PNG
_NOTE = "cgrseg"  # keyword of the text chunk with a note
_JPEG_MAGIC = b"\xff\xd8"
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262  # tags: bits of a value, and whether 0 is white
_INDEXED_MAGICS = (b"BM", b"II*\0", b"MM\0*")  # BMP, TIFF
MAX_PIXELS = 1 << 30
"""Pixels of the largest image that is read: OpenCV's own limit."""

FULL_BITS = 16
"""Bits of a 16-bit image where nothing else is said."""

_DARK_BITS = 3  # unused bits from which on an image is too dark to be meant
_LOG = logging.getLogger("cgrseg.data")
_PILLOW_LIMIT = threading.Lock()


def read_image(
    path: Path | str, *, reduce: Literal[1, 2, 4, 8] = 1, bits: int = FULL_BITS
) -> Bytes8:
    """Read a photo as 8-bit RGB.

    EXIF orientation is applied; grey becomes three equal channels; the alpha channel is
    left out; of 16-bit values the upper 8 of `bits` are kept; CMYK JPEGs are converted as other
    viewers do (inverted values, Adobe's convention).  JPEG has no checksums: damage within
    its pixel data gives wrong colours, and nobody can tell.

    Args:
        path: any format that OpenCV reads: JPEG, PNG, BMP, TIFF, WebP and others.
        reduce: JPEG only: decode at this fraction of both sides (rounded up), which is
            faster and smooths differently than a resize.
        bits: number of bits that the values of 16-bit images use, 8..16: with 12, 4095 becomes
            255.  8-bit images are not changed.

    Returns:
        (H, W, 3), C-contiguous, 0..255, RGB.

    Raises:
        DataError: the file is missing, empty, truncated or no image.
    """
    path = Path(path)
    return decode_image(_read_bytes(path, "an image"), path, reduce=reduce, bits=bits)


def read_image_with_digest(path: Path | str, *, bits: int = FULL_BITS) -> tuple[Bytes8, str]:
    """Read an image as :func:`read_image` does, and tell from which bytes it was decoded.

    The file is read once: one that is replaced meanwhile has another digest than this.

    Returns:
        The image, and :func:`cgrseg.provenance.content_digest` of the bytes.

    Raises:
        DataError: the file is missing, empty, truncated or no image.
    """
    path = Path(path)
    data = _read_bytes(path, "an image")
    return decode_image(data, path, bits=bits), content_digest(data)


def image_digest(path: Path | str) -> str | None:
    """Digest of an image file as it is now; None where it cannot be read."""
    try:
        return content_digest(_read_bytes(Path(path), "an image"))
    except DataError:
        return None


def decode_image(
    data: bytes, name: Path | str, *, reduce: Literal[1, 2, 4, 8] = 1, bits: int = FULL_BITS
) -> Bytes8:
    """Decode the bytes of an image file, as :func:`read_image` does.

    Args:
        data: content of the file; not empty.
        name: name of the file in messages.
        reduce: see :func:`read_image`.
        bits: likewise.

    Returns:
        (H, W, 3), C-contiguous, 0..255, RGB.

    Raises:
        DataError: the image is truncated, or no image.
    """
    _refuse_truncated(name, data)
    if reduce == 1 and (bits < FULL_BITS or _is_deep_png(data)):
        wide = _decoded(data, name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if wide.dtype == np.uint16:
            used = int(wide.max()).bit_length()
            if used <= bits - _DARK_BITS:
                _say_dark(bits, max(used, 8))
            scaled = np.minimum(wide >> (bits - 8), 255).astype(np.uint8)
            return np.asarray(cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    pixels = _decoded(data, name, _REDUCED[reduce])
    if reduce != 1 or _RGB_FLAG is None:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, dtype=np.uint8)


def _is_deep_png(data: bytes) -> bool:
    return data.startswith(_PNG_MAGIC) and len(data) > 25 and data[24] == FULL_BITS


@functools.cache  # once per process and kind
def _say_dark(bits: int, used: int) -> None:
    _LOG.warning(
        f"16-bit images whose values use {used} bits are read with {bits} bits, so the network "
        f"gets 0 to {2**used - 1 >> (bits - 8)} of 255; if that is not meant, train and predict "
        f"with test.image_bits={used}"
    )


def _decoded(data: bytes, name: Path | str, flags: int) -> NDArray[Any]:
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
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    pixels = _decoded(_read_bytes(path, "an image"), path, flags)
    return int(pixels.max()).bit_length() if pixels.dtype == np.uint16 else 8


def read_label(path: Path | str) -> Bytes8:
    """Read a label map as it is stored.

    Palette files give their indices, gray files their values, 1-bit masks 0 and 1.  JPEG files
    give gray values, which a threshold alone can read.

    Args:
        path: a PNG, BMP or TIFF file; or a JPEG file whose name says so.

    Returns:
        (H, W), C-contiguous, raw ids 0..255.

    Raises:
        DataError: missing or damaged file, a color image, several pages, JPEG compression under
            another name, or ids beyond 8 bits.
    """
    path = Path(path)
    data = _read_bytes(path, "a label map")
    _refuse_truncated(path, data)
    step = 1
    if _has_png_header(data) and data[25] in (_GREY, _PALETTE):
        # Grey of fewer than 8 bits is spread over 0..255 by decoders; undo that.
        step = 255 // (2 ** min(data[24], 8) - 1)
        data = _as_plain_grey(data)
    raw = _stored_values(data, path)
    if raw is None:
        raise DataError(
            path,
            found="the label cannot be decoded: the file is damaged, or no image",
            expected="a complete PNG, BMP or TIFF file with one class id per pixel",
            remedy="fetch or convert this file again; `cgrseg data check` lists all such files",
        )
    if raw.ndim != 2:
        raise DataError(
            path,
            found=f"a colour picture ({raw.shape[2]} channels)",
            expected="one channel that holds class ids (grey or palette PNG)",
            remedy="turn color masks into ids with "
            "`cgrseg data convert rgb IMAGES MASKS OUT`, which lists their colors; check that "
            "images and labels are not swapped",
        )
    whole = raw.dtype.kind != "f" or bool(np.array_equal(raw, np.floor(raw)))
    if raw.dtype != np.uint8 and not (whole and raw.min() >= 0 and raw.max() <= 255):
        raise DataError(
            path,
            found=f"ids from {raw.min()} to {raw.max()}" + ("" if whole else ", with fractions"),
            expected="class ids from 0 to 255",
            remedy="store class ids, not instance ids or depths; convert the file again",
        )
    ids = raw.astype(np.uint8, copy=False)
    return ids if step == 1 else ids // np.uint8(step)


def decode_gray(data: bytes, within: tuple[int, int]) -> Bytes8:
    """A small image inside another file, as gray.

    Args:
        data: an encoded image, such as a PNG.
        within: largest height and width; compared before anything is decoded.

    Returns:
        (H, W), 0..255.

    Raises:
        ValueError: not an image, damaged, or larger than `within`.
    """
    try:
        with open_with_pillow(io.BytesIO(data)) as picture:
            width, height = picture.size
    except Exception as error:  # Pillow lets through what its parsers stumble over
        raise ValueError("the embedded bytes are not an image") from error
    if height > within[0] or width > within[1]:
        raise ValueError(f"the embedded image of {width}x{height} pixels reaches outside the image")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape != (height, width):
        raise ValueError("the embedded image is damaged")
    return np.asarray(pixels, np.uint8)


def _stored_values(data: bytes, path: Path) -> NDArray[Any] | None:
    """Values of a label file, (H, W), or (H, W, channels) of a color image; None: damaged."""
    try:
        if data.startswith(_INDEXED_MAGICS):
            # OpenCV turns the palettes of these formats into colors.
            return _pillow_values(data, path)
        flags = cv2.IMREAD_UNCHANGED
        if data.startswith(_JPEG_MAGIC):
            if path.suffix.lower() not in (".jpg", ".jpeg"):
                raise _lossy(path)
            flags = cv2.IMREAD_GRAYSCALE
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise_machine_problem(error, path)
        return None


def _pillow_values(data: bytes, path: Path) -> NDArray[Any] | None:
    try:
        with open_with_pillow(io.BytesIO(data), ("BMP", "TIFF")) as picture:
            pages = getattr(picture, "n_frames", 1)
            lossy = picture.info.get("compression") == "jpeg"
            values = np.array(picture)
            if picture.format == "TIFF" and picture.mode == "L":
                # Pillow spreads gray of 2 and 4 bits over 0..255, and inverts where 0 is white;
                # undo that.
                tags = picture.tag_v2  # type: ignore[attr-defined]
                if tags.get(_TIFF_PHOTOMETRIC) == 0:
                    values = 255 - values
                values //= np.uint8(255 // (2 ** int(tags.get(_TIFF_BITS, (8,))[0]) - 1))
    except Exception:  # Pillow lets through what its parsers stumble over
        return None
    if lossy:
        raise _lossy(path)
    if pages != 1:
        raise DataError(
            path,
            found=f"{pages} pages in one file",
            expected="one label map",
            remedy="save the page that holds the class ids as a file of its own",
        )
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def _lossy(path: Path) -> DataError:
    return DataError(
        path,
        found="a label map compressed as JPEG, which changes values along every border",
        expected="a format that keeps every class id, such as PNG",
        remedy="export the label maps as PNG",
    )


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of an image or label from its header, as stored (EXIF not applied).

    Raises:
        DataError: missing file or unknown format.
    """
    path = Path(path)
    try:
        with open_with_pillow(path) as picture:
            return picture.height, picture.width
    except UnidentifiedImageError as error:
        raise _undecodable(path, "no decoder understands it") from error
    except OSError as error:
        raise _unreadable(path, "an image", error) from error
    except Exception as error:  # Pillow lets through what its parsers stumble over
        raise _undecodable(path, f"damaged header: {error}") from error


@contextlib.contextmanager
def open_with_pillow(
    source: Path | str | IO[bytes], formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open a file, or a stream of its bytes, with Pillow, however large the picture.

    Pillow refuses more than 179 megapixels, to protect servers from strangers' uploads;
    aerial and microscope images have more.  Its limit belongs to the whole process, so it
    is lifted while the header is read, and one thread at a time does so.

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
    """Whether a file begins as JPEGs do, whatever its name; False where it cannot be read."""
    try:
        with open_input(Path(path)) as stream:
            return stream.read(len(_JPEG_MAGIC)) == _JPEG_MAGIC
    except OSError:
        return False


def write_label_png(
    path: Path | str,
    labels: Bytes8,
    palette: Sequence[tuple[int, int, int]] | Bytes8,
    *,
    note: str | None = None,
) -> None:
    """Write a label map as an indexed PNG: ids as indices, shown in the palette's colours.

    Args:
        path: target; replaced whole or not at all.
        labels: (H, W), uint8.
        palette: RGB 0..255 of ids 0, 1, ...; further ids (ignored pixels) are shown black.
        note: text kept inside the file, see :func:`label_note`.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    content = encode_label_png(labels, palette, note=note)
    with atomic_write(path) as stream:
        stream.write(content)


def encode_label_png(
    labels: Bytes8,
    palette: Sequence[tuple[int, int, int]] | Bytes8,
    *,
    note: str | None = None,
) -> bytes:
    """Encode a label map as :func:`write_label_png` writes it."""
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels must be uint8 (H, W), got {labels.dtype} {labels.shape}")
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    picture = Image.fromarray(np.ascontiguousarray(labels)).convert("L")
    picture.putpalette(colours.tobytes())
    texts = PngInfo()
    if note is not None:
        texts.add_text(_NOTE, note)
    content = io.BytesIO()
    picture.save(content, format="PNG", bits=8, pnginfo=texts)
    return content.getvalue()


def label_note(path: Path | str) -> str | None:
    """The note that :func:`write_label_png` left in a file; None where there is none."""
    key = _NOTE.encode("latin-1") + b"\0"
    try:
        with open_input(Path(path)) as stream:
            if stream.read(8) != _PNG_MAGIC:
                return None
            # Notes stand before the pixels, so that nothing large is read.
            while len(head := stream.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
                length = int.from_bytes(head[:4], "big")
                if head[4:] == b"tEXt":
                    content = stream.read(length)
                    if content.startswith(key):
                        return content[len(key) :].decode("latin-1")
                    length = 0
                stream.seek(length + 4, 1)  # the content that was not read, and its checksum
    except OSError:
        return None
    return None


def write_image(path: Path | str, image: Bytes8, *, quality: int = 92) -> None:
    """Write 8-bit RGB (H, W, 3) in the format of the name's ending, whole or not at all.

    Args:
        path: target, for example `.png` or `.jpg`.
        image: RGB, 0..255.
        quality: of JPEG and WebP, 1..100.

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


def _has_png_header(data: bytes) -> bool:
    """Whether a file begins as a PNG with a header of the standard's form."""
    start = _PNG_MAGIC + (13).to_bytes(4, "big") + b"IHDR"
    return data.startswith(start) and len(data) > 33 and data[24] in (1, 2, 4, 8, 16)


def _as_plain_grey(png: bytes) -> bytes:
    """A grey or palette PNG as a grey one: the same samples, without colours for them.

    Only header, pixel data and end are kept, so neither a palette nor a transparent value
    has a say.  The pixel data keep their checksums.
    """
    parts = [_PNG_MAGIC]
    place = len(_PNG_MAGIC)
    while place + 12 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        kind = png[place + 4 : place + 8]
        if kind == b"IHDR" and end - place == 25:
            header = bytearray(png[place + 4 : end - 4])
            header[4 + 9] = _GREY
            checksum = zlib.crc32(header).to_bytes(4, "big")
            parts += [png[place : place + 4], bytes(header), checksum]
        elif kind in (b"IDAT", b"IEND"):
            parts.append(png[place:end])
        place = end
    return b"".join(parts)


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        data = read_input(path)
    except OSError as error:
        raise _unreadable(path, what, error) from error
    if not data:
        raise DataError(
            path,
            found="the file is empty",
            expected=what,
            remedy="fetch or copy this file again",
        )
    return data


def _refuse_truncated(path: Path | str, data: bytes) -> None:
    if data.startswith(_JPEG_MAGIC):
        complete = data.rfind(b"\xff\xd9") > _start_of_scan(data)
    elif data.startswith(_PNG_MAGIC):
        complete = data.rfind(b"IEND") > 0
    else:
        complete = True
    if not complete:
        raise DataError(
            path,
            found=f"the file ends early, after {len(data)} bytes",
            expected="a complete image",
            remedy="fetch or copy this file again; `cgrseg data check` lists all such files",
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


def _unreadable(path: Path, what: str, error: OSError) -> DataError:
    return DataError(
        path,
        found=f"the file cannot be read ({error.strerror or error})",
        expected=what,
        remedy="check the path and the permissions",
    )


def _undecodable(path: Path | str, reason: str) -> DataError:
    return DataError(
        path,
        found=f"the image cannot be decoded ({reason})",
        expected="a complete image file such as JPEG or PNG",
        remedy="fetch or convert this file again; `cgrseg data check` lists all such files",
    )
