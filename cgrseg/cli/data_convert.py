"""`cgrseg data convert`: from published or hand-made annotations to label PNGs."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgrseg.cli.common import EXIT_PARTLY, Command, Commands, make_console
from cgrseg.cli.options import AsJson, Workers, out_option, overwrite_option, split_option
from cgrseg.errors import ConfigError
from cgrseg.progress import Progress, shown_progress

if TYPE_CHECKING:
    from cgrseg.data.convert import ConversionReport

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Make label PNGs. Finished files are kept, so an interrupted conversion can be run again. "
    "What is damaged is named and skipped, and the exit status is then 1.",
)


class Placing(str, Enum):
    """How images get to their place."""

    link = "link"
    copy = "copy"


Source = Annotated[Path, typer.Argument(help="Folder to convert.", show_default=False)]
ImageFolder = Annotated[Path, typer.Argument(help="Folder of the images.", show_default=False)]
OutArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[OUT]", help="Folder for the result; the same as --out.", show_default=False
    ),
]
OutOption = Annotated[Path | None, out_option("Folder for the result.")]
ImageMode = Annotated[
    Placing,
    typer.Option(
        "--image-mode",
        help="Place images as hard links (no disk space; copied where impossible) or as copies.",
    ),
]
Split = Annotated[str | None, split_option("Default: no split folders.")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Class names in id order: a text file with one a line, or names with commas. "
        "Default: OUT/classes.txt if it is there, else what is found."
    ),
]
Background = Annotated[
    str | None,
    typer.Option(help="Class of pixels that no annotation covers. Default: ignored (255)."),
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Class whose pixels are ignored; may be repeated.")
]
Overwrite = Annotated[bool, overwrite_option("Without it finished files are kept.")]


@app.command("coco-stuff10k", cls=Command)
def coco_stuff10k(
    source: Source,
    out: Annotated[
        Path | None,
        out_option("Folder for the result. Default: SOURCE itself."),
    ] = None,
    split: Annotated[
        list[str] | None, split_option("May be repeated: train, test. Default: both.")
    ] = None,
    image_mode: ImageMode = Placing.link,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """COCO-Stuff-10k from its raw download (images, annotations/*.mat, imageLists).

    Example:
      cgrseg data convert coco-stuff10k downloads/cocostuff-10k-v1.1 --out data/coco_stuff10k
    """
    from cgrseg.data.convert import convert_coco_stuff10k

    _run(
        lambda progress: convert_coco_stuff10k(
            source,
            out,
            lists=split or None,
            image_mode=image_mode.value,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        ),
        as_json,
    )


@app.command("pascal-context", cls=Command)
def pascal_context(
    source: Annotated[
        Path,
        typer.Argument(
            help="trainval_merged.json, or the folder of the 459-class .mat files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        out_option(
            "VOC2010 folder, for SegmentationClassContext and ImageSets. Default: "
            "data/VOCdevkit/VOC2010."
        ),
    ] = Path("data/VOCdevkit/VOC2010"),
    lists: Annotated[
        Path | None,
        typer.Option(
            help="Folder with train.txt and val.txt. Default: as the source says, else "
            "OUT/ImageSets/SegmentationContext, else OUT/ImageSets/Main."
        ),
    ] = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pascal Context, 59 classes, from either published form.

    Example:
      cgrseg data convert pascal-context data/VOCdevkit/VOC2010/trainval_merged.json
    """
    from cgrseg.data.convert import convert_pascal_context

    _run(
        lambda progress: convert_pascal_context(
            source, out, lists=lists, workers=workers, overwrite=overwrite, progress=progress
        ),
        as_json,
    )


@app.command(cls=Command)
def labelme(
    source: Source,
    out: OutArgument = None,
    out_path: OutOption = None,
    image_folder: Annotated[
        Path | None, typer.Option(help="Folder of the images. Default: where each file says.")
    ] = None,
    split: Split = None,
    classes: Classes = None,
    background: Background = None,
    ignore: Ignore = None,
    image_mode: ImageMode = Placing.link,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A folder of LabelMe JSON files.

    Example:
      cgrseg data convert labelme annotated data/mine --background other
    """
    from cgrseg.data.convert import convert_labelme

    target = _target("labelme", out, out_path)
    _run(
        lambda progress: convert_labelme(
            source,
            target,
            images=image_folder,
            split=split,
            classes=read_names(classes),
            background=background,
            ignored=ignore or (),
            image_mode=image_mode.value,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        ),
        as_json,
    )


@app.command(cls=Command)
def coco(
    source: Annotated[Path, typer.Argument(help="instances JSON file.", show_default=False)],
    image_folder: ImageFolder,
    out: OutArgument = None,
    out_path: OutOption = None,
    split: Split = None,
    background: Background = None,
    ignore: Ignore = None,
    image_mode: ImageMode = Placing.link,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """COCO instances: polygons and run-length masks.

    Example:
      cgrseg data convert coco instances_train.json train2017 data/mine --split train
    """
    from cgrseg.data.convert import convert_coco_instances

    target = _target("coco", out, out_path)
    _run(
        lambda progress: convert_coco_instances(
            source,
            image_folder,
            target,
            split=split,
            background=background,
            ignored=ignore or (),
            image_mode=image_mode.value,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        ),
        as_json,
    )


@app.command(cls=Command)
def rgb(
    image_folder: ImageFolder,
    masks: Annotated[Path, typer.Argument(help="Folder of the masks.", show_default=False)],
    out: OutArgument = None,
    out_path: OutOption = None,
    colors: Annotated[
        Path | None,
        typer.Option(
            "--colors",
            help="Text file of lines such as 'road 128 64 128', or JSON. Without it, the colors "
            "found are listed and nothing is written.",
        ),
    ] = None,
    mask_suffix: Annotated[
        str, typer.Option(help="Ending of mask names after the image name, e.g. _L.")
    ] = "",
    split: Split = None,
    ignore: Ignore = None,
    image_mode: ImageMode = Placing.link,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Color masks, where each class has a color.

    Example:
      cgrseg data convert rgb images masks data/mine --colors colors.txt --ignore void
    """
    from cgrseg.data.convert import convert_rgb_masks

    target = _target("rgb", out, out_path)
    _run(
        lambda progress: convert_rgb_masks(
            image_folder,
            masks,
            target,
            colours=colors,
            mask_suffix=mask_suffix,
            split=split,
            ignored=ignore or (),
            image_mode=image_mode.value,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        ),
        as_json,
    )


@app.command(cls=Command)
def mat(
    image_folder: ImageFolder,
    labels: Annotated[Path, typer.Argument(help="Folder of the MATLAB files.", show_default=False)],
    out: OutArgument = None,
    out_path: OutOption = None,
    classes: Classes = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="Variable that holds the label map. Default: the only one of each file.",
            show_default=False,
        ),
    ] = None,
    split: Split = None,
    ignore: Ignore = None,
    image_mode: ImageMode = Placing.link,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Label maps in MATLAB files, one array each; the class list names the stored values.

    Example:
      cgrseg data convert mat images labels data/mine --classes none,road,car --ignore none
    """
    from cgrseg.data.convert import convert_mat_labels

    target = _target("mat", out, out_path)
    _run(
        lambda progress: convert_mat_labels(
            image_folder,
            labels,
            target,
            classes=read_names(classes),
            field=field,
            split=split,
            ignored=ignore or (),
            image_mode=image_mode.value,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        ),
        as_json,
    )


def _target(command: str, argument: Path | None, option: Path | None) -> Path:
    """The folder for the result, given once, as an argument or as an option."""
    if (argument is None) == (option is None):
        raise ConfigError(
            f"cgrseg data convert {command} --out",
            found="it is missing" if option is None else f"both {argument} and {option}",
            expected="one folder for the result",
            remedy="give it once, for example --out data/mine",
        )
    return argument or option or Path()


def read_names(text: str | None) -> list[str] | None:
    """Class names from a text file, or separated by commas."""
    if text is None:
        return None
    if Path(text).is_file():
        from cgrseg.class_names import read_class_list

        return list(read_class_list(Path(text)))
    return text.split(",")


def _run(convert: Callable[[Progress | None], ConversionReport], as_json: bool) -> None:
    with shown_progress("converting", not as_json) as progress:
        report = convert(progress)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        make_console().print(report.text(), markup=False, soft_wrap=True)
    if report.exit_code:
        raise typer.Exit(EXIT_PARTLY)
