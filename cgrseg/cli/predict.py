"""`cgrseg predict`: label maps and overlays of images and videos."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import (
    EXIT_PARTLY,
    compile_choice,
    hold_lock,
    make_console,
    split_settings,
    test_settings,
)
from cgrseg.cli.options import (
    BatchSize,
    Compile,
    Device,
    Engine,
    GpusPerWorker,
    MultiScale,
    Opacity,
    Precision,
    RayAddress,
    RayWorkers,
    Threads,
    TrustCode,
    check_engine,
    out_option,
    overwrite_option,
)
from cgrseg.processes import quick_imports, this_process

if TYPE_CHECKING:
    from cgrseg.data.convert.annotation_writer import RegionShape
    from cgrseg.errors import DataError
    from cgrseg.inference import FolderReport, Predictor
    from cgrseg.inference.annotation_files import SavedAnnotations
    from cgrseg.inference.prediction import Speed
    from cgrseg.precision import AnyPrecision

_FILE_SUFFIX = re.compile(r"\.[a-z0-9]*[a-z]{2}[a-z0-9]*", re.IGNORECASE)


def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file, a folder of save_pretrained, a hub id, a name of cgrseg models, "
            "or a file of cgrseg export (.onnx, .xml, ...).",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES... [KEY=VALUE]...",
            help="Image files, folders (with their subfolders) and quoted patterns such as "
            "'a/**/*.jpg', also at addresses (s3://bucket/folder); or videos. KEY=VALUE are test "
            "settings, e.g. test.mode=slide.",
            show_default=False,
            autocompletion=completion.files_or_settings,
        ),
    ],
    out: Annotated[
        Path,
        out_option(
            "Folder for labels/ and overlays/, or one video file, or the .tif of a label raster. "
            "Default: predictions."
        ),
    ] = Path("predictions"),
    overlays: Annotated[bool, typer.Option(help="Overlays of the labels on the images.")] = True,
    legend: Annotated[
        bool | None,
        typer.Option(help="Class names and shares beside the images."),
    ] = None,
    opacity: Opacity = 0.5,
    save: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="Also write the regions for a labeling tool: label-studio, cvat, coco, labelme or "
            "geojson; may be repeated.",
            show_default=False,
        ),
    ] = None,
    save_shape: Annotated[
        str, typer.Option(help="Regions of --save as polygon or mask (run lengths).")
    ] = "polygon",
    save_tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Largest distance in pixels of a dropped polygon point. Up to 0.35, the polygons "
            "give the label map back exactly.",
        ),
    ] = 0.35,
    bands: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Bands of a raster with red, green and blue, or with the channels that the "
            "network takes. Default: 1,2,3 and so on.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, overwrite_option("Without --overwrite existing results are kept.")
    ] = False,
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
    compile: Compile = "auto",
    threads: Threads = None,
    trust_code: TrustCode = False,
    device: Device = None,
    engine: Engine = None,
    ray_address: RayAddress = None,
    workers: RayWorkers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Predict the class of every pixel of images or videos of any size.

    Writes OUT/labels/NAME.png (class ids, shown in the dataset's colors) and
    OUT/overlays/NAME.jpg. A file that cannot be read is named, and the others
    are processed; the exit status is then 1 (0 under torchrun, which would end
    the other processes). The same command resumes an interrupted prediction.

    A video gives a copy with the labels painted over its frames (.mp4, .mov,
    .mkv, .avi; .webm for browsers), without sound. Videos that are already in the
    folder OUT are kept.

    With --out NAME.tif, a GeoTIFF (or another raster that GDAL reads, also at an
    address) of any size gives a label raster with the same georeference, and
    with --save geojson its polygons. Needs the extra [geo].

    Exported files (`cgrseg export`) are used like their checkpoint; they run on
    the CPU.

    With --engine ray, workers of a Ray cluster label the images, in a folder OUT
    that all of them see. OUT/predictions.parquet lists the images with digest,
    class shares and confidence. Images of workers that die are done again.

    Examples:
      cgrseg predict best.pth street.jpg holiday/ --out painted

      cgrseg predict best.pth 'images/**/*.jpg' --no-overlays

      cgrseg predict best.pth drive.mp4 --out painted.mp4 --compile

      cgrseg predict best.onnx street.jpg

      cgrseg predict best.pth scene.tif --out labels.tif --save geojson

      cgrseg predict best.pth unlabeled/ --save cvat --save coco

      cgrseg predict best.pth s3://bucket/images --out painted --engine ray
    """
    with quick_imports():
        from cgrseg.data.scenes import RASTER_SUFFIXES
        from cgrseg.devices import device_of_process
        from cgrseg.errors import ConfigError
        from cgrseg.formats import is_exported
        from cgrseg.inference import predict_folder
        from cgrseg.precision import check_precision
        from cgrseg.progress import shown_progress

        # Exported files have their own runtime, on the CPU, whatever GPU there is; Ray's workers
        # find their device; that of other files imports PyTorch.
        exported = is_exported(checkpoint)
        where = device if exported or engine else str(device_of_process(device))
    process = this_process()
    rank, world_size = process.rank, process.world_size
    others = process.launcher == "pytorch"
    names, settings = split_settings(images)
    if not names:
        raise ConfigError(
            "IMAGES",
            found="settings only",
            expected="image files, folders, patterns or videos",
            remedy="name at least one: cgrseg predict CHECKPOINT IMAGES... [KEY=VALUE]...",
        )
    raster = out.suffix.lower() in RASTER_SUFFIXES and not out.is_dir()
    if raster:
        shown = legend is not None or not overlays
        for_images = shown or save_shape != "polygon" or batch_size != 1
        _check_raster(names, save or [], for_images, world_size)
    elif bands is not None:
        raise ConfigError(
            "--bands",
            found="given for images",
            expected="a raster: a .tif as --out",
            remedy="leave it out, or give --out labels.tif",
        )
    annotations = None
    if save and not raster:
        from cgrseg.inference.annotation_files import AnnotationSettings

        annotations = AnnotationSettings(save, cast("RegionShape", save_shape), save_tolerance)
    videos = [] if raster else _video_targets(names, out, overlays, legend, bool(save))
    other = "a raster" if raster else "videos" if videos else ""
    if world_size > 1:
        other = f"{world_size} processes"
    check_engine(engine, {"--workers": workers, "--gpus-per-worker": gpus_per_worker}, other)
    hold_lock(
        videos[0][1].parent if videos else out.parent if raster else out,
        below=not (videos or raster),
    )
    if engine and device is None and not gpus_per_worker and not exported:
        where = "cpu"
    open_predictor = functools.partial(
        _opened,
        checkpoint,
        where,
        check_precision(precision, "--precision"),
        compile_choice(compile),
        threads or 1 if engine else threads,
        trust_code,
        [*(setting or []), *settings],
        multi_scale,
    )
    choices: dict[str, Any] = {
        "overlays": overlays,
        "legend": legend is not False,
        "opacity": opacity,
        "overwrite": overwrite,
        "batch_size": batch_size,
        "checkpoint": checkpoint,
        "annotations": annotations,
    }
    if engine:
        from cgrseg.inference.ray_engine import TABLE, RayCluster, predict_on_ray

        cluster = RayCluster(ray_address, workers, threads or 1, gpus_per_worker)
        with shown_progress("predicting") as progress:
            report = predict_on_ray(
                open_predictor, names, out, cluster, **choices, progress=progress
            )
        _say_folder(report, out)
        if report.done:
            _say(f"network, per worker: {report.speed}")
        _say(f"table: {out / TABLE}")
        if report.failed:
            raise typer.Exit(EXIT_PARTLY)
        return
    predictor = open_predictor()
    if raster:
        _label_raster(predictor, checkpoint, names[0], out, bands, bool(save), overwrite)
        return
    if videos:
        mine = videos[rank::world_size]
        alone = len(mine) == 1 and not others
        problems = _paint(predictor, checkpoint, mine, out, opacity, overwrite, batch_size, alone)
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if problems:
            _end_partly(others)
        return
    with shown_progress("predicting") as progress:
        report = predict_folder(
            predictor, names, out, rank=rank, world_size=world_size, **choices, progress=progress
        )
    _say_folder(report, out)
    if report.done:
        _say_speed(predictor, report.speed)
    if report.saved is None and annotations is not None:
        _say("annotation files: run the command again in one process, which keeps the label maps")
    if report.failed:
        _end_partly(others)


