"""Shared by all commands: printing, errors, and `key=value` settings."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from cgrseg.console import plain_warnings, report_problem
from cgrseg.errors import (
    EXIT_PROBLEM,
    CGRSegError,
    ConfigError,
    FrontEnd,
    speaking_as,
)
from cgrseg.processes import is_first_process
from cgrseg.surroundings import LEAST_WIDTH, readable_machine_problems

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cgrseg.config.schema import TestConfig

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Class of typer's errors about wrong usage, from its own copy of click or another package's."""

_Result = TypeVar("_Result")
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")

COMPILE_CHOICES = ("auto", "on", "off")
"""Values of `--compile`."""

EXIT_PARTLY = 1
"""Exit status when the work is done but for some files, which were named."""

EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""


OLD_NAMES: dict[str, dict[str, str]] = {
    "train": {"--auto-resume": "--resume"},
    "evaluate": {"--aug-test": "--multi-scale"},
    "predict": {"--aug-test": "--multi-scale"},
    "export": {"--batch": "--batch-size", "--images": "--calibration-images"},
    "bench": {"--batch": "--batch-size"},
    "demo": {"--held-out-scenes": "--val-scenes"},
    "data browse": {"--count": "--limit"},
    "data synth": {"--train": "--train-scenes", "--val": "--val-scenes"},
    "data convert coco-stuff10k": {"--images": "--image-mode", "--lists": "--split"},
    "data convert labelme": {"--images": "--image-mode"},
    "data convert coco": {"--images": "--image-mode"},
    "data convert rgb": {"--images": "--image-mode", "--colours": "--colors"},
}
"""Command to its renamed options: old name to new name."""


