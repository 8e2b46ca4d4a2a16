"""The dataset of a run: a catalogue entry or a custom folder, with its class edits applied."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cgrseg.addresses import local_folder
from cgrseg.class_names import CLASS_LIST, check_class_names, clean_name, read_class_list
from cgrseg.config.schema import DataConfig
from cgrseg.data.custom import check_ignore_index, check_palette, custom_spec
from cgrseg.datasets import get_spec
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.spec import Color, DatasetSpec, HeldOut
from cgrseg.errors import ConfigError, DataError


def resolve_spec(config: DataConfig) -> DatasetSpec:
    """The dataset that a run's settings describe.

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
    for name in ("label_values", "label_threshold", "split_lists", "image_name", "label_name"):
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise ConfigError(
                f"data.{name}",
                found=f"set for {spec.name}, whose files and encoding are fixed",
                expected="this setting for data.dataset=custom only",
                remedy="remove the setting, or describe your files with data.dataset=custom",
            )
    if spec.known_by_class_list:
        _check_class_file(spec, local_folder(config.root) / CLASS_LIST)
    spec = _without_lists(spec, config)
    if config.palette is not None:
        check_palette(config.palette, spec.num_classes, "correct it, or leave it out")
        spec = replace(spec, palette=tuple(config.palette))
    if config.ignore_index == spec.ignore_index:
        return spec
    check_ignore_index(config.ignore_index, spec.classes, "to ignore a class, name it in data.drop")
    return replace(
        spec,
        ignore_index=config.ignore_index,
        label_rule=spec.label_rule.with_ignore_index(config.ignore_index),
        other_encodings=tuple(
            (suffix, rule.with_ignore_index(config.ignore_index))
            for suffix, rule in spec.other_encodings
        ),
    )


def _without_lists(spec: DatasetSpec, config: DataConfig) -> DatasetSpec:
    """A dataset whose folder has no split lists at all: images are then held out by seed.

    The announced layout of Pascal Context has none.
    """
    root = local_folder(config.root)
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
        f"for the published split, add the lists: {spec.how_to_get}",
    )
    return replace(spec, splits=splits, findings=(*spec.findings, finding))


def _check_class_file(spec: DatasetSpec, path: Path) -> None:
    """A class list beside the data must agree: another order means other labels."""
    names = read_class_list(path) if path.is_file() else spec.classes
    if names != spec.classes:
        raise DataError(
            path,
            found=f"{len(names)} names: {', '.join(names)}",
            expected=f"the {spec.num_classes} of {spec.title}: {', '.join(spec.classes)}",
            remedy="if these labels follow that file, use data.dataset=custom",
        )


def edit_classes(
    spec: DatasetSpec,
    *,
    merge: Mapping[str, Sequence[str]],
    rename: Mapping[str, str],
    drop: Iterable[str],
) -> DatasetSpec:
    """Apply `data.merge`, `data.rename` and `data.drop`; all use the dataset's own names.

    The new list keeps the old order: a merged class takes the place and the color of its first
    member.

    Args:
        spec: the dataset as it is.
        merge: new name to the names of the classes that become it.
        rename: old name to new name.
        drop: names whose pixels become ignored.

    Raises:
        ConfigError: a name that is no class, a class that is mentioned twice, new names
            that collide, or nothing left.
    """
    drop = list(drop)
    if not merge and not rename and not drop:
        return spec
    fate: dict[str, str | None] = {}
    merge = {clean_name(new): members for new, members in merge.items()}
    for new, members in merge.items():
        if not members:
            raise _problem("data.merge", f"{new!r} has no members", "names of classes to merge")
        for member in members:
            _decide(spec, fate, "data.merge", member, new)
    for old, new in rename.items():
        _decide(spec, fate, "data.rename", old, clean_name(new))
    for name in drop:
        _decide(spec, fate, "data.drop", name, None)

    colors: dict[str, Color] = {}  # new class names in order
    new_ids: list[int | None] = []
    origin: dict[str, str] = {}
    for name, color in zip(spec.classes, spec.palette, strict=True):
        new_name = fate.get(name, name)
        if new_name is None:
            new_ids.append(None)
            continue
        # A merged name may gather several classes; any other name belongs to one.
        source = f"merge:{new_name}" if name in fate and new_name in merge else name
        if origin.setdefault(new_name, source) != source:
            raise _problem(
                "data.merge, data.rename",
                f"two classes would be called {new_name!r}",
                "a different name for each class, or all of them as members of one merge",
            )
        colors.setdefault(new_name, color)
        new_ids.append(list(colors).index(new_name))
    if not colors:
        raise _problem("data.drop", "no class is left", "one class or more")
    check_class_names(colors, "data.merge, data.rename", error=ConfigError)
    return replace(
        spec,
        classes=tuple(colors),
        palette=tuple(colors.values()),
        label_rule=spec.label_rule.remapped(new_ids),
        other_encodings=tuple((s, rule.remapped(new_ids)) for s, rule in spec.other_encodings),
    )


def _decide(
    spec: DatasetSpec, fate: dict[str, str | None], setting: str, name: str, new: str | None
) -> None:
    name = clean_name(name)
    if name not in spec.classes:
        near = difflib.get_close_matches(name, spec.classes, n=3, cutoff=0.5)
        raise _problem(
            setting,
            f"{name!r} is no class of {spec.name}",
            "a name of its class list" + (f", such as {', '.join(near)}" if near else ""),
        )
    if name in fate:
        raise _problem(
            setting,
            f"{name!r} is mentioned twice in data.merge, data.rename and data.drop",
            "each class in one place at most",
        )
    fate[name] = new


def _problem(setting: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        setting,
        found=found,
        expected=expected,
        remedy="correct the setting; `cgrseg data list` prints the class lists",
    )
