"""Images of other channels than 8-bit RGB (`data.channels`), as stored: 8 or 16 bits, or float32.

Sources: PNG, TIFF with bands or pages (extra `geo`), `.npy` and all else that OpenCV reads, and
several files per image, whose channels follow one another.  Such an image is an array (H, W, C) of
uint8, uint16 or float32; everything that needs its meaning asks the settings.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from warnings import filterwarnings

import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import Address
from cgrseg.config.schema import ChannelsConfig, TestConfig
from cgrseg.data.folder_layout import ARRAY_SUFFIX, IMAGE_SUFFIXES
from cgrseg.data.image_files import (
    JPEG_MAGIC,
    MAX_PIXELS,
    Reduction,
    decode_image,
    decode_unchanged,
    read_content,
    read_image,
    refuse_truncated,
)
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError
from cgrseg.extras import require
from cgrseg.progress import shown_progress
from cgrseg.provenance import content_digest
from cgrseg.surroundings import raise_machine_problem

Place = Path | str | Address
"""Where an image lies, or its name in messages."""

Pixels = NDArray[Any]
"""(H, W, C): uint8 RGB, or uint8, uint16 or float32 values of the configured channels."""

MEASURED_IMAGES = 200
"""Largest number of images that mean and deviation are measured on, spread evenly."""

_BLOCK, _BLOCKS = 2**20, 8  # pixels of a tile, or images, that are always decoded
_THUMBNAILS = 4  # pages of another size that a file may have
_LARGEST = 1e38  # beyond it a value stands for no data
_NPY_MAGIC = b"\x93NUMPY"
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pixels(path: Place, test: TestConfig, *, reduce: Reduction = 1) -> Pixels:
    """Read an image as the settings of a network say.

    Args:
        path: path or address of the image file.
        test: test settings; without channels the image is 8-bit RGB
            (:func:`cgrseg.data.image_files.read_image`).
        reduce: see there; images of other channels are never reduced.

    Returns:
        (H, W, C), C-contiguous.

    Raises:
        DataError: a file that cannot be read, or has other channels than the settings.
    """
    if test.image_channels is None:
        return read_image(path, reduce=reduce, bits=test.image_bits)
    return read_pixels_with_digest(path, test)[0]


def read_pixels_with_digest(
    path: Place,
    test: TestConfig,
    content: bytes | None = None,
) -> tuple[Pixels, str]:
    """As :func:`read_pixels`, with the digest of the bytes that were decoded.

    Args:
        path: see there.
        test: see there.
        content: content of the file, where it was read before.
    """
    files = _files(path, test.image_channels)
    contents = [read_content(file, "an image") for file in files[content is not None :]]
    contents = contents if content is None else [content, *contents]
    digest = _digest(contents)
    if test.image_channels is None:
        return decode_image(contents[0], path, bits=test.image_bits), digest
    parts = [
        (file, _decoded(data, file, test.image_channels))
        for file, data in zip(files, contents, strict=True)
    ]
    return _joined(parts, path, test.image_channels), digest


def pixels_digest(path: Place, test: TestConfig) -> str | None:
    """The digest of :func:`read_pixels_with_digest` as it is now; None: it cannot be read."""
    try:
        files = _files(path, test.image_channels)
        return _digest(read_content(file, "an image") for file in files)
    except DataError:
        return None


def _digest(contents: Iterable[bytes]) -> str:
    """Digest of the files of an image; of a single one its own."""
    digests = [content_digest(data) for data in contents]
    return digests[0] if len(digests) == 1 else content_digest(" ".join(digests).encode())


def decode_pixels(data: bytes, name: Place, test: TestConfig) -> Pixels:
    """Decode the content of an image file, as :func:`read_pixels` does.

    Raises:
        DataError: it cannot be decoded, has other channels, or is one of several files.
    """
    channels = test.image_channels
    if channels is None:
        return decode_image(data, name, bits=test.image_bits)
    if channels.files:
        raise DataError(
            name,
            found="the content of one file",
            expected=f"images of {1 + len(channels.files)} files each (data.channels.files)",
            remedy="give the path of the first file, or an array with all channels",
        )
    return _joined([(name, _decoded(data, name, channels))], name, channels)


def checked_pixels(array: Pixels, name: Place, channels: ChannelsConfig) -> Pixels:
    """An array (H, W, C), or (H, W) of a single channel, as the pixels of an image.

    Values that are not finite become the mean of their channel where it is known.

    Raises:
        DataError: another number or type of channels.
    """
    pixels = _of_known_type(array[..., None] if array.ndim == 2 else array)
    if channels.types is not None and pixels.dtype == np.result_type(*channels.types):
        channels = channels.model_copy(update={"types": None})  # files of several types together
    return _joined([(name, pixels)], name, channels)


def companion_stems(channels: ChannelsConfig) -> list[tuple[str, str]]:
    """What stands before and after an image's stem in the stems of its further files.

    Only of those in the folder of their image, which are no images of their own.
    """
    names = [Path(text) for text in channels.files or [] if len(Path(text).parts) == 1]
    return [
        (before, after) for name in names for before, _, after in [name.stem.partition("{stem}")]
    ]


def image_endings(channels: ChannelsConfig | None) -> tuple[str, ...]:
    """Endings of image files."""
    plain = channels is None or channels.names is None
    return IMAGE_SUFFIXES if plain else (*IMAGE_SUFFIXES, ARRAY_SUFFIX)


def as_picture(
    image: Pixels, channels: ChannelsConfig | None, bands: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3), for people.

    `bands` are the indices of the channels to show as red, green and blue; None: red, green and
    blue where the channels have them, else the first channel in gray.
    From 2.5 standard deviations below the mean to 2.5 above, values go from black to white; where
    mean and deviation are not measured yet, those of the image are taken.
    """
    if channels is None:
        return np.asarray(image, np.uint8)
    shown = list(bands or channels.rgb_indices or (0, 0, 0))
    mean, std = (np.array(values, np.float32) for values in statistics(image, channels))
    picture = np.empty((*image.shape[:2], 3), np.uint8)
    for place, band in enumerate(shown):  # one after the other, since large images take much memory
        gray = image[..., band].astype(np.float32) - mean[band]
        gray = gray / std[band] * np.float32(51) + np.float32(127.5)
        picture[..., place] = np.clip(np.nan_to_num(gray, nan=0.0), 0, 255)
    return picture


