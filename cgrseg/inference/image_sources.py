"""What a source of images is, and reading its images as arrays."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import Address, leaves_the_folder
from cgrseg.config.schema import ChannelsConfig, TestConfig
from cgrseg.data.channels import (
    Pixels,
    checked_pixels,
    companion_stems,
    decode_pixels,
    image_endings,
    read_pixels,
)
from cgrseg.data.file_index import companions_among
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.data.image_files import read_content
from cgrseg.errors import CGRSegError, DataError
from cgrseg.inference.background import read_ahead
from cgrseg.inference.video import VIDEO_SUFFIXES, Frame, frames_of

if TYPE_CHECKING:
    from torch import Tensor

Image = NDArray[np.uint8]
_ADDRESSES_AHEAD = 8  # files that are fetched at the same time
Kind = Literal["folder", "pattern", "video", "file", "content", "list", "object"]


def kind_of(source: object) -> Kind:
    """Kind of a source, the only place that decides it.

    Returns:
        Of a path: "folder"; "video", told by the suffix; "file"; or "pattern" where nothing of
        that name exists.  Of an address, which is not asked for: "file", told by the suffix of an
        image; else "pattern", which may be a folder.  Else "content": bytes or an open file;
        "list": a list or tuple; "object": an array, a tensor, a Pillow image, a frame or any other
        value.
    """
    address = Address.of(source)
    if address is not None:
        named = address.suffix.lower() in IMAGE_SUFFIXES and not address.is_pattern
        return "file" if named else "pattern"
    if isinstance(source, (str, Path)):
        if Path(source).is_dir():
            return "folder"
        if Path(source).suffix.lower() in VIDEO_SUFFIXES:
            return "video"
        return "file" if os.path.lexists(source) else "pattern"
    if isinstance(source, (list, tuple)):
        return "list"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "content"
    return "content" if callable(getattr(source, "read", None)) else "object"


def expand(source: Any, channels: ChannelsConfig | None = None) -> list[Any]:
    """Images of one source: the files of a folder or pattern, the items of a list, or itself.

    Args:
        source: any kind of :func:`kind_of`.
        channels: channels of the images; None: 8-bit RGB.
    """
    kind = kind_of(source)
    if kind in ("folder", "pattern"):
        return [image.path for image in find_images(source, channels=channels)]
    return list(source) if kind == "list" else [source]


def with_frames(
    sources: Iterable[Any], depth: int
) -> Generator[tuple[Any, CGRSegError | None], None, None]:
    """Sources in their order, videos replaced by their frames.

    Args:
        sources: iterated as far as the caller asks.
        depth: number of frames to read ahead.

    Yields:
        Each image and None.  A video that cannot be read gives its path and the error after its
        last frame.
    """
    for source in sources:
        if kind_of(source) != "video":
            yield source, None
            continue
        frames = read_ahead(frames_of(source), depth)
        try:
            for frame in frames:
                yield frame, None
        except CGRSegError as error:
            yield source, error
        finally:
            frames.close()


def read_addresses_ahead(
    sources: Iterable[tuple[Any, CGRSegError | None]],
) -> Generator[tuple[Any, CGRSegError | Future[bytes] | None], None, None]:
    """Sources of :func:`with_frames`; the content of addresses is read by several threads.

    Up to 8 addresses are taken from the sources ahead of the caller.

    Yields:
        Each source; with its error, or with the content of the file at an address.
    """
    waiting: deque[tuple[Any, CGRSegError | Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(_ADDRESSES_AHEAD, thread_name_prefix="read-address")
    try:
        for source, error in sources:
            address = Address.of(source) if error is None else None
            if address is not None:
                waiting.append((source, pool.submit(read_content, address, "an image")))
                if len(waiting) > _ADDRESSES_AHEAD:
                    yield waiting.popleft()
                continue
            while waiting:
                yield waiting.popleft()
            yield source, error
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def name_of(source: Any) -> str:
    """Name of an image in messages."""
    if isinstance(source, Frame):
        return f"{source.source}, frame {source.number}"
    address = Address.of(source) or source
    return str(address) if isinstance(address, (str, Path, Address)) else "an image in memory"


@dataclass(frozen=True)
class FoundImage:
    """An image file.

    Attributes:
        path: the file, or its address.
        name: name of its results: path without suffix, relative to the given folder (the file's
            stem for a file that was given itself).
    """

    path: Path | Address
    name: str


def find_images(
    inputs: str | Path | Iterable[str | Path],
    leave_out: Iterable[Path] = (),
    channels: ChannelsConfig | None = None,
) -> list[FoundImage]:
    """Image files of paths, folders with their subfolders, patterns, and addresses of these.

    Files of one folder that differ only in their suffix keep it in the name of their results.

    Args:
        inputs: files, folders and patterns.
        leave_out: folders whose files are no inputs: results of an earlier run, or of a process
            that runs at the same time.
        channels: channels of the images; None: 8-bit RGB.

    Raises:
        DataError: a missing path, a video, a folder or pattern without images, an address that
            cannot be listed, or two images whose results would have the same name.
        EnvironmentProblem: the package for the protocol of an address is missing.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else inputs
    endings = image_endings(channels)
    unique = {image.path: image for entry in given for image in _images_of(entry, endings)}
    if channels is not None:
        for path in companions_among(unique, companion_stems(channels)):
            del unique[path]
    results = {Path(os.path.realpath(folder)) for folder in leave_out}
    kept = [
        image
        for path, image in unique.items()
        if isinstance(path, Address) or results.isdisjoint(Path(os.path.realpath(path)).parents)
    ]
    counts = Counter(image.name for image in kept)
    named: dict[str, Path | Address] = {}
    for image in kept:
        name = image.name if counts[image.name] == 1 else f"{image.name}_{image.path.suffix[1:]}"
        if isinstance(image.path, Address) and leaves_the_folder(name):
            raise DataError(
                image.path,
                found=f"the name {name!r}, which leads out of the folder of the results",
                expected="names below the given address",
                remedy="do not trust this archive or bucket; name single files that you need",
            )
        if name in named:
            raise DataError(
                image.path,
                found=f"its results would have the same name as those of {named[name]}",
                expected="names that differ",
                remedy="give the folder above both, whose structure the results then keep",
            )
        named[name] = image.path
    return [FoundImage(path, name) for name, path in named.items()]


