"""Types of settings: their limits, the forms they are written in, and their description in words.

Error messages, `docs/configuration.md` and the parsing of overrides all read the types from here.
"""

from __future__ import annotations

import functools
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

_NUMBER = {int: "a whole number", float: "a number"}
_NUMBERS = {int: "whole numbers", float: "numbers", str: "texts"}
_PAIR = re.compile(r"\s*[\[(]?\s*(\d+)\s*(?:[x×*,]\s*|\s)\s*(\d+)\s*[\])]?\s*", re.IGNORECASE)
_SIDE = re.compile(r"\s*(\d+)\s*")


def read_size(value: Any) -> Any:
    """Parse a size; a value that is not a size is returned unchanged.

    Args:
        value: text such as `512x704`, `512,704` or `512`, or an integer (the side of a square).

    Returns:
        Height and width.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, str):
        return value
    pair, side = _PAIR.fullmatch(value), _SIDE.fullmatch(value)
    if pair is not None:
        return (int(pair[1]), int(pair[2]))
    return (int(side[1]), int(side[1])) if side is not None else value


def read_sources(value: Any) -> Any:
    """Parse folders with weights; a value that is not text is returned unchanged.

    Args:
        value: text such as `data/auto` or `data/auto:0.5,data/more`; the weight is 1 where none is
            given.

    Returns:
        Folder to weight.
    """
    if not isinstance(value, str):
        return value
    found: dict[str, float] = {}
    for part in value.split(","):
        folder, _, weight = part.strip().rpartition(":")
        try:
            found[folder or weight] = float(weight) if folder else 1.0
        except ValueError:  # the colon belongs to the folder
            found[part.strip()] = 1.0
    return found


def size_text(height: int, width: int) -> str:
    """Text of a size, e.g. `512x704`."""
    return f"{height}x{width}"


MAX_SIDE = 32_767
"""Longest side of an image in pixels, also after a resize: OpenCV's limit."""

# Largest number of steps or images: a signed 32-bit integer.
_MOST = 2**31 - 1

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=_MOST)]
LARGEST_BATCH = 65_536
BatchSize = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Size = Annotated[tuple[Side, Side], BeforeValidator(read_size)]
Level = Annotated[int, Field(ge=0, le=255)]
Factor = Annotated[float, Field(ge=0.0, le=100.0)]
Ratio = Annotated[float, Field(ge=0.01, le=100.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Sources = Annotated[
    dict[str, Annotated[float, Field(gt=0.0, le=1e6)]], BeforeValidator(read_sources)
]
# PyTorch generators take signed 64-bit integers.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, assignments are checked.

    Checks are made when a section is first used: most commands use one section, or none.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        allow_inf_nan=False,
        defer_build=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_and_nulls(cls, value: Any, info: ValidationInfo) -> Any:
        # True equals 1 in Python: without this check, `batch_size=true` would mean one image.
        field = cls.model_fields[info.field_name or ""]
        if _holds_boolean(value) and bool not in _plain_types(field.annotation):
            raise ValueError("true and false are not accepted as numbers")
        if subsection(field.annotation) is None and _holds_null_character(value):
            raise ValueError("file names and names cannot contain a null character")
        return value


@functools.cache
def field_annotations(section: type[BaseModel]) -> Mapping[str, Any]:
    """Field name to its full annotation, limits included."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in section.model_fields}


def subsection(annotation: Any) -> type[Section] | None:
    """Section class of an annotation; None for a plain setting."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def describe(annotation: Any) -> str:
    """Accepted values in words, e.g. 'a whole number greater than 0, or null'."""
    if annotation == Size:
        return (
            "a size in pixels, HEIGHTxWIDTH, e.g. 512x704, or 512 for a square; each side at "
            f"most {MAX_SIDE}"
        )
    if annotation == Sources:
        return (
            "folders, each with a weight greater than 0: FOLDER, FOLDER:WEIGHT, several with "
            "commas, or a table of folder to weight"
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
    """All values of a choice or boolean setting, as text; empty for other settings."""
    base, _ = _split(annotation)
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin in (typing.Union, types.UnionType):
        found = [choice for part in arguments for choice in choices(part)]
        return (*found, "null") if found and type(None) in arguments else tuple(found)
    if origin is typing.Literal:
        return tuple(str(value) for value in arguments)
    return ("true", "false") if base is bool else ()


def admits(annotation: Any, kind: type) -> bool:
    """Whether a setting accepts values of exactly this Python type."""
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


def _plain_types(annotation: Any) -> set[Any]:
    """Leaf types of an annotation, e.g. int and NoneType of `list[int] | None`."""
    arguments = get_args(annotation)
    if not arguments:
        return {annotation}
    return set().union(*(_plain_types(argument) for argument in arguments))


def _holds_null_character(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null_character, [*value.keys(), *value.values()]))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_null_character, value))
    return isinstance(value, str) and "\0" in value


def _holds_boolean(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_boolean(item) for item in value)
    return isinstance(value, bool)
