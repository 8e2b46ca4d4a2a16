"""Small folders of images and labels, in the forms in which people have them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)


def labels(number: int, low: int = 0, high: int = 1) -> np.ndarray:
    """A lower part of `high` below an upper one of `low`, at another height for each number."""
    values = np.full(SIZE, low, np.uint8)
    values[20 + number :] = high
    return values


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_label(path: Path, values: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(values) if isinstance(values, np.ndarray) else values).save(path)


def write_folder(
    root: Path,
    *,
    images: str = "images",
    annotations: str = "annotations",
    stems: Sequence[str] = ("0", "1", "2", "3"),
    classes: Sequence[str] | None = ("sky", "road"),
    make: Callable[[int], np.ndarray | Image.Image] = labels,
    label_name: str = "{stem}.png",
    image_form: str = "NFC",
    image_ending: str = ".jpg",
) -> Path:
    """Write images and labels below a root, and `classes.txt`."""
    for number, stem in enumerate(stems):
        seed = sum(map(ord, f"{images}/{stem}"))
        name = unicodedata.normalize(image_form, stem)  # type: ignore[arg-type]
        save_image(root / images / f"{name}{image_ending}", seed)
        save_label(root / annotations / label_name.format(stem=stem), make(number))
    if classes is not None:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return root


def binary(root: Path) -> Path:
    """Masks of 0 and 255."""
    return write_folder(root, classes=("background", "crack"), make=lambda k: labels(k, 0, 255))


def foreground_only(root: Path) -> Path:
    """Masks of 0 and 1 with one name."""
    return write_folder(root, classes=("crack",))


def all_ignored(root: Path) -> Path:
    """A training split in which every pixel is ignored."""
    for split, low, high in (("train", 255, 255), ("val", 0, 1)):
        write_folder(
            root,
            images=f"images/{split}",
            annotations=f"annotations/{split}",
            stems=[f"{split}{k}" for k in range(4)],
            make=lambda k, low=low, high=high: labels(k, low, high),  # type: ignore[misc]
        )
    return root


def gray_values(root: Path) -> Path:
    """Three classes, stored as 0, 128 and 255."""

    def make(number: int) -> np.ndarray:
        values = labels(number, 0, 128)
        values[:, 50:] = 255
        return values

    return write_folder(root, classes=("sky", "road", "car"), make=make)


def splits(root: Path, *names: str, classes: Sequence[str] | None = ("sky", "road")) -> Path:
    """Folders of splits with these names."""
    for name in names:
        write_folder(
            root,
            images=f"images/{name}",
            annotations=f"annotations/{name}",
            stems=[f"{name}{k}" for k in range(4)],
            classes=classes,
        )
    return root


def masks_with_addition(root: Path) -> Path:
    """Labels are called `0_mask.png`."""
    return write_folder(root, label_name="{stem}_mask.png")


def deeper(root: Path) -> Path:
    """Labels lie in a folder below the one for labels."""
    return write_folder(root, annotations="annotations/masks")


def decomposed(root: Path) -> Path:
    """Images with names as macOS writes them, labels as other systems do."""
    names = ("M\u00fcnchen", "caf\u00e9", "Malm\u00f6", "\uac15\ub0a8")
    return write_folder(root, stems=names, image_form="NFD")


def pascal(root: Path) -> Path:
    """Pascal's folder names without lists."""
    return write_folder(root, images="JPEGImages", annotations="SegmentationClassPNG")


def split_first(root: Path) -> Path:
    """Folders of splits that hold images and masks each."""
    for split in ("train", "valid"):
        stems = [f"{split}{k}" for k in range(4)]
        write_folder(root, images=f"{split}/images", annotations=f"{split}/masks", stems=stems)
    return root


def one_bit(root: Path) -> Path:
    """Labels as 1-bit PNG files, as arrays of truth values are saved."""
    return write_folder(root, make=lambda k: labels(k) == 1)


def other_format(root: Path, ending: str) -> Path:
    """Labels that are no PNG files."""
    return write_folder(root, label_name=f"{{stem}}.{ending}", make=lambda k: labels(k, 0, 255))


def link_back(root: Path) -> Path:
    """A symbolic link among the images that leads to the images."""
    write_folder(root)
    (root / "images" / "again").symlink_to(".")
    return root


COLORS = np.array([[0, 0, 0], [128, 64, 128], [220, 20, 60]], np.uint8)


def three(number: int, first: int = 0) -> np.ndarray:
    """Ids of three classes that count from `first`."""
    values = labels(number)
    values[30:40, 4 * number : 4 * number + 20] = 2
    return values + np.uint8(first)


def palette(number: int) -> Image.Image:
    """Three classes as indices of a palette."""
    picture = Image.fromarray(three(number)).convert("P")
    picture.putpalette(COLORS.ravel().tolist())
    return picture


def rgba(number: int) -> np.ndarray:
    """Three classes in colors; the first one is transparent."""
    ids = three(number)
    return np.dstack([COLORS[ids], np.where(ids > 0, 255, 0).astype(np.uint8)])


def _as_it_lies(**given: object) -> Callable[[Path], Path]:
    usual = {"annotations": "masks", "classes": None, "make": three}
    return lambda root: write_folder(root, **(usual | given))  # type: ignore[arg-type]


def _black_and_white(number: int) -> np.ndarray:
    return labels(number, 0, 255)


TWELVE: dict[str, Callable[[Path], Path]] = {
    "Black and white: 0 and 255": _as_it_lies(make=_black_and_white),
    "1-bit PNG": _as_it_lies(make=lambda k: labels(k) == 1),
    "A suffix, in one folder": _as_it_lies(
        images=".", annotations=".", label_name="{stem}_mask.png", make=_black_and_white
    ),
    "JPEG": _as_it_lies(label_name="{stem}.jpg", make=_black_and_white),
    "A palette": _as_it_lies(make=palette),
    "RGBA": _as_it_lies(make=rgba),
    "Nested folders": _as_it_lies(stems=("berlin/day 1/0", "berlin/day 2/1", "rome/2", "rome/3")),
    "Spaces and other alphabets": _as_it_lies(
        images="meine Fotos",
        annotations="meine Masken",
        stems=("Stra\u00dfe 1", "Stra\u00dfe 2 (Kopie)", "\uac15\ub0a8", "Malm\u00f6 #3"),
    ),
    "Endings in upper case": _as_it_lies(
        stems=("IMG_0001", "IMG_0002", "IMG_0003", "IMG_0004"),
        image_ending=".JPG",
        label_name="{stem}.PNG",
    ),
    "Ids from 0": _as_it_lies(),
    "Ids from 1": _as_it_lies(make=lambda k: three(k, 1)),
    "One class": _as_it_lies(make=labels, classes=("crack",)),
}
"""Twelve kinds of folders that need no conversion by hand, without a class list but the last."""
