"""The command `cgrseg`: each module of this package with a function of its own name is a command.

Commands import their dependencies when they run, so that `cgrseg --help` is fast.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import sys
from typing import Annotated

import typer

import cgrseg
from cgrseg import cli
from cgrseg.cli import data
from cgrseg.cli.common import Command, Commands
from cgrseg.cpus import prepare_openmp
from cgrseg.processes import ending_by_signals
from cgrseg.surroundings import LEAST_WIDTH

_MOST_WIDTH = 1000
_FIRST = ("train", "evaluate", "predict", "export", "report", "info", "bench", "web", "demo")
"""Order of the commands in the help; further ones follow by name."""

app = typer.Typer(
    name="cgrseg",
    cls=Commands,
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


def _add_commands() -> None:
    """Add each module of this package that has a function of its own name."""
    names = {module.name for module in pkgutil.iter_modules(cli.__path__)} - {"main"}
    for name in (*_FIRST, *sorted(names.difference(_FIRST))):
        command = getattr(importlib.import_module(f"cgrseg.cli.{name}"), name, None)
        if inspect.isfunction(command):
            app.command(cls=Command)(command)


_add_commands()
app.add_typer(data.app, name="data")


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
        app()
