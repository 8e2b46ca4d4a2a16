"""Where the images, labels and splits of a person's own folder lie.

The split comes from, in this order: `data.split_lists`, `{split}` in the folder names,
sub-folders named after the split in any case, or an automatic split by seed.  Folders are
`data.images` and `data.labels`; where these have their defaults and are not there, the names
that other tools use are taken.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgrseg.config.schema import DataConfig
from cgrseg.data.file_index import cut_suffix, visible_files
from cgrseg.data.findings import Finding
from cgrseg.data.placing import nearby_folder
from cgrseg.data.spec import HeldOut, SplitLayout
from cgrseg.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of image files that are looked for."""

LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
"""Endings of label files: formats that keep every value."""

IMAGE_FOLDERS = ("images", "JPEGImages", "img_dir", "imgs", "image", "img")
"""Names of image folders, the usual one first."""

LABEL_FOLDERS = (
    "annotations",
    "SegmentationClassPNG",
    "SegmentationClass",
    "ann_dir",
    "masks",
    "labels",
    "annotation",
    "mask",
    "label",
)
"""Names of label folders, the usual one first."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
"""Split to the names of its folders, compared without case."""


@dataclass(frozen=True)
class CustomLayout:
    """The folders of a custom dataset.

    Attributes:
        splits: split name to layout.
        findings: what was noticed: folders taken under another name, folders left out.
    """

    splits: dict[str, SplitLayout]
    findings: tuple[Finding, ...]


def find_layout(config: DataConfig, root: Path) -> CustomLayout:
    """Folders and splits of a custom dataset, from its settings and its folder."""
    if config.split_lists is not None:
        images, labels, findings = _folders(config, root)
        splits = {
            name: _of_split(images, labels, name, path) for name, path in config.split_lists.items()
        }
        return CustomLayout(splits, tuple(findings))
    names = list(dict.fromkeys(["train", "val", "test", config.train_split, config.eval_split]))
    if "{split}" in config.images:
        splits = {
            name: _of_split(config.images, config.labels, name)
            for name in names
            if (root / config.images.replace("{split}", name)).is_dir() or name != "test"
        }
        return CustomLayout(splits, ())
    images, labels, findings = _folders(config, root)
    if not (root / images).is_dir():
        splits, chosen = _split_folders_first(root, names)
        if splits:
            return CustomLayout(splits, (_taken(root, *chosen),))
    splits = _split_folders(root, images, labels, names)
    if splits:
        findings += _left_out(root, images, splits)
    else:
        splits = {
            name: SplitLayout(
                images,
                labels,
                held_out=HeldOut(config.split_seed, config.val_fraction, validation=name == "val"),
            )
            for name in ("train", "val")
        }
    return CustomLayout(splits, tuple(findings))


def find_folders(root: Path) -> tuple[str, str] | None:
    """Names of the image and the label folder of a custom dataset; None: it has none.

    Both may be `{split}/NAME`, where folders of splits come first.
    """
    images, labels = _known(root, IMAGE_FOLDERS), _known(root, LABEL_FOLDERS)
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


def _of_split(images: str, labels: str, name: str, list_file: str | None = None) -> SplitLayout:
    # Not format(): other braces belong to the names of folders.
    images, labels = (folder.replace("{split}", name) for folder in (images, labels))
    return SplitLayout(images, labels, list_file)


def _folders(config: DataConfig, root: Path) -> tuple[str, str, list[Finding]]:
    """Image and label folder, and a note where they are not the ones of the settings."""
    chosen = []
    for given, default, known in (
        (config.images, "images", IMAGE_FOLDERS),
        (config.labels, "annotations", LABEL_FOLDERS),
    ):
        there = given != default or (root / given).is_dir()
        chosen.append(given if there else _known(root, known) or given)
    images, labels = chosen
    changed = (images, labels) != (config.images, config.labels)
    return images, labels, [_taken(root, images, labels)] if changed else []


def _taken(root: Path, images: str, labels: str) -> Finding:
    return Finding(
        "note",
        "layout",
        str(root),
        f"images are read from {images}, labels from {labels}",
        f"for other folders: data.images and data.labels (now {images} and {labels})",
    )


def _known(root: Path, names: Sequence[str]) -> str | None:
    """The first folder of these names, in any case, that holds an image file."""
    for name in names:
        found = _child(root, (name,))
        if found and _holds_images(root / found):
            return found
    return None


def _holds_images(folder: Path) -> bool:
    return any(cut_suffix(name, IMAGE_SUFFIXES) for name, _ in visible_files(folder))


def _child(folder: Path, names: Sequence[str]) -> str | None:
    """The sub-folder that has one of these names, compared without case."""
    there = {name.casefold(): name for name in _sub_folders(folder)}
    for name in names:
        if (folder / name).is_dir():
            return name
        if name.casefold() in there:
            return there[name.casefold()]
    return None


def _sub_folders(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _split_folders(
    root: Path, images: str, labels: str, names: Sequence[str]
) -> dict[str, SplitLayout]:
    """Splits from sub-folders of the image folder."""
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
        images = _known(root / folder, IMAGE_FOLDERS)
        labels = _known(root / folder, LABEL_FOLDERS)
        if images and labels:
            found[name] = SplitLayout(f"{folder}/{images}", f"{folder}/{labels}")
            chosen = (f"{{split}}/{images}", f"{{split}}/{labels}")
    return found, chosen


def _left_out(root: Path, images: str, splits: dict[str, SplitLayout]) -> list[Finding]:
    """Images beside the folders of the splits, which no split uses."""
    used = {layout.images for layout in splits.values()}
    places = [f"{images}/{name}" for name in _sub_folders(root / images)]
    left = [place for place in places if place not in used and _holds_images(root / place)]
    with contextlib.suppress(OSError):
        if any(cut_suffix(path.name, IMAGE_SUFFIXES) for path in (root / images).iterdir()):
            left.append(images)
    return [
        Finding(
            "warning",
            "folder-left-out",
            str(root / place),
            "images in this folder belong to no split; the splits are "
            + ", ".join(f"{name} ({layout.images})" for name, layout in splits.items()),
            "move them into a folder of a split"
            + (
                ""
                if place == images
                else ", or set data.train_split or data.eval_split to the folder's name"
            ),
        )
        for place in left
    ]
