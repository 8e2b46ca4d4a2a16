"""Interface of annotation formats: options, images, one label map per image, and the report.

A format is one module in :mod:`cgrseg.data.convert.formats` with one subclass of :class:`Format`.
The fields of the class are its options, in Python and on the command line; its docstring is the
help text.  :mod:`cgrseg.data.convert.runner` does the rest.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import shlex
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from cgrseg.data.convert.annotation_writer import AnnotationWriter
from cgrseg.errors import MALFORMED, CGRSegError, DataError, explain

if TYPE_CHECKING:
    from cgrseg.data.convert.image_names import ImageMode


@dataclass(frozen=True)
class Argument:
    """Command-line form of a field that is given by its position.

    Attributes:
        help: help text.
        name: parameter name on the command line; empty: the name of the field.
    """

    help: str
    name: str = ""


@dataclass(frozen=True)
class Option(Argument):
    """Command-line form of a field that is given by its name.

    Attributes:
        name_list: the value is a list of names: a file with one per line, or names with commas.
        least: smallest value of a number.
        most: largest value of a number.
    """

    name_list: bool = False
    least: float | None = None
    most: float | None = None


class Embedded(abc.ABC):
    """A file inside another file; as text, its place for messages."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """Content; runs in worker processes.

        Raises:
            DataError: it cannot be read.
        """


@dataclass(frozen=True)
class Task:
    """One label map to make.

    Attributes:
        source: annotation file, named by messages.
        label: label map to write.
        image: image of the label map, of the same size; None: not there, or embedded.
        embedded: image inside the source, written to `image_target` as it is.
        image_target: where to place the image; None: it stays where it is.
        size: height and width according to the source, compared with the image before drawing;
            None: not stated.  For :meth:`Format.draw`, it is then the size of the image.
        source_state: :func:`cgrseg.provenance.joint_state` of the source before the format read
            it; None: only :meth:`Format.draw` reads it.
        content: what :meth:`Format.draw` needs besides the source.
        optional: label map and image are left out where no pixel has a class; the format makes
            the image itself, of the size given.
    """

    source: Path
    label: Path
    image: Path | None = None
    embedded: Embedded | None = None
    image_target: Path | None = None
    size: tuple[int, int] | None = None
    source_state: str | None = None
    content: Any = None
    optional: bool = False


@dataclass(frozen=True)
class Failure:
    """A source that was skipped, and why."""

    file: str
    message: str


@contextlib.contextmanager
def reading(
    where: object, *, expected: str, remedy: str, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Explain errors of the block, which reads a file that may be malformed.

    Args:
        where: see :class:`cgrseg.errors.CGRSegError`, as `expected` and `remedy`.
        expected: what the file should be.
        remedy: what to do.
        also: errors of the reader besides `OSError` and :data:`cgrseg.errors.MALFORMED`.

    Raises:
        DataError: the block raised one of these; errors of ours pass.
    """
    expected_errors: tuple[type[Exception], ...] = (OSError, *MALFORMED, *also)
    try:
        yield
    except CGRSegError:
        raise
    except expected_errors as error:
        raise DataError(
            where,
            found=f"it cannot be read ({type(error).__name__}: {error})",
            expected=expected,
            remedy=remedy,
        ) from error


def skipped(
    where: object, *, found: str, expected: str, remedy: str, file: object = None
) -> Failure:
    """The failure of `file` (by default `where`), with the four parts of an error message."""
    message = explain(where, found=found, expected=expected, remedy=remedy)
    return Failure(str(where if file is None else file), message)


