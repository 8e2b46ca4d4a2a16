r"""Class names: the one rule for what a name and a list of names may be, and their text form.

The id of a class is the position of its name in the list.  A name that is lost, split or
merged on the way from one file to another moves every later id, so every reader and writer
of class names goes through this module: class lists, color tables, LabelMe and COCO files,
settings, checkpoints and exported files.

Text form (`classes.txt`): one name per line, in id order.  A line that begins with `#` is a
comment.  A name that begins with `#` is written with a backslash before it (`\#1`), and so
is a name that begins with a backslash.
"""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cgrseg.errors import CGRSegError, DataError
from cgrseg.input_files import read_input

CLASS_LIST = "classes.txt"
"""Name of the class list in a dataset root."""

MAX_CLASSES = 255
"""Largest number of classes in 8-bit labels: one value is kept for ignored pixels."""

_LOG = logging.getLogger("cgrseg.class_names")
_COMMENT, _ESCAPE = "#", "\\"
_REFUSED = {"Cc": "a control character", "Zl": "a line break", "Zp": "a line break"}
_SHOWN_NAMES, _SHOWN_DIFFERENCES, _NAMES_IN_REPR = 30, 8, 4


def clean_name(text: str) -> str:
    """A name in one Unicode form (NFC), without surrounding blanks and byte-order marks."""
    name = unicodedata.normalize("NFC", text)
    while (stripped := name.strip().strip("\ufeff")) != name:
        name = stripped
    return name


def check_class_names(
    names: Iterable[str],
    where: object,
    *,
    places: Sequence[str] | None = None,
    most: int | None = None,
    error: type[CGRSegError] = DataError,
    remedy: str = "correct the names",
) -> tuple[str, ...]:
    """Clean a list of class names and refuse one that could not be written and read back.

    Args:
        names: in id order.
        where: file or setting of the list, for the message.
        places: where each name stands, for the message ("line 3"); None: its id.
        most: largest number of names; None: no limit.
        error: type of the error.
        remedy: what the reader can do about it.

    Returns:
        The names after :func:`clean_name`.

    Raises:
        CGRSegError: of type `error`: no names, too many, an empty or a repeated name, or a
            name with a line break, a control character or a lone surrogate.
    """
    cleaned = tuple(clean_name(name) for name in names)
    places = places or [f"id {number}" for number in range(len(cleaned))]

    def problem(found: str, expected: str) -> CGRSegError:
        return error(where, found=found, expected=expected, remedy=remedy)

    if not cleaned or (most is not None and len(cleaned) > most):
        limit = "at least 1" if most is None else f"1 to {most}"
        raise problem(f"{len(cleaned)} class names", f"{limit}, in id order")
    first: dict[str, str] = {}
    for place, name in zip(places, cleaned, strict=True):
        if not name:
            raise problem(f"the class name at {place} is empty", "a name for each class")
        culprit = _refused_character(name)
        if culprit is not None:
            raise problem(
                f"the class name at {place} holds {culprit}: {name!r}",
                "names of one line of text: another reader would take this name for several",
            )
        if name in first:
            raise problem(
                f"the class name {name!r} stands at {first[name]} and again at {place}",
                "a different name for each class",
            )
        first[name] = place
    return cleaned


def _refused_character(name: str) -> str | None:
    for character in name:
        kind = unicodedata.category(character)
        if kind == "Cs":
            return "a lone surrogate, which UTF-8 cannot hold"
        if kind in _REFUSED:
            return "a line break" if character in "\r\n" else _REFUSED[kind]
    return None


