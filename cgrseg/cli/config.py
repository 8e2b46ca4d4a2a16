"""`cgrseg config`: configs of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli.common import Command, Commands

config = typer.Typer(cls=Commands, no_args_is_help=True, help="Read configs of other tools.")


@config.command("translate", cls=Command)
def translate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Config of mmsegmentation 0.x or 1.x: .py, .json or .yaml.",
            show_default=False,
        ),
    ],
) -> None:
    """Translate a config of mmsegmentation into one of this package.

    The config is printed on standard output; the differences from the nearest
    preset, and what has no counterpart, on standard error. The file is read
    and never run.

    Examples:
      cgrseg config translate local_configs/mine.py > translated.py
    """
    from cgrseg.config.mmseg import translate as translate_file

    found = translate_file(file)
    for line in found.notes():
        print(line, file=sys.stderr)
    print(found.python(), end="")
