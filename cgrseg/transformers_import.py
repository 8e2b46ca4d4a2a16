"""Register the classes of CGRSeg with transformers, whichever of the two is imported first.

`AutoModelForSemanticSegmentation` and `pipeline` find a network by the class of its config, so
that class is registered as soon as transformers has its table of configs.  Nothing is imported
before.  The first config imports and registers the other classes (`cgrseg.huggingface`).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TABLE = "transformers.models.auto.configuration_auto"
"""Module of transformers with the table of configs; all its `Auto` classes import it."""


def register_with_transformers(module: str) -> None:
    """Import a module now if transformers has its table of configs, else when it gets it.

    Args:
        module: name of the module that registers the config.
    """
    if _TABLE in sys.modules:
        _register(module)
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder(module))


class _TableFinder:
    """Finds the table as Python does, and imports a module after the table's first import."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Specification of the table; None for every other module."""
        if name != _TABLE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(table: ModuleType) -> None:
                execute(table)
                _register(self.module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign, assignment]
        return spec


def _register(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a version of transformers without what the class needs
        import logging

        logging.getLogger("cgrseg").warning(
            "transformers cannot open CGRSeg's folders here (%s: %s)", type(error).__name__, error
        )
