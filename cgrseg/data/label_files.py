"""Read and write label maps: files whose pixels are class ids.

OpenCV decodes PNG labels, since its decoder verifies their checksums.  A palette PNG is handed
to it as a gray one, which gives the indices instead of the colors.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cgrseg.data.image_files import (
    JPEG_MAGIC,
    PNG_MAGIC,
    Bytes8,
    open_with_pillow,
    read_content,
    refuse_truncated,
)
from cgrseg.errors import DataError
from cgrseg.files import atomic_write
from cgrseg.input_files import open_input
from cgrseg.surroundings import raise_machine_problem

_GRAY, _PALETTE = 0, 3  # color types of PNG
_NOTE = "cgrseg"  # keyword of the text chunk with a note
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262  # tags: bits of a value, and whether 0 is white
_INDEXED_MAGICS = (b"BM", b"II*\0", b"MM\0*", b"GIF8")  # BMP, TIFF, GIF


class ColorLabel(DataError):
    """A label file that is a color image."""


def read_label(path: Path | str) -> Bytes8:
    """Read a label map as it is stored.

    Palette files give their indices, gray files their values, 1-bit masks 0 and 1.  A color file
    (and a GIF file) whose channels are equal everywhere is a gray one; its transparent pixels are
    0.  JPEG files give gray values, which only a threshold can read.

    Args:
        path: a PNG, BMP, TIFF or GIF file; or a JPEG file whose name says so.

    Returns:
        (H, W), C-contiguous, raw ids 0..255.

    Raises:
        ColorLabel: a color image.
        DataError: missing or damaged file, several pages, JPEG compression under another name, or
            ids beyond 8 bits.
    """
    raw = read_label_values(path)
    whole = raw.dtype.kind != "f" or bool(np.array_equal(raw, np.floor(raw)))
    if raw.dtype != np.uint8 and not (whole and raw.min() >= 0 and raw.max() <= 255):
        raise DataError(
            path,
            found=f"ids from {raw.min()} to {raw.max()}" + ("" if whole else ", with fractions"),
            expected="class ids from 0 to 255",
            remedy="store class ids, not instance ids or depths; convert the file again",
        )
    return raw.astype(np.uint8, copy=False)


def read_label_values(path: Path | str) -> NDArray[Any]:
    """As :func:`read_label`, but of any range.

    Returns:
        (H, W), of the type that the file has.
    """
    path = Path(path)
    return decode_label_values(read_content(path, "a label map"), path)


def decode_label_values(data: bytes, path: Path | str) -> NDArray[Any]:
    """As :func:`read_label_values`, for the content of a file; `path` names it in messages."""
    refuse_truncated(path, data)
    step = 1
    if _has_png_header(data) and data[25] in (_GRAY, _PALETTE):
        # Decoders spread gray of fewer than 8 bits over 0..255; undo that.
        step = 255 // (2 ** min(data[24], 8) - 1)
        data = _as_plain_gray(data)
    raw = _stored_values(data, path)
    if raw is None:
        raise DataError(
            path,
            found="the label cannot be decoded: the file is damaged, or no image",
            expected="a complete PNG, BMP, TIFF or GIF file with one class id per pixel",
            remedy="fetch or convert this file again; `cgrseg data check` lists all such files",
        )
    channels = 1 if raw.ndim == 2 else raw.shape[2]
    if raw.ndim != 2:
        raw = _gray(raw)
    if raw.ndim != 2:
        raise ColorLabel(
            path,
            found=f"a color image ({channels} channels)",
            expected="one channel that holds class ids (gray or palette PNG)",
            remedy="turn color masks into ids with "
            "`cgrseg data convert rgb IMAGES MASKS OUT`, which lists their colors; check that "
            "images and labels are not swapped",
        )
    return raw if step == 1 else (raw // step).astype(raw.dtype)


def _stored_values(data: bytes, path: Path | str) -> NDArray[Any] | None:
    """Values of a label file, (H, W), or (H, W, channels) of a color image; None: damaged."""
    try:
        if data.startswith(_INDEXED_MAGICS):
            # OpenCV turns the palettes of these formats into colors.
            return _pillow_values(data, path)
        flags = cv2.IMREAD_UNCHANGED
        if data.startswith(JPEG_MAGIC):
            if Path(path).suffix.lower() not in (".jpg", ".jpeg"):
                raise _lossy(path)
            flags = cv2.IMREAD_GRAYSCALE
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise_machine_problem(error, path)
        return None


def _gray(raw: NDArray[Any]) -> NDArray[Any]:
    """A color image (H, W, channels) as gray (H, W), if its channels are equal; else itself."""
    color = raw[..., : 3 if raw.shape[2] > 2 else 1]
    if raw.shape[2] in (2, 4):  # alpha
        color = np.where(raw[..., -1:] == 0, 0, color)
    return color[..., 0] if bool((color == color[..., :1]).all()) else raw


def _pillow_values(data: bytes, path: Path | str) -> NDArray[Any] | None:
    try:
        with open_with_pillow(io.BytesIO(data), ("BMP", "GIF", "TIFF")) as picture:
            pages = getattr(picture, "n_frames", 1)
            lossy = picture.info.get("compression") == "jpeg"
            # Programs reorder the palette of a GIF file, so only its colors are stable.
            values = np.array(picture.convert("RGB") if picture.format == "GIF" else picture)
            if picture.format == "TIFF" and picture.mode == "L":
                # Pillow spreads gray of 2 and 4 bits over 0..255, and inverts where 0 is white;
                # undo that.
                tags = picture.tag_v2  # type: ignore[attr-defined]
                if tags.get(_TIFF_PHOTOMETRIC) == 0:
                    values = 255 - values
                values //= np.uint8(255 // (2 ** int(tags.get(_TIFF_BITS, (8,))[0]) - 1))
    except Exception:  # Pillow's parsers raise errors of any class
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


def _lossy(path: Path | str) -> DataError:
    return DataError(
        path,
        found="a label map compressed as JPEG, which changes values along every border",
        expected="a format that keeps every class id, such as PNG",
        remedy="export the label maps as PNG",
    )


def _has_png_header(data: bytes) -> bool:
    """Whether a file begins as a PNG with a header of the standard's form."""
    start = PNG_MAGIC + (13).to_bytes(4, "big") + b"IHDR"
    return data.startswith(start) and len(data) > 33 and data[24] in (1, 2, 4, 8, 16)


