"""Formats that are converted to the custom layout.

The custom layout is `<out>/images[/<split>]`, `<out>/annotations[/<split>]` with 8-bit label PNGs
of the images' names, and `<out>/classes.txt` with one class name per line in id order.  255 is
ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from cgrseg.class_names import (
    CLASS_LIST,
    MAX_CLASSES,
    check_class_names,
    clean_name,
    read_class_list,
)
from cgrseg.data.convert.format import (
    Annotations,
    Argument,
    ConversionReport,
    Embedded,
    Failure,
    Format,
    Option,
    Task,
    skipped,
)
from cgrseg.data.convert.image_names import ImageMode, index_images
from cgrseg.datasets.spec import distinct_colors
from cgrseg.errors import DataError

IGNORE = 255

OutFolder = Annotated[Path, Argument("Folder for the result.")]
ImageFolder = Annotated[Path, Argument("Folder of the images.", name="image_folder")]
Placing = Annotated[
    ImageMode,
    Option("Place images as hard links (no disk space; copied where impossible) or as copies."),
]
Classes = Annotated[
    Sequence[str] | None,
    Option(
        "Class names in id order: a text file with one name per line, or names separated by "
        "commas. Default: OUT/classes.txt if it exists, else the class names in the input.",
        name_list=True,
    ),
]
Background = Annotated[
    str | None, Option("Class of pixels that no annotation covers. Default: ignored (255).")
]


@dataclass(frozen=True)
class ClassTable:
    """Label value of each class name.

    Attributes:
        classes: names in id order.
        ignored: names whose pixels become 255.
        background: class of pixels that no annotation covers; None: they become 255.
    """

    classes: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    background: str | None = None

    @property
    def unlabeled(self) -> int:
        """Label value of a pixel that no annotation covers."""
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


@dataclass
class CustomFormat(Format):
    """A format that is converted to the custom layout.

    Attributes:
        split: name of the split folders; None: none.
        ignored: names whose pixels become 255.
        image_mode: hard links ('link') or independent files ('copy').
    """

    _: KW_ONLY
    split: Annotated[str | None, Option("Default: the splits that the input names, if any.")] = None
    ignored: Annotated[
        Sequence[str], Option("Class whose pixels are ignored; may be repeated.", name="ignore")
    ] = ()
    image_mode: Placing = "link"

    @property
    def label_folder(self) -> Path:
        """Folder of the label maps."""
        return self.root / "annotations" / (self.split or "")

    @property
    def class_file(self) -> Path:
        """Class names, one per line."""
        return self.root / CLASS_LIST

    def settle_classes(
        self,
        given: Sequence[str] | None = None,
        *,
        found: Iterable[str] = (),
        background: str | None = None,
    ) -> ClassTable:
        """Decide names and ids: as given, else as `classes.txt` says, else as found.

        Args:
            given: names in id order, of which an existing `classes.txt` must be the beginning.
            found: names that the source uses, in the order wanted.
            background: class of pixels that no annotation covers; put first when it is new.

        Raises:
            DataError: as :func:`cgrseg.class_names.check_class_names`, or a contradiction.
        """
        where: object = "the class names"
        ignored = tuple(clean_name(name) for name in self.ignored)
        background = None if background is None else clean_name(background)
        known = read_class_list(self.class_file) if self.class_file.is_file() else None
        if given is not None:
            names = check_class_names(given, where, most=MAX_CLASSES)
            if known is not None and known != names[: len(known)]:
                raise DataError(
                    self.class_file,
                    found=f"the classes {', '.join(known)}",
                    expected=f"{', '.join(names)}, as given now",
                    remedy="use the classes that are there (new ones go to the end), or another "
                    "output folder",
                )
        elif known is not None:
            names, where = known, self.class_file
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
        return ClassTable(names, ignored, background)

    def kept_names(self, where: object, names: Iterable[str]) -> list[str]:
        """Names of the source that are not ignored.

        Raises:
            DataError: an ignored name is no name of the source, so its pixels would stay a class.
        """
        known = list(dict.fromkeys(names))
        unused = unused_ignored(self.ignored, known)
        if unused:
            raise DataError(
                where,
                found="; ".join(unused),
                expected=f"names among {', '.join(known)}",
                remedy="correct the spelling in --ignore",
            )
        ignored = {clean_name(name) for name in self.ignored}
        return [name for name in known if name not in ignored]

    def task(
        self,
        source: Path,
        image: Path,
        split: str | None = None,
        below: str = "",
        embedded: Embedded | None = None,
        **more: Any,
    ) -> Task:
        """The task of an image, at its places in the custom layout.

        Args:
            source: annotation file.
            image: image file; only a name where the image is embedded.
            split: split of the image according to the source; the option `split` replaces it.
            below: folder of the image below the one for images.
            embedded: image inside the source.
            more: other fields of the task.
        """
        folder = Path(self.split or split or "", below)
        return Task(
            source=source,
            label=self.root / "annotations" / folder / f"{image.stem}.png",
            image=image if embedded is None else None,
            embedded=embedded,
            image_target=self.root / "images" / folder / image.name,
            **more,
        )

    def pairs(
        self,
        images: Path,
        folder: Path,
        files: Iterable[tuple[str, Path]],
        content: Any,
        *,
        what: str,
        suffix: str = "",
        hint: str = "",
    ) -> list[Task | Failure]:
        """Pair images with the files of their names; what has no partner is a failure.

        Args:
            images: folder of the images.
            folder: folder of the files.
            files: stem in NFC and path of each file.
            content: of each task.
            what: kind of these files, in a word.
            suffix: what stems of the files have after the stem of the image.
            hint: end of the remedy.
        """

        def unpaired(path: Path, other: Path, missing: str) -> Failure:
            return skipped(
                path,
                found=f"no {missing} of this name in {other}",
                expected=f"one {what} for each image",
                remedy=f"add the {missing}, or remove the file{hint}",
            )

        known = index_images(images)
        found: list[Task | Failure] = []
        paired = set()
        for stem, path in files:
            image = known.get(stem.removesuffix(suffix)) if stem.endswith(suffix) else None
            if image is None:
                found.append(unpaired(path, images, "image"))
            else:
                paired.add(stem.removesuffix(suffix))
                below = str(image.parent.relative_to(images))
                found.append(self.task(path, image, below=below, content=content))
        return found + [unpaired(known[k], folder, what) for k in sorted(set(known) - paired)]

    def shape_annotations(
        self, table: ClassTable, images: Sequence[Task | Failure], notes: Iterable[str] = ()
    ) -> Annotations:
        """Annotations of a format that draws shapes over a background."""

        def note_unlabeled(report: ConversionReport) -> None:
            total, unlabeled = sum(report.pixels), report.pixels[IGNORE]
            if table.background is None and unlabeled > total / 2:
                report.notes.append(
                    f"{unlabeled / total:.0%} of the pixels are covered by nothing and will be "
                    "ignored; if they are a class of their own, give it a name with --background"
                )

        return Annotations(
            classes=table.classes,
            images=images,
            settings={
                "classes": table.classes,
                "ignored": table.ignored,
                "background": table.background,
            },
            palette=distinct_colors(len(table.classes)),
            image_mode=self.image_mode,
            notes=list(notes),
            finish=note_unlabeled,
        )


@dataclass
class SourceFormat(CustomFormat):
    """A format whose source is one file or folder."""

    source: Annotated[Path, Argument("File or folder to convert.")]
    out: OutFolder
    _: KW_ONLY
    images: Annotated[
        Path | None,
        Option("Folder of the images. Default: where the source says.", name="image_folder"),
    ] = None
    classes: Classes = None
    background: Background = None


def written_name(value: object, where: object) -> str:
    """A class name in a file of another program, cleaned.

    Raises:
        DataError: no text, and as :func:`cgrseg.class_names.check_class_names`.
    """
    remedy = "correct the name in the labeling tool, and export again"
    if not isinstance(value, str):
        raise DataError(where, found=f"the class name {value!r}", expected="a text", remedy=remedy)
    return check_class_names([value], where, places=["this place"], remedy=remedy)[0]


def unused_ignored(ignored: Iterable[str], names: Iterable[str]) -> list[str]:
    """For each ignored name that the source does not have, a sentence with the nearest one."""
    known = list(dict.fromkeys(names))
    found = []
    for name in dict.fromkeys(clean_name(name) for name in ignored):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            found.append(
                f"{name!r} is ignored, but occurs nowhere"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return found
