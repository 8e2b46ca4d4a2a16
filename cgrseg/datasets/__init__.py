"""The datasets that are known by name: one file per dataset, discovered in this folder.

A file defines one :class:`cgrseg.datasets.spec.DatasetSpec` or several.  Nothing else has to
change for a new dataset: the catalogue, checks, guesses and training presets read the specs.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil

from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import ConfigError


@functools.cache
def _catalogue() -> dict[str, DatasetSpec]:
    modules = [
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    ]
    specs = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, DatasetSpec)
    ]
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: (spec.order, spec.name))}


def list_specs() -> list[str]:
    """Names that :func:`get_spec` knows, in the order of lists and tables."""
    return list(_catalogue())


def get_spec(name: str) -> DatasetSpec:
    """A dataset as published.

    Raises:
        ConfigError: unknown dataset; the message gives the nearest name.
    """
    if name in _catalogue():
        return _catalogue()[name]
    known = [*_catalogue(), "custom"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    raise ConfigError(
        "data.dataset",
        found=f"{name!r} is not in the catalogue",
        expected="one of " + ", ".join(known),
        remedy=(f"did you mean {near[0]!r}? " if near else "")
        + "Your own folder is data.dataset=custom with data.root",
    )
