"""A person's own folder as a dataset: images, label maps of the same stems, a class list.

:mod:`cgrseg.data.folder_layout` finds the folders and the splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cgrseg.addresses import local_folder
from cgrseg.class_names import CLASS_LIST, MAX_CLASSES, check_class_names, read_class_list
from cgrseg.config.schema import DataConfig
from cgrseg.data.channels import companion_stems, image_endings
from cgrseg.data.folder_layout import (
    LABEL_SUFFIXES,
    find_layout,
    refuse_misplaced_root,
)
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import Color, DatasetSpec, distinct_colors
from cgrseg.errors import ConfigError, DataError

HOW_TO_GET = (
    "put images into <root>/images/train and <root>/images/val (or all into <root>/images), "
    "labels of the same names as PNG with class ids into <root>/annotations/..., and the class "
    "names, one a line in id order, into <root>/classes.txt"
)


def custom_spec(config: DataConfig) -> DatasetSpec:
    """Describe a custom dataset from its settings and its folder.

    Raises:
        ConfigError: no class list, more than 255 classes, a palette of another length, an
            ignore index among the classes.
        DataError: the root or the class list cannot be read.
    """
    root = local_folder(config.root)
    if not root.is_dir():
        raise DataError(
            root,
            found="the folder of the custom dataset is not there",
            expected="a folder with images, labels and a class list",
            remedy=f"set data.root (--data-root); {HOW_TO_GET}",
        )
    refuse_misplaced_root(config, root)
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
    if config.palette is not None:
        remedy = "correct it, or leave it out: colors are then made"
        check_palette(config.palette, len(classes), remedy)
    splits, findings = find_layout(config, root)
    rule = _label_rule(config, classes)
    before, _, after = config.label_name.partition("{stem}")
    image_before, _, image_after = config.image_name.partition("{stem}")
    # JPEG changes values, which a threshold undoes and ids do not survive.
    endings: tuple[str, ...] = LABEL_SUFFIXES
    images_of_same_name = (config.images, config.image_name) == (config.labels, config.label_name)
    if config.label_threshold and not images_of_same_name:
        endings = (*endings, ".jpg", ".jpeg")
    return DatasetSpec(
        name="custom",
        title=f"custom dataset ({len(classes)} classes)",
        classes=classes,
        palette=tuple(config.palette) if config.palette else distinct_colors(len(classes)),
        label_rule=rule,
        splits=splits,
        default_root=config.root,
        how_to_make=HOW_TO_GET,
        image_suffixes=tuple(image_after + ending for ending in image_endings(config.channels)),
        companions=tuple(companion_stems(config.channels)),
        image_prefix=image_before,
        label_suffix=after + endings[0],
        label_prefix=before,
        other_encodings=tuple((after + ending, rule) for ending in endings[1:]),
        ignore_index=config.ignore_index,
        findings=tuple(findings),
    )


def check_palette(palette: Sequence[Color], num_classes: int, remedy: str) -> None:
    """Refuse `data.palette` with another number of colors than there are classes."""
    if len(palette) != num_classes:
        raise ConfigError(
            "data.palette",
            found=f"{len(palette)} colors for {num_classes} classes",
            expected="one RGB triple per class",
            remedy=remedy,
        )


def check_ignore_index(ignore_index: int, classes: Sequence[str], remedy: str) -> None:
    """Refuse `data.ignore_index` that is the id of a class."""
    if ignore_index < len(classes):
        raise ConfigError(
            "data.ignore_index",
            found=f"{ignore_index}, which is the id of {classes[ignore_index]!r}",
            expected=f"a value from {len(classes)} to 255",
            remedy=remedy,
        )


def _label_rule(config: DataConfig, classes: Sequence[str]) -> LabelRule:
    num_classes = len(classes)
    named = {
        "data.label_values": config.label_values is not None,
        "data.label_threshold": config.label_threshold is not None,
        "data.zero_is_ignore": config.zero_is_ignore,
    }
    given = [name for name, is_set in named.items() if is_set]
    if len(given) > 1:
        raise ConfigError(
            given[0],
            found=f"set together with {' and '.join(given[1:])}",
            expected="one setting that says how labels are stored",
            remedy="keep the one that describes the labels",
        )
    check_ignore_index(
        config.ignore_index,
        classes,
        "to ignore a class name it in data.drop; if 0 means 'unlabeled' and the "
        "classes count from 1, set data.zero_is_ignore=true and leave 0 out of the list",
    )
    if config.label_threshold is not None:
        if num_classes != 2:
            raise ConfigError(
                "data.label_threshold",
                found=f"set for {num_classes} classes: {', '.join(classes)}",
                expected="two classes: the one below the threshold, and the one from it on",
                remedy="name both in the class list, such as background and "
                f"{classes[0]}; for more classes use data.label_values",
            )
        return LabelRule.threshold(config.label_threshold, ignore_index=config.ignore_index)
    if config.label_values is not None:
        return _rule_of_values(config.label_values, classes, config.ignore_index)
    if config.zero_is_ignore:
        # An ignore index that is also the stored id of the last class can only be meant
        # for training; on disk that value is the class.
        stored = {255, config.ignore_index} - set(range(num_classes + 1))
        return LabelRule.reduce_zero(num_classes, ignored=stored, ignore_index=config.ignore_index)
    return LabelRule.identity(num_classes, config.ignore_index)


def _rule_of_values(
    values: Mapping[int, int], classes: Sequence[str], ignore_index: int
) -> LabelRule:
    """The rule of `data.label_values`: other values are forbidden, 255 is ignored."""
    ignored = {raw for raw, new in values.items() if new in (255, ignore_index)}
    mapping = {raw: new for raw, new in values.items() if raw not in ignored}
    if set(mapping.values()) != set(range(len(classes))):
        raise ConfigError(
            "data.label_values",
            found=f"class ids {sorted(set(mapping.values()))} for {len(classes)} classes",
            expected=f"each id from 0 to {len(classes) - 1} at least once, and 255 for values "
            "that are ignored",
            remedy="give each stored value the id of its class in the class list",
        )
    return LabelRule.from_mapping(
        mapping,
        ignored=ignored | ({255} - set(mapping)),
        ignore_index=ignore_index,
        meaning=", ".join(f"{raw} is {classes[new]}" for raw, new in sorted(mapping.items())),
    )
