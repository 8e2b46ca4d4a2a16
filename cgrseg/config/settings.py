"""Settings as tables and as text: `key=value` texts are parsed, tables merged and checked.

Texts look like `optimizer.lr=1e-4 test.ratios=[0.5,1] model.pretrained=null`.  A value is read as
JSON, else as a Python literal, else it is text.  Where the setting accepts text but not the value
that was read, the text is meant: `name=2024` names a run '2024'.  Quotes make it explicit:
`name="null"`.  Lists of texts need no quotes: `data.classes=[sky,road]`, or `sky,road`.
"""

from __future__ import annotations

import ast
import copy
import json
import logging
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cgrseg.config.fields import admits, describe, field_annotations, subsection
from cgrseg.config.schema import ChannelTestConfig, Config, TestConfig, find_setting
from cgrseg.config.suggestions import EXACT, remedy_for_setting
from cgrseg.errors import ConfigError, WeightsError, explain
from cgrseg.processes import is_first_process

_LOG = logging.getLogger("cgrseg.config")

NUM_CLASSES = "model.decode_head.num_classes"
"""Name in mmsegmentation of the number of classes, which follows from the class list here."""


def parse_value(text: str) -> Any:
    """Parse a value: JSON (`1e-4`, `true`, `null`, `[1, 2]`), Python (`(1, 2)`, `None`), or text.

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
    """Parse `key=value` texts into a table by dotted names; the last value of a name wins.

    Names of mmsegmentation with the same meaning and unit are replaced, with a line that says so.
    `NUM_CLASSES` stays, for :func:`cgrseg.config.loading.load_config` to compare.

    Raises:
        ConfigError: a text that is not key=value, or a setting that does not exist.
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        typed, raw = split_override(text)
        key = EXACT.get(typed, typed)
        if key != typed and is_first_process():
            _LOG.info("%s is %s here", typed, key)
        parsed.pop(key, None)
        parsed[key] = parse_value(raw) if key == NUM_CLASSES else _meant(key, raw)
    return parsed


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of nested settings with changes applied.

    Args:
        tree: nested settings, as from `Config.model_dump()`.
        changes: dotted names or nested tables; sections are merged, settings (also lists and
            tables of class names) are replaced.

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
    """Error for a setting that does not exist, with the most likely one as remedy."""
    section = path.rpartition(".")[0]
    inner = subsection(find_setting(section) if section else Config)
    if inner is None:
        section, inner = "", Config
    known = ", ".join(inner.model_fields)
    return ConfigError(
        path if source is None else f"{source}: {path}",
        found="there is no such setting",
        expected=f"in {section or 'the config'}: {known}",
        remedy=remedy_for_setting(path),
    )


def build(settings: Mapping[str, Any], source: str | None = None) -> Config:
    """Check nested settings and build a config.

    Args:
        settings: tables as from `Config.model_dump()`; missing settings take their defaults.
        source: file or override of the settings, for messages.

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
    """Readable form of a failed check: setting, given value, expected values, remedy."""
    section = _prefix_of(error.title)
    messages = [
        _one(item["type"], (*section, *item["loc"]), item["input"], source)
        for item in error.errors(include_url=False, include_context=False)
    ]
    return ConfigError("\n".join(dict.fromkeys(messages)))


def _flatten(changes: Mapping[str, Any], prefix: str) -> Iterable[tuple[list[str], Any]]:
    for key, value in changes.items():
        path = f"{prefix}{key}"
        annotation = find_setting(path)
        if annotation is not None:
            if subsection(annotation) is not None and isinstance(value, Mapping):
                yield from _flatten(value, f"{path}.")
            else:
                yield path.split("."), value
            continue
        table, _, entry = path.rpartition(".")
        table_annotation = find_setting(table) if table else None
        if table_annotation is None or not admits(table_annotation, dict):
            raise unknown_setting(path)
        yield [*table.split("."), entry], value


def _meant(key: str, raw: str) -> Any:
    value = parse_value(raw)
    annotation = find_setting(key)
    if annotation is None:
        table, _, _ = key.rpartition(".")
        annotation = find_setting(table) if table else None
        if annotation is None or not admits(annotation, dict):
            raise unknown_setting(key)
        return value
    if isinstance(value, str) and _lists_texts(annotation):
        inside = value.removeprefix("[").removesuffix("]")
        return [str(parse_value(each.strip())) for each in inside.split(",")]
    if _takes_any_text(annotation) and not admits(annotation, type(value)):
        return raw
    return value


def _takes_any_text(annotation: Any) -> bool:
    """Whether a setting may be any text, and not certain words alone."""
    if typing.get_origin(annotation) is typing.Literal:
        return False
    parts = typing.get_args(annotation)
    is_list = typing.get_origin(annotation) in (list, tuple, dict)
    return annotation is str or (not is_list and any(map(_takes_any_text, parts)))


def _lists_texts(annotation: Any) -> bool:
    """Whether a setting is a list of texts or names, perhaps null, and no text itself."""
    if admits(annotation, str) or not admits(annotation, list):
        return False
    inside = annotation
    while typing.get_origin(inside) is not list:
        parts = [part for part in typing.get_args(inside) if admits(part, list)]
        inside = parts[0]
    return admits(typing.get_args(inside)[0], str)


def _is_plain(value: Any) -> bool:
    """Whether a Python literal can be a setting (sets and bytes cannot)."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(name)


