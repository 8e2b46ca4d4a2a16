"""Names of the export formats, read from the file names in this folder."""

from __future__ import annotations

import functools
import pkgutil
import sys

ENDING = "_format"
"""Ending of the names of modules that hold a format."""


@functools.cache
def format_names() -> tuple[str, ...]:
    """Names of all formats in alphabetical order; no format is imported."""
    folders = sys.modules[__package__].__path__
    modules = sorted(module.name for module in pkgutil.iter_modules(folders))
    return tuple(name.removesuffix(ENDING) for name in modules if name.endswith(ENDING))
