"""Errors that are meant for the person at the keyboard.

Every class here carries a message that says which file or setting is concerned,
what was found, what was expected and what to do.  The command line prints that
message without a stack trace; a stack trace is kept for our own bugs.
"""

from __future__ import annotations


class CGRSegError(Exception):
    """Base of every error caused by input, settings or surroundings.

    Build the message with :func:`explain` so that all of them read alike.
    """


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