def _opened(
    checkpoint: str,
    device: str | None,
    precision: AnyPrecision,
    compile: bool | Literal["auto"],
    threads: int | None,
    trust_code: bool,
    settings: list[str],
    multi_scale: bool,
) -> Predictor:
    """The predictor of the options; Ray calls this in its workers."""
    from cgrseg.inference import Predictor

    predictor = Predictor.from_pretrained(
        checkpoint, device, precision, compile=compile, threads=threads, trust_code=trust_code
    )
    predictor.test = test_settings(predictor.test, settings, multi_scale=multi_scale)
    return predictor


def _check_raster(names: list[str], save: list[str], for_images: bool, processes: int) -> None:
    """Refuse what rasters do not have.

    Raises:
        ConfigError: several rasters or processes, or options for images.
    """
    from cgrseg.errors import ConfigError

    found = ""
    if len(names) > 1:
        found = f"{len(names)} inputs"
    elif processes > 1:
        found = f"{processes} processes"
    elif for_images or set(save) - {"geojson"}:
        found = "options for images"
    if found:
        raise ConfigError(
            "--out",
            found=f"a raster, with {found}",
            expected="one raster, one process, and of the options for images --save geojson alone",
            remedy="run the command once for each raster without the others, or give a folder as "
            "--out for images",
        )


