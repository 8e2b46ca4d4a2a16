"""`cgrseg export`: a checkpoint as a file for another runtime, proven on the spot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli.common import make_console

if TYPE_CHECKING:
    from cgrseg.deploy.quantise import Quantisation
    from cgrseg.inference.exported import Size


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file, a folder of save_pretrained, or a hub id.",
            show_default=False,
        ),
    ],
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, openvino, pt2 (portable PyTorch program) or aoti (compiled for this "
            "machine).",
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file. Default: beside the checkpoint.", show_default=False
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="HEIGHTxWIDTH, multiples of 32; may be repeated. Default: any size (with --int8: "
            "that of the calibration images; with aoti one must be given).",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Images at once: a number, or any. Default with aoti: 1.")
    ] = "any",
    takes: Annotated[
        str,
        typer.Option(
            "--input",
            help="normalised: float32 (N, 3, H, W); pixels: uint8 RGB (N, H, W, 3), normalised "
            "inside the file.",
        ),
    ] = "normalised",
    gives: Annotated[
        str,
        typer.Option(
            "--output", help="logits at an eighth of the size, or labels at the input's size."
        ),
    ] = "logits",
    opset: Annotated[
        int | None,
        typer.Option(help="Of ONNX. Default: 18.", min=18, max=23, show_default=False),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise (onnx and openvino), and measure what it costs."),
    ] = False,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            help="Images to calibrate with: files, folders or quoted patterns; may be repeated. "
            "Default: the training split of the checkpoint's dataset.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            help="Of them, at most so many, evenly spread. Default: 128.", min=1, show_default=False
        ),
    ] = None,
    data_root: Annotated[
        str | None,
        typer.Option(
            help="Folder of the dataset to measure mIoU on. Default: the checkpoint's.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of that dataset. Default: the one that the checkpoint's config evaluates.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Measure on the first so many images only.", min=1, show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Of mIoU in points; more, and no file is left. Default: 1.",
            min=0,
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of that name.")
    ] = False,
) -> None:
    """Write a checkpoint as a file for ONNX Runtime, OpenVINO or PyTorch itself.

    Each file is opened in its own runtime and compared with the float32 network
    on several pictures, sizes and batches; if they differ too much, no file is
    left. `cgrseg predict FILE photo.jpg` uses it like a checkpoint.

    Examples:
      cgrseg export best.pth

      cgrseg export best.pth --format openvino --size 512x512 --batch 1

      cgrseg export best.pth --format openvino --int8 --calibrate photos/
    """
    from cgrseg.deploy import export as run_export

    kind = _one_of("--format", file_format, ("onnx", "openvino", "pt2", "aoti"))
    settings: dict[str, Any] = {
        "batch": _batch(batch),
        "takes": _one_of("--input", takes, ("normalised", "pixels")),
        "gives": _one_of("--output", gives, ("logits", "labels")),
        "overwrite": overwrite,
        "tell": _tell,
    }
    sizes = _sizes(size or [])
    console = make_console()
    if not int8:
        _refuse_without_int8(
            {
                "--calibrate": calibrate,
                "--images": images,
                "--data-root": data_root,
                "--split": split,
                "--limit": limit,
                "--max-drop": max_drop,
            }
        )
        result = run_export(checkpoint, kind, out, sizes=sizes, opset=opset, **settings)
    else:
        from cgrseg.deploy.quantise import export_int8

        quantised = export_int8(
            checkpoint,
            kind,
            out,
            sizes=sizes,
            calibrate=calibrate,
            images=images,
            data_root=data_root,
            split=split,
            limit=limit,
            max_drop=max_drop,
            opset=opset,
            **settings,
        )
        console.print(_about(quantised), markup=False, soft_wrap=True)
        result = quantised.result
    console.print(
        f"written: {result.path} ({result.megabytes:.1f} MB, {result.seconds:.0f} s)",
        markup=False,
        soft_wrap=True,
    )


def _about(quantised: Quantisation) -> str:
    kept = ", ".join(quantised.kept_back) or "none"
    lines = [
        f"calibrated on {quantised.images} images; kept in float32: {kept}",
        f"labels equal to the float32 network's on {100 * quantised.agreement:.2f} % of pixels",
    ]
    if quantised.before is None or quantised.after is None:
        lines.append(f"mIoU was not measured: {quantised.unmeasured}")
    else:
        before, after = 100 * quantised.before, 100 * quantised.after
        lines.append(
            f"mIoU {before:.2f} before, {after:.2f} after ({after - before:+.2f} points) on "
            f"{quantised.measured_on}"
        )
    return "\n".join(lines)


def _refuse_without_int8(options: dict[str, object]) -> None:
    from cgrseg.errors import ConfigError, explain

    given = [name for name, value in options.items() if value is not None and value != []]
    if given:
        raise ConfigError(
            explain(
                ", ".join(given),
                found="given without --int8",
                expected="only where something is quantised",
                remedy="add --int8, or leave it out",
            )
        )


def _one_of(option: str, text: str, allowed: tuple[str, ...]) -> Any:
    from cgrseg.errors import ConfigError, explain

    if text in allowed:
        return text
    raise ConfigError(
        explain(
            option,
            found=repr(text),
            expected=", ".join(allowed),
            remedy="choose from these",
        )
    )


def _batch(text: str) -> int | None:
    from cgrseg.errors import ConfigError, explain

    if text == "any":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(
        explain(
            "--batch",
            found=repr(text),
            expected="a number from 1 on, or any",
            remedy="for example --batch 1",
        )
    )


def _sizes(texts: list[str]) -> list[Size] | None:
    from cgrseg.errors import ConfigError, explain

    if not texts or texts == ["any"]:
        return None
    found = []
    for text in texts:
        height, cross, width = text.lower().partition("x")
        if not (cross and height.isdecimal() and width.isdecimal()):
            raise ConfigError(
                explain(
                    "--size",
                    found=repr(text),
                    expected="HEIGHTxWIDTH in pixels, or any",
                    remedy="for example --size 512x704",
                )
            )
        found.append((int(height), int(width)))
    return found


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
