"""The root of the command `cgrseg`.

Commands import what they need when they run, so that `cgrseg --help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

import cgrseg
from cgrseg.cli import data
from cgrseg.cli.bench import bench
from cgrseg.cli.common import Command, Commands
from cgrseg.cli.demo import demo
from cgrseg.cli.evaluate import evaluate
from cgrseg.cli.export import export
from cgrseg.cli.info import info
from cgrseg.cli.predict import predict
from cgrseg.cli.report import report
from cgrseg.cli.train import train
from cgrseg.cli.web import web
from cgrseg.processes import ending_by_signals
from cgrseg.surroundings import LEAST_WIDTH

_MOST_WIDTH = 1000

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


app.command(cls=Command)(train)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(predict)
app.command(cls=Command)(export)
app.command(cls=Command)(report)
app.command(cls=Command)(info)
app.command(cls=Command)(bench)
app.command(cls=Command)(web)
app.command(cls=Command)(demo)
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command line; ends the process with its exit status."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            # A terminal that cannot show a character shows another, instead of failing.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    stated = os.environ.get("COLUMNS", "")
    if stated.isdecimal() and not LEAST_WIDTH <= int(stated) <= _MOST_WIDTH:
        # Programs without a terminal set 0, at which rich prints nothing, not even help.
        os.environ["COLUMNS"] = str(min(max(int(stated), LEAST_WIDTH), _MOST_WIDTH))
    with ending_by_signals():
        app()
