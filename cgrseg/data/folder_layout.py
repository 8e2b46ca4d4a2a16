"""Folders and splits of a person's own dataset, and the dataset root that was meant.

The split comes from, in this order: `data.split_lists`, `{split}` in the folder names,
subfolders named after the split in any case, or an automatic split by seed.  Where `data.images`
and `data.labels` have their defaults and are not there, the names that other tools use are taken.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cgrseg.config.schema import DataConfig
from cgrseg.data.file_index import cut_suffix, visible_files
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.spec import HeldOut, SplitLayout
from cgrseg.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of image files that are looked for."""

ARRAY_SUFFIX = ".npy"
"""Ending of image files that only `data.channels` reads."""

LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""Endings of label files: formats that keep every value."""

IMAGE_FOLDERS = ("images", "JPEGImages", "img_dir", "imgs", "image", "img")
"""Names of image folders, the usual one first."""

LABEL_FOLDERS = (
    *("annotations", "SegmentationClassPNG", "SegmentationClass", "ann_dir", "masks", "labels"),
    *("annotation", "mask", "label"),
)
"""Names of label folders, the usual one first."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
"""Split to the names of its folders, compared without case."""

_SEARCH_DEPTH = 2  # levels of folders below the given root
_SEARCHED_FOLDERS = 200


def find_layout(config: DataConfig, root: Path) -> tuple[dict[str, SplitLayout], list[Finding]]:
    """Splits of a custom dataset, and findings: folders under another name, folders left out."""
    if config.split_lists is not None:
        images, labels, findings = _chosen_folders(config, root)
        return {
            name: _layout_of(images, labels, name, path)
            for name, path in config.split_lists.items()
        }, findings
    names = list(dict.fromkeys(["train", "val", "test", config.train_split, config.eval_split]))
    if "{split}" in config.images:
        return {
            name: _layout_of(config.images, config.labels, name)
            for name in names
            if (root / config.images.replace("{split}", name)).is_dir() or name != "test"
        }, []
    images, labels, findings = _chosen_folders(config, root)
    if not (root / images).is_dir():
        splits, chosen = _split_folders_first(root, names)
        if splits:
            return splits, [_other_folders(root, *chosen)]
    splits = _split_folders(root, images, labels, names)
    if splits:
        return splits, findings + _left_out(root, images, splits)
    return {
        name: SplitLayout(
            images,
            labels,
            held_out=HeldOut(config.split_seed, config.val_fraction, validation=name == "val"),
        )
        for name in ("train", "val")
    }, findings


def find_folders(root: Path) -> tuple[str, str] | None:
    """Names of the image and the label folder of a custom dataset; None: it has none.

    Both may be `{split}/NAME`, where folders of splits come first.
    """
    images, labels = _known_folder(root, IMAGE_FOLDERS), _known_folder(root, LABEL_FOLDERS)
    if images and labels:
        return images, labels
    _, chosen = _split_folders_first(root, list(SPLIT_FOLDERS))
    return chosen if chosen[0] else None


def refuse_misplaced_root(config: DataConfig, root: Path) -> None:
    """Name the folder that was meant, where `root` holds no dataset and one near it does.

    Raises:
        DataError: the dataset lies below `root`, or `root` is one of its folders.
    """
    if find_folders(root) is not None or (root / config.images.split("/")[0]).is_dir():
        return
    names = [*IMAGE_FOLDERS, *LABEL_FOLDERS]
    meant = nearby_folder(root, lambda folder: find_folders(folder) is not None, names)
    if meant is not None:
        raise DataError(
            root,
            found=f"no folders of images and labels in it, but {meant} holds them",
            expected="the folder that holds the dataset's own folders",
            remedy=f"set data.root={meant} (or --data-root {meant})",
        )


def nearby_folder(root: Path, fits: Callable[[Path], bool], inside: Iterable[str]) -> Path | None:
    """The first folder below `root` that fits, or the one above it; None: there is none.

    Args:
        root: the folder that was given.
        fits: whether a folder is the one that was meant.
        inside: folder names of a dataset: where `root` has one of them, the folder above it is
            tried too.
    """
    for folder in _folders_below(root):
        if fits(folder):
            return folder
    return root.parent if root.name in inside and fits(root.parent) else None


