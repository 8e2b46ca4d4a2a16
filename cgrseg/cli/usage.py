"""Messages for a command line that was typed wrong: an option, a value, a missing argument."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from cgrseg.errors import ConfigError

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Class of typer's errors about wrong usage, from its own copy of click or another package's."""


def usage_problem(error: Any, ctx: Any, command: str, args: Sequence[str]) -> ConfigError:
    """The message for wrong usage of a command.

    Args:
        error: what typer raised.
        ctx: the context of the command.
        command: its name below `cgrseg`; empty for the root.
        args: what was typed after it.
    """
    from cgrseg.config.suggestions import unknown_option

    help_command = f"cgrseg {command} --help".replace("  ", " ")
    unknown = getattr(error, "option_name", None)
    params = ctx.command.params
    if unknown is not None and not _known(unknown, params):
        settings = any("KEY=VALUE" in str(each.metavar) for each in params)
        return unknown_option(
            unknown,
            option_names(params),
            help_command,
            (lambda setting: f"{setting}=VALUE, without dashes") if settings else None,
        )
    param = getattr(error, "param", None)
    if param is None:
        return ConfigError(
            f"cgrseg {command}".strip(),
            found=error.format_message().rstrip("."),
            expected=_usage(ctx),
            remedy=f"see {help_command}",
        )
    name = (
        param.opts[0]
        if param.param_type_name == "option"
        else param.metavar or str(param.name).upper()
    )
    missing = type(error).__name__ == "MissingParameter"
    return ConfigError(
        f"cgrseg {command} {name}",
        found="it is missing" if missing else _found(error.message, param.opts, args),
        expected=(param.help or _usage(ctx)).rstrip("."),
        remedy=f"{'give' if missing else 'correct'} it; {help_command} has examples",
    )


def option_names(params: Iterable[Any]) -> list[str]:
    """Long names of the options among the parameters of a command."""
    return [
        name
        for param in params
        if param.param_type_name == "option" and not param.hidden
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("--")
    ]


def _known(name: str, params: Iterable[Any]) -> bool:
    return any(name in (*param.opts, *param.secondary_opts) for param in params)


def _found(message: str, names: Sequence[str], args: Sequence[str]) -> str:
    """Typer's message about a value, with the value."""
    given = [value for name, value in itertools.pairwise(args) if name in names]
    given += [
        word.partition("=")[2] for word in args if word.startswith(tuple(f"{n}=" for n in names))
    ]
    return f"{given[-1]!r}: {message}".rstrip(".") if given else message.rstrip(".")


def _usage(ctx: Any) -> str:
    return str(ctx.get_usage()).removeprefix("Usage:").strip()
