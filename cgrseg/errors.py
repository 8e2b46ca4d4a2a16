"""Errors that are meant for the person at the keyboard.

Every class here carries a message that says which file or setting is concerned,
what was found, what was expected and what to do.  The command line prints that
message without a stack trace; a stack trace is kept for our own bugs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from enum import Enum

MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What Python raises on a file's values when their form is another one than expected."""
EXIT_PROBLEM = 2
"""Exit status when input, settings or surroundings do not allow the work."""


class CGRSegError(Exception):
    """Base class of every error caused by input, settings or the machine.

    `raise DataError(where, found=..., expected=..., remedy=...)` composes the message by
    :func:`explain`, so that all messages read alike.

    PyTorch re-raises an error of a data loader's worker process as the same class, with the
    whole stack trace as its text.  Only the message at the end of that text is kept.

    Args:
        where: the file, setting or object concerned; without the other arguments, the message.
        found: what is there.
        expected: what should have been there.
        remedy: what the reader can do about it.

    Attributes:
        in_all_processes: whether every process of a job meets the same problem, so that only
            the first process prints it.
    """

    in_all_processes = False

    def __init__(
        self,
        where: object = "",
        *,
        found: str | None = None,
        expected: str = "",
        remedy: str = "",
    ) -> None:
        if found is None:
            message = str(where)
        else:
            message = explain(where, found=found, expected=expected, remedy=remedy)
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        if message.startswith("Caught ") and name in message:
            message = message.rpartition(name)[2].rstrip("\n")
        super().__init__(message)


class ConfigError(CGRSegError):
    """A setting that does not exist, has the wrong type or contradicts another."""

    in_all_processes = True


class DataError(CGRSegError):
    """An image, a label, a list or a folder that cannot be used as it is."""


class WeightsError(CGRSegError):
    """A checkpoint that cannot be read, or that does not fit the network."""


class EnvironmentProblem(CGRSegError):
    """Something the machine lacks: a package, a device, a compiler, disk space."""


def explain(where: object, *, found: str, expected: str, remedy: str) -> str:
    """Compose the four parts that every message of ours has.

    Args:
        where: the file, setting or object concerned.
        found: what is there.
        expected: what should have been there.
        remedy: what the reader can do about it.
    """
    message = f"{where}: {found}\n  expected: {expected}\n  what to do: {remedy}"
    # Names out of files may hold what no terminal can show.
    return message.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


class FrontEnd(Enum):
    """What a person typed to start this process: messages name the options that it has."""

    CGRSEG = "cgrseg"
    DEMO = "cgrseg demo"
    SCRIPT = "run_cgrseg.py or a script of tools/"
    PYTHON = "Python"


_OWN_OPTIONS: dict[FrontEnd, dict[str, str]] = {
    FrontEnd.CGRSEG: {},
    FrontEnd.DEMO: {"--resume": "the same command", "--work-dir": "--out"},
    FrontEnd.SCRIPT: {"--resume": "--auto-resume"},
    FrontEnd.PYTHON: {
        "--resume": "auto_resume=True",
        "--image-folder": "images",
        "--format-only": "format_only=True",
        "--overwrite": "overwrite=True",
        "--trust-code": "trust_code=True",
        "--work-dir": "work_dir",
        "--data-root": "data.root",
    },
}
_VARIABLE = "CGRSEG_FRONT_END"
"""Environment variable: processes that are started for the work speak as the first one does."""


@contextlib.contextmanager
def speaking_as(speaker: FrontEnd) -> Iterator[None]:
    """Messages made in this block name the options of a front end; outside, those of Python."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = speaker.value
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def front_end() -> FrontEnd:
    """What started the work of this process."""
    value = os.environ.get(_VARIABLE)
    known = {each.value: each for each in FrontEnd}
    return known.get(value or "", FrontEnd.PYTHON)


def option(name: str, value: object = None) -> str:
    """An option as the front end that runs writes it, for the remedy of a message.

    Args:
        name: as the command `cgrseg` has it, e.g. `--resume`.
        value: what to give it; None: a flag, or left to the reader.

    Returns:
        For `--resume`: `--resume`, `--auto-resume` (scripts), `auto_resume=True` (Python), or
        `the same command` (`cgrseg demo`, which always resumes).
    """
    name = _OWN_OPTIONS[front_end()].get(name, name)
    if front_end() is FrontEnd.PYTHON:
        name = name.removeprefix("--").replace("-", "_")
        return name if value is None else f"{name}={str(value)!r}"
    return name if value is None else f"{name} {value}"


def speaks_python() -> bool:
    """Whether the work was started from Python, not by a command or a script."""
    return front_end() is FrontEnd.PYTHON


def has_option(name: str) -> bool:
    """Whether the front end that runs has an option; `cgrseg demo` resumes and keeps by itself."""
    return not (front_end() is FrontEnd.DEMO and name in ("--resume-from", "--overwrite"))
