"""`cgrseg train`: train a network and write it into a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import make_console, with_changes
from cgrseg.cli.options import DataRoot, Device, Seed, Settings, Threads
from cgrseg.processes import quick_imports
from cgrseg.progress import shown_progress

if TYPE_CHECKING:
    from rich.console import Console

    from cgrseg.config import Config
    from cgrseg.training import TrainResult


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A preset's name (`cgrseg info --presets`), a .py or .json file, or the folder of "
            "an earlier run; with --auto the folder of a dataset.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ],
    settings: Settings = None,
    data_root: DataRoot = None,
    work_dir: Annotated[
        str | None,
        typer.Option(help="Run folder. Default: work_dirs/NAME.", show_default=False),
    ] = None,
    load_from: Annotated[
        str | None,
        typer.Option(help="Checkpoint to fine-tune from.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in the run folder, if there is one.")
    ] = False,
    resume_from: Annotated[
        str | None,
        typer.Option(help="Checkpoint of this run to resume from.", show_default=False),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Choose the settings for the dataset folder CONFIG and this machine, write them "
            "with their reasons to NAME.py, and train.",
        ),
    ] = False,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="With --auto: write the config file and stop.")
    ] = False,
    seed: Seed = None,
    threads: Threads = None,
    device: Device = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings and stop.")
    ] = False,
) -> None:
    """Train a network.

    The run folder gets latest.pth, best.pth, config.json, tables (CSV),
    TensorBoard files and a log. Nothing of an earlier run is overwritten: use
    --resume, or another folder.

    Examples:
      cgrseg train cgrseg-t_camvid --data-root data/camvid

      cgrseg train cgrseg-t_custom --data-root data/mine train.batch_size=8

      cgrseg train work_dirs/cgrseg-t_custom --resume

      cgrseg train --auto data/mine
    """
    from cgrseg.config import load_config
    from cgrseg.errors import ConfigError

    if write_only and not auto:
        raise ConfigError(
            "--write-only",
            found="given without --auto",
            expected="the two together",
            remedy="cgrseg train --auto FOLDER --write-only, or --print-config",
        )
    if write_only and print_config:
        raise ConfigError(
            "--write-only",
            found="given with --print-config, which writes no file",
            expected="one of the two",
            remedy="leave --print-config out: the file holds the settings and their reasons",
        )
    console = make_console()
    changes = with_changes(
        settings,
        data__root=data_root,
        work_dir=work_dir,
        train__load_from=load_from,
        train__seed=seed,
    )
    if auto:
        resolved = _plan(console, config, changes, device, threads, write=not print_config)
    else:
        resolved = load_config(config, changes)
    if print_config:
        print_settings(console, resolved)
        return
    if write_only:
        return

    with quick_imports():
        from cgrseg.devices import use_threads
        from cgrseg.training import train as run_training

    use_threads(threads)
    result = run_training(
        resolved, device=device or "auto", resume_from=resume_from, auto_resume=resume
    )
    if result.stopped_by is not None:
        raise typer.Exit(result.exit_status)
    _print_results(console, result)


def _plan(
    console: Console,
    folder: str,
    changes: dict[str, Any],
    device: str | None,
    threads: int | None,
    *,
    write: bool,
) -> Config:
    """Config for a dataset folder, written to a file."""
    with quick_imports():
        from cgrseg.config import load_config
        from cgrseg.devices import use_threads
        from cgrseg.training.auto import plan_training

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    use_threads(threads)
    with shown_progress("checking") as progress:
        plan = plan_training(folder, changes, device=device or "auto", say=say, progress=progress)
    for line in plan.head[3:]:
        say(line)
    if not write:
        return plan.config
    path = plan.write()
    say(f"{path}: the settings with their reasons; to train with them: {plan.command}")
    return load_config(path)


def print_settings(console: Console, config: Config) -> None:
    """Print all settings, one per line."""
    from cgrseg.config.reference import flatten

    for path, value in flatten(config).items():
        console.print(f"{path} = {value}", markup=False, soft_wrap=True)


def _print_results(console: Console, result: TrainResult) -> None:
    score = result.metrics.get("mIoU")
    if score is not None:
        console.print(f"last evaluation: mIoU {100 * score:.2f} %")
    weights = result.best or result.latest
    console.print(f"weights: {weights}", markup=False, soft_wrap=True)
    console.print(
        f"next: cgrseg predict {weights} IMAGES... --out predictions", markup=False, soft_wrap=True
    )
