"""Runtimes are extras: what is missing is said with the command that installs it."""

from __future__ import annotations

import importlib
from typing import Any

from cgrseg.errors import EnvironmentProblem


def need(package: str, purpose: object, extra: str = "export") -> Any:
    """Import a package of an extra.

    Args:
        package: its import name.
        purpose: what needs it, for the message.
        extra: of cgrseg, that brings it.

    Raises:
        EnvironmentProblem: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package.split(".")[0]
        raise EnvironmentProblem(
            purpose,
            found=f"the package {package.split('.')[0]} is not installed"
            if missing
            else f"the package {package} cannot be imported ({error})",
            expected=f"the packages of the extra [{extra}]",
            remedy=f'pip install "cgrseg[{extra}]"',
        ) from error
