"""`cgrseg predict`: label maps and overlays of images and videos."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import (
    EXIT_PARTLY,
    hold_lock,
    make_console,
    split_settings,
    test_settings,
)
from cgrseg.cli.options import (
    BatchSize,
    Compile,
    Device,
    MultiScale,
    Opacity,
    Precision,
    Threads,
    TrustCode,
    out_option,
    overwrite_option,
)
from cgrseg.processes import this_process

if TYPE_CHECKING:
    from cgrseg.inference import Predictor

_FILE_ENDING = re.compile(r"\.[a-z0-9]*[a-z]{2}[a-z0-9]*", re.IGNORECASE)


def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file, a folder of save_pretrained, a hub id, or a file of cgrseg export "
            "(.onnx, .xml, .pt2).",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES... [KEY=VALUE]...",
            help="Image files, folders (with their subfolders) and quoted patterns such as "
            "'a/**/*.jpg'; or videos. KEY=VALUE are test settings, e.g. test.mode=slide.",
            show_default=False,
            autocompletion=completion.files_or_settings,
        ),
    ],
    out: Annotated[
        Path,
        out_option("Folder for labels/ and overlays/, or one video file. Default: predictions."),
    ] = Path("predictions"),
    overlays: Annotated[bool, typer.Option(help="Overlays of the labels on the images.")] = True,
    legend: Annotated[
        bool | None,
        typer.Option(help="Class names and shares beside the images."),
    ] = None,
    opacity: Opacity = 0.5,
    overwrite: Annotated[bool, overwrite_option("Without it they are kept.")] = False,
    multi_scale: MultiScale = False,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Test setting, the same as KEY=VALUE after the images; may be repeated.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 1,
    precision: Precision = "fp32",
    compile: Compile = False,
    threads: Threads = None,
    trust_code: TrustCode = False,
    device: Device = None,
) -> None:
    """Predict the class of every pixel of images or videos of any size.

    Writes OUT/labels/NAME.png (class ids, shown in the dataset's colors) and
    OUT/overlays/NAME.jpg. A file that cannot be read is named, and the others
    are processed; the exit status is then 1 (0 under torchrun, which would end
    the other processes). The same command resumes an interrupted prediction.

    A video gives a copy with the labels painted over its frames (.mp4, .mov,
    .mkv, .avi; .webm for browsers), without sound. Videos that are in the folder
    OUT already are kept.

    Exported files (`cgrseg export`) are used like their checkpoint; they run on
    the CPU.

    Examples:
      cgrseg predict best.pth street.jpg holiday/ --out painted

      cgrseg predict best.pth 'images/**/*.jpg' --no-overlays

      cgrseg predict best.pth drive.mp4 --out painted.mp4 --compile

      cgrseg predict best.onnx street.jpg
    """
    from cgrseg.devices import device_of_process
    from cgrseg.errors import ConfigError
    from cgrseg.inference import Predictor, predict_folder
    from cgrseg.inference.exported import is_exported
    from cgrseg.precision import check_precision
    from cgrseg.progress import shown_progress

    console = make_console()
    process = this_process()
    rank, world_size = process.rank, process.world_size
    others = process.launcher == "pytorch"
    # Exported files have a runtime of their own, on the CPU, whatever GPU there is.
    where = device if is_exported(checkpoint) else str(device_of_process(device))
    names, settings = split_settings(images)
    if not names:
        raise ConfigError(
            "IMAGES",
            found="settings only",
            expected="image files, folders, patterns or videos",
            remedy="name at least one: cgrseg predict CHECKPOINT IMAGES... [KEY=VALUE]...",
        )
    clips = _clips(names, out, overlays, legend)
    hold_lock(clips[0][1].parent if clips else out, below=not clips)
    predictor = Predictor.from_pretrained(
        checkpoint,
        where,
        check_precision(precision, "--precision"),
        compile=compile,
        threads=threads,
        trust_code=trust_code,
    )
    predictor.test = test_settings(
        predictor.test, [*(setting or []), *settings], multi_scale=multi_scale
    )
    if clips:
        mine = clips[rank::world_size]
        if not _paint_clips(
            predictor, checkpoint, mine, out, opacity, overwrite, batch_size, others
        ):
            _end_partly(others)
        return
    with shown_progress("predicting") as progress:
        report = predict_folder(
            predictor,
            names,
            out,
            overlays=overlays,
            legend=legend is not False,
            opacity=opacity,
            overwrite=overwrite,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
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
    if report.done:
        console.print(f"network: {report.speed}", markup=False)
    if report.failed:
        _end_partly(others)


def _end_partly(others: bool) -> None:
    """End with the status that says so, unless torchrun would then kill the other processes."""
    if not others:
        raise typer.Exit(EXIT_PARTLY)
    print(
        "failures are reported in this text only: the exit status is 0, since torchrun ends the "
        "other processes where one has another",
        file=sys.stderr,
    )


def _clips(
    inputs: list[str], out: Path, overlays: bool, legend: bool | None
) -> list[tuple[Path, Path]]:
    """Videos among the inputs, each with the file that it is painted into.

    Raises:
        ConfigError: videos and images together, several videos and one file, an ending that
            cannot be written, or options that mean nothing for videos.
    """
    from cgrseg.errors import ConfigError
    from cgrseg.inference.frames import is_video
    from cgrseg.inference.video import WRITTEN_SUFFIXES

    clips = [Path(name) for name in inputs if is_video(name)]
    if not clips:
        return []
    if len(clips) < len(inputs):
        raise ConfigError(
            "IMAGES",
            found=f"videos ({clips[0]}) and other files together",
            expected="either videos or images",
            remedy="run the command once for each",
        )
    if legend or not overlays:
        raise ConfigError(
            "--legend" if legend else "--no-overlays",
            found="an option for images, with videos",
            expected="videos only ever painted, without a legend",
            remedy="leave it out, or give images",
        )
    # The ending of a file has letters; a folder may be called "v2" or "run.7".
    if _FILE_ENDING.fullmatch(out.suffix) and not out.is_dir():
        if out.suffix.lower() not in WRITTEN_SUFFIXES:
            raise ConfigError(
                "--out",
                found=f"the ending {out.suffix} in {out}",
                expected=f"one of {', '.join(WRITTEN_SUFFIXES)}, or a folder",
                remedy="choose .mp4, or .webm for a clip that browsers show; a folder of "
                "such a name must be there already",
            )
        if len(clips) > 1:
            raise ConfigError(
                "--out",
                found=f"one file, {out}, for {len(clips)} videos",
                expected="a folder",
                remedy="leave out the ending",
            )
        return [(clips[0], out)]
    targets = [out / f"{clip.stem}.mp4" for clip in clips]
    if len(set(targets)) < len(targets):
        raise ConfigError(
            "IMAGES",
            found="videos that differ in their folder or ending only",
            expected="names that differ, since the painted ones get them",
            remedy="run the command once for each",
        )
    return list(zip(clips, targets, strict=True))


def _paint_clips(
    predictor: Predictor,
    checkpoint: str,
    clips: list[tuple[Path, Path]],
    out: Path,
    opacity: float,
    overwrite: bool,
    batch_size: int,
    others: bool,
) -> bool:
    """Paint videos one after another; whether all of them were whole.

    In a folder those that are there are kept, as far as their records say that they are what
    would be painted now; a single file is refused if it is there.
    """
    import contextlib

    from cgrseg.errors import DataError
    from cgrseg.inference import predict_video
    from cgrseg.inference.painted import PaintRecord
    from cgrseg.progress import shown_progress

    console = make_console()
    problems: list[DataError] = []
    for clip, target in clips:
        itself = target.is_file() and clip.exists() and target.samefile(clip)
        in_folder = target != out and not itself
        record = PaintRecord(predictor, checkpoint, opacity, clip, target)
        try:
            found = "paint" if overwrite or not in_folder else record.look()
            if found != "paint":
                unknown = ", and no record says what it was painted from"
                console.print(
                    f"was there already{unknown if found == 'unrecorded' else ''} (--overwrite "
                    f"does it again): {target}",
                    markup=False,
                    soft_wrap=True,
                )
                continue
            with (
                shown_progress(f"painting {clip.name}") as progress,
                record.painting() if in_folder else contextlib.nullcontext(),
            ):
                report = predict_video(
                    predictor,
                    clip,
                    target,
                    opacity=opacity,
                    overwrite=overwrite or in_folder,
                    batch_size=batch_size,
                    progress=progress,
                )
        except DataError as error:
            if len(clips) == 1 and not others:
                raise
            problems.append(error)
            continue
        console.print(f"{report.frames} frames painted: {target}", markup=False, soft_wrap=True)
        console.print(f"network: {report.speed}", markup=False)
        if report.note:
            print(f"warning: {clip}: {report.note}, as the file counts them", file=sys.stderr)
        if report.problem is not None:
            problems.append(report.problem)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return not problems
