"""The schema in plain words: what a setting may hold, and which settings there are.

Error messages, the reference in `docs/configuration.md` and the parsing of overrides
all read the schema through this module, so that none of them can disagree with it.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from cgrseg.config.schema import MAX_SIDE, Config, Section, Size

_NUMBER = {int: "a whole number", float: "a number"}
_NUMBERS = {int: "whole numbers", float: "numbers", str: "texts"}


@functools.cache
def field_annotations(section: type[BaseModel]) -> Mapping[str, Any]:
    """Field name to its full annotation, limits included."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in section.model_fields}


def subsection(annotation: Any) -> type[Section] | None:
    """The section that an annotation stands for, or None when it is a plain setting."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def walk(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain setting below a section as (dotted name, annotation), in schema order."""
    for name, annotation in field_annotations(section).items():
        inner = subsection(annotation)
        if inner is None:
            yield prefix + name, annotation
        else:
            yield from walk(inner, f"{prefix}{name}.")


def find(path: str) -> Any | None:
    """Annotation of a dotted name (a section counts); None when there is no such setting."""
    annotation: Any = Config
    for part in path.split("."):
        inner = subsection(annotation)
        if inner is None or part not in inner.model_fields:
            return None
        annotation = field_annotations(inner)[part]
    return annotation


def describe(annotation: Any) -> str:
    """What an annotation admits, e.g. 'a whole number greater than 0, or null'."""
    if annotation == Size:
        return (
            "a size in pixels, HEIGHTxWIDTH, e.g. 512x704, or 512 for a square; each side at "
            f"most {MAX_SIDE}"
        )
    base, limits = _split(annotation)
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin in (typing.Union, types.UnionType):
        parts = [describe(part) for part in arguments if part is not type(None)]
        return " or ".join(parts) + (", or null" if type(None) in arguments else "")
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(value) for value in arguments)
    if origin is tuple:
        return f"{_count(len(arguments))} {_plural(arguments[0])}, e.g. {_example(arguments)}"
    if origin is list:
        return f"a list of {_plural(arguments[0])}"
    if origin is dict:
        return f"a table of text to {describe(arguments[1])}"
    if base is bool:
        return "true or false"
    if base is str:
        return "text"
    if base in _NUMBER:
        return f"{_NUMBER[base]}{_bounds(limits)}"
    inner = subsection(base)
    if inner is not None:
        return "a table with " + ", ".join(inner.model_fields)
    return str(base)


def choices(annotation: Any) -> tuple[str, ...]:
    """The values of a setting that has few, as an override writes them; else nothing."""
    base, _ = _split(annotation)
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin in (typing.Union, types.UnionType):
        found = [choice for part in arguments for choice in choices(part)]
        return (*found, "null") if found and type(None) in arguments else tuple(found)
    if origin is typing.Literal:
        return tuple(str(value) for value in arguments)
    return ("true", "false") if base is bool else ()


def admits(annotation: Any, kind: type) -> bool:
    """Whether a value of exactly this Python type can be meant (str, bool, dict, None, …)."""
    base, _ = _split(annotation)
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin in (typing.Union, types.UnionType):
        return any(admits(part, kind) for part in arguments)
    if origin is typing.Literal:
        return any(type(value) is kind for value in arguments)
    if base is float and kind is int:
        return True
    return (origin or base) is kind


def _split(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """Separate `Annotated[base, Field(gt=0)]` into the base and {'gt': 0}."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, {}
    base, *extras = typing.get_args(annotation)
    limits = {
        bound: getattr(constraint, bound)
        for extra in extras
        for constraint in getattr(extra, "metadata", ())
        for bound in ("gt", "ge", "lt", "le")
        if hasattr(constraint, bound)
    }
    return base, limits


def _bounds(limits: Mapping[str, Any]) -> str:
    shown = {
        bound: str(value) if isinstance(value, int) else f"{value:g}"
        for bound, value in limits.items()
    }
    if {"ge", "le"} <= shown.keys():
        return f" from {shown['ge']} to {shown['le']}"
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    parts = [f"{words[bound]} {value}" for bound, value in shown.items()]
    return " " + " and ".join(parts) if parts else ""


def _count(number: int) -> str:
    return {2: "two", 3: "three"}.get(number, str(number))


def _plural(annotation: Any) -> str:
    base, limits = _split(annotation)
    if base in _NUMBERS:
        return f"{_NUMBERS[base]}{_bounds(limits)}"
    if typing.get_origin(base) is tuple:
        inner = typing.get_args(base)
        return f"{_count(len(inner))}-part lists of {_plural(inner[0])}"
    return describe(annotation)


def _example(parts: tuple[Any, ...]) -> str:
    whole = _split(parts[0])[0] is int
    values = [512, 512, 512] if whole else [0.5, 0.9, 0.9]
    return str(values[: len(parts)])