def _images_of(entry: str | Path, endings: Sequence[str]) -> list[FoundImage]:
    path = Path(entry)
    if not str(entry).strip():
        raise DataError(
            "IMAGES",
            found="an empty name, as an unset variable of the shell gives it",
            expected="a file, a folder or a pattern",
            remedy="check the variable; the working folder is called '.'",
        )
    address = Address.of(entry)
    if address is not None:
        return _images_at(address, endings)
    kind = kind_of(entry)
    if kind == "file":  # the reader refuses special files and says why
        return [FoundImage(path, path.stem)]
    if kind == "video":
        raise DataError(
            entry,
            found="a video",
            expected="images, each with a label map of its own",
            remedy="use cgrseg.inference.predict_video, or `cgrseg predict` with videos only",
        )
    found: list[FoundImage] = []
    if kind == "folder":
        for file in _images_below(path, endings):
            found.append(FoundImage(file, file.relative_to(path).with_suffix("").as_posix()))
    else:
        for match in _matches(str(entry)):
            if match.is_dir():
                found += _images_of(match, endings)
            elif match.suffix.lower() in endings:
                found.append(FoundImage(match, match.stem))
    if not found:
        raise DataError(
            entry,
            found="no images in this folder"
            if kind == "folder"
            else "no such file or folder, and no image matches it as a pattern",
            expected=f"image files ({', '.join(endings)})",
            remedy="check the path",
        )
    return found


def _images_at(address: Address, endings: Sequence[str]) -> list[FoundImage]:
    if kind_of(address) == "file":
        return [FoundImage(address, address.path.stem)]
    found = [
        FoundImage(file, PurePosixPath(below).with_suffix("").as_posix())
        for file, below in address.files()
        if file.suffix.lower() in endings or file == address
    ]
    if not found:
        raise DataError(
            address,
            found="no images at this address",
            expected=f"image files ({', '.join(endings)})",
            remedy="check the address; videos are read from files",
        )
    return found