@dataclass(repr=False)
class ConversionReport:
    """What a conversion made.

    Attributes:
        converter: name of the converter.
        out: folder of the result.
        classes: class names in id order.
        first_id: label value of the first class (1 where 0 means unlabeled).
        written: number of label maps written now.
        kept: number of label maps that were finished before.
        failures: skipped sources, each with its reason.
        lists: number of lines per split list.
        notes: remarks that are no errors.
        pixels: number of pixels per label value 0..255 in the label maps written now.
        seconds: wall-clock time.
    """

    converter: str
    out: Path
    classes: tuple[str, ...]
    first_id: int = 0
    written: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)
    lists: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pixels: list[int] = field(default_factory=lambda: [0] * 256)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every source was converted and there was at least one."""
        return not self.failures and self.written + self.kept > 0

    @property
    def exit_code(self) -> int:
        """0 when all went well, 1 when something was skipped."""
        return 0 if self.ok else 1

    def __repr__(self) -> str:
        return (
            f"ConversionReport({self.converter} into {self.out}: {self.written} written, "
            f"{self.kept} kept, {len(self.failures)} skipped)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "converter": self.converter,
            "out": str(self.out),
            "ok": self.ok,
            "classes": list(self.classes),
            "first_id": self.first_id,
            "written": self.written,
            "kept": self.kept,
            "failed": [{"file": f.file, "message": f.message} for f in self.failures],
            "lists": dict(self.lists),
            "notes": list(self.notes),
            "pixels": {str(k): n for k, n in enumerate(self.pixels) if n},
            "seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """Summary for people, with every skipped source named."""
        lines = [
            f"{self.converter}: {self.written} label maps written, {self.kept} kept, "
            f"{len(self.failures)} skipped, in {self.seconds:.1f} s",
            f"in {self.out}",
        ]
        lines += [f"list {name}: {count} images" for name, count in self.lists.items()]
        total = sum(self.pixels)
        if total:
            named = {self.first_id + k: name for k, name in enumerate(self.classes)}
            present = sum(1 for k in named if self.pixels[k])
            unlabeled = total - sum(self.pixels[k] for k in named)
            lines.append(
                f"{present} of {len(self.classes)} classes occur in what was written; "
                f"{unlabeled / total:.1%} of the pixels belong to none"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"skipped: {failure.message}" for failure in self.failures]
        check = shlex.join(["cgrseg", "data", "check", str(self.out)])
        return "\n".join([*lines, f"next: {check}"])


@dataclass
class Annotations:
    """What a source holds, and how its label maps are encoded.

    Attributes:
        classes: class names in id order.
        images: one task or failure per image.
        settings: everything that decides label values.  A folder made with other settings is
            refused, unless these only add to its `classes`, `colours` or `values`.
        palette: RGB 0..255 per label value, stored in the PNGs.
        first_id: label value of the first class.
        image_mode: how images are placed.
        lists: number of images per split list.
        notes: remarks for the summary.
        finish: called with the report when all label maps are there.
    """

    classes: tuple[str, ...]
    images: Sequence[Task | Failure]
    settings: Mapping[str, Any]
    palette: Sequence[tuple[int, int, int]]
    first_id: int = 0
    image_mode: ImageMode = "link"
    lists: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finish: Callable[[ConversionReport], None] | None = None


@dataclass
class Format(abc.ABC):
    """An annotation format, and the options of one conversion from it.

    Each subclass has a field `out`, the folder for the result.  Paths may be given as text.

    Attributes:
        name: command below `cgrseg data convert`.
        workers: number of worker processes; None: chosen from the amount of work.
        overwrite: make finished files anew too, and replace files of other programs.
        recognized_by: what showed that the source is of this format; empty: the caller said so.
        writer: writes predictions in this format; None: it is only read.
    """

    name: ClassVar[str]
    recognized_by: ClassVar[str] = ""
    writer: ClassVar[type[AnnotationWriter] | None] = None
    _: KW_ONLY
    workers: Annotated[int | None, Option("Default: chosen from the amount of work.")] = None
    overwrite: Annotated[bool, Option("Without --overwrite finished files are kept.")] = False

    def __post_init__(self) -> None:
        for name, (kind, _) in options_of(type(self)).items():
            if isinstance(getattr(self, name), str) and Path in (kind, *typing.get_args(kind)):
                setattr(self, name, Path(getattr(self, name)))

    @classmethod
    def recognize(cls, source: Path) -> str:
        """By what a file or folder shows that it is of this format; empty: it does not."""
        return ""

    def resolved(self) -> Format:
        """The format that does the work: this one."""
        return self

    @property
    def root(self) -> Path:
        """Folder of the result, which the conversion locks."""
        out: Path = vars(self)["out"]
        return out

    @property
    @abc.abstractmethod
    def label_folder(self) -> Path:
        """Folder of the label maps and of their record."""

    @property
    def class_file(self) -> Path | None:
        """Text file for the class names; None: not written."""
        return None

    @abc.abstractmethod
    def read(self) -> Annotations:
        """Classes and images of the source.

        Raises:
            DataError: the source as a whole cannot be used.
        """

    @staticmethod
    @abc.abstractmethod
    def draw(task: Task) -> np.ndarray:
        """Label map (H, W) uint8 of one task; runs in worker processes.

        Raises:
            DataError: the source of this label map cannot be used.
        """


def options_of(kind: type[Format]) -> dict[str, tuple[Any, Option | Argument]]:
    """Type and command-line form of each field, those of the class itself first."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = {each.name for each in dataclasses.fields(kind)}
    return {
        name: typing.get_args(hints[name])[:2]
        for parent in kind.__mro__
        for name in inspect.get_annotations(parent)
        if name in names
    }