def _folders_below(root: Path) -> Iterator[Path]:
    level, count = [root], 0
    for _ in range(_SEARCH_DEPTH):
        found: list[Path] = []
        for folder in level:
            with contextlib.suppress(OSError):  # a folder that may not be entered holds nothing
                found += sorted(
                    path
                    for path in folder.iterdir()
                    if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
                )
        for path in found:
            count += 1
            if count > _SEARCHED_FOLDERS:
                return
            yield path
        level = found


def _layout_of(images: str, labels: str, name: str, list_file: str | None = None) -> SplitLayout:
    # Not format(): other braces belong to the names of folders.
    images, labels = (folder.replace("{split}", name) for folder in (images, labels))
    return SplitLayout(images, labels, list_file)


def _chosen_folders(config: DataConfig, root: Path) -> tuple[str, str, list[Finding]]:
    """Image and label folder, and a note where they are not the ones of the settings."""
    images, labels = (
        given
        if given != default or (root / given).is_dir()
        else _known_folder(root, known) or given
        for given, default, known in (
            (config.images, "images", IMAGE_FOLDERS),
            (config.labels, "annotations", LABEL_FOLDERS),
        )
    )
    changed = (images, labels) != (config.images, config.labels)
    return images, labels, [_other_folders(root, images, labels)] if changed else []


def _other_folders(root: Path, images: str, labels: str) -> Finding:
    return Finding(
        "note",
        "layout",
        str(root),
        f"images are read from {images}, labels from {labels}",
        f"for other folders: data.images and data.labels (now {images} and {labels})",
    )


def _known_folder(root: Path, names: Sequence[str]) -> str | None:
    """The first folder of these names, in any case, that holds an image file."""
    for name in names:
        found = _child(root, (name,))
        if found and _holds_images(root / found):
            return found
    return None


def _holds_images(folder: Path) -> bool:
    endings = (*IMAGE_SUFFIXES, ARRAY_SUFFIX)
    return any(cut_suffix(name, endings) for name, _ in visible_files(folder))


def _child(folder: Path, names: Sequence[str]) -> str | None:
    """The subfolder that has one of these names, compared without case."""
    there = {name.casefold(): name for name in _subfolders(folder)}
    for name in names:
        if (folder / name).is_dir():
            return name
        if name.casefold() in there:
            return there[name.casefold()]
    return None


def _subfolders(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _split_folders(
    root: Path, images: str, labels: str, names: Sequence[str]
) -> dict[str, SplitLayout]:
    """Splits from subfolders of the image folder."""
    found: dict[str, SplitLayout] = {}
    for name in names:
        aliases = SPLIT_FOLDERS.get(name, (name,))
        folder = _child(root / images, aliases)
        if folder is not None:
            partner = _child(root / labels, (folder, *aliases)) or folder
            found[name] = SplitLayout(f"{images}/{folder}", f"{labels}/{partner}")
    return found


def _split_folders_first(
    root: Path, names: Sequence[str]
) -> tuple[dict[str, SplitLayout], tuple[str, str]]:
    """Splits from folders of the root that hold images and labels each: train/images."""
    found: dict[str, SplitLayout] = {}
    chosen = ("", "")
    for name in names:
        folder = _child(root, SPLIT_FOLDERS.get(name, (name,)))
        if folder is None:
            continue
        images = _known_folder(root / folder, IMAGE_FOLDERS)
        labels = _known_folder(root / folder, LABEL_FOLDERS)
        if images and labels:
            found[name] = SplitLayout(f"{folder}/{images}", f"{folder}/{labels}")
            chosen = (f"{{split}}/{images}", f"{{split}}/{labels}")
    return found, chosen


def _left_out(root: Path, images: str, splits: dict[str, SplitLayout]) -> list[Finding]:
    """A warning for each folder of images that no split uses."""
    used = {layout.images for layout in splits.values()}
    places = [f"{images}/{name}" for name in _subfolders(root / images)]
    left = [place for place in places if place not in used and _holds_images(root / place)]
    with contextlib.suppress(OSError):
        if any(cut_suffix(path.name, IMAGE_SUFFIXES) for path in (root / images).iterdir()):
            left.append(images)
    listed = ", ".join(f"{name} ({layout.images})" for name, layout in splits.items())
    return [
        Finding(
            "warning",
            "folder-left-out",
            str(root / place),
            f"images in this folder belong to no split; the splits are {listed}",
            "move them into a folder of a split"
            + (", or set data.train_split or data.eval_split to the folder's name")
            * (place != images),
        )
        for place in left
    ]
