"""`cgrseg data convert` and the scripts of `tools/convert_datasets`, made from the formats.

A format (:mod:`cgrseg.data.convert.formats`) declares its options once, as fields with help texts.
Formats are imported when the group is used, so that `cgrseg --help` answers at once.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import typer

from cgrseg.cli.common import EXIT_PARTLY, Command, Commands, make_console
from cgrseg.cli.options import AsJson, Workers, out_option, overwrite_option, split_option
from cgrseg.errors import (
    ConfigError,
)
from cgrseg.progress import shown_progress

if TYPE_CHECKING:
    from cgrseg.data.convert.format import Format, Option


class FormatCommands(Commands):
    """The group `cgrseg data convert`: one command per format."""

    @property
    def commands(self) -> Any:
        """Commands by name, made when they are first asked for."""
        return _commands()

    @commands.setter
    def commands(self, value: Any) -> None:
        pass  # typer gives the commands that were registered: none


app = typer.Typer(
    cls=FormatCommands,
    no_args_is_help=True,
    help="Convert annotations to label PNGs. Finished files are kept, so the same command resumes "
    "an interrupted conversion. Damaged input is named and skipped; the exit status is then 1.",
)


@functools.cache
def _commands() -> dict[str, Any]:
    from cgrseg.data.convert.formats import formats

    group = typer.Typer()
    group.callback()(lambda: None)
    for name, kind in formats().items():
        group.command(name, cls=Command)(_command(kind))
    return dict(typer.main.get_group(group).commands)


@dataclass(frozen=True)
class _Parameter:
    """Command-line form of a field.

    Attributes:
        field: name of the field.
        name: name on the command line.
        kind: type for typer; lists of names are texts.
        form: typer's argument or option.
        default: value where it is not given.
        name_list: the value is a list of names, as :func:`read_names` takes it.
    """

    field: str
    name: str
    kind: Any
    form: Any
    default: Any
    name_list: bool = False


def _parameters(kind: type[Format]) -> list[_Parameter]:
    from cgrseg.data.convert.format import Option, options_of

    shared = {"out": out_option, "overwrite": overwrite_option, "split": split_option}
    defaults = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    found = []
    for field, (hint, given) in options_of(kind).items():
        name, default = given.name or field, defaults[field]
        if not isinstance(given, Option):
            argument = typer.Argument(help=given.help, show_default=False)
            found.append(_Parameter(field, name, hint, argument, inspect.Parameter.empty))
            continue
        flag = f"--{name.replace('_', '-')}"
        option = typer.Option(flag, help=given.help, min=given.least, max=given.most)
        if name in shared:
            option = shared[name](given.help)
        elif field == "workers":
            option = typing.get_args(Workers)[1]
        found.append(
            _Parameter(field, name, _type(hint, given), option, default or None, given.name_list)
        )
    return found


def _type(hint: Any, option: Option) -> Any:
    """The type of an option for typer."""
    if typing.get_origin(hint) is Literal:
        return Enum("Choice", [(each, each) for each in typing.get_args(hint)], type=str)
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    if any(typing.get_origin(each) is Sequence for each in parts):
        return (str if option.name_list else list[str]) | None
    kind = Path if Path in parts else parts[0]
    return kind if kind is bool else kind | None


def _command(kind: type[Format]) -> Callable[..., None]:
    """The function of a command: one parameter for each field of the format."""
    own = _parameters(kind)
    parameters: list[tuple[str, Any, Any]] = []
    for each in own:
        if each.field == "out" and each.default is inspect.Parameter.empty:
            # The folder for the result may be given either way.
            argument = typer.Argument(
                metavar="[OUT]",
                help=f"{each.form.help.rstrip('.')}; the same as --out.",
                show_default=False,
            )
            option = out_option(each.form.help)
            parameters.append(("out", Annotated[Path | None, argument], None))
            parameters.append(("out_path", Annotated[Path | None, option], None))
        else:
            parameters.append((each.name, Annotated[each.kind, each.form], each.default))
    parameters.append(("as_json", AsJson, False))

    def convert(**given: Any) -> None:
        as_json = given.pop("as_json")
        if "out_path" in given:
            given["out"] = _target(kind.name, given["out"], given.pop("out_path"))
        for each in own:
            if each.name_list:
                given[each.name] = read_names(given[each.name])
        with shown_progress("converting", not as_json) as progress:
            report = run_conversion(_format(kind, given, own), progress)
        if as_json:
            typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        else:
            make_console().print(report.text(), markup=False, soft_wrap=True)
        if report.exit_code:
            raise typer.Exit(EXIT_PARTLY)

    from cgrseg.data.convert.runner import run_conversion

    convert.__doc__ = inspect.cleandoc(kind.__doc__ or "")
    convert.__annotations__ = {name: hint for name, hint, _ in parameters}
    convert.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
            )
            for name, hint, default in parameters
        ]
    )
    return convert


def _format(kind: type[Format], given: Mapping[str, Any], own: Sequence[_Parameter]) -> Format:
    """The format with the values of a command line; None leaves a field at its default."""
    values = {each.field: given[each.name] for each in own if given[each.name] not in (None, [])}
    return kind(**{k: v.value if isinstance(v, Enum) else v for k, v in values.items()})


# Names of flags that the users of mmsegmentation's scripts know, by field.
_SCRIPT_FLAGS = {
    "colors": "colours",
    "image_mode": "images",
    "lists": "lists",
    "out": "out-dir",
    "workers": "nproc",
}


def convert_script(
    name: str,
    first_arguments: Mapping[str, str] | None = None,
    adapt: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Run a script of `tools/convert_datasets`: the command `name`, with lists after one flag.

    Args:
        name: name of the format.
        first_arguments: arguments before those of the command, with their help texts.
        adapt: changes the values, which are by the names of the command.

    Returns:
        Exit status: 0 all well, 1 something was skipped, 2 nothing could be done, 128 plus the
        number of a signal that ended it.
    """
    from cgrseg.config.flags import FlagParser, run_script
    from cgrseg.data.convert.formats import formats
    from cgrseg.data.convert.runner import run_conversion

    kind = formats()[name]
    own = _parameters(kind)
    parser = FlagParser(
        prog=f"tools/convert_datasets/{Path(sys.argv[0]).name}",
        description=inspect.cleandoc(kind.__doc__ or "").partition("\n")[0],
        takes_settings=False,
    )
    for argument, text in (first_arguments or {}).items():
        parser.add_argument(argument, help=text)
    for each in own:
        options: dict[str, Any] = {"help": each.form.help}
        if each.default is inspect.Parameter.empty:
            parser.add_argument(each.name, type=Path, **options)
            continue
        kinds = typing.get_args(each.kind) or (each.kind,)
        if each.kind is bool:
            options["action"] = "store_true"
        elif each.name_list or list[str] in kinds:
            options |= {"nargs": "+", "action": "extend"}
        elif isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
            options["choices"] = [choice.value for choice in kinds[0]]
        else:
            options["type"] = kinds[0]
        name_now = each.name.replace("_", "-")
        flags = [f"--{flag}" for flag in (_SCRIPT_FLAGS.get(each.field, name_now), name_now)]
        short = ["-o"] if each.field == "out" else []
        parser.add_argument(*short, *dict.fromkeys(flags), dest=each.name, **options)
    given = vars(parser.parse_args())
    for each in own:
        if each.name_list and len(given[each.name] or ()) == 1:
            given[each.name] = read_names(given[each.name][0])
    if adapt is not None:
        adapt(given)

    def work() -> int:
        with shown_progress("converting", sys.stderr.isatty()) as progress:
            report = run_conversion(_format(kind, given, own), progress)
        print(report.text())
        return report.exit_code

    return run_script(work)


def _target(command: str, argument: Path | None, option: Path | None) -> Path:
    """The folder for the result, given once, as an argument or as an option."""
    if (argument is None) == (option is None):
        raise ConfigError(
            f"cgrseg data convert {command} --out",
            found="it is missing" if option is None else f"both {argument} and {option}",
            expected="one folder for the result",
            remedy="give it once, for example --out data/mine",
        )
    return argument or option or Path()


def read_names(text: str | None) -> list[str] | None:
    """Class names from a text file, or separated by commas."""
    if text is None:
        return None
    if Path(text).is_file():
        from cgrseg.class_names import read_class_list

        return list(read_class_list(Path(text)))
    return text.split(",")