class Command(TyperCommand):
    """A command that accepts old names of options and explains wrong usage."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments of the command."""
        name = _name_below_root(ctx)
        args, notes = present_names(name, args)
        if any("--compile" in param.opts for param in self.params):
            args = with_compile_value(args)
        if not ctx.resilient_parsing:
            for note in notes:
                print(f"note: {note}", file=sys.stderr, flush=True)

        def parse() -> list[str]:
            rest = list(super(Command, self).parse_args(ctx, list(args)))
            for param in self.params:
                value = ctx.params.get(param.name)
                # Ranges accept nan: it is neither smaller nor greater than a bound.
                if isinstance(value, float) and not math.isfinite(value):
                    raise typer.BadParameter(
                        f"{value} is not a finite number.", ctx, cast(Any, param)
                    )
            return rest

        return _explained(ctx, args, parse)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Usage line, with the metavar of each argument."""
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        return [self.options_metavar or "", *(str(each.metavar or each.name) for each in arguments)]


# Resources that a command releases when it ends.
_UNTIL_THE_END: ContextVar[contextlib.ExitStack] = ContextVar("until the end")


class Commands(TyperGroup):
    """The group of commands: problems become messages, never stack traces."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options of the group itself."""
        return _explained(ctx, args, lambda: list(super(Commands, self).parse_args(ctx, args)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of the arguments."""
        return _explained(ctx, args, lambda: super(Commands, self).resolve_command(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with plain_warnings(), speaking_as(FrontEnd.CGRSEG):
            try:
                with readable_machine_problems(), contextlib.ExitStack() as ending:
                    _UNTIL_THE_END.set(ending)
                    return super().invoke(ctx)
            except CGRSegError as error:
                report_problem(error)
                raise typer.Exit(EXIT_PROBLEM) from None
            except KeyboardInterrupt:
                print("\nstopped", file=sys.stderr, flush=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None


def hold_lock(folder: Path, *, below: bool = False) -> None:
    """Hold the lock of an output folder until the command ends.

    Args:
        folder: output folder.
        below: whether the command writes into subfolders too.

    Raises:
        EnvironmentProblem: another command holds it.
    """
    from cgrseg.locks import output_lock

    _UNTIL_THE_END.get().enter_context(output_lock(folder, below=below))


def make_console(*, stderr: bool = False) -> Console:
    """Console for results; only the first process prints."""
    from rich.console import Console

    console = Console(quiet=not is_first_process(), highlight=False, stderr=stderr)
    if console.width < LEAST_WIDTH:
        console.width = LEAST_WIDTH
    return console


def make_table(*columns: str, title: str | None = None) -> Table:
    """Plain table of a text column and number columns."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def with_changes(settings: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """`key=value` texts and options of a command as one table of changes.

    Args:
        settings: the texts, which win over the options.
        **options: dotted names with `__` for the dot, e.g. `data__root`; None: not given.

    Raises:
        ConfigError: a text that is not key=value, or a setting that does not exist.
    """
    from cgrseg.config.settings import parse_overrides

    given = {name.replace("__", "."): v for name, v in options.items() if v is not None}
    return {**given, **parse_overrides(settings or ())}


def test_settings(test: TestConfig, settings: Sequence[str], *, multi_scale: bool) -> TestConfig:
    """Test settings with `key=value` changes, for commands that predict.

    Raises:
        ConfigError: a setting of another section, one that does not exist, or a wrong value.
    """
    from cgrseg.config.settings import changed_test_settings
    from cgrseg.inference import augmented

    changes = of_sections(settings, ("test",))
    if changes:
        test = changed_test_settings(test, changes)
    return augmented(test) if multi_scale else test


def compile_choice(text: str) -> bool | Literal["auto"]:
    """Value of `--compile` as Python takes it.

    Raises:
        ConfigError: no such choice.
    """
    if text not in COMPILE_CHOICES:
        raise ConfigError(
            "--compile",
            found=repr(text),
            expected=", ".join(COMPILE_CHOICES),
            remedy="correct it, or leave it out for its default",
        )
    return "auto" if text == "auto" else text == "on"


def of_sections(settings: Sequence[str], sections: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a table of changes, limited to some sections of the config.

    Raises:
        ConfigError: a setting of another section, or one that does not exist.
    """
    changes = with_changes(settings)
    for name in changes:
        if name.partition(".")[0] not in sections:
            raise ConfigError(
                name,
                found="this command does not use the setting",
                expected=f"settings of the section {' or '.join(sections)}",
                remedy="leave it out",
            )
    return changes


def model_options(settings: Sequence[str]) -> dict[str, Any]:
    """`model.*` settings as arguments of :func:`cgrseg.create_model`.

    Raises:
        ConfigError: a setting that does not shape a network, or a wrong value.
    """
    from cgrseg.config.settings import build, merge

    shaping = ("head", "context_blocks", "attention_bias")
    changes = of_sections(settings, ("model",))
    for name in changes:
        if name.partition(".")[2] not in shaping:
            raise ConfigError(
                name,
                found="it does not change the size or the speed of a network",
                expected=" or ".join(f"model.{each}" for each in shaping),
                remedy="leave it out; the variant itself is named as MODEL",
            )
    model = build(merge({}, changes)).model
    return {name: getattr(model, name) for name in shaping}


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and `key=value` settings among the arguments of a command.

    A word of the form `key=value` is a setting unless a file of that name exists.
    """
    settings = [text for text in arguments if _SETTING.match(text) and not os.path.lexists(text)]
    return [text for text in arguments if text not in settings], settings


def _name_below_root(ctx: Any) -> str:
    """Name of a command below `cgrseg`, e.g. `data browse`; empty for the root."""
    parts = []
    while ctx.parent is not None:
        parts.append(ctx.info_name)
        ctx = ctx.parent
    return " ".join(reversed(parts))


def _explained(ctx: Any, args: Sequence[str], work: Callable[[], _Result]) -> _Result:
    """Run `work`; wrong usage and problems are printed, and the command ends with status 2."""
    try:
        return work()
    except _UsageError as error:
        if ctx.resilient_parsing or type(error).__name__ == "NoArgsIsHelpError":
            raise  # completion, or a group without a command: typer prints the help
        problem: CGRSegError = _usage_problem(error, ctx, _name_below_root(ctx), args)
    except CGRSegError as error:
        problem = error
    report_problem(problem)
    raise typer.Exit(EXIT_PROBLEM) from None


def present_names(command: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Replace old names of options.

    Args:
        command: its name below `cgrseg`, e.g. `data browse`.
        arguments: as typed.

    Returns:
        The arguments with new names, and a note for each replaced one.
    """
    names = OLD_NAMES.get(command, {})
    result: list[str] = []
    notes: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*result, word, *rest], notes
        name, equals, value = word.partition("=")
        if name in names:
            notes.append(f"{name} is now {names[name]}")
            word = f"{names[name]}{equals}{value}"
        if word == "--size" and len(rest) > 1 and rest[0].isdecimal() and rest[1].isdecimal():
            # The old form had two values; no command takes a number after --size.
            height, width = rest.pop(0), rest.pop(0)
            notes.append(f"--size {height} {width} is now --size {height}x{width}")
            rest.insert(0, f"{height}x{width}")
        elif command == "bench" and word == "--json" and rest and rest[0].endswith(".json"):
            notes.append("--json FILE is now --out FILE; --json alone prints")
            word = "--out"
        elif word in ("--batch-size", "--size") and rest[:1] == ["any"]:
            notes.append(f"{word} any is the default")
            rest.pop(0)
            continue
        result.append(word)
    return result, notes


def with_compile_value(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--compile` has a value: alone it means on, `--no-compile` means off.

    A word after it is its value if it is one of the choices and no file has that name.
    """
    result: list[str] = []
    rest = list(arguments)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        if word == "--compile":
            given = rest and rest[0] in COMPILE_CHOICES and not os.path.lexists(rest[0])
            word = f"--compile={rest.pop(0) if given else 'on'}"
        elif word == "--no-compile":
            word = "--compile=off"
        result.append(word)
    return [*result, *rest]


def _usage_problem(error: Any, ctx: Any, command: str, args: Sequence[str]) -> ConfigError:
    """Error for wrong usage of a command.

    Args:
        error: exception of typer.
        ctx: context of the command.
        command: its name below `cgrseg`; empty for the root.
        args: arguments as typed.
    """
    from cgrseg.config.suggestions import unknown_option

    help_command = f"cgrseg {command} --help".replace("  ", " ")
    unknown = getattr(error, "option_name", None)
    params = ctx.command.params
    if unknown is not None and not _known(unknown, params):
        settings = any("KEY=VALUE" in str(each.metavar) for each in params)
        return unknown_option(
            unknown,
            _option_names(params),
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


def _option_names(params: Iterable[Any]) -> list[str]:
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
    """Message of typer about a value, with the value."""
    given = [value for name, value in itertools.pairwise(args) if name in names]
    given += [
        word.partition("=")[2] for word in args if word.startswith(tuple(f"{n}=" for n in names))
    ]
    return f"{given[-1]!r}: {message}".rstrip(".") if given else message.rstrip(".")


def _usage(ctx: Any) -> str:
    return str(ctx.get_usage()).removeprefix("Usage:").strip()
