"""The small text files beside a dataset: split lists and class lists, one entry a line.

Editors and spreadsheets leave byte-order marks, Windows line ends and blank lines; none
of them may become part of a name.
"""

from __future__ import annotations

from pathlib import Path

from cgrseg.errors import DataError, explain
from cgrseg.input_files import read_input_text


def read_lines(path: Path, *, what: str, expected: str, remedy: str) -> list[str]:
    """All lines of a text file in UTF-8, without surrounding blanks; blank ones are kept.

    Args:
        path: the file; a byte-order mark and any kind of line end do no harm.
        what: what the file is, for the message: 'the class list'.
        expected: what should be in it.
        remedy: what to do when it cannot be read.

    Raises:
        DataError: missing, unreadable, or no text in UTF-8.
    """
    try:
        text = read_input_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise DataError(
            explain(
                path,
                found=f"{what} cannot be read ({reason})",
                expected=expected,
                remedy=remedy,
            )
        ) from error
    return [line.strip() for line in text.splitlines()]