def _images_below(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Images of a folder and its subfolders, and subfolders that may not be entered.

    The reader of the latter names them in its error.
    """
    found: list[Path] = []

    def add_denied(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        found.append(Path(error.filename))

    for place, _, names in os.walk(folder, onerror=add_denied):
        files = (Path(place) / name for name in names)
        found += [file for file in files if file.suffix.lower() in endings]
    return sorted(found)


def _matches(pattern: str) -> list[Path]:
    """Files and folders that match a pattern, once each even behind symlinks that lead back."""
    found: dict[tuple[str, str], Path] = {}
    for name in sorted(glob.glob(pattern, recursive=True), key=lambda name: (len(name), name)):
        folder, leaf = os.path.split(name.rstrip(os.sep) or name)
        found.setdefault((os.path.realpath(folder), leaf), Path(name))
    return sorted(found.values())


def as_image(value: Any, test: TestConfig | None = None) -> Pixels:
    """One image as uint8 RGB (H, W, 3), or (H, W, C) of the channels that the settings name.

    Args:
        value: one of

            - a path or an address (:mod:`cgrseg.addresses`);
            - the content of an image file: bytes, a one-dimensional uint8 array, or an open
              binary file such as io.BytesIO (read from its beginning);
            - a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA (alpha is ignored) or (H, W) gray;
            - a tensor, uint8 0..255 or floating 0..1, of shape (3, H, W), (H, W, 3) or (H, W),
              also with 1 or 4 channels;
            - a Pillow image (its EXIF orientation is applied);
            - a :class:`~cgrseg.inference.video.Frame` of a video.

            For other channels than RGB, arrays and tensors hold stored values, (H, W, C) or
            (C, H, W), and are not scaled.
        test: how images are read; None: as 8-bit RGB.

    Raises:
        DataError: a file that cannot be read, a value of another kind, or a tensor whose layout
            or range is ambiguous.
    """
    test = TestConfig() if test is None else test
    bits, channels = test.image_bits, test.image_channels
    if isinstance(value, (str, Path, Address)):
        return read_pixels(value, test)
    if isinstance(value, Frame):
        return value.image if channels is None else _of_channels(value.image, channels)
    if hasattr(value, "getexif") and hasattr(value, "convert"):
        from PIL import ImageOps

        upright: Any = ImageOps.exif_transpose(value)
        if channels is None:
            return _from_pillow(upright, bits)
        mode = {"P": "RGB", "1": "L"}.get(upright.mode, upright.mode)  # as in PNG files
        return _of_channels(np.asarray(upright.convert(mode)), channels)
    if kind_of(value) == "content":
        return _from_bytes(_read(value) if hasattr(value, "read") else bytes(value), test)
    torch = sys.modules.get("torch")  # whoever has a tensor has loaded it
    if torch is not None and isinstance(value, torch.Tensor):
        if channels is not None:
            return _of_channels(value.detach().cpu().numpy(), channels)
        return _from_tensor(value)
    if isinstance(value, np.ndarray):
        is_file = value.dtype == np.uint8 and value.ndim == 1
        if is_file or (value.dtype.kind == "S" and value.ndim == 0):
            return _from_bytes(value.tobytes(), test)
        return _from_array(value) if channels is None else _of_channels(value, channels)
    raise DataError(
        "image",
        found=f"a value of type {type(value).__name__}",
        expected="a path, bytes or an open file, a uint8 array (H, W, 3) in RGB, a tensor, or "
        "a Pillow image",
        remedy="open it with Pillow, or convert it to an array of RGB values 0..255",
    )


def _read(stream: Any) -> bytes:
    if getattr(stream, "seekable", bool)():  # as Pillow does, which leaves its files at their end
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise DataError(
            "image",
            found=f"an open file that gives {type(content).__name__}",
            expected="a file opened in binary mode",
            remedy="open it with open(path, 'rb'), or give the path",
        )
    return content


def _from_bytes(content: bytes, test: TestConfig) -> Pixels:
    if not content:
        raise DataError(
            "image in memory",
            found="no bytes",
            expected="the content of an image file",
            remedy="check where the bytes come from; a file that was read before is at its end",
        )
    return decode_pixels(content, "image in memory", test)


def _of_channels(array: NDArray[Any], channels: ChannelsConfig) -> Pixels:
    """Stored values (H, W, C), (C, H, W), or (H, W) of a single channel."""
    count = len(channels.names or [])
    if array.ndim == 3 and array.shape[2] != count and array.shape[0] == count:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "uif":
        raise DataError(
            "image",
            found=f"an array of {array.dtype} with shape {array.shape}",
            expected=f"stored values of shape (H, W, {count})",
            remedy="give one image at a time",
        )
    return checked_pixels(array, "image in memory", channels)


def _from_tensor(tensor: Tensor) -> Image:
    import torch

    values = tensor.detach().cpu()
    channels = (1, 3, 4)
    first = values.ndim == 3 and values.shape[0] in channels
    last = values.ndim == 3 and values.shape[2] in channels
    if not (values.ndim == 2 or first != last) or values.numel() == 0:
        both = "; channels first or last cannot be told" if first and last else ""
        raise DataError(
            "image",
            found=f"a tensor of shape {tuple(values.shape)}{both}",
            expected="(3, H, W), (H, W, 3) or (H, W)",
            remedy="give a batch as a list: list(batch)"
            if values.ndim == 4
            else "give a uint8 array (H, W, 3): tensor.permute(1, 2, 0).numpy()",
        )
    if values.is_floating_point():
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                "image",
                found=f"a tensor of {values.dtype} with values from {low:.4g} to {high:.4g}",
                expected="values 0..1, not normalized, or uint8 values 0..255",
                remedy="give the image as it was before normalization; convert values 0..255 with "
                "tensor.round().to(torch.uint8)",
            )
        values = (values.float() * 255).round().to(torch.uint8)
    return _from_array((values.permute(1, 2, 0) if first else values).numpy())


def _from_pillow(image: Any, bits: int) -> Image:
    """RGB of an upright Pillow image, equal to `read_image` of the same file."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint16)
        return _from_array(np.minimum(wide >> (bits - 8), 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            "image",
            found=f"a Pillow image of mode {image.mode!r}, whose range is not known",
            expected="8-bit or 16-bit gray, or color",
            remedy="scale it to 0..255 and convert it to 'L' or 'RGB'",
        )
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _from_array(array: NDArray[Any]) -> Image:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or array.size == 0:
        raise DataError(
            "image",
            found=f"an array of {array.dtype} with shape {array.shape}",
            expected="uint8 values 0..255 of shape (H, W, 3) in RGB, or (H, W)",
            remedy="scale to 0..255 and convert with .astype(numpy.uint8); move channels last",
        )
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])
