"""Annotation formats, one per module.  A module that is put here is a format, and a command."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from cgrseg.data.convert.annotation_writer import AnnotationWriter
from cgrseg.data.convert.format import Format


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


def writers() -> dict[str, type[AnnotationWriter]]:
    """Writer of every format that has one, by the name of the format."""
    return {name: kind.writer for name, kind in formats().items() if kind.writer is not None}
