"""A person's own folder as a dataset.

Wanted: images, label PNGs of the same stem whose values are class ids, and a list of
class names in id order (`data.classes`, or `classes.txt` with one name a line).  The
split comes from, in this order: `{split}` in the folder names, `data.split_lists`,
sub-folders named after the split, or an automatic split by seed.
"""

from __future__ import annotations

from pathlib import Path

from cgrseg.class_names import MAX_CLASSES, check_class_names, parse_class_list
from cgrseg.config.schema import DataConfig
from cgrseg.data.label_rules import LabelRule
from cgrseg.data.spec import Colour, DatasetSpec, HeldOut, SplitLayout
from cgrseg.data.text_lists import read_lines
from cgrseg.errors import ConfigError, DataError, explain

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of image files that are looked for."""

CLASS_LIST = "classes.txt"
"""Name of the class list in a dataset's root."""

_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}

HOW_TO_GET = (
    "put images into <root>/images/train and <root>/images/val (or all into <root>/images), "
    "labels of the same names as PNG with class ids into <root>/annotations/..., and the class "
    "names, one a line in id order, into <root>/classes.txt"
)


def custom_spec(config: DataConfig) -> DatasetSpec:
    """Build the description of a custom dataset from its settings and its folder.

    Raises:
        ConfigError: no class list, more than 255 classes, a palette of another length, an
            ignore index among the classes.
        DataError: the root or the class list cannot be read.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(
            explain(
                root,
                found="the folder of the custom dataset is not there",
                expected="a folder with images, labels and a class list",
                remedy=f"set data.root (--data-root); {HOW_TO_GET}",
            )
        )
    if config.classes:
        classes = check_class_names(
            config.classes,
            "data.classes",
            most=MAX_CLASSES,
            error=ConfigError,
            remedy="list each class once, in id order; merge classes in the labels where there "
            "are more than 8-bit labels can hold",
        )
    else:
        classes = read_class_list(root / CLASS_LIST)
    if config.palette is not None and len(config.palette) != len(classes):
        raise ConfigError(
            explain(
                "data.palette",
                found=f"{len(config.palette)} colours for {len(classes)} classes",
                expected="one RGB triple per class",
                remedy="correct it, or leave it out: colours are then made",
            )
        )
    return DatasetSpec(
        name="custom",
        title=f"custom dataset ({len(classes)} classes)",
        classes=classes,
        palette=tuple(config.palette) if config.palette else distinct_colours(len(classes)),
        label_rule=_rule(config, len(classes)),
        splits=_splits(config, root),
        default_root=config.root,
        how_to_get=HOW_TO_GET,
        image_suffixes=IMAGE_SUFFIXES,
        ignore_index=config.ignore_index,
    )


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class names in id order from a text file (:mod:`cgrseg.class_names` has its form).

    Raises:
        DataError: the file is missing or unreadable, and as
            :func:`cgrseg.class_names.parse_class_list`.
    """
    lines = read_lines(
        path,
        what="the class list",
        expected="class names in id order, one a line",
        remedy="write that file, or set data.classes",
    )
    return parse_class_list(lines, path)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Colours that differ, from the bit pattern of the index (the PASCAL VOC colour map).

    Index 0 of that map is black, which overlays use for ignored pixels, so it is left out.
    """
    colours: list[Colour] = []
    for index in range(1, count + 1):
        red = green = blue = 0
        bits = index
        for shift in range(7, -1, -1):
            red |= (bits & 1) << shift
            green |= (bits >> 1 & 1) << shift
            blue |= (bits >> 2 & 1) << shift
            bits >>= 3
        colours.append((red, green, blue))
    return tuple(colours)


def _rule(config: DataConfig, num_classes: int) -> LabelRule:
    if config.ignore_index < num_classes:
        raise ConfigError(
            explain(
                "data.ignore_index",
                found=f"{config.ignore_index}, which is the id of one of the {num_classes} classes",
                expected=f"a value from {num_classes} to 255",
                remedy="to ignore a class name it in data.drop; if 0 means 'unlabelled' and the "
                "classes count from 1, set data.zero_is_ignore=true and leave 0 out of the list",
            )
        )
    if config.zero_is_ignore:
        # An ignore index that is also the stored id of the last class can only be meant
        # for training; on disk that value is the class.
        stored = {255, config.ignore_index} - set(range(num_classes + 1))
        return LabelRule.reduce_zero(num_classes, ignored=stored, ignore_index=config.ignore_index)
    return LabelRule.identity(num_classes, config.ignore_index)


def _splits(config: DataConfig, root: Path) -> dict[str, SplitLayout]:
    names = list(dict.fromkeys(["train", "val", "test", config.train_split, config.eval_split]))
    if config.split_lists is not None:
        return {
            name: SplitLayout(
                config.images.format(split=name), config.labels.format(split=name), list_file=path
            )
            for name, path in config.split_lists.items()
        }
    if "{split}" in config.images:
        return {
            name: SplitLayout(config.images.format(split=name), config.labels.format(split=name))
            for name in names
            if (root / config.images.format(split=name)).is_dir() or name != "test"
        }
    found: dict[str, SplitLayout] = {}
    for name in names:
        for folder in _ALIASES.get(name, (name,)):
            if (root / config.images / folder).is_dir():
                found[name] = SplitLayout(f"{config.images}/{folder}", f"{config.labels}/{folder}")
                break
    if found:
        return found
    return {
        name: SplitLayout(
            config.images,
            config.labels,
            held_out=HeldOut(config.split_seed, config.val_fraction, validation=name == "val"),
        )
        for name in ("train", "val")
    }
