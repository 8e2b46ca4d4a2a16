"""The datasets that CGRSeg knows by name, and how a run's settings choose one.

`get_spec("ade20k")` gives the dataset as published; `resolve_spec(config.data)` gives it
as a run uses it: custom folders read, classes merged, renamed and dropped.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from dataclasses import replace
from pathlib import Path

from cgrseg.config.schema import DataConfig
from cgrseg.data.class_edits import edit_classes
from cgrseg.data.custom import CLASS_LIST, custom_spec, read_class_list
from cgrseg.data.findings import Finding
from cgrseg.data.label_rules import Hint, LabelRule
from cgrseg.data.pairs import find_pairs, split_stems
from cgrseg.data.spec import Colour, DatasetSpec, HeldOut, Pair, SplitLayout
from cgrseg.errors import ConfigError, DataError

__all__ = [
    "Colour",
    "DatasetSpec",
    "HeldOut",
    "Hint",
    "LabelRule",
    "Pair",
    "SplitLayout",
    "find_pairs",
    "get_spec",
    "list_specs",
    "resolve_spec",
    "split_stems",
]

# Name to module and attribute; imported when asked for, since the tables are long.
_WHERE = {
    "ade20k": ("ade20k", "SPEC"),
    "coco_stuff10k": ("coco_stuff", "SPEC_10K"),
    "coco_stuff164k": ("coco_stuff", "SPEC_164K"),
    "pascal_context59": ("pascal_context", "SPEC_59"),
    "pascal_context60": ("pascal_context", "SPEC_60"),
    "cityscapes": ("cityscapes", "SPEC"),
    "camvid": ("camvid", "SPEC"),
    "voc2012": ("voc2012", "SPEC"),
    "synthetic": ("synthetic", "SPEC"),
}


def list_specs() -> list[str]:
    """Names that :func:`get_spec` knows; 'custom' is known to :func:`resolve_spec` besides."""
    return list(_WHERE)


@functools.cache
def get_spec(name: str) -> DatasetSpec:
    """A dataset as published.

    Raises:
        ConfigError: no dataset of that name; the message gives the nearest.
    """
    if name not in _WHERE:
        known = [*_WHERE, "custom"]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise ConfigError(
            "data.dataset",
            found=f"{name!r} is not in the catalogue",
            expected="one of " + ", ".join(known),
            remedy=(f"did you mean {near[0]!r}? " if near else "")
            + "Your own folder is data.dataset=custom with data.root",
        )
    module, attribute = _WHERE[name]
    spec: DatasetSpec = getattr(
        importlib.import_module(f"cgrseg.data.datasets.{module}"), attribute
    )
    return spec


def resolve_spec(config: DataConfig) -> DatasetSpec:
    """The dataset that a run's settings describe, with its class edits applied.

    Raises:
        ConfigError: settings that contradict the dataset or each other.
        DataError: a custom folder or class list that cannot be used.
    """
    spec = custom_spec(config) if config.dataset == "custom" else _from_catalogue(config)
    return edit_classes(spec, merge=config.merge, rename=config.rename, drop=config.drop)


def _from_catalogue(config: DataConfig) -> DatasetSpec:
    spec = get_spec(config.dataset)
    if config.classes is not None and tuple(config.classes) != spec.classes:
        raise ConfigError(
            "data.classes",
            found=f"a class list for {spec.name}, which has its own",
            expected=f"no list, or the {spec.num_classes} names of the catalogue",
            remedy="use data.rename, data.merge and data.drop, or data.dataset=custom",
        )
    if config.zero_is_ignore:
        raise ConfigError(
            "data.zero_is_ignore",
            found=f"set for {spec.name}, whose encoding is fixed: {spec.label_rule.meaning}",
            expected="this setting for data.dataset=custom only",
            remedy="remove the setting; nothing has to be subtracted by hand",
        )
    own = ("label_values", "label_threshold", "split_lists")
    given = [name for name in own if getattr(config, name) is not None]
    if given or config.label_name != "{stem}":
        name = f"data.{given[0] if given else 'label_name'}"
        raise ConfigError(
            name,
            found=f"set for {spec.name}, whose files and encoding are fixed",
            expected="this setting for data.dataset=custom only",
            remedy="remove the setting, or describe your files with data.dataset=custom",
        )
    _check_class_file(spec, Path(config.root) / CLASS_LIST)
    spec = _without_lists(spec, config)
    if config.palette is not None:
        if len(config.palette) != spec.num_classes:
            raise ConfigError(
                "data.palette",
                found=f"{len(config.palette)} colours for {spec.num_classes} classes",
                expected="one RGB triple per class",
                remedy="correct it, or leave it out",
            )
        spec = replace(spec, palette=tuple(config.palette))
    if config.ignore_index != spec.ignore_index:
        spec = _with_ignore_index(spec, config.ignore_index)
    return spec


def _without_lists(spec: DatasetSpec, config: DataConfig) -> DatasetSpec:
    """A dataset whose folder has no split lists at all: images are then held out by seed.

    The layout that is announced for Pascal Context has none.
    """
    root = Path(config.root)
    lists = {layout.list_file for layout in spec.splits.values()}
    if None in lists or (root / "ImageSets").exists():
        return spec
    if not all((root / spec.splits[name].images).is_dir() for name in ("train", "val")):
        return spec
    splits = {
        name: replace(
            layout,
            list_file=None,
            held_out=HeldOut(config.split_seed, config.val_fraction, validation=name != "train"),
            labeled_only=True,
        )
        for name, layout in spec.splits.items()
        if name in ("train", "val", "test")
    }
    published = spec.splits["train"].list_file or ""
    finding = Finding(
        "warning",
        "layout",
        str(root),
        f"no split lists ({published} and the like are missing): "
        f"{config.val_fraction:.0%} of the labeled images are held out by seed "
        f"{config.split_seed}, so scores cannot be compared with published ones",
        "for the published split, add the lists; `cgrseg data convert pascal-context` writes "
        "them for Pascal Context",
    )
    return replace(spec, splits=splits, findings=(*spec.findings, finding))


def _check_class_file(spec: DatasetSpec, path: Path) -> None:
    """A class list beside the data must agree: another order means other labels."""
    if spec.name != "camvid" or not path.is_file():
        return
    names = read_class_list(path)
    if names != spec.classes:
        raise DataError(
            path,
            found=f"{len(names)} names: {', '.join(names)}",
            expected=f"the {spec.num_classes} of {spec.title}: {', '.join(spec.classes)}",
            remedy="if these labels follow that file, use data.dataset=custom",
        )


def _with_ignore_index(spec: DatasetSpec, ignore_index: int) -> DatasetSpec:
    if ignore_index < spec.num_classes:
        raise ConfigError(
            "data.ignore_index",
            found=f"{ignore_index}, which is the id of {spec.classes[ignore_index]!r}",
            expected=f"a value from {spec.num_classes} to 255",
            remedy="to ignore a class, name it in data.drop",
        )
    return replace(
        spec,
        ignore_index=ignore_index,
        label_rule=spec.label_rule.with_ignore_index(ignore_index),
        other_encodings=tuple(
            (suffix, rule.with_ignore_index(ignore_index)) for suffix, rule in spec.other_encodings
        ),
    )
