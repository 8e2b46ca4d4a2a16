"""`cgrseg report`: compare evaluated runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli.common import make_console


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run folders, or evaluation files (evaluation*.json); the first is the reference.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path(
        "comparison.html"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older page.")] = False,
) -> None:
    """Compare evaluated runs: differences per class, and which of them are more than chance.

    Example:
      cgrseg report work_dirs/first work_dirs/second --out comparison.html
    """
    from cgrseg.errors import DataError, explain
    from cgrseg.reporting import compare_runs, write_comparison

    if out.exists() and not overwrite:
        raise DataError(
            explain(
                out,
                found="it is there already",
                expected="a new file",
                remedy="choose another name with --out, or replace it with --overwrite",
            )
        )
    files = write_comparison(out, compare_runs(runs))
    make_console().print(f"comparison: {files.html.resolve()}", markup=False, soft_wrap=True)
