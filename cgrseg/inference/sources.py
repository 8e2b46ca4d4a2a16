"""What a person may hand over as images, turned into 8-bit RGB arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.data.image_files import FULL_BITS, decode_image, read_image
from cgrseg.errors import DataError
from cgrseg.inference.frames import Frame

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class FoundImage:
    """An image file.

    Attributes:
        path: the file.
        name: where its results go: path without suffix, relative to the folder that was
            given (the bare name for a file that was given itself).
    """

    path: Path
    name: str


def find_images(
    inputs: str | Path | Iterable[str | Path], leave_out: Iterable[Path] = ()
) -> list[FoundImage]:
    """Image files behind paths, folders (with their subfolders) and glob patterns.

    Files of one folder that differ in their suffix only keep it in their result's name.

    Args:
        inputs: what to look behind.
        leave_out: folders whose files are no input: results of an earlier run, or of a
            process beside this one.

    Raises:
        DataError: a path that is not there, or a folder or pattern without images.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    found = [image for entry in given for image in _behind(entry)]
    unique = list({image.path: image for image in found}.values())
    results = {Path(os.path.realpath(folder)) for folder in leave_out}
    unique = [
        image for image in unique if results.isdisjoint(Path(os.path.realpath(image.path)).parents)
    ]
    names: dict[str, int] = {}
    for image in unique:
        names[image.name] = names.get(image.name, 0) + 1
    renamed = [
        FoundImage(image.path, f"{image.name}_{image.path.suffix[1:]}")
        if names[image.name] > 1
        else image
        for image in unique
    ]
    taken: dict[str, Path] = {}
    for image in renamed:
        if image.name in taken:
            raise DataError(
                image.path,
                found=f"its results would have the same name as those of {taken[image.name]}",
                expected="names that differ",
                remedy="give the folder above both, whose structure the results then keep",
            )
        taken[image.name] = image.path
    return renamed


def _behind(entry: str | Path) -> list[FoundImage]:
    path = Path(entry)
    if not str(entry).strip():
        raise DataError(
            "IMAGES",
            found="an empty name, as an unset variable of the shell gives it",
            expected="a file, a folder or a pattern",
            remedy="check the variable; the working folder is called '.'",
        )
    if path.is_dir():
        files = _images_below(path)
        found = [FoundImage(p, p.relative_to(path).with_suffix("").as_posix()) for p in files]
        what = "no images in this folder"
    elif os.path.lexists(path):
        # What is no regular file is refused by its reader, which says why.
        return [FoundImage(path, path.stem)]
    else:
        found = []
        for match in _matches(str(entry)):
            if match.is_dir():
                found += _behind(match)
            elif match.suffix.lower() in IMAGE_SUFFIXES:
                found.append(FoundImage(match, match.stem))
        what = "no such file or folder, and no image matches it as a pattern"
    if not found:
        raise DataError(
            entry,
            found=what,
            expected=f"image files ({', '.join(IMAGE_SUFFIXES)})",
            remedy="check the path",
        )
    return found


def _images_below(folder: Path) -> list[Path]:
    """Images of a folder and its subfolders, and the subfolders that may not be entered.

    The latter stay in the list so that their reader names them.
    """
    found: list[Path] = []
    denied: list[Path] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        denied.append(Path(error.filename))

    for place, _, names in os.walk(folder, onerror=note):
        found += [
            Path(place) / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted([*found, *denied])


def _matches(pattern: str) -> list[Path]:
    """Files and folders that a pattern finds; behind symlinks that lead back, each only once."""
    found: dict[tuple[str, str], Path] = {}
    for name in sorted(glob.glob(pattern, recursive=True), key=lambda name: (len(name), name)):
        folder, leaf = os.path.split(name.rstrip(os.sep) or name)
        found.setdefault((os.path.realpath(folder), leaf), Path(name))
    return sorted(found.values())


def as_image(value: Any, *, bits: int = FULL_BITS) -> Image:
    """One image as uint8 RGB (H, W, 3).

    Args:
        value: one of

            - a path;
            - the content of an image file: bytes, a one-dimensional uint8 array, or an open
              binary file such as io.BytesIO (read from its beginning);
            - a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA (alpha is left out) or (H, W) grey;
            - a tensor, uint8 0..255 or floating 0..1, of shape (3, H, W), (H, W, 3) or (H, W),
              with 1 or 4 channels likewise;
            - a Pillow image (turned by its EXIF orientation);
            - a :class:`~cgrseg.inference.frames.Frame` of a clip.
        bits: bits that 16-bit images use, see :func:`cgrseg.data.image_files.read_image`.

    Raises:
        DataError: a file that cannot be read, a value of another kind, or a tensor whose layout
            or range is not certain.
    """
    if isinstance(value, (str, Path)):
        return read_image(value, bits=bits)
    if isinstance(value, Frame):
        return value.image
    if hasattr(value, "getexif") and hasattr(value, "convert"):
        from PIL import ImageOps

        return _from_pillow(ImageOps.exif_transpose(value), bits)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(value), bits)
    if callable(getattr(value, "read", None)):
        return _from_stream(value, bits)
    if isinstance(value, torch.Tensor):
        return _from_tensor(value)
    if isinstance(value, np.ndarray):
        is_file = value.dtype == np.uint8 and value.ndim == 1
        if is_file or (value.dtype.kind == "S" and value.ndim == 0):
            return _from_bytes(value.tobytes(), bits)
        return _from_array(value)
    raise DataError(
        "image",
        found=f"a value of type {type(value).__name__}",
        expected="a path, bytes or an open file, a uint8 array (H, W, 3) in RGB, a tensor, or "
        "a Pillow image",
        remedy="open it with Pillow, or convert it to an array of RGB values 0..255",
    )


def _from_bytes(content: bytes, bits: int) -> Image:
    if not content:
        raise DataError(
            "image in memory",
            found="no bytes",
            expected="the content of an image file",
            remedy="check where the bytes come from; a file that was read before is at its end",
        )
    return decode_image(content, "image in memory", bits=bits)


def _from_stream(stream: Any, bits: int) -> Image:
    seekable = getattr(stream, "seekable", bool)()
    if seekable:  # as Pillow does, which also leaves a file that it wrote at its end
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise DataError(
            "image",
            found=f"an open file that gives {type(content).__name__}",
            expected="a file opened in binary mode",
            remedy="open it with open(path, 'rb'), or give the path",
        )
    return _from_bytes(content, bits)


def _from_tensor(tensor: torch.Tensor) -> Image:
    """RGB of a tensor; refuses what could be read in two ways."""
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
                remedy="give the image as it was before normalization; of values 0..255, "
                "tensor.round().to(torch.uint8)",
            )
        values = (values.float() * 255).round().to(torch.uint8)
    return _from_array((values.permute(1, 2, 0) if first else values).numpy())


def _from_pillow(picture: Any, bits: int) -> Image:
    """RGB of an upright Pillow image, as `read_image` gives it for the same file."""
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.uint16)
        grey = np.minimum(wide >> (bits - 8), 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise DataError(
            "image",
            found=f"a Pillow image of mode {picture.mode!r}, whose range is not known",
            expected="8-bit or 16-bit grey, or colour",
            remedy="scale it to 0..255 and convert it to 'L' or 'RGB'",
        )
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)


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
