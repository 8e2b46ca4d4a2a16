"""From nested tables to a checked :class:`Config`, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cgrseg.config import words
from cgrseg.config.overrides import unknown_setting
from cgrseg.config.schema import Config
from cgrseg.errors import ConfigError, explain


def build(settings: Mapping[str, Any], source: str | None = None) -> Config:
    """Check nested settings and make a config of them.

    Args:
        settings: tables as in `Config.model_dump()`; what is left out takes its default.
        source: the file or override that they come from, for the message.

    Raises:
        ConfigError: an unknown setting, a wrong type, a value outside its limits, or
            settings that contradict each other.
    """
    try:
        return Config.model_validate(dict(settings))
    except ValidationError as error:
        raise readable(error, source) from None
    except ConfigError as error:
        raise (ConfigError(f"{source}: {error}") if source else error) from None


def readable(error: ValidationError, source: str | None = None) -> ConfigError:
    """Put a failed check into words: setting, what was given, what is expected, what to do."""
    section = _prefix_of(error.title)
    messages = [
        _one(item["type"], (*section, *item["loc"]), item["input"], source)
        for item in error.errors(include_url=False, include_context=False)
    ]
    return ConfigError("\n".join(dict.fromkeys(messages)))


def _one(kind: str, location: tuple[int | str, ...], value: Any, source: str | None) -> str:
    path, annotation, inside = _locate(location)
    if kind == "extra_forbidden":
        return str(unknown_setting(".".join(str(part) for part in location), source))
    if kind == "missing":  # a pair with one entry: what was given is the whole, not the entry
        inside = inside[:-1]
    where = path + "".join(f"[{part}]" for part in inside)
    return explain(
        f"{source}: {where}" if source else where,
        found=f"got {value!r}",
        expected=words.describe(annotation),
        remedy=_remedy(path, annotation),
    )


def _remedy(path: str, annotation: Any) -> str:
    if words.subsection(annotation) is not None:
        return f"give {path} as a table, or one of its settings as {path}.NAME=value"
    return "correct it, or leave it out for its default (docs/configuration.md)"


def _locate(location: tuple[int | str, ...]) -> tuple[str, Any, tuple[int | str, ...]]:
    """Split a location into the setting's name, its annotation, and what lies inside it."""
    for end in range(len(location), 0, -1):
        path = ".".join(str(part) for part in location[:end])
        annotation = words.find(path)
        if annotation is not None:
            return path, annotation, location[end:]
    return "config", Config, location


def _prefix_of(title: str) -> tuple[str, ...]:
    """Where a section lies, by its class name: an assignment is checked without its parents."""
    pending: list[tuple[tuple[str, ...], type]] = [((), Config)]
    while pending:
        prefix, section = pending.pop()
        if section.__name__ == title:
            return prefix
        for name, annotation in words.field_annotations(section).items():
            inner = words.subsection(annotation)
            if inner is not None:
                pending.append(((*prefix, name), inner))
    return ()
