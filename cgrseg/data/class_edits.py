"""Merging, renaming and dropping classes of a dataset, by name.

All three speak of the names that the dataset itself has.  The new list keeps the old
order: a merged class stands where the first of its members stood, and takes its colour.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cgrseg.class_names import check_class_names, clean_name
from cgrseg.data.spec import DatasetSpec
from cgrseg.errors import ConfigError


def edit_classes(
    spec: DatasetSpec,
    *,
    merge: Mapping[str, Sequence[str]],
    rename: Mapping[str, str],
    drop: Iterable[str],
) -> DatasetSpec:
    """Apply `data.merge`, `data.rename` and `data.drop`.

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

    classes: list[str] = []
    palette: list[tuple[int, int, int]] = []
    new_ids: list[int | None] = []
    origin: dict[str, str] = {}
    merged = set(merge)
    for name, colour in zip(spec.classes, spec.palette, strict=True):
        new_name = fate.get(name, name)
        if new_name is None:
            new_ids.append(None)
            continue
        # A merged name may gather several classes; any other name belongs to one.
        source = f"merge:{new_name}" if name in fate and new_name in merged else name
        if new_name not in origin:
            origin[new_name] = source
            classes.append(new_name)
            palette.append(colour)
        elif origin[new_name] != source:
            raise _problem(
                "data.merge, data.rename",
                f"two classes would be called {new_name!r}",
                "a different name for each class, or all of them as members of one merge",
            )
        new_ids.append(classes.index(new_name))
    if not classes:
        raise _problem("data.drop", "no class is left", "one class or more")
    check_class_names(classes, "data.merge, data.rename", error=ConfigError)
    return replace(
        spec,
        classes=tuple(classes),
        palette=tuple(palette),
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