def _label_raster(
    predictor: Predictor,
    checkpoint: str,
    source: str,
    out: Path,
    bands: str | None,
    geojson: bool,
    overwrite: bool,
) -> None:
    from cgrseg.errors import ConfigError
    from cgrseg.inference.raster import predict_raster
    from cgrseg.progress import shown_progress

    numbers = bands.split(",") if bands is not None else []
    if not all(number.strip().isdecimal() for number in numbers):
        raise ConfigError(
            "--bands",
            found=repr(bands),
            expected="numbers, such as 3,2,1",
            remedy="list the numbers of the bands in the order of the network's channels; gdalinfo "
            "shows them",
        )
    with shown_progress("labeling", unit="windows") as progress:
        report = predict_raster(
            predictor,
            source,
            out,
            bands=[int(number) for number in numbers] or None,
            overwrite=overwrite,
            checkpoint=checkpoint,
            geojson=geojson,
            progress=progress,
        )
    height, width = report.size
    _say(f"{width} x {height} pixels labeled in {report.windows} windows: {out}")
    if report.polygons is not None:
        _say(f"{report.polygons} polygons: {out.with_suffix('.geojson')}")


def _say_folder(report: FolderReport, out: Path) -> None:
    for path, error in report.failed:
        text = str(error)
        print(f"error: {text if str(path) in text else f'{path}: {text}'}", file=sys.stderr)
    parts = [f"{len(report.done)} labeled"]
    if report.kept:
        parts.append(f"{len(report.kept)} were there already (--overwrite does them again)")
    if report.failed:
        parts.append(f"{len(report.failed)} could not be used")
    _say(f"{', '.join(parts)}: {out}")
    if report.saved is not None:
        _say_saved(report.saved)


def _say_speed(predictor: Predictor, speed: Speed) -> None:
    _say(f"network: {speed}")
    backend = predictor.backend
    if backend.choice:
        _say(f"form: {backend.choice}{'; ' if backend.advice else ''}{backend.advice}")


def _say_saved(saved: SavedAnnotations) -> None:
    _say(f"{saved.regions} regions of {saved.images} images:")
    for name, place in saved.places.items():
        _say(f"  {place}: {saved.advice[name]}")
    for path in saved.kept:
        print(
            f"warning: {path}: it was changed since it was written, and is kept (--overwrite "
            "replaces it, and predicts again)",
            file=sys.stderr,
        )


def _say(text: str) -> None:
    make_console().print(text, markup=False, soft_wrap=True)


def _end_partly(others: bool) -> None:
    """End with status 1, unless torchrun would then kill the other processes."""
    if not others:
        raise typer.Exit(EXIT_PARTLY)
    print(
        "failures are reported in this text only: the exit status is 0, since torchrun ends the "
        "other processes where one has another",
        file=sys.stderr,
    )