def parse_class_list(lines: Sequence[str], where: object) -> tuple[str, ...]:
    """Class names from the lines of a text file, in id order.

    Comments are left out, and so are empty lines before the first and after the last name.

    Args:
        lines: of the file, comments and empty lines included.
        where: the file, for the message.

    Raises:
        DataError: an empty line between two names (the message names the line), and as
            :func:`check_class_names`, with at most 255 names.
    """
    numbered = [(number, clean_name(line)) for number, line in enumerate(lines, start=1)]
    entries = [(number, line) for number, line in numbered if not is_comment(line)]
    while entries and not entries[-1][1]:
        entries.pop()
    while entries and not entries[0][1]:
        entries.pop(0)
    for (_, before), (number, line), (_, after) in zip(
        entries, entries[1:], entries[2:], strict=False
    ):
        if not line:
            raise DataError(
                f"{where}, line {number}",
                found=f"an empty line after the class {before!r}"
                + (f" and before {after!r}" if after else ""),
                expected="one class name per line: it is not clear whether this line is a "
                "class without a name",
                remedy="remove the line, or write the name of the class there",
            )
    return check_class_names(
        [unescaped(line) for _, line in entries],
        where,
        places=[f"line {number}" for number, _ in entries],
        most=MAX_CLASSES,
        remedy="list each class once, in id order, one name per line; a line that begins with "
        f"{_COMMENT} is a comment, a name that begins with it is written {_ESCAPE}{_COMMENT}",
    )


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class names in id order from a text file.

    Raises:
        DataError: the file is missing or unreadable, and as :func:`parse_class_list`.
    """
    lines = read_lines(
        path,
        what="the class list",
        expected="class names in id order, one a line",
        remedy="write that file, or set data.classes; "
        f"`cgrseg data check {path.parent}` proposes the settings",
    )
    return parse_class_list(lines, path)


def read_lines(path: Path, *, what: str, expected: str, remedy: str) -> list[str]:
    """All lines of a text file (UTF-8, or UTF-16 with a byte-order mark), blank ones included.

    Byte-order marks, Windows line ends and surrounding blanks never become part of a line.

    Args:
        path: the file.
        what: kind of file, for the message: 'the class list'.
        expected: what should be in it.
        remedy: what to do when it cannot be read.

    Raises:
        DataError: missing, unreadable, or neither UTF-8 nor UTF-16.
    """
    try:
        data = read_input(path)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8 or UTF-16"
        raise DataError(
            path, found=f"{what} cannot be read ({reason})", expected=expected, remedy=remedy
        ) from error
    # Not splitlines(): it would split a name at a form feed.
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text)]


def class_list_text(names: Iterable[str]) -> str:
    """The text file that :func:`parse_class_list` reads as these names."""
    return "".join(f"{_escaped(name)}\n" for name in names)


def _escaped(name: str) -> str:
    return _ESCAPE + name if name.startswith((_COMMENT, _ESCAPE)) else name


def is_comment(line: str) -> bool:
    """Whether a line of a class list or of a color table is a comment."""
    return line.lstrip().startswith(_COMMENT)


def unescaped(line: str) -> str:
    """The name that a line of text stands for."""
    return line[1:] if line.startswith((_ESCAPE + _COMMENT, _ESCAPE * 2)) else line


def numbered_names(count: int) -> tuple[str, ...]:
    """Names for a network whose class names are not known."""
    return tuple(f"class {number}" for number in range(count))


def usable_names(value: Any, count: int, source: object) -> tuple[str, ...] | None:
    """Class names as a checkpoint or an exported file holds them, or numbers in their place.

    Names that do not fit the network are never used in part: a warning says what is wrong with
    them, and the classes are numbered.

    Args:
        value: what the file holds, of any type; None: it holds no names.
        count: number of classes of the network.
        source: the file, for the warning.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        problem = f"its class names are no list ({type(value).__name__})"
    elif len(value) != count:
        names = "1 class name" if len(value) == 1 else f"{len(value)} class names"
        problem = f"it holds {names} for {count} classes"
    elif not all(isinstance(name, str) for name in value):
        problem = "its class names are not all texts"
    else:
        try:
            return check_class_names(value, source)
        except DataError as error:
            problem = str(error).splitlines()[0].removeprefix(f"{source}: ")
    _LOG.warning("%s: %s; the classes are numbered 'class 0' and on", source, problem)
    return numbered_names(count)


def usable_palette(
    value: Any, count: int, source: object
) -> tuple[tuple[int, int, int], ...] | None:
    """Colors as a checkpoint or an exported file holds them; None, with a warning, if unusable.

    Args:
        value: what the file holds, of any type; None: it holds no colors.
        count: number of classes of the network.
        source: the file, for the warning.
    """
    if value is None:
        return None
    try:
        colors = tuple((int(red), int(green), int(blue)) for red, green, blue in value)
    except (TypeError, ValueError, OverflowError):
        problem = "its palette is no list of RGB triples"
    else:
        if len(colors) == count and all(0 <= level <= 255 for color in colors for level in color):
            return colors
        problem = f"it holds {len(colors)} colors for {count} classes"
        if len(colors) == count:
            problem = "its palette has values outside 0 to 255"
    _LOG.warning("%s: %s; colors are made for the classes", source, problem)
    return None


def listed(names: Sequence[str]) -> str:
    """A list of names for a message, shortened where it is long."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return shown if more <= 0 else f"{shown} and {more} more"


def counted(names: Sequence[str]) -> str:
    """Number of classes and the first names, for a line that describes an object."""
    more = ", ..." if len(names) > _NAMES_IN_REPR else ""
    return f"{len(names)} classes ({', '.join(names[:_NAMES_IN_REPR])}{more})"


def differences(one: Sequence[str], other: Sequence[str]) -> str | None:
    """How two lists of class names differ, the ids concerned first; None: they are equal.

    Args:
        one: the earlier list, in id order.
        other: the later list, in id order.
    """
    if tuple(one) == tuple(other):
        return None
    changed = [
        f"id {number}: {_at(one, number)} became {_at(other, number)}"
        for number in range(max(len(one), len(other)))
        if _at(one, number) != _at(other, number)
    ]
    shown = "; ".join(changed[:_SHOWN_DIFFERENCES])
    more = len(changed) - _SHOWN_DIFFERENCES
    return shown + (f"; and {more} more" if more > 0 else "")


def _at(names: Sequence[str], number: int) -> str:
    return repr(names[number]) if number < len(names) else "no class"
