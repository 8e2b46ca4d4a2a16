"""Formats of annotation tools and datasets, converted to the custom layout.

A format of this kind only reads: it gives the class names that its source declares and, for each
image, the image's name with its regions or with its mask.  Finding images, class ids, painting,
messages, and everything in :mod:`cgrseg.data.convert.runner` is common.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
import json
import os.path
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast
from urllib.parse import unquote

import numpy as np

from cgrseg.class_names import clean_name, listed
from cgrseg.data.convert.color_masks import Color, code_name
from cgrseg.data.convert.custom_format import (
    IGNORE,
    ClassTable,
    SourceFormat,
    unused_ignored,
)
from cgrseg.data.convert.format import (
    Annotations,
    Embedded,
    Failure,
    Task,
    skipped,
)
from cgrseg.data.convert.image_names import find_file, named_inside
from cgrseg.data.convert.regions import Region, Shape, paint
from cgrseg.data.folder_layout import IMAGE_SUFFIXES, SPLIT_FOLDERS
from cgrseg.errors import MALFORMED, DataError, option
from cgrseg.input_files import read_input_text
from cgrseg.provenance import content_digest, joint_state

UNCOVERED = ""
"""In place of a class name: pixels that no annotation covers."""


@dataclass(frozen=True)
class LabeledImage:
    """An image of a source.

    Attributes:
        source: annotation file, named by messages.
        image: path or name of the image, as the source has it.
        regions: the lowest first; or a function that reads them, in a worker process.  Not for
            masks.
        size: height and width according to the source; None: those of the image.
        split: name of the split according to the source.
        folders: where the image may lie, unless the option names a folder.
        names: class names of the regions, where these are read later.
        mask: the mask.
        embedded: the image, where it lies inside the source; `image` is then its file name.
        inputs: other files that the label map depends on.
        codes: class name of each code of the mask, or `UNCOVERED`; None: ignored.
    """

    source: Path
    image: str
    regions: Sequence[Region] | Callable[[], Sequence[Region]] = ()
    size: tuple[int, int] | None = None
    split: str | None = None
    folders: Sequence[Path] = ()
    names: Iterable[str] = ()
    mask: Path | Embedded | None = None
    embedded: Embedded | None = None
    inputs: Sequence[Path] = ()
    codes: Mapping[int, str | None] = field(default_factory=dict)

    @property
    def used_names(self) -> set[str]:
        """Class names of the image, where they are known before its labels are drawn."""
        own = () if callable(self.regions) else (region.name for region in self.regions)
        coded = (name for name in self.codes.values() if name)
        return {*self.names, *own, *coded}


@dataclass
class Source:
    """What a reader found.

    Attributes:
        images: one per image of the source, or why it cannot be used.
        declared: class names in id order; None: the source has no list of them.
        left_out: what has no area or no class, and how often it occurs.
        colors: colors of classes, for the palette of the label maps.
        notes: remarks for the summary.
    """

    images: Sequence[LabeledImage | Failure]
    declared: Sequence[str] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    colors: Mapping[str, Color] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass
class ToolFormat(SourceFormat):
    """A format of an annotation tool or a dataset."""

    @abc.abstractmethod
    def find(self) -> Source:
        """Classes and images of the source.

        Raises:
            DataError: the source as a whole cannot be used.
        """

    @abc.abstractmethod
    def drawing(self, each: LabeledImage, table: ClassTable) -> Callable[..., np.ndarray]:
        """Function of height and width that draws the label map, for worker processes."""

    def references(self, image: str) -> list[str]:
        """Paths by which an image may be found, below each of its folders."""
        return [image]

    def read(self) -> Annotations:
        """Class ids follow the source's own list of classes, else the alphabet."""
        state = joint_state([self.source]) if self.source.is_file() else None  # before it is read
        source = self.find()
        labeled = [each for each in source.images if isinstance(each, LabeledImage)]
        used = sorted(set().union(*(each.used_names for each in labeled)))
        names = used
        if source.declared is not None:
            names = self.kept_names(self.source, [*source.declared, *used])
            if self.background is not None:
                first = clean_name(self.background)
                names = [first, *(name for name in names if name != first)]
        given = self.classes
        if given is not None and [*map(clean_name, given)] == source.declared:
            # The list names the values of the source, so that a name of it may be ignored.
            given = self.kept_names(self.source, source.declared)
        table = self.settle_classes(given, found=names, background=self.background)
        notes = [*source.notes]
        notes += [f"left out: {count} x {what}" for what, count in source.left_out.items()]
        if source.declared is None:
            notes += unused_ignored(self.ignored, used)
        left = [name for name in used if name not in (*table.classes, *table.ignored)]
        if left and isinstance(self, MaskFormat):
            if set(used).isdisjoint(table.classes):
                raise DataError(
                    self.source,
                    found=f"masks of the classes {listed(used)}, of which none is among the class "
                    f"names {listed(table.classes)}",
                    expected="at least one of the class names: all pixels would be ignored",
                    remedy=f"correct {option('--classes')}, or {self.class_file} if it is there",
                )
            notes.append(f"ignored, because the class names do not hold them: {listed(left)}")
        tasks = [
            each if isinstance(each, Failure) else self._task(each, table, state)
            for each in source.images
        ]
        annotations = self.shape_annotations(table, tasks, notes)
        palette = zip(table.classes, annotations.palette, strict=True)
        if isinstance(self, MaskFormat) and not any(
            UNCOVERED in each.codes.values() for each in labeled
        ):
            annotations.finish = None  # its note is about pixels that nothing covers
        annotations.palette = [source.colors.get(name, color) for name, color in palette]
        return annotations

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The labels of one image."""
        return np.asarray(task.content(*cast(Sequence[int], task.size)))

    def _task(self, each: LabeledImage, table: ClassTable, state: str | None) -> Task | Failure:
        found = (Path(each.image), "") if each.embedded else self._find_image(each)
        if isinstance(found, Failure):
            return found
        inputs = [*each.inputs, *([each.mask] if isinstance(each.mask, Path) else [])]
        if state is None or each.source != self.source:
            state = joint_state([each.source, *inputs]) if inputs else None
        elif inputs:
            state = content_digest(f"{state} {joint_state(inputs)}".encode())
        path, below = found
        return self.task(
            each.source,
            path,
            split=each.split,
            below=below,
            embedded=each.embedded,
            size=each.size,
            source_state=state,
            content=self.drawing(each, table),
        )

    def _find_image(self, each: LabeledImage) -> tuple[Path, str] | Failure:
        """The image, and its folder below the first search folder that holds it."""
        folders = [self.images] if self.images is not None else list(each.folders)
        exact: list[Path] = []
        by_name: list[Path] = []
        problem = "it is not there"
        for reference in self.references(each.image):
            plain = reference.replace("\\", "/")
            for folder in folders:
                try:
                    exact.append(named_inside(folder, plain))
                except ValueError as error:
                    problem = str(error)
                with contextlib.suppress(ValueError):
                    by_name.append(named_inside(folder, plain.rpartition("/")[2]))
        for candidates in (exact, _any_suffix(exact), by_name, _any_suffix(by_name)):
            existing: Iterable[Path] = (
                each for each in map(find_file, candidates) if each.is_file()
            )
            if candidates is exact:  # the others must be unique
                existing = itertools.islice(existing, 1)
            found = list({path.resolve(): path for path in existing}.values())
            if len(found) == 1:
                parent = Path(os.path.normpath(found[0].parent))
                plain_folders = (Path(os.path.normpath(folder)) for folder in folders)
                top = next((each for each in plain_folders if parent.is_relative_to(each)), parent)
                return found[0], str(parent.relative_to(top))
            if found:
                problem = f"{found[0]} and {found[1]} both may be it"
                break
        return skipped(
            each.source,
            found=f"no image {each.image!r} in {', '.join(map(str, folders))} ({problem})",
            expected="the image of these labels",
            remedy=f"put it there, or name the folder of the images ({option('--image-folder')})",
            file=each.image,
        )


@dataclass
class ShapeFormat(ToolFormat):
    """A format with regions.

    Attributes:
        tool: name of the tool, for messages.
        smaller_on_top: where regions overlap, the smaller one is on top; otherwise the later one.
    """

    tool: ClassVar[str]
    smaller_on_top: ClassVar[bool] = False

    @staticmethod
    @abc.abstractmethod
    def shape(values: Any, height: int, width: int) -> Shape:
        """Shape of a region in an image of this size; runs in worker processes.

        Raises:
            ValueError and others of :data:`cgrseg.errors.MALFORMED`: the values have none.
        """

    def drawing(self, each: LabeledImage, table: ClassTable) -> Callable[..., np.ndarray]:
        """Paints the regions."""
        return functools.partial(_paint, type(self), each.regions, table)


@dataclass
class MaskFormat(ToolFormat):
    """A format with one mask per image."""

    @staticmethod
    @abc.abstractmethod
    def read_codes(mask: Any) -> np.ndarray:
        """Codes of :attr:`LabeledImage.mask` (H, W), whole numbers; runs in worker processes.

        Raises:
            DataError: unreadable.
        """

    def drawing(self, each: LabeledImage, table: ClassTable) -> Callable[..., np.ndarray]:
        """Replaces each code of the mask by the label value of its class."""
        values = {code: _value(name, table) for code, name in sorted(each.codes.items())}
        return functools.partial(_replace_codes, type(self), each.mask, values)


@functools.lru_cache(maxsize=1)
def peek_json(path: Path) -> Any:
    """Content of a JSON file, to recognize it by; None: it is not JSON.

    Kept for the next format, until all formats have looked at the file.
    """
    try:
        is_json = path.suffix.lower() in (".json", ".geojson") and path.is_file()
        return json.loads(read_input_text(path, "utf-8-sig")) if is_json else None
    except (OSError, *MALFORMED):
        return None


def _any_suffix(paths: Iterable[Path]) -> list[Path]:
    return [path.with_suffix(suffix) for path in paths for suffix in IMAGE_SUFFIXES]


def plain_split(name: str) -> str | None:
    """The usual name of a split folder; None: the name is no split's."""
    lower = name.strip().lower()
    return next((split for split, names in SPLIT_FOLDERS.items() if lower in names), None)