def _as_plain_gray(png: bytes) -> bytes:
    """A gray or palette PNG as a gray one with the same samples.

    Only header, pixel data (with their checksums) and end are kept, so neither a palette nor a
    transparent value matters.
    """
    parts = [PNG_MAGIC]
    place = len(PNG_MAGIC)
    while place + 12 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        kind = png[place + 4 : place + 8]
        if kind == b"IHDR" and end - place == 25:
            header = bytearray(png[place + 4 : end - 4])
            header[4 + 9] = _GRAY
            checksum = zlib.crc32(header).to_bytes(4, "big")
            parts += [png[place : place + 4], bytes(header), checksum]
        elif kind in (b"IDAT", b"IEND"):
            parts.append(png[place:end])
        place = end
    return b"".join(parts)


def write_label_png(
    path: Path | str,
    labels: Bytes8,
    palette: Sequence[tuple[int, int, int]] | Bytes8,
    *,
    note: str | None = None,
) -> None:
    """Write a label map as an indexed PNG: ids as indices, shown in the palette's colors.

    Args:
        path: target of an atomic write.
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
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    picture = Image.fromarray(np.ascontiguousarray(labels)).convert("L")
    picture.putpalette(colors.tobytes())
    texts = PngInfo()
    if note is not None:
        texts.add_text(_NOTE, note)
    content = io.BytesIO()
    picture.save(content, format="PNG", bits=8, pnginfo=texts)
    return content.getvalue()


def label_note(path: Path | str) -> str | None:
    """The note that :func:`write_label_png` left in a file; None: there is none."""
    key = _NOTE.encode("latin-1") + b"\0"
    try:
        with open_input(Path(path)) as stream:
            if stream.read(8) != PNG_MAGIC:
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
