"""The small text files beside a dataset: split lists and class lists, one entry a line.

Editors and spreadsheets leave byte-order marks, Windows line ends and blank lines; none
of them may become part of a name.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from cgrseg.errors import DataError
from cgrseg.input_files import read_input


def read_lines(path: Path, *, what: str, expected: str, remedy: str) -> list[str]:
    """All lines of a text file, without surrounding blanks; blank ones are kept.

    The text is UTF-8, or UTF-16 with its byte-order mark, as some editors save it.

    Args:
        path: the file; a byte-order mark and any kind of line end do no harm.
        what: what the file is, for the message: 'the class list'.
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
            path,
            found=f"{what} cannot be read ({reason})",
            expected=expected,
            remedy=remedy,
        ) from error
    # Not splitlines(): a form feed or the like within a name would make two names of it.
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
