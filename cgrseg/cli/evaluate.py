"""`cgrseg evaluate`: how good a checkpoint is on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import (
    compile_choice,
    hold_lock,
    make_console,
    split_settings,
    with_changes,
)
from cgrseg.cli.options import (
    AsJson,
    BatchSize,
    Compile,
    DataRoot,
    Device,
    Engine,
    GpusPerWorker,
    Limit,
    MultiScale,
    Opacity,
    Precision,
    RayAddress,
    RayWorkers,
    Threads,
    check_engine,
    out_option,
    split_option,
)
from cgrseg.processes import quick_imports

if TYPE_CHECKING:
    from cgrseg.config import Config


def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[CONFIG] CHECKPOINT [KEY=VALUE]...",
            help="CONFIG says which dataset (default: that of the run that the checkpoint comes "
            "from); CHECKPOINT is a .pth file, a folder of save_pretrained, a hub id, or a "
            "name of cgrseg models; KEY=VALUE are settings, e.g. test.flip=true.",
            show_default=False,
            autocompletion=completion.config_files_or_settings,
        ),
    ],
    data_root: DataRoot = None,
    split: Annotated[
        str | None,
        split_option("Default: data.eval_split."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Also compute mBoundaryIoU or ECE; may be repeated. mIoU, mDice and "
            "mFscore are always computed.",
            show_default=False,
        ),
    ] = None,
    multi_scale: MultiScale = False,
    out: Annotated[
        Path | None,
        out_option(
            "Folder for label PNGs, or a .json (scores) or .npz (counts) file; with "
            "--format-only the folder of the submission."
        ),
    ] = None,
    format_only: Annotated[
        bool,
        typer.Option(
            "--format-only",
            help="Write label files for the benchmark's server and compute no metrics.",
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Also write an HTML report, as `cgrseg report` does."),
    ] = False,
    show_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for overlays with a legend.", show_default=False),
    ] = None,
    opacity: Opacity = 0.5,
    limit: Limit = None,
    batch_size: BatchSize = 1,
    precision: Precision = "fp32",
    compile: Compile = "off",
    threads: Threads = None,
    device: Device = None,
    as_json: AsJson = False,
    engine: Engine = None,
    ray_address: RayAddress = None,
    workers: RayWorkers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Evaluate a checkpoint: mIoU and other metrics, per class and overall.

    The scores are printed, and written as evaluation.json into the folder of
    the checkpoint, or of the CONFIG; work_dir=FOLDER names another.

    Examples:
      cgrseg evaluate work_dirs/cgrseg-t_camvid/best.pth --split test

      cgrseg evaluate cgrseg-t_ade20k_160k cgrseg_t_ade.pth --multi-scale
    """
    with quick_imports():
        from cgrseg.devices import device_of_process
        from cgrseg.errors import ConfigError
        from cgrseg.evaluation import evaluate as run_evaluation
        from cgrseg.evaluation.evaluate import result_name
        from cgrseg.evaluation.result import print_scores, readable_json
        from cgrseg.precision import check_precision, resolve_precision
        from cgrseg.processes import is_first_process, this_process

    console = make_console()
    if format_only and (report or metric):
        raise ConfigError(
            "--format-only",
            found="together with --report or --metric",
            expected="--format-only alone: a submission is not measured",
            remedy="leave out --format-only, or the other two",
        )
    config, checkpoint, settings = split_arguments(arguments)
    asked = check_precision(precision, "--precision")
    several = this_process().world_size
    check_engine(
        engine,
        {"--workers": workers, "--gpus-per-worker": gpus_per_worker},
        f"{several} processes" if several > 1 else "",
    )
    cluster = None
    if engine:
        from cgrseg.inference.ray_engine import RayCluster

        cluster = RayCluster(ray_address, workers, threads or 1, gpus_per_worker)
    chosen = asked if engine else resolve_precision(asked, device_of_process(device))
    resolved = config_of(checkpoint, config, with_changes(settings, data__root=data_root))
    folder = Path(resolved.run_dir)
    name = result_name(resolved, split or resolved.data.eval_split, multi_scale, limit, chosen)
    page = folder / f"report{name.removeprefix('evaluation')}.html"
    if not format_only:
        hold_lock(folder)
    if report:  # refused before any work
        from cgrseg.reporting import report_on
        from cgrseg.reporting.report_files import TABLES, check_targets

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
        precision=asked,
        compile=compile_choice(compile),
        threads=threads,
        batch_size=batch_size,
        cluster=cluster,
    )
    if format_only:
        target = out or folder / "submission"
        console.print(f"{len(result.stems)} label files: {target}", markup=False, soft_wrap=True)
        return
    written = folder / f"{name}.json"
    if as_json:
        console = make_console(stderr=True)
        if is_first_process():
            typer.echo(readable_json(result.as_json()), nl=False)
    else:
        print_scores(result, console=console)
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
    from cgrseg.errors import ConfigError

    names, settings = split_settings(arguments)
    if len(names) not in (1, 2):
        raise ConfigError(
            "arguments",
            found=f"{len(names)} names beside the settings: {' '.join(names)}",
            expected="a checkpoint, or a config and a checkpoint",
            remedy="cgrseg evaluate [CONFIG] CHECKPOINT [KEY=VALUE]...",
        )
    return (names[0] if len(names) == 2 else None), names[-1], settings


def config_of(checkpoint: str, config: str | None, changes: dict[str, Any]) -> Config:
    """The config that was named, else the one that the checkpoint was trained with.

    The folder for results in the latter is beside the checkpoint, unless `changes` name one:
    nothing inside a file chooses where results are written.

    Raises:
        ConfigError: neither is there, or settings that do not fit.
        WeightsError: a checkpoint that cannot be read.
    """
    from cgrseg.config import load_config
    from cgrseg.config.settings import build, merge
    from cgrseg.errors import ConfigError
    from cgrseg.models import read_checkpoint

    if config is not None:
        return load_config(config, changes)
    stored = read_checkpoint(checkpoint).meta.get("config")
    if not isinstance(stored, dict):
        raise ConfigError(
            checkpoint,
            found="it does not hold the config of its run (published checkpoints do not)",
            expected="a config that says which dataset to evaluate on",
            remedy=f"name it first: cgrseg evaluate cgrseg-t_ade20k_160k {checkpoint}",
        )
    settings = build(stored, checkpoint).model_dump()
    return build(merge({**settings, "work_dir": str(_beside(checkpoint))}, changes))


def _beside(checkpoint: str) -> Path:
    """Folder for the results of a checkpoint: its own, or one named after a hub id or a name."""
    path = Path(checkpoint).expanduser()
    if not path.exists():
        return Path("work_dirs") / checkpoint.replace("/", "--")
    return path if path.is_dir() else path.parent
