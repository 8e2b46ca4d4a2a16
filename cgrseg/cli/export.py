"""`cgrseg export`: write a checkpoint as a file for another runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import make_console, of_sections
from cgrseg.cli.options import (
    DataRoot,
    Limit,
    batch_size_option,
    out_option,
    overwrite_option,
    precision_option,
    settings_argument,
    size_option,
    split_option,
)
from cgrseg.formats import format_summaries
from cgrseg.processes import quick_imports

if TYPE_CHECKING:
    from cgrseg.deploy.int8 import Int8Report

_FORMATS = [f"{name} ({summary})" for name, summary in format_summaries().items()]


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file, a folder of save_pretrained, a hub id, or a name of cgrseg models.",
            show_default=False,
        ),
    ],
    settings: Annotated[list[str] | None, settings_argument("test.scale=512x256")] = None,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"Export format: {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.",
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        out_option("Exported file. Default: beside the checkpoint."),
    ] = None,
    size: Annotated[
        list[Any] | None,
        size_option(
            "Multiples of 32; may be repeated. Default: any size (with --int8 the size of "
            "the calibration images; aoti needs a size, coreml, executorch, litert and ncnn "
            "exactly one)."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, batch_size_option("Default: any number (formats that need a size: 1).")
    ] = None,
    takes: Annotated[
        str,
        typer.Option(
            "--input",
            help="Input of the file: `normalized`, float32 (N, 3, H, W); or `pixels`, uint8 RGB "
            "(N, H, W, 3), which the file normalizes.",
        ),
    ] = "normalized",
    gives: Annotated[
        str,
        typer.Option(
            "--output",
            help="Output of the file: logits at 1/8 of the size, or labels at the input size.",
        ),
    ] = "logits",
    opset: Annotated[
        int | None,
        typer.Option(help="ONNX operator set. Default: 18.", min=18, max=23, show_default=False),
    ] = None,
    precision: Annotated[
        str,
        precision_option(
            "With fp16 (litert, ncnn, onnx, openvino, web) the file has about half the size; input "
            "and output stay float32.",
            completion.stored_precisions,
        ),
    ] = "fp32",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Quantize to 8 bits (executorch, litert, onnx, openvino, web), and measure the "
            "mIoU drop.",
        ),
    ] = False,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            help="Calibration images: files, folders or quoted patterns; may be repeated. "
            "Default: the training split of the checkpoint's dataset.",
            show_default=False,
        ),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of calibration images, sampled evenly. Default: 128.",
            min=1,
            max=1_000_000,
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    split: Annotated[
        str | None,
        split_option("Default: data.eval_split."),
    ] = None,
    limit: Limit = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest accepted mIoU drop, in points. A larger drop discards the export. "
            "Default: 1.",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, overwrite_option()] = False,
) -> None:
    """Write a checkpoint as a file for another runtime.

    Each file is opened in its own runtime and compared with the float32 network
    on several images, sizes and batch sizes; an export that differs too much is
    discarded. `cgrseg predict FILE image.jpg` uses it like a checkpoint.

    Examples:
      cgrseg export best.pth

      cgrseg export best.pth --format openvino --size 512x512 --batch-size 1

      cgrseg export best.pth --format litert --size 512x512

      cgrseg export best.pth --precision fp16

      cgrseg export best.pth --format openvino --int8 --calibrate images/
    """
    with quick_imports():
        from cgrseg.deploy import export as run_export
        from cgrseg.deploy.int8 import Int8Options
        from cgrseg.errors import ConfigError

    only_int8 = {
        "--calibrate": calibrate or None,
        "--calibration-images": calibration_images,
        "--data-root": data_root,
        "--split": split,
        "--limit": limit,
        "--max-drop": max_drop,
    }
    given = [name for name, value in only_int8.items() if value is not None]
    if given and not int8:
        raise ConfigError(
            ", ".join(given),
            found="given without --int8",
            expected="these options together with --int8",
            remedy="add --int8, or leave it out",
        )
    result = run_export(
        checkpoint,
        file_format,
        out,
        sizes=size or None,
        batch=batch_size,
        takes=takes,
        gives=gives,
        opset=opset,
        precision=precision,
        int8=Int8Options(calibrate, calibration_images, data_root, split, limit, max_drop)
        if int8
        else None,
        settings=of_sections(settings or (), ("test", "data") if int8 else ("test",)),
        overwrite=overwrite,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    console = make_console()
    if result.int8 is not None:
        console.print(_summary(result.int8), markup=False, soft_wrap=True)
    console.print(
        f"written: {result.path} ({result.megabytes:.1f} MB, {result.seconds:.0f} s)",
        markup=False,
        soft_wrap=True,
    )


def _summary(report: Int8Report) -> str:
    lines = [
        f"calibrated on {report.images} images; kept in float32: {', '.join(report.kept_back)}",
        f"labels equal to the float32 network's on {100 * report.agreement:.2f} % of pixels",
    ]
    if report.before is None or report.after is None:
        lines.append(f"mIoU was not measured: {report.unmeasured}")
    else:
        before, after = 100 * report.before, 100 * report.after
        lines.append(
            f"mIoU {before:.2f} before, {after:.2f} after ({after - before:+.2f} points) on "
            f"{report.measured_on}"
        )
    return "\n".join(lines)