def _video_targets(
    inputs: list[str], out: Path, overlays: bool, legend: bool | None, save: bool
) -> list[tuple[Path, Path]]:
    """Videos of the inputs, each with its painted file; empty if there are none.

    Raises:
        ConfigError: videos and images together, several videos and one file, a suffix that
            cannot be written, or options that do not apply to videos.
    """
    from cgrseg.errors import ConfigError
    from cgrseg.inference.image_sources import kind_of
    from cgrseg.inference.video import WRITTEN_SUFFIXES

    videos = [Path(name) for name in inputs if kind_of(name) == "video"]
    if not videos:
        return []
    if len(videos) < len(inputs):
        raise ConfigError(
            "IMAGES",
            found=f"videos ({videos[0]}) and other files together",
            expected="either videos or images",
            remedy="run the command once for each",
        )
    if legend or not overlays or save:
        raise ConfigError(
            "--save" if save else "--legend" if legend else "--no-overlays",
            found="an option for images, with videos",
            expected="videos, which are painted, without a legend and without annotation files",
            remedy="leave it out, or give images",
        )
    # The suffix of a file has letters; a folder may be called "v2" or "run.7".
    if _FILE_SUFFIX.fullmatch(out.suffix) and not out.is_dir():
        if out.suffix.lower() not in WRITTEN_SUFFIXES:
            raise ConfigError(
                "--out",
                found=f"the suffix {out.suffix} in {out}",
                expected=f"one of {', '.join(WRITTEN_SUFFIXES)}, or a folder",
                remedy="choose .mp4, or .webm for a video that browsers show; create a folder of "
                "such a name beforehand",
            )
        if len(videos) > 1:
            raise ConfigError(
                "--out",
                found=f"one file, {out}, for {len(videos)} videos",
                expected="a folder",
                remedy="leave out the suffix",
            )
        return [(videos[0], out)]
    targets = [out / f"{video.stem}.mp4" for video in videos]
    if len(set(targets)) < len(targets):
        raise ConfigError(
            "IMAGES",
            found="videos that differ only in their folder or suffix",
            expected="names that differ, since the painted videos get them",
            remedy="run the command once for each",
        )
    return list(zip(videos, targets, strict=True))


def _paint(
    predictor: Predictor,
    checkpoint: str,
    videos: list[tuple[Path, Path]],
    out: Path,
    opacity: float,
    overwrite: bool,
    batch_size: int,
    alone: bool,
) -> list[DataError]:
    """Paint videos one after another, and return the errors of those that failed.

    In a folder, painted videos whose records fit are kept; an existing single file is refused.
    With `alone`, the error is raised, since there is no other video to paint.
    """
    from cgrseg.errors import DataError
    from cgrseg.inference import predict_video
    from cgrseg.inference.records import VideoRecord
    from cgrseg.progress import shown_progress

    problems: list[DataError] = []
    for video, target in videos:
        itself = target.is_file() and video.exists() and target.samefile(video)
        in_folder = target != out and not itself
        record = VideoRecord(predictor, checkpoint, opacity, video, target)
        try:
            found = record.find() if in_folder and not overwrite else "missing"
            if found != "missing":
                unknown = ", and no record says what it was painted from"
                _say(
                    f"was there already{unknown if found == 'unrecorded' else ''} (--overwrite "
                    f"does it again): {target}"
                )
                continue
            with (
                shown_progress(f"painting {video.name}") as progress,
                record.painting() if in_folder else contextlib.nullcontext(),
            ):
                report = predict_video(
                    predictor,
                    video,
                    target,
                    opacity=opacity,
                    overwrite=overwrite or in_folder,
                    batch_size=batch_size,
                    progress=progress,
                )
        except DataError as error:
            if alone:
                raise
            problems.append(error)
            continue
        _say(f"{report.frames} frames painted: {target}")
        _say_speed(predictor, report.speed)
        if report.note:
            print(f"warning: {video}: {report.note}, as the file counts them", file=sys.stderr)
        if report.problem is not None:
            problems.append(report.problem)
    return problems
