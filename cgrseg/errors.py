"""Errors with a message for the user.

A message names the file or setting, what was found, what was expected and what to do.  The
command line prints it without a stack trace; stack traces are for bugs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TypeVar

MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""Errors that Python raises on the values of a file with an unexpected form."""
EXIT_PROBLEM = 2
"""Exit status after an error of input, settings or machine."""

Choice = TypeVar("Choice", bound=str)
"""Type of the names that :func:`check_choice` chooses from."""


class CGRSegError(Exception):
    """Base class of all errors caused by input, settings or the machine.

    :func:`explain` composes the message.  PyTorch re-raises an error of a worker process as the
    same class, with the whole stack trace as its text; only the message at its end is kept.

    Args:
        where: file, setting or object; without the other arguments, the whole message.
        found: what was found.
        expected: what was expected.
        remedy: what to do.

    Attributes:
        in_all_processes: whether all processes of a job have the same problem, so that only the
            first one prints it.
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
    """A setting that does not exist, has a wrong value or contradicts another."""

    in_all_processes = True


class DataError(CGRSegError):
    """An image, label, list or folder that cannot be used."""


class WeightsError(CGRSegError):
    """A checkpoint that cannot be read or does not fit the network."""


class EnvironmentProblem(CGRSegError):
    """Something missing on the machine: a package, device, compiler, memory, disk space."""


def check_choice(where: str, name: str, choices: Iterable[Choice]) -> Choice:
    """`name`, if it is one of the choices.

    Raises:
        ConfigError: another name.
    """
    choices = tuple(choices)
    for choice in choices:
        if choice == name:
            return choice
    raise ConfigError(
        where, found=repr(name), expected=", ".join(choices), remedy="choose from these"
    )


def explain(where: object, *, found: str, expected: str, remedy: str) -> str:
    """Compose a message from the four parts of :class:`CGRSegError`."""
    message = f"{where}: {found}\n  expected: {expected}\n  what to do: {remedy}"
    # Names in files may contain characters that no terminal can show.
    return message.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


class FrontEnd(Enum):
    """How the user started this process; messages name the options of this interface."""

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
        "--save": "formats",
        "--save-shape": "shape",
        "--save-tolerance": "tolerance",
    },
}
_VARIABLE = "CGRSEG_FRONT_END"
"""Environment variable, so that child processes name the same options."""


@contextlib.contextmanager
def speaking_as(speaker: FrontEnd) -> Iterator[None]:
    """Let messages of this block name the options of a front end; outside, those of Python."""
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
    """The front end of this process."""
    value = os.environ.get(_VARIABLE)
    known = {each.value: each for each in FrontEnd}
    return known.get(value or "", FrontEnd.PYTHON)


def option(name: str, value: object = None) -> str:
    """An option as the present front end writes it, for the remedy of a message.

    Args:
        name: name of the option in the command `cgrseg`, e.g. `--resume`.
        value: value of the option; None: without a value.

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
    """Whether the front end is Python, not a command or a script."""
    return front_end() is FrontEnd.PYTHON


def has_option(name: str) -> bool:
    """Whether the front end has an option; `cgrseg demo` resumes and keeps results by default."""
    return not (front_end() is FrontEnd.DEMO and name in ("--resume-from", "--overwrite"))


def hidden_secrets(text: str) -> str:
    """A text whose addresses have no user information, and in http(s) no query: they may be secret.

    A user name ends at the last `@` before the path.
    """
    text = re.sub(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s?#]*@", r"\1", text)
    return re.sub(r"(?i)(\bhttps?://[^\s?#]*)[?#]\S*", r"\1", text)


def refuse_secrets(address: str, setting: str) -> None:
    """Refuse an address that holds a login or a query: the files of a run keep its settings.

    Raises:
        ConfigError: names the setting, without the address.
    """
    if any(hidden_secrets(link) != link for link in address.split("::")):
        raise ConfigError(
            setting,
            found="an address with a user name, a password or a query",
            expected="an address alone, since checkpoints and reports keep it",
            remedy="give the login where the package of this protocol looks for it, in its "
            "environment variables or files",
        )
