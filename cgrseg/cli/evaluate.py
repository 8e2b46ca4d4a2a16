"""`cgrseg evaluate`: how good a checkpoint is on a dataset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli.common import (
    Compile,
    DataRoot,
    Device,
    Precision,
    Threads,
    make_console,
    with_changes,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cgrseg.config import Config
    from cgrseg.evaluation import EvaluationResult


def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[CONFIG] CHECKPOINT [KEY=VALUE]",
            help="CONFIG says which dataset (default: that of the run that the checkpoint comes "
            "from); CHECKPOINT is a .pth file, a folder of save_pretrained, or a hub id; KEY=VALUE "
            "are settings, e.g. test.flip=true.",
            show_default=False,
        ),
    ],
    data_root: DataRoot = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the dataset. Default: data.eval_split.", show_default=False),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Also compute mBoundaryIoU or ECE; may be repeated. The usual ones are always "
            "there.",
            show_default=False,
        ),
    ] = None,
    multi_scale: Annotated[
        bool,
        typer.Option("--multi-scale", help="Average the published scales, plain and mirrored."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for label PNGs, or a .json (scores) or .npz (counts) file; with "
            "--format-only the folder of the submission.",
            show_default=False,
        ),
    ] = None,
    format_only: Annotated[
        bool,
        typer.Option(
            "--format-only",
            help="Write label files for the benchmark's server, and measure nothing.",
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Also write a page about it, as `cgrseg report` does."),
    ] = False,
    show_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for overlays with a legend.", show_default=False),
    ] = None,
    opacity: Annotated[float, typer.Option(help="Of the labels in overlays, 0 to 1.")] = 0.5,
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many images.", show_default=False, min=1)
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images of equal size that are computed together.", min=1)
    ] = 1,
    precision: Precision = "fp32",
    compile: Compile = False,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Measure a checkpoint: mIoU and more, per class and in all.

    The scores are printed, and written as evaluation.json into the run's
    folder.

    Examples:
      cgrseg evaluate work_dirs/cgrseg-t_camvid/best.pth --split test

      cgrseg evaluate cgrseg-t_ade20k_160k cgrseg_t_ade.pth --multi-scale
    """
    from cgrseg.errors import is_first_process
    from cgrseg.evaluation import evaluate as run_evaluation
    from cgrseg.evaluation.distributed import device_of_process
    from cgrseg.evaluation.evaluate import result_name
    from cgrseg.inference.precision import resolve_precision

    console = make_console()
    if format_only and (report or metric):
        raise typer.BadParameter("--format-only measures nothing: leave --report and --metric out")
    config, checkpoint, settings = split_arguments(arguments)
    chosen = resolve_precision(precision, device_of_process(device), "--precision")
    resolved = config_of(checkpoint, config, with_changes(settings, data__root=data_root))
    folder = Path(resolved.run_dir)
    name = result_name(resolved, split or resolved.data.eval_split, multi_scale, limit, chosen)
    page = folder / f"report{name.removeprefix('evaluation')}.html"
    if report:  # refused before any work
        from cgrseg.reporting import report_on
        from cgrseg.reporting.targets import TABLES, check_targets

        check_targets(page, TABLES, own=resolved.name)
    result = run_evaluation(
        resolved,
        checkpoint,
        split=split,
        device=device,
        out=out,
        show_dir=show_dir,
        opacity=opacity,
        metrics=metric or ("mIoU",),
        aug_test=multi_scale,
        format_only=format_only,
        limit=limit,
        precision=chosen,
        compile=compile,
        threads=threads,
        batch_size=batch_size,
    )
    if format_only:
        target = out or folder / "submission"
        console.print(f"{len(result.stems)} label files: {target}", markup=False, soft_wrap=True)
        return
    print_scores(console, result)
    written = folder / f"{name}.json"
    for path in (written, out, show_dir):
        if path is not None:
            console.print(f"written: {path}", markup=False, soft_wrap=True)
    if report and is_first_process():
        report_on(
            written, checkpoint=checkpoint, config=resolved, out=page, device=device, overwrite=True
        )
        console.print(f"report: {page.resolve()}", markup=False, soft_wrap=True)


def split_arguments(arguments: list[str]) -> tuple[str | None, str, list[str]]:
    """Tell config, checkpoint and `key=value` settings apart.

    Raises:
        ConfigError: neither one nor two names beside the settings.
    """
    from cgrseg.errors import ConfigError, explain

    settings = [text for text in arguments if re.match(r"[a-z][\w.]*=", text)]
    names = [text for text in arguments if text not in settings]
    if len(names) not in (1, 2):
        raise ConfigError(
            explain(
                "arguments",
                found=f"{len(names)} names beside the settings: {' '.join(names)}",
                expected="a checkpoint, or a config and a checkpoint",
                remedy="cgrseg evaluate [CONFIG] CHECKPOINT [KEY=VALUE]...",
            )
        )
    return (names[0] if len(names) == 2 else None), names[-1], settings


def config_of(checkpoint: str, config: str | None, changes: dict[str, Any]) -> Config:
    """The config that was named, else the one that the checkpoint was trained with.

    Raises:
        ConfigError: neither is there, or settings that do not fit.
        WeightsError: a checkpoint that cannot be read.
    """
    from cgrseg.config import load_config
    from cgrseg.config.overrides import merge
    from cgrseg.config.validation import build
    from cgrseg.errors import ConfigError, explain
    from cgrseg.models import read_checkpoint

    if config is not None:
        return load_config(config, changes)
    stored = read_checkpoint(checkpoint).meta.get("config")
    if not isinstance(stored, dict):
        raise ConfigError(
            explain(
                checkpoint,
                found="it does not hold the config of its run (published checkpoints do not)",
                expected="a config that says which dataset to evaluate on",
                remedy=f"name it first: cgrseg evaluate cgrseg-t_ade20k_160k {checkpoint}",
            )
        )
    return build(merge(build(stored, checkpoint).model_dump(), changes))


def print_scores(console: Console, result: EvaluationResult) -> None:
    """Print the scores per class as a table, and the summary below it."""
    from cgrseg.evaluation.table import class_table, summary_line

    console.print(class_table(result))
    console.print(summary_line(result), soft_wrap=True)
