"""`cgrseg demo`: synthetic scenes, training, evaluation, prediction and report.

Nothing is downloaded.  The network starts from scratch; its score is compared with that of a
per-pixel color classifier on the same scenes, which knows no shape, texture or position.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgrseg.cli.common import hold_lock, make_console, with_changes
from cgrseg.cli.options import (
    Device,
    Seed,
    Settings,
    Threads,
    TrainScenes,
    ValScenes,
    out_option,
)
from cgrseg.processes import quick_imports

if TYPE_CHECKING:
    from cgrseg.data.synthetic.baseline import ImageLabel

SIZE = (192, 192)
"""Height and width of the scenes in pixels; the preset's scale fits it."""

SHOWN = 6
"""Held-out scenes that are painted."""


def demo(
    settings: Settings = None,
    out: Annotated[
        Path,
        out_option("Folder for data, run, images and report. Default: work_dirs/demo."),
    ] = Path("work_dirs/demo"),
    train_scenes: TrainScenes = 240,
    val_scenes: ValScenes = 60,
    seed: Seed = None,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Draw synthetic scenes, train on them, evaluate, predict and write a report.

    Takes a few minutes on two CPU cores and needs no download. Started again,
    it goes on where it stopped, or shows what is there.
    """
    with quick_imports():
        from cgrseg.config import load_config
        from cgrseg.data.synthetic import color_baseline, write_dataset
        from cgrseg.devices import use_threads
        from cgrseg.errors import ConfigError, FrontEnd, speaking_as
        from cgrseg.evaluation import evaluate
        from cgrseg.evaluation.result import print_scores
        from cgrseg.inference import Predictor, predict_folder
        from cgrseg.progress import shown_progress
        from cgrseg.reporting import write_run_report
        from cgrseg.training import train

    if train_scenes < 8 or val_scenes < 2:
        raise ConfigError(
            "--train-scenes, --val-scenes",
            found=f"{train_scenes} and {val_scenes}",
            expected="at least 8 training scenes and 2 validation scenes",
            remedy="leave both out for the usual 240 and 60",
        )
    use_threads(threads)
    hold_lock(out, below=True)
    console = make_console()
    begun = time.monotonic()

    console.rule("1 of 5: drawing scenes", align="left")
    with speaking_as(FrontEnd.DEMO), shown_progress("drawing scenes") as progress:
        data = write_dataset(
            out / "data", train_scenes, val_scenes, SIZE, workers=2, progress=progress
        )

    console.rule("2 of 5: training CGRSeg-T from scratch", align="left")
    changes = with_changes(
        settings, name="demo", work_dir=str(out), data__root=str(data), train__seed=seed
    )
    config = load_config("cgrseg-t_synthetic", changes)
    with speaking_as(FrontEnd.DEMO):
        trained = train(config, device=device or "auto", auto_resume=True)
    if trained.stopped_by is not None:
        raise typer.Exit(trained.exit_status)
    checkpoint = trained.best or trained.latest

    console.rule("3 of 5: measuring on held-out scenes", align="left")
    result = evaluate(config, checkpoint, device=device)
    print_scores(result, console=console)
    baseline = color_baseline(_pairs(data, "training"), _pairs(data, "validation"))

    console.rule("4 of 5: painting some of them", align="left")
    images = sorted((data / "images" / "validation").iterdir())[:SHOWN]
    predictor = Predictor.from_pretrained(checkpoint, device)
    predict_folder(predictor, images, out / "predictions", overwrite=True, checkpoint=checkpoint)

    console.rule("5 of 5: report", align="left")
    notes = {"mIoU of a per-pixel color classifier on the same scenes": baseline}
    report = write_run_report(out, config, result, predictor, notes=notes)

    console.print()
    console.print(f"mIoU on held-out scenes: {100 * result.scores.mean_iou:.1f} %")
    console.print(f"color alone gets:        {100 * baseline:.1f} %")
    console.print(f"weights: {checkpoint}", markup=False, soft_wrap=True)
    console.print(f"painted: {out / 'predictions' / 'overlays'}", markup=False, soft_wrap=True)
    console.print(f"report:  {report.resolve()}", markup=False, soft_wrap=True)
    console.print(f"done in {(time.monotonic() - begun) / 60:.1f} minutes")


def _pairs(data: Path, split: str) -> Iterator[ImageLabel]:
    """Image and raw label of each scene of a split."""
    from cgrseg.data.image_files import read_image
    from cgrseg.data.label_files import read_label

    for path in sorted((data / "images" / split).iterdir()):
        yield read_image(path), read_label(data / "annotations" / split / f"{path.stem}.png")