def statistics(image: Pixels, channels: ChannelsConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel: the configured ones, else those of an image."""
    if channels.mean is not None and channels.std is not None:
        return channels.mean, channels.std
    total = _Sums.of(image)
    return channels.mean or total.mean(), channels.std or total.std()


class _Sums:
    """Number, sum and sum of squares of the finite values of each channel."""

    def __init__(self, values: NDArray[np.float64], types: list[str]) -> None:
        self.values = values  # (3, C)
        self.types = types

    @classmethod
    def of(cls, image: Pixels, types: Sequence[str] = ()) -> _Sums:
        flat = image.reshape(-1, image.shape[2]).astype(np.float64)
        known = np.abs(flat) < _LARGEST
        flat = np.where(known, flat, 0)
        sums = np.stack([known.sum(axis=0), flat.sum(axis=0), (flat * flat).sum(axis=0)])
        return cls(sums, list(types))

    def mean(self) -> list[float]:
        count, total, _ = self.values
        return [float(value) for value in total / np.maximum(count, 1)]

    def std(self) -> list[float]:
        count, _, squares = self.values
        variance = squares / np.maximum(count, 1) - np.square(self.mean())
        deviation = np.sqrt(np.maximum(variance, 0))
        # A channel of one value is left as it is; sums of squares leave a rest in its deviation.
        least = np.maximum(1e-5 * np.abs(self.mean()), 1e-12)
        return [float(d) if d > small else 1.0 for d, small in zip(deviation, least, strict=True)]


def measured_channels(
    images: Sequence[Path],
    channels: ChannelsConfig,
) -> ChannelsConfig:
    """The channels with mean, deviation and types, measured where the settings have none.

    At most :data:`MEASURED_IMAGES` images are read, spread evenly; each of their pixels counts
    the same.

    Args:
        images: image files, at least one.
        channels: settings with names.

    Raises:
        DataError: an image that cannot be read, or of other types than the first one.
    """
    if None not in (channels.mean, channels.std, channels.types):
        return channels
    count = min(len(images), MEASURED_IMAGES)
    chosen = [images[k] for k in np.linspace(0, len(images) - 1, count).round().astype(int)]
    jobs = [(path, channels) for path in chosen]
    with shown_progress("measuring channels") as progress:
        found = list(run_parallel(_measure, jobs, threads=True, progress=progress))
    types = found[0].types
    for path, one in zip(chosen, found, strict=True):
        if one.types != types:
            raise mixed_types(path, one.types, types, f"{chosen[0]}")
    total = _Sums(np.sum([one.values for one in found], axis=0), types)
    update = {
        "mean": channels.mean or total.mean(),
        "std": channels.std or total.std(),
        "types": channels.types or types,
    }
    return ChannelsConfig.model_validate({**channels.model_dump(), **update})


def _measure(job: tuple[Path, ChannelsConfig]) -> _Sums:
    path, channels = job
    parts = _parts(path, channels)
    image = _joined(parts, path, channels.model_copy(update={"mean": None}))
    return _Sums.of(image, _types(parts))


def _parts(path: Path, channels: ChannelsConfig) -> list[tuple[Path | Address, Pixels]]:
    """The files of an image, decoded."""
    files = _files(path, channels)
    return [(file, _decoded(read_content(file, "an image"), file, channels)) for file in files]


def _types(parts: Sequence[tuple[Place, Pixels]]) -> list[str]:
    """Type of the values of each channel in decoded files."""
    return [str(part.dtype) for _, part in parts for _ in range(part.shape[2])]


def types_of(path: Path, channels: ChannelsConfig) -> list[str]:
    """Types of the stored values of each channel of an image.

    Raises:
        DataError: as :func:`read_pixels`.
    """
    return _types(_parts(path, channels))


def mixed_types(path: Place, found: Sequence[str], wanted: Sequence[str], source: str) -> DataError:
    """The error for an image of other types than the rest."""
    return DataError(
        path,
        found=f"values of {listed_types(found)}",
        expected=f"{listed_types(wanted)}, as in {source}: one mean and deviation serve all images",
        remedy="convert the images to one type; if they are scaled alike, set data.channels.mean, "
        "std and types by hand after that",
    )


def listed_types(types: Sequence[str]) -> str:
    """Types of channels in a message: all of them, or the one that they have."""
    return types[0] if len(set(types)) == 1 else ", ".join(types)


def _files(path: Place, channels: ChannelsConfig | None) -> list[Path | Address]:
    """The files of an image, its own first."""
    own = Address.of(path) or Path(str(path))
    further = (channels.files if channels is not None else None) or []
    names = [text.replace("{stem}", own.stem) for text in further]
    if own.name in names:
        raise DataError(
            own,
            found="the image itself among its further files (data.channels.files)",
            expected="other files, such as {stem}_nir.png",
            remedy="correct the setting",
        )
    if isinstance(own, Address):
        return [own, *map(own.beside, names)]
    return [own, *(own.parent / name for name in names)]


def _refuse_too_large(width: int, height: int, name: Place) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            name,
            found=f"{width}x{height} pixels",
            expected=f"at most {MAX_PIXELS:,} pixels of an image that is read at once",
            remedy="label it as a raster: cgrseg predict CHECKPOINT SCENE.tif --out LABELS.tif",
        )


def _refuse_large_block(block: tuple[int, int], shape: tuple[int, int], name: Place) -> None:
    if math.prod(block) > max(_BLOCK, _BLOCKS * math.prod(shape)):
        raise DataError(
            name,
            found=f"tiles of {block[1]}x{block[0]} pixels in an image of {shape[1]}x{shape[0]}",
            expected=f"tiles of at most {_BLOCKS} times the image",
            remedy="save it with tiles of 256x256 pixels, or with strips",
        )


def _refuse_other_count(
    counts: Sequence[int],
    types: Sequence[str],
    name: Place,
    channels: ChannelsConfig,
) -> None:
    names = channels.names or []
    total = sum(counts)
    if total != len(names):
        each = "" if len(counts) == 1 else f" ({' and '.join(map(str, counts))} in its files)"
        raise DataError(
            name,
            found=f"{total} channel{'s' if total > 1 else ''} of {listed_types(types)}{each}",
            expected=f"{len(names)}: {', '.join(names)} (data.channels.names)",
            remedy="give images with these channels; a network for other channels is trained with "
            "other data.channels.names",
        )


def _joined(
    parts: Sequence[tuple[Place, Pixels]],
    name: Place,
    channels: ChannelsConfig,
) -> Pixels:
    """The channels of the files of an image side by side, checked against the settings."""
    first = parts[0][1]
    for file, part in parts[1:]:
        if part.shape[:2] != first.shape[:2]:
            raise DataError(
                file,
                found=f"{part.shape[1]}x{part.shape[0]} pixels, while {parts[0][0]} has "
                f"{first.shape[1]}x{first.shape[0]}",
                expected="the same size for all files of an image",
                remedy="resample them to one grid",
            )
    counts = [part.shape[2] for _, part in parts]
    types = _types(parts)
    _refuse_other_count(counts, types, name, channels)
    if channels.types is not None and types != channels.types:
        raise mixed_types(name, types, channels.types, "the training (data.channels.types)")
    image = first if len(parts) == 1 else _stacked([part for _, part in parts])
    if image.dtype == np.float32 and channels.mean is not None:
        known = np.abs(image) < _LARGEST  # false for NaN
        if not known.all():
            image = np.where(known, image, np.array(channels.mean, np.float32))
    return np.ascontiguousarray(image)


def _without_nodata(bands: Pixels, nodata: Sequence[float | None]) -> Pixels:
    """Bands (C, h, w) of real numbers with NaN where there are no data."""
    if bands.dtype.kind == "f":
        for band, value in zip(bands, nodata, strict=True):
            if value is not None:
                band[band == band.dtype.type(value)] = np.nan
    return bands


def _stacked(parts: Sequence[Pixels]) -> Pixels:
    common = np.result_type(*(part.dtype for part in parts))
    return np.concatenate([part.astype(common, copy=False) for part in parts], axis=2)


def _decoded(data: bytes, name: Place, channels: ChannelsConfig) -> Pixels:
    """(h, w, c) of one file: uint8, uint16 or float32; c is unchecked."""
    refuse_truncated(name, data)
    if data.startswith(_NPY_MAGIC):
        pixels = _from_npy(data, name, channels)
    elif data.startswith(_TIFF_MAGICS):
        pixels = _from_tiff(data, name, channels)
    else:
        pixels = decode_unchanged(data, name, alpha=not data.startswith(JPEG_MAGIC))
    if pixels.size == 0 or pixels.dtype.kind not in "uif":
        raise DataError(
            name,
            found=f"an array of {pixels.dtype} with shape {pixels.shape}",
            expected="pixels of whole or real numbers",
            remedy="convert it",
        )
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return _of_known_type(pixels)


def _of_known_type(pixels: Pixels) -> Pixels:
    return pixels.astype(known_type(pixels.dtype.newbyteorder("=").name), copy=False)


def known_type(name: str) -> str:
    """The type that values of a type are read as: uint8 and uint16 stay, all else is float32."""
    return name if name in ("uint8", "uint16") else "float32"


def _from_npy(data: bytes, name: Place, channels: ChannelsConfig) -> Pixels:
    """(H, W) or (H, W, C); (C, H, W) where only that has the right number of channels.

    Of an image of several files, whose shares are not known, the shorter axis has the channels.
    """
    try:
        _refuse_other_length(data)
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # damaged headers raise errors of many classes
        raise_machine_problem(error, name)
        raise DataError(
            name,
            found=f"a .npy file that cannot be read ({error})",
            expected="an array (H, W, C) of numbers",
            remedy="save it again with numpy.save, without objects",
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.ndim not in (2, 3):
        raise DataError(
            name,
            found=f"an array of shape {getattr(pixels, 'shape', ())}",
            expected="(H, W, C), (C, H, W) or (H, W)",
            remedy="save one image per file",
        )
    if pixels.ndim == 3:
        count = len(channels.names or [])
        first, last = pixels.shape[0], pixels.shape[2]
        if first < last if channels.files else first == count != last:
            pixels = pixels.transpose(1, 2, 0)
    return pixels


def _refuse_other_length(data: bytes) -> None:
    """NumPy makes room for what a header claims before it looks at the values."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, kind = np.lib.format.read_array_header_2_0(stream)
    claimed, there = math.prod(shape) * kind.itemsize, len(data) - stream.tell()
    if claimed > there:
        raise ValueError(f"its header claims {claimed} bytes of values, and there are {there}")


def _from_tiff(data: bytes, name: Place, channels: ChannelsConfig) -> Pixels:
    """The bands of a TIFF file; of several pages of one size, the bands of all of them.

    A file with too many bands is refused before its pixels are read.
    """
    rasterio = require("rasterio", name)
    errors = require("rasterio.errors", name)
    # For good, and not within a block: other threads read at the same time.
    filterwarnings("ignore", category=errors.NotGeoreferencedWarning)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(rasterio.Env())
            memory = stack.enter_context(rasterio.io.MemoryFile(data))
            first = stack.enter_context(memory.open(driver="GTiff"))
            _refuse_too_large(first.width, first.height, name)
            # Metadata of a file may name other files as its parts: only its own pages are opened.
            own = re.compile(rf"GTIFF_DIR:\d+:{re.escape(first.name)}")
            further = [page for page in first.subdatasets[1:] if own.fullmatch(page)]
            if len(further) > len(channels.names or []) + _THUMBNAILS:
                raise DataError(
                    name,
                    found=f"{1 + len(further)} pages",
                    expected=f"{len(channels.names or [])} channels (data.channels.names)",
                    remedy="save the pages that are channels, or one image per file",
                )
            others = [stack.enter_context(rasterio.open(page, driver="GTiff")) for page in further]
            pages = [first, *(page for page in others if page.shape == first.shape)]  # no thumbnail
            for page in pages:  # a tile is decoded whole
                for block in page.block_shapes:
                    _refuse_large_block(block, first.shape, name)
            types = [kind for page in pages for kind in page.dtypes]
            if any(kind.startswith("complex") for kind in types):
                raise ValueError("its values are complex numbers")
            if len(types) > len(channels.names or []):
                _refuse_other_count([len(types)], types, name, channels)
            bands = [_without_nodata(page.read(), page.nodatavals) for page in pages]
    except (errors.RasterioError, ValueError, MemoryError) as error:
        raise_machine_problem(error, name)
        raise DataError(
            name,
            found=f"a TIFF file that cannot be decoded ({error})",
            expected="a complete TIFF file",
            remedy="fetch or convert this file again",
        ) from error
    return _stacked([band.transpose(1, 2, 0) for band in bands])
