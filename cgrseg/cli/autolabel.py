"""`cgrseg autolabel`: a dataset from images without labels."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import (
    EXIT_PARTLY,
    compile_choice,
    make_console,
    make_table,
    split_settings,
    test_settings,
)
from cgrseg.cli.options import (
    BatchSize,
    Compile,
    Device,
    MultiScale,
    Precision,
    Threads,
    TrustCode,
    out_option,
    overwrite_option,
)
from cgrseg.processes import quick_imports

if TYPE_CHECKING:
    from cgrseg.inference.autolabel import AutolabelReport

_CONFIDENCE = 0.9


def autolabel(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="The teacher: a .pth file, a folder of save_pretrained, a hub id, a name of "
            "cgrseg models, or a file of cgrseg export (.onnx, .xml, ...).",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER... [KEY=VALUE]...",
            help="Folders (with their subfolders) of images without labels, image files and quoted "
            "patterns. KEY=VALUE are test settings, e.g. test.flip=true.",
            show_default=False,
            autocompletion=completion.files_or_settings,
        ),
    ],
    out: Annotated[Path, out_option("Folder of the dataset.")],
    confidence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]VALUE",
            help="Ignore pixels below this confidence, 0 to 1; CLASS=VALUE sets it for one class. "
            f"May be repeated. Default: {_CONFIDENCE}, or 0 for classes with --keep.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]SHARE",
            help="Keep this share of the pixels of each class, 0 to 1, the most confident ones; "
            "CLASS=SHARE sets it for one class. May be repeated.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        overwrite_option("Label files that another program wrote are left alone even then."),
    ] = False,
    multi_scale: MultiScale = False,
    batch_size: BatchSize = 1,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    threads: Threads = None,
    trust_code: TrustCode = False,
    device: Device = None,
) -> None:
    """Make a dataset from images without labels: the confident pixels of a network.

    OUT gets images/ (hard links), annotations/ (pixels below the threshold are
    255, ignored), classes.txt, autolabel.json (what was kept of each class) and
    predictions/. It trains together with labeled images: data.extra=OUT. The same
    command goes on where it stopped; other thresholds need no network again.

    Examples:
      cgrseg autolabel work_dirs/mine/best.pth images/ --out data/auto

      cgrseg autolabel best.onnx images/ --out data/auto --keep 0.5

      cgrseg autolabel best.pth images/ --out data/auto --confidence 0.9 --confidence pole=0.6
    """
    with quick_imports():
        from cgrseg.devices import device_of_process
        from cgrseg.errors import ConfigError
        from cgrseg.formats import is_exported
        from cgrseg.inference import Predictor
        from cgrseg.inference.autolabel import autolabel as run_autolabel
        from cgrseg.precision import check_precision

    names, settings = split_settings(images)
    if not names:
        raise ConfigError(
            "FOLDER",
            found="settings only",
            expected="folders of images, image files or patterns",
            remedy="name at least one: cgrseg autolabel CHECKPOINT FOLDER --out DIR",
        )
    predictor = Predictor.from_pretrained(
        checkpoint,
        device if is_exported(checkpoint) else str(device_of_process(device)),
        check_precision(precision, "--precision"),
        compile=compile_choice(compile),
        threads=threads,
        trust_code=trust_code,
    )
    predictor.test = test_settings(predictor.test, settings, multi_scale=multi_scale)
    shares = per_class(keep or [], predictor.classes, "--keep")
    least = per_class(confidence or [], predictor.classes, "--confidence")
    report = run_autolabel(
        predictor,
        names,
        out,
        confidence=[
            value if value is not None else _CONFIDENCE if share is None else 0.0
            for value, share in zip(least, shares, strict=True)
        ],
        keep=shares,
        overwrite=overwrite,
        batch_size=batch_size,
        checkpoint=checkpoint,
        show=True,
    )
    _print_report(report, checkpoint, out)
    if report.failed:
        raise typer.Exit(EXIT_PARTLY)


def per_class(texts: Sequence[str], classes: Sequence[str], name: str) -> list[float | None]:
    """Values of an option per class: `VALUE` for all, `CLASS=VALUE` for one; None: not given.

    Raises:
        ConfigError: an unknown class, or a value outside 0..1.
    """
    from cgrseg.class_names import listed
    from cgrseg.errors import ConfigError

    general: float | None = None
    own: dict[str, float] = {}
    for text in texts:
        of_class, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1 or (of_class and of_class not in classes):
            known = not of_class or of_class in classes
            raise ConfigError(
                name,
                found=repr(text),
                expected="a number from 0 to 1, or CLASS=NUMBER"
                if known
                else f"a class of the network: {listed(classes)}",
                remedy="correct it",
            )
        if of_class:
            own[of_class] = value
        else:
            general = value
    return [own.get(each, general) for each in classes]


def _print_report(report: AutolabelReport, checkpoint: str, out: Path) -> None:
    from cgrseg.inference.autolabel import REPORT

    for path, error in report.failed:
        text = str(error)
        print(f"error: {text if str(path) in text else f'{path}: {text}'}", file=sys.stderr)
    table = make_table("class", "confidence from", "pixels predicted", "kept", "share", "images")
    for one in report.classes:
        table.add_row(
            one.name,
            f"{one.threshold:.5g}" if one.threshold is not None else "none kept",
            f"{one.predicted:,}",
            f"{one.kept:,}",
            f"{one.share:.1%}",
            f"{one.images:,}",
        )
    console = make_console()
    console.print(table)
    parts = [f"{report.labeled} images labeled, {report.share:.1%} of their pixels"]
    if report.empty:
        parts.append(f"{len(report.empty)} left out, without a confident pixel")
    if report.own:
        parts.append(f"{len(report.own)} with labels of another program, which were left alone")
    if report.failed:
        parts.append(f"{len(report.failed)} could not be used")
    lines = [f"{'; '.join(parts)}: {out} (report: {out / REPORT})"]
    if report.labeled or report.own:
        lines.append(f"next: {_train_command(checkpoint, out)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _train_command(checkpoint: str, out: Path) -> str:
    """The command that trains on labeled and automatic labels, from scratch."""
    run = Path(checkpoint).parent
    words = ["CONFIG"]
    if (run / "config.json").is_file():
        words = [str(run), f"work_dir={run}_auto"]
    return shlex.join(["cgrseg", "train", *words, f"data.extra={out}"])
