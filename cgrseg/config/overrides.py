"""Settings given as text: `optimizer.lr=1e-4 test.ratios=[0.5,1] model.pretrained=null`.

A value is read as JSON, else as a Python literal, else it is text as it stands.  Where
the setting can hold text and not what was read, the text is meant: `name=2024` names a
run '2024'.  To be explicit, quote: `name="null"`.
"""

from __future__ import annotations

import ast
import copy
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from cgrseg.config import words
from cgrseg.config.schema import Config
from cgrseg.config.suggestions import remedy_for_setting
from cgrseg.errors import ConfigError


def parse_value(text: str) -> Any:
    """Read a value: JSON (`1e-4`, `true`, `null`, `[1, 2]`), Python (`(1, 2)`, `None`), or text.

    Text that only looks like a number to Python (NaN, Infinity) stays text.
    """
    stripped = text.strip()
    try:
        return json.loads(stripped, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if _is_plain(value) else text


def split_override(text: str) -> tuple[str, str]:
    """Separate `key=value`; the value may hold further equals signs.

    Raises:
        ConfigError: there is no equals sign, or nothing before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"override {text!r}",
            found="it is not of the form key=value",
            expected="for example optimizer.lr=1e-4",
            remedy="write the setting's name, an equals sign and the value, without spaces "
            "around the sign; quote the whole where the shell would take it apart",
        )
    return key.strip(), value


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` texts into dotted names and values; the last of a name wins.

    Raises:
        ConfigError: a text that is not key=value, or a setting that does not exist.
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        key, raw = split_override(text)
        parsed.pop(key, None)
        parsed[key] = _meant(key, raw)
    return parsed


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree of settings with changes laid over it.

    Args:
        tree: nested settings, as `Config.model_dump()` gives them.
        changes: dotted names or nested tables; tables merge into sections and replace
            whole settings (a list, a table of class names).

    Raises:
        ConfigError: a setting that does not exist.
    """
    result = copy.deepcopy(dict(tree))
    for key, value in _flatten(changes, ""):
        target = result
        *parents, leaf = key
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[leaf] = copy.deepcopy(value)
    return result


def unknown_setting(path: str, source: str | None = None) -> ConfigError:
    """The error for a setting that does not exist; it names the one that was meant."""
    section = path.rpartition(".")[0]
    inner = words.subsection(words.find(section) if section else Config)
    if inner is None:
        section, inner = "", Config
    known = ", ".join(inner.model_fields)
    return ConfigError(
        path if source is None else f"{source}: {path}",
        found="there is no such setting",
        expected=f"in {section or 'the config'}: {known}",
        remedy=remedy_for_setting(path),
    )


def _flatten(changes: Mapping[str, Any], prefix: str) -> Iterable[tuple[list[str], Any]]:
    for key, value in changes.items():
        path = f"{prefix}{key}"
        annotation = words.find(path)
        if annotation is not None:
            if words.subsection(annotation) is not None and isinstance(value, Mapping):
                yield from _flatten(value, f"{path}.")
            else:
                yield path.split("."), value
            continue
        table, _, entry = path.rpartition(".")
        table_annotation = words.find(table) if table else None
        if table_annotation is None or not words.admits(table_annotation, dict):
            raise unknown_setting(path)
        yield [*table.split("."), entry], value


def _meant(key: str, raw: str) -> Any:
    value = parse_value(raw)
    annotation = words.find(key)
    if annotation is None:
        table, _, _ = key.rpartition(".")
        annotation = words.find(table) if table else None
        if annotation is None or not words.admits(annotation, dict):
            raise unknown_setting(key)
        return value
    wants_text = words.admits(annotation, str)
    return raw if wants_text and not words.admits(annotation, type(value)) else value


def _is_plain(value: Any) -> bool:
    """Whether a Python literal has a counterpart among settings (sets and bytes have none)."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(name)
