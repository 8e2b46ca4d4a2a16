"""Table of all options of all commands, for `docs/commands.md` and its test."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from cgrseg.cli.common import OLD_NAMES

_SENTENCE = re.compile(r"(?<=[^.]\.)\s+(?=[A-Z`'])")


@dataclass(frozen=True)
class OptionUse:
    """An option of one command.

    Attributes:
        command: name below `cgrseg`, e.g. `data check`.
        name: long name, e.g. `--size`.
        short: short names, e.g. `-o`.
        value: form of the value, e.g. `INTEGER` or `HEIGHTxWIDTH`; empty for a flag.
        repeats: whether it may be repeated.
        meaning: first sentence of the help, equal in all commands.
        detail: further sentences, which differ between commands.
    """

    command: str
    name: str
    short: tuple[str, ...]
    value: str
    repeats: bool
    meaning: str
    detail: str


def option_uses() -> list[OptionUse]:
    """Every option of every command, by command."""
    return [
        _use(name, param, hints.get(param.name))
        for name, command in commands()
        for hints in [typing.get_type_hints(inspect.unwrap(command.callback))]
        for param in command.params
        if param.param_type_name == "option" and param.name != "help"
    ]


def commands() -> Iterator[tuple[str, Any]]:
    """All commands as (name below `cgrseg`, command of typer); groups are left out."""
    from cgrseg.cli.main import app

    yield from _below(typer.main.get_command(app), "")


def markdown_commands() -> str:
    """The reference as Markdown: one table of options, then each command's arguments."""
    uses = option_uses()
    lines = [
        "## Options\n",
        "One name, short form and meaning in every command.\n",
        "| option | value | meaning | commands |\n|---|---|---|---|",
    ]
    for name in sorted({use.name for use in uses}):
        own = [use for use in uses if use.name == name]
        names = ", ".join(f"`{each}`" for each in (name, *own[0].short))
        value = f"`{_cell(own[0].value)}`" if own[0].value else ""
        places = ", ".join(
            f"`{use.command}`{' (repeatable)' if use.repeats else ''}" for use in own
        )
        lines.append(f"| {names} | {value} | {_cell(own[0].meaning)} | {places} |")
    lines += ["", "## Commands\n"]
    for name, command in commands():
        usage = " ".join(
            str(each.metavar or str(each.name).upper()) for each in _arguments(command)
        )
        lines.append(f"### `cgrseg {f'{name} {usage}'.strip()}`\n")
        lines.append((command.help or "").split("\n\n")[0].replace("\n", " ") + "\n")
        details = [
            *((str(p.metavar or str(p.name).upper()), p.help) for p in _arguments(command)),
            *((use.name, use.detail) for use in uses if use.command == name and use.detail),
        ]
        lines += [f"- `{what}`: {text}" for what, text in details if text]
        lines.append("")
    lines += ["## Old names\n", "They still work and print a note.\n"]
    lines.append("| command | old | now |\n|---|---|---|")
    lines += [
        f"| `{command}` | `{old}` | `{new}` |"
        for command, names in OLD_NAMES.items()
        for old, new in names.items()
    ]
    lines.append("| `bench` | `--json FILE` | `--out FILE` |")
    lines.append(
        "| `bench`, `info`, `data synth` | `--size HEIGHT WIDTH` | `--size HEIGHTxWIDTH` |"
    )
    return "\n".join(lines)


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for key, child in children.items():
        yield from _below(child, f"{name} {key}".strip())


def _use(command: str, param: Any, annotation: Any) -> OptionUse:
    names = [name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]
    meaning, *details = _SENTENCE.split(param.help or "", maxsplit=1)
    return OptionUse(
        command,
        "/".join(names),
        tuple(name for name in param.opts if not name.startswith("--")),
        str(param.metavar or _value(annotation)),
        bool(param.multiple),
        meaning,
        " ".join(details),
    )


def _value(annotation: Any) -> str:
    """Metavar for an annotation; empty for a flag."""
    kinds = [each for each in typing.get_args(annotation) or [annotation] if each is not type(None)]
    kind = typing.get_args(kinds[0])[0] if typing.get_args(kinds[0]) else kinds[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(each.value) for each in kind)
    return {bool: "", int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _arguments(command: Any) -> list[Any]:
    return [param for param in command.params if param.param_type_name == "argument"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
