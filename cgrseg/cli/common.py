"""What all commands share: how they print, fail and read `key=value` settings."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cgrseg.errors import CGRSegError, is_first_process, plain_warnings, report_problem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXIT_PROBLEM = 2
"""Exit status when input, settings or surroundings do not allow the work."""

EXIT_PARTLY = 1
"""Exit status when the work is done but for some files, which were named."""

EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Any settings of the config, e.g. optimizer.lr=1e-4 (docs/configuration.md).",
        show_default=False,
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(help="Folder of the dataset, where it is not the config's.", show_default=False),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:0, … or mps. Default: a GPU where there is one.", show_default=False
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the network: fp32, bf16, fp16, or auto (bf16 where the device computes "
        "it in hardware, else fp32)."
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Run the folded and compiled network: several times faster after about a minute per "
        "image size, kept for the next time.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Of the CPU. Default: all cores.", min=1, show_default=False)
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the machine code of compiled packages (.pt2 of --format aoti). It can do "
        "whatever you can: only for files whose origin you know.",
    ),
]


class Commands(TyperGroup):
    """The group of commands: problems become messages, never stack traces."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with _plain_warnings():
            try:
                return super().invoke(ctx)
            except CGRSegError as error:
                report_problem(error)
                raise typer.Exit(EXIT_PROBLEM) from None
            except KeyboardInterrupt:
                print("\nstopped", file=sys.stderr, flush=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None


def make_console() -> Console:
    """Where results are printed; silent in all processes but the first."""
    from rich.console import Console

    return Console(quiet=not is_first_process(), highlight=False)


def make_table(*columns: str, title: str | None = None) -> Table:
    """A plain table; the first column is text, the others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def with_changes(settings: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """`key=value` texts and options of a command as one table of changes.

    Args:
        settings: the texts; what they say wins over the options.
        **options: dotted names with `__` for the dot, e.g. `data__root`; None is left out.

    Raises:
        ConfigError: a text that is not key=value, or a setting that does not exist.
    """
    from cgrseg.config.overrides import parse_overrides

    given = {name.replace("__", "."): v for name, v in options.items() if v is not None}
    return {**given, **parse_overrides(settings or ())}


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings and log lines of ours as one plain line each, on standard error."""
    logger = logging.getLogger("cgrseg")
    if any(isinstance(handler.formatter, _Plain) for handler in logger.handlers):
        yield  # a group of commands inside another one: the outer one shows them
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    try:
        with plain_warnings():
            yield
    finally:
        logger.removeHandler(handler)


class _Plain(logging.Formatter):
    """`warning: what happened`; information as it stands."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text
