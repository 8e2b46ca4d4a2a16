"""Errors that are meant for the person at the keyboard.

Every class here carries a message that says which file or setting is concerned,
what was found, what was expected and what to do.  The command line prints that
message without a stack trace; a stack trace is kept for our own bugs.
"""

from __future__ import annotations


class CGRSegError(Exception):
    """Base of every error caused by input, settings or surroundings.

    Build the message with :func:`explain` so that all of them read alike.

    PyTorch hands an error of a loader's worker process on as a new one of the same class,
    whose text is the whole stack trace; only the message at its end is kept.
    """

    def __init__(self, message: str = "") -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        if message.startswith("Caught ") and name in message:
            message = message.rpartition(name)[2].rstrip("\n")
        super().__init__(message)


class ConfigError(CGRSegError):
    """A setting that does not exist, has the wrong type or contradicts another."""


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
    return f"{where}: {found}\n  expected: {expected}\n  what to do: {remedy}"
