"""`cgrseg report`: a page about one evaluated run, or about the differences of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli.common import hold_lock, make_console
from cgrseg.cli.options import DataRoot, Device, out_option, overwrite_option
from cgrseg.processes import quick_imports


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders or evaluation files (evaluation*.json). One run gives a page about "
            "that run. Several runs are compared with the first.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        out_option(
            "HTML page. Default: report.html in the run folder, or comparison.html here for "
            "several runs."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint that predicts the images. Default: the evaluated checkpoint.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    pictures: Annotated[
        bool, typer.Option(help="Show the worst and the best images of one run.")
    ] = True,
    overwrite: Annotated[bool, overwrite_option()] = False,
    device: Device = None,
) -> None:
    """Show an evaluated run on one page, or compare several.

    One run: scores, classes, confusion matrix, the worst and the best images,
    settings and versions. Several runs: differences per class, and which
    differences are more than chance. The page is one file that loads nothing
    from a server. The numbers are written next to the page as JSON and CSV.

    Examples:
      cgrseg report work_dirs/first

      cgrseg report work_dirs/first work_dirs/second --out comparison.html
    """
    with quick_imports():
        from cgrseg.reporting import compare_runs, report_on, write_comparison
        from cgrseg.reporting.report_files import COMPARISON_TABLES, check_targets

    if len(runs) == 1:
        files = report_on(
            runs[0],
            checkpoint=checkpoint,
            data_root=data_root,
            out=out,
            pictures=pictures,
            device=device,
            overwrite=overwrite,
        )
        make_console().print(f"report: {files.html.resolve()}", markup=False, soft_wrap=True)
        return
    target = out or Path("comparison.html")
    hold_lock(target.parent)
    check_targets(target, COMPARISON_TABLES, overwrite=overwrite)  # before the comparison's work
    files = write_comparison(target, compare_runs(runs), overwrite=overwrite)
    make_console().print(f"comparison: {files.html.resolve()}", markup=False, soft_wrap=True)
