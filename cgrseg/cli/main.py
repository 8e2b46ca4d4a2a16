"""The command `cgrseg`: a module of this package that defines its own name is a command or a group.

A command's module is imported when the command is asked for, and its dependencies when it runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import os
import pkgutil
import sys
from typing import Annotated, Any

import typer

import cgrseg
from cgrseg import cli
from cgrseg.cli.common import Command, Commands
from cgrseg.cpus import prepare_openmp
from cgrseg.processes import ending_by_signals
from cgrseg.surroundings import LEAST_WIDTH

_MOST_WIDTH = 1000
_FIRST = ("train", "evaluate", "predict", "export", "report", "info", "bench", "web", "demo")
"""Order of the commands in the help; further ones follow by name."""


class _AllCommands(Commands):
    """The group `cgrseg`, which makes each command when it is asked for."""

    @property
    def commands(self) -> Any:
        """All commands by name: for the help, and for the nearest name."""
        made = {name: _command(name) for name in _names()}
        return {name: command for name, command in made.items() if command is not None}

    @commands.setter
    def commands(self, value: Any) -> None:
        pass  # typer gives the commands that were registered: none

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; None: there is none."""
        return _command(cmd_name) if cmd_name in _names() else None


@functools.cache
def _names() -> list[str]:
    """Modules of this package, in the order of the help."""
    names = {module.name for module in pkgutil.iter_modules(cli.__path__)} - {"main"}
    return [*_FIRST, *sorted(names.difference(_FIRST))]


@functools.cache
def _command(name: str) -> Any:
    """The command or group of a module; None: the module is neither."""
    found = getattr(importlib.import_module(f"cgrseg.cli.{name}"), name, None)
    alone = typer.Typer()
    alone.callback()(lambda: None)
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name)
    elif inspect.isfunction(found):
        alone.command(cls=Command)(found)
    return typer.main.get_group(alone).commands.get(name)


app = typer.Typer(
    name="cgrseg",
    cls=_AllCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="CGRSeg: efficient semantic segmentation (ECCV 2024). Train it on a dataset or on your "
    "own folder of images, measure it, and segment images with it. New here? Try `cgrseg demo`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cgrseg {cgrseg.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command line; ends the process with its exit status."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            # Replace characters that the terminal cannot show, instead of failing.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    stated = os.environ.get("COLUMNS", "")
    if stated.isdecimal() and not LEAST_WIDTH <= int(stated) <= _MOST_WIDTH:
        # Programs without a terminal set 0, with which rich prints nothing.
        os.environ["COLUMNS"] = str(min(max(int(stated), LEAST_WIDTH), _MOST_WIDTH))
    prepare_openmp(os.environ)
    with ending_by_signals():
        try:
            app()
        finally:
            # Python collects garbage once more as it ends: 0.3 s to go through PyTorch's modules.
            gc.freeze()
