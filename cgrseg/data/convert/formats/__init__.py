"""Annotation formats, one per module.  A module that is put here is a format, and a command."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
from pathlib import Path

from cgrseg.data.convert.annotation_writer import AnnotationWriter
from cgrseg.data.convert.format import Format
from cgrseg.data.convert.tool_format import peek_json
from cgrseg.errors import MALFORMED


@functools.cache
def formats() -> dict[str, type[Format]]:
    """Every format by its name."""
    found: dict[str, type[Format]] = {}
    for each in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{each.name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Format)
            and value.__module__ == module.__name__
        ]
        found |= {kind.name: kind for kind in own}
    return found


def recognize(source: Path) -> dict[str, str]:
    """Names of the formats that a file or folder shows signs of, each with its signs.

    A malformed file shows no signs of a format that stumbles over it.
    """
    found = {}
    for name, kind in formats().items():
        with contextlib.suppress(*MALFORMED):
            found[name] = kind.recognize(source)
    peek_json.cache_clear()
    return {name: signs for name, signs in found.items() if signs}


def writers() -> dict[str, type[AnnotationWriter]]:
    """Writer of every format that has one, by the name of the format."""
    return {name: kind.writer for name, kind in formats().items() if kind.writer is not None}
