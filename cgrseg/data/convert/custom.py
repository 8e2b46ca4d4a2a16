"""What the converters to the custom layout share: folders, class names and ids.

The custom layout is `<out>/images[/<split>]`, `<out>/annotations[/<split>]` with
8-bit label PNGs of the images' names, and `<out>/classes.txt` with one class name
a line in id order.  255 is ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgrseg.class_names import (
    CLASS_LIST,
    MAX_CLASSES,
    check_class_names,
    clean_name,
    read_class_list,
)
from cgrseg.data.convert.runner import ConversionReport
from cgrseg.errors import DataError

IGNORE = 255


@dataclass(frozen=True)
class CustomLayout:
    """Where a conversion to the custom layout puts things.

    Attributes:
        root: the dataset's folder.
        split: 'train', 'val' and so on; None: flat folders, which are split when used.
    """

    root: Path
    split: str | None = None

    @property
    def images(self) -> Path:
        """Folder of images."""
        return self.root / "images" / (self.split or "")

    @property
    def labels(self) -> Path:
        """Folder of label maps."""
        return self.root / "annotations" / (self.split or "")

    @property
    def class_file(self) -> Path:
        """Class names, one a line."""
        return self.root / CLASS_LIST


@dataclass(frozen=True)
class ClassTable:
    """Which label value each name gets.

    Attributes:
        classes: names in id order.
        ignored: names whose pixels become 255.
        background: name of the class that pixels without any label belong to; None:
            they are ignored.
    """

    classes: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    background: str | None = None

    @property
    def unlabelled(self) -> int:
        """Label value of a pixel that nothing covers."""
        return IGNORE if self.background is None else self.classes.index(self.background)

    def value(self, name: str) -> int:
        """Label value of a class name.

        Raises:
            KeyError: the name is not in the table.
        """
        name = clean_name(name)
        if name in self.ignored:
            return IGNORE
        if name not in self.classes:
            raise KeyError(name)
        return self.classes.index(name)


def settle_classes(
    layout: CustomLayout,
    *,
    given: Sequence[str] | None,
    found: Iterable[str],
    ignored: Sequence[str] = (),
    background: str | None = None,
) -> ClassTable:
    """Decide names and ids: as given, else as `classes.txt` says, else as found.

    Args:
        layout: where the dataset goes; its `classes.txt` must be `given`, or its beginning.
        given: names in id order; None: take `classes.txt` or what was found.
        found: names that the source uses, in the order wanted.
        ignored: names whose pixels become 255.
        background: name for pixels that nothing covers; put first when it is new.

    Raises:
        DataError: as :func:`cgrseg.class_names.check_class_names`, or a contradiction.
    """
    where: object = "the class names"
    ignored = tuple(clean_name(name) for name in ignored)
    background = None if background is None else clean_name(background)
    known = read_class_list(layout.class_file) if layout.class_file.is_file() else None
    if given is not None:
        names = check_class_names(given, where, most=MAX_CLASSES)
        if known is not None and known != names[: len(known)]:
            raise DataError(
                layout.class_file,
                found=f"the classes {', '.join(known)}",
                expected=f"{', '.join(names)}, as given now",
                remedy="use the classes that are there (new ones go to the end), or another "
                "output folder",
            )
    elif known is not None:
        names, where = known, layout.class_file
    else:
        cleaned = dict.fromkeys(clean_name(name) for name in found)
        names = tuple(name for name in cleaned if name not in ignored)
        if background is not None:
            names = (background, *(name for name in names if name != background))
    names = check_class_names(
        names,
        where,
        most=MAX_CLASSES,
        remedy="name each class once, in id order (--classes); where there are more than 8-bit "
        "label maps can hold, merge classes",
    )
    problem, remedy = "", ""
    if set(names) & set(ignored):
        both = ", ".join(sorted(set(names) & set(ignored)))
        problem, remedy = f"{both} both as a class and as ignored", "decide for one of the two"
    elif background is not None and background not in names:
        problem = f"no {background!r} among {', '.join(names)}"
        remedy = "add the background's name to the class names"
    if problem:
        raise DataError(
            where,
            found=problem,
            expected=f"1 to {MAX_CLASSES} different names",
            remedy=remedy,
        )
    return ClassTable(names, tuple(ignored), background)


def written_name(value: object, where: object) -> str:
    """A class name as a foreign file holds it, cleaned.

    Raises:
        DataError: no text, and as :func:`cgrseg.class_names.check_class_names`.
    """
    if not isinstance(value, str):
        raise DataError(
            where,
            found=f"the class name {value!r}",
            expected="a text",
            remedy="correct the name in the labeling tool, and export again",
        )
    remedy = "correct the name in the labeling tool, and export again"
    return check_class_names([value], where, places=["this place"], remedy=remedy)[0]


def unused_ignored(ignored: Iterable[str], names: Iterable[str]) -> list[str]:
    """For each ignored name that the source does not have, a sentence with the nearest one."""
    known = list(dict.fromkeys(names))
    told = []
    for name in dict.fromkeys(clean_name(name) for name in ignored):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            told.append(
                f"{name!r} is ignored, but occurs nowhere"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return told


def refuse_unused_ignored(where: object, ignored: Iterable[str], names: Sequence[str]) -> None:
    """Stop when an ignored name is no name of the source: its pixels would stay a class.

    Raises:
        DataError: names it, and the nearest name that is there.
    """
    told = unused_ignored(ignored, names)
    if told:
        raise DataError(
            where,
            found="; ".join(told),
            expected=f"names among {', '.join(names)}",
            remedy="correct the spelling in --ignore",
        )


def unknown_class(where: object, name: str, table: ClassTable) -> DataError:
    """The error for a class name that the table does not have."""
    return DataError(
        where,
        found=f"the class {name!r}",
        expected=f"one of {', '.join(table.classes)}",
        remedy=f"correct it, add it at the end of the class names, or --ignore {name!r}",
    )


def note_unlabelled(report: ConversionReport, table: ClassTable) -> None:
    """Say so when most pixels belong to no class: the usual mistake with polygons."""
    total, unlabelled = sum(report.pixels), report.pixels[IGNORE]
    if table.background is None and unlabelled > total / 2:
        report.notes.append(
            f"{unlabelled / total:.0%} of the pixels are covered by nothing and will be ignored; "
            "if they are a class of their own, give it a name with --background"
        )