def _one(kind: str, location: tuple[int | str, ...], value: Any, source: str | None) -> str:
    path, annotation, inside = _locate(location)
    if kind == "extra_forbidden":
        return str(unknown_setting(".".join(str(part) for part in location), source))
    if not admits(annotation, dict):  # names of the parts of a union are for programmers
        inside = tuple(part for part in inside if isinstance(part, int))
    if kind == "missing":  # a pair with one entry: the given value is the whole pair
        inside = inside[:-1]
    where = path + "".join(f"[{part}]" for part in inside)
    return explain(
        f"{source}: {where}" if source else where,
        found=f"got {value!r}",
        expected=describe(annotation),
        remedy=_remedy(path, annotation),
    )


def _remedy(path: str, annotation: Any) -> str:
    if subsection(annotation) is not None:
        return f"give {path} as a table, or one of its settings as {path}.NAME=value"
    return "correct it, or leave it out for its default (docs/configuration.md)"


def _locate(location: tuple[int | str, ...]) -> tuple[str, Any, tuple[int | str, ...]]:
    """Split a location into the name of a setting, its annotation, and the part inside it."""
    for end in range(len(location), 0, -1):
        path = ".".join(str(part) for part in location[:end])
        annotation = find_setting(path)
        if annotation is not None:
            return path, annotation, location[end:]
    return "config", Config, location


def _prefix_of(title: str) -> tuple[str, ...]:
    """Path of a section by its class name: pydantic checks an assignment without the parents."""
    pending: list[tuple[tuple[str, ...], type]] = [((), Config)]
    while pending:
        prefix, section = pending.pop()
        if section.__name__ == title:
            return prefix
        for name, annotation in field_annotations(section).items():
            inner = subsection(annotation)
            if inner is not None:
                pending.append(((*prefix, name), inner))
    return ()


def stored_test_settings(settings: Mapping[str, Any] | None, source: str | Path) -> TestConfig:
    """Test settings stored in a file.

    Args:
        settings: settings by name; None: the file holds none, and those published for ADE20K are
            used.
        source: the file, for messages.

    Raises:
        WeightsError: settings that this version does not have.
    """
    if settings is None:
        _LOG.warning(
            "%s holds no test settings; the published ones of ADE20K are used (short side 512)",
            source,
        )
        return TestConfig()
    try:
        return (ChannelTestConfig if "channels" in settings else TestConfig)(**settings)
    except (ValidationError, ConfigError, TypeError) as error:
        raise WeightsError(
            source,
            found=f"test settings that cannot be used ({error})",
            expected="those of a run, as this version writes them",
            remedy="pass test=TestConfig(...) to from_pretrained, or update cgrseg",
        ) from error


def changed_test_settings(test: TestConfig, changes: Mapping[str, Any]) -> TestConfig:
    """Test settings with changes of `test.*`; the channels of the images stay.

    Raises:
        ConfigError: a setting that does not exist, or a value that does not fit.
    """
    plain = test.model_dump(include=set(TestConfig.model_fields))
    changed = build(merge({"test": plain}, changes)).test
    return test.model_copy(update=dict(changed))