def name_in_address(address: str) -> str:
    """File name at the end of a path or of a web address."""
    return unquote(address.split("?")[0]).replace("\\", "/").rpartition("/")[2]


def _value(name: str | None, table: ClassTable) -> int:
    """Label value of a code; a class that is not among the names is ignored."""
    if name == UNCOVERED:
        return table.unlabeled
    with contextlib.suppress(KeyError):
        return IGNORE if name is None else table.value(name)
    return IGNORE


def _paint(
    kind: type[ShapeFormat],
    regions: Sequence[Region] | Callable[[], Sequence[Region]],
    table: ClassTable,
    height: int,
    width: int,
) -> np.ndarray:
    return paint(
        regions() if callable(regions) else regions,
        kind.shape,
        table,
        (height, width),
        smaller_on_top=kind.smaller_on_top,
        tool=kind.tool,
    )


def _replace_codes(
    kind: type[MaskFormat], mask: object, values: Mapping[int, int], height: int, width: int
) -> np.ndarray:
    codes = kind.read_codes(mask)
    known = np.array(list(values), dtype=np.int64)
    position = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    strange = np.unique(codes[known[position] != codes] if known.size else codes)
    if strange.size:
        shown = ", ".join(code_name(int(code)) for code in strange[:5])
        raise DataError(
            mask,
            found=f"pixels of no class: {shown}" + (" and others" if strange.size > 5 else ""),
            expected=f"one of the {len(known)} values that are named or ignored",
            remedy="add the class where the class names are from (the source's own list, or "
            f"{option('--classes')}), or export it again",
        )
    return np.array(list(values.values()), dtype=np.uint8)[position]
