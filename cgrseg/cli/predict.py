"""`cgrseg predict`: label maps and overlays of photos."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgrseg.cli.common import EXIT_PARTLY, Device, is_first_process, make_console
from cgrseg.cli.evaluate import checked_precision

if TYPE_CHECKING:
    from cgrseg.config.schema import TestConfig
    from cgrseg.inference import Predictor


def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file, a folder of save_pretrained, or a hub id.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders (with their subfolders) and quoted patterns such as 'a/**/*.jpg'.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for labels/ and overlays/.")
    ] = Path("predictions"),
    overlays: Annotated[bool, typer.Option(help="Also paint the labels over the photos.")] = True,
    legend: Annotated[bool, typer.Option(help="Class names and shares beside them.")] = True,
    opacity: Annotated[float, typer.Option(help="Of the labels in overlays.", min=0, max=1)] = 0.5,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Do again what is there already; else it is kept."),
    ] = False,
    multi_scale: Annotated[
        bool,
        typer.Option("--multi-scale", help="Average the published scales, plain and mirrored."),
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Other test settings, e.g. -s test.mode=slide; may be repeated.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images of equal size that are computed together.", min=1)
    ] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = None,
) -> None:
    """Label every pixel of photos of any size.

    Writes OUT/labels/NAME.png (class ids, shown in the dataset's colours) and
    OUT/overlays/NAME.jpg. A file that cannot be read is named and the rest is
    done; the exit status is then 1. Started again, it goes on where it stopped.

    Examples:
      cgrseg predict best.pth street.jpg holiday/ --out painted

      cgrseg predict best.pth 'photos/**/*.jpg' --no-overlays
    """
    from cgrseg.evaluation.progress import shown_progress
    from cgrseg.inference import Predictor, predict_folder

    console = make_console()
    predictor = Predictor.from_pretrained(checkpoint, device, checked_precision(precision))
    predictor.test = _test_settings(predictor, setting or [], multi_scale)
    with shown_progress("predicting", is_first_process()) as progress:
        report = predict_folder(
            predictor,
            images,
            out,
            overlays=overlays,
            legend=legend,
            opacity=opacity,
            overwrite=overwrite,
            batch_size=batch_size,
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            checkpoint=checkpoint,
            progress=progress,
        )
    for path, error in report.failed:
        text = str(error)
        print(f"error: {text if str(path) in text else f'{path}: {text}'}", file=sys.stderr)
    parts = [f"{len(report.done)} labelled"]
    if report.kept:
        parts.append(f"{len(report.kept)} were there already (--overwrite does them again)")
    if report.failed:
        parts.append(f"{len(report.failed)} could not be used")
    console.print(f"{', '.join(parts)}: {out}", markup=False, soft_wrap=True)
    if report.failed:
        raise typer.Exit(EXIT_PARTLY)


def _test_settings(predictor: Predictor, settings: list[str], multi_scale: bool) -> TestConfig:
    """The checkpoint's test settings with changes laid over them.

    Raises:
        ConfigError: a setting of another section, one that does not exist, or a wrong value.
    """
    from cgrseg.config.overrides import merge, parse_overrides
    from cgrseg.config.validation import build
    from cgrseg.errors import ConfigError, explain
    from cgrseg.inference import augmented

    changes = parse_overrides(settings)
    foreign = [name for name in changes if name.partition(".")[0] != "test"]
    if foreign:
        raise ConfigError(
            explain(
                f"--set {foreign[0]}",
                found="a setting that prediction does not use",
                expected="settings of the section test, e.g. test.mode=slide",
                remedy="leave it out",
            )
        )
    test = build(merge({"test": predictor.test.model_dump()}, changes)).test
    return augmented(test) if multi_scale else test
