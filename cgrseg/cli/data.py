"""`cgrseg data`: list, fetch, convert, check, browse and rank datasets, draw synthetic ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli import completion, data_convert, data_fetch
from cgrseg.cli.common import (
    EXIT_PARTLY,
    Command,
    Commands,
    hold_lock,
    make_console,
    with_changes,
)
from cgrseg.cli.options import (
    AsJson,
    DataRoot,
    Dataset,
    Device,
    Limit,
    Precision,
    Seed,
    Settings,
    Threads,
    TrainScenes,
    TrustCode,
    ValScenes,
    Workers,
    out_option,
    overwrite_option,
    size_option,
    split_option,
)
from cgrseg.progress import shown_progress

if TYPE_CHECKING:
    from cgrseg.config import Config
    from cgrseg.data.check.report import CheckReport
    from cgrseg.datasets.spec import DatasetSpec

data = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Datasets: list, fetch, convert, check, browse and rank them, or draw a synthetic one.",
)
data.add_typer(data_convert.app, name="convert")
data.command(cls=Command)(data_fetch.fetch)

Subject = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|FOLDER",
        help="A preset's name, a .py or .json config, a run folder, or the folder of a dataset, "
        "which may be an address (s3://...).",
        show_default=False,
        autocompletion=completion.presets,
    ),
]


@data.command("list", cls=Command)
def list_datasets(
    name: Annotated[
        str | None,
        typer.Argument(help="Show one dataset in full: classes, encoding, folders, source."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets that are known by name.

    Examples:
      cgrseg data list

      cgrseg data list coco_stuff10k
    """
    from rich.table import Table

    from cgrseg.datasets import get_spec, list_specs

    console = make_console()
    specs = [get_spec(each) for each in (list_specs() if name is None else [name])]
    if as_json:
        console.print_json(json.dumps([_describe(spec) for spec in specs]))
        return
    if name is not None:
        for key, value in _describe(specs[0]).items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            console.print(f"{key}: {text}", markup=False)
        return
    table = Table(show_edge=False, pad_edge=False)
    for title in ("name", "classes", "ids in label files", "default folder"):
        table.add_column(title, overflow="fold", justify="right" if title == "classes" else "left")
    for spec in specs:
        endings = f"*{spec.label_suffix}: {spec.label_rule.meaning}"
        table.add_row(spec.name, str(spec.num_classes), endings, spec.default_root)
    table.add_row("custom", "", "yours: docs/data_tools.md", "--data-root")
    console.print(table)


def _describe(spec: DatasetSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "title": spec.title,
        "classes": list(spec.classes),
        "encoding": [f"*{suffix}: {rule.meaning}" for suffix, rule in spec.encodings],
        "splits": [f"{key}: {lay.images}, {lay.labels}" for key, lay in spec.splits.items()],
        "default_root": spec.default_root,
        "how_to_get": spec.how_to_get,
        "notes": spec.notes,
    }


@data.command(cls=Command)
def check(
    subject: Subject,
    settings: Settings = None,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    split: Annotated[list[str] | None, split_option("May be repeated. Default: all.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run only the checks that run before every training.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings count as errors for the exit status.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Histogram of the classes, a .png, .svg or .pdf file.")
    ] = None,
    as_json: AsJson = False,
    workers: Workers = None,
) -> None:
    """Check a dataset before training: pairs, sizes, ids, encodings, leaks.

    The exit status is 1 when there are errors, 2 when the dataset cannot be described.

    Examples:
      cgrseg data check cgrseg-t_ade20k_160k --data-root /data/ADEChallengeData2016

      cgrseg data check data/mine --plot classes.png

      cgrseg data check data/mine --json > report.json
    """
    from cgrseg.addresses import local_folder
    from cgrseg.data.check import check_dataset

    config = _load(subject, settings, data_root, dataset)
    if plot is not None:
        hold_lock(plot.parent)
    with shown_progress("checking", not as_json) as progress:
        report = check_dataset(
            config.data,
            splits=split or None,
            quick=quick,
            evaluate=config.train.evaluate,
            test=config.preprocessing,
            workers=workers,
            progress=progress,
        )
    console = make_console()
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        console.print(report.text(), markup=False, soft_wrap=True)
        if local_folder(subject).is_dir():
            next_step = _next_step(subject, config, settings, report)
            if next_step:
                console.print(next_step, markup=False, soft_wrap=True)
    if plot is not None:
        _plot_classes(report, plot)
        if not as_json:
            console.print(f"histogram of classes: {plot}", markup=False)
    if report.exit_code(strict=strict):
        raise typer.Exit(EXIT_PARTLY)


def _next_step(
    subject: str, config: Config, settings: list[str] | None, report: CheckReport
) -> str:
    """What to type after the check of a folder; empty: the report alone says what to do."""
    if report.ok:
        return f"to train: {_train_command(subject, config, settings)}"
    if report.dataset != "custom" or (Path(subject) / "config.json").is_file():
        return ""
    from cgrseg.data.check import proposed_settings
    from cgrseg.data.folder_survey import READING

    survey, found = proposed_settings(config.data, report.classes)
    if survey is not None and survey.command:
        return f"to convert the labels: {survey.command}"
    kept = [each for each in settings or () if each.partition("=")[0] not in READING]
    command = shlex.join(["cgrseg", "data", "check", subject, *kept, *found])
    return f"to read it as it is: {command}" if found else ""


def _train_command(subject: str, config: Config, settings: list[str] | None) -> str:
    """The command that trains on a folder as it was checked."""
    from cgrseg.config import list_presets, load_config

    words = [config.name, f"data.root={subject}"]
    if (Path(subject) / "config.json").is_file():
        words = [subject]
    elif config.name in list_presets():
        used = load_config(config.name).data.dataset
        if used != config.data.dataset:
            words.append(f"data.dataset={config.data.dataset}")
    return shlex.join(["cgrseg", "train", *words, *(settings or ())])


def _plot_classes(report: CheckReport, target: Path) -> None:
    import numpy as np

    from cgrseg.visual.plots import class_histogram, save_figure

    none = (0,) * len(report.classes)
    pixels = [none, *(summary.pixels for summary in report.splits.values())]
    total = np.sum(pixels, axis=0, dtype=np.int64)
    title = f"{report.dataset}: {', '.join(report.splits)}"
    save_figure(class_histogram(report.classes, total, title=title), target)


@data.command(cls=Command)
def browse(
    subject: Subject,
    settings: Settings = None,
    out: Annotated[Path, out_option("HTML page. Default: sheet.html.")] = Path("sheet.html"),
    data_root: DataRoot = None,
    dataset: Dataset = None,
    split: Annotated[str | None, split_option("Default: the training split.")] = None,
    augmented: Annotated[
        bool,
        typer.Option("--augmented", help="Show the first training samples after augmentation."),
    ] = False,
    limit: Limit = 24,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Show only images with this class.", show_default=False),
    ] = None,
    width: Annotated[
        int, typer.Option(help="Width of an image on the page in pixels.", min=16, max=4096)
    ] = 360,
    overwrite: Annotated[
        bool, overwrite_option("Without --overwrite only an earlier page is replaced.")
    ] = False,
) -> None:
    """Write an HTML page of images with their labels over them.

    Examples:
      cgrseg data browse data/mine --out sheet.html

      cgrseg data browse cgrseg-t_ade20k_160k --augmented --out augmented.html

      cgrseg data browse data/camvid --split test --class bicyclist
    """
    from cgrseg.data.browse import write_sheet

    config = _load(subject, settings, data_root, dataset)
    with shown_progress("images") as progress:
        sheet = write_sheet(
            config,
            out,
            split=split,
            count=limit or 24,
            augmented=augmented,
            class_name=class_name,
            width=width,
            overwrite=overwrite,
            progress=progress,
        )
    console = make_console()
    console.print(f"{sheet.path}: {sheet.shown} images; open it in a browser", markup=False)
    for problem in sheet.problems:
        console.print(f"cannot be shown: {problem}", markup=False, soft_wrap=True)
    if sheet.problems:
        raise typer.Exit(EXIT_PARTLY)


@data.command(cls=Command)
def rank(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file, a folder of save_pretrained, a hub id, a name of cgrseg models, "
            "or a file of cgrseg export (.onnx, .xml, ...).",
            show_default=False,
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|FOLDER] [KEY=VALUE]...",
            help="The labeled dataset: a preset's name, a .py or .json config, a run folder, or "
            "the folder of a dataset; not needed with --unlabeled. KEY=VALUE are its settings, and "
            "test settings of the network, e.g. test.mode=slide.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ] = None,
    unlabeled: Annotated[
        list[str] | None,
        typer.Option(
            help="Rank these images, a folder, file or quoted pattern, in place of the labels. May "
            "be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, out_option("Folder for the page, tables and lists. Default: ranking.")
    ] = Path("ranking"),
    data_root: DataRoot = None,
    dataset: Dataset = None,
    split: Annotated[str | None, split_option("Default: the training split.")] = None,
    show: Annotated[
        int, typer.Option(help="Maximum number of images on the page.", min=1, max=10_000)
    ] = 50,
    overwrite: Annotated[
        bool, overwrite_option("Without --overwrite an earlier ranking is kept.")
    ] = False,
    precision: Precision = "fp32",
    threads: Threads = None,
    trust_code: TrustCode = False,
    device: Device = None,
) -> None:
    """Rank images: which labels to mend, or which images to label next.

    Labels are ranked by suspicion: where the network is sure of another class,
    region by region. A network finds wrong labels best among images that it was
    not trained on: train one on each half, and let it judge the other half.

    With --unlabeled, images are ranked by uncertainty and by distance to the
    labeled images; near-duplicates of an image come far below it.

    OUT/index.html shows the first images, OUT/images.txt lists all in order.
    OUT/cvat_suspects.xml and OUT/label_studio_suspects.json are for import.

    Examples:
      cgrseg data rank best.pth data/mine --out suspects

      cgrseg data rank best.onnx data/mine --unlabeled new_images --out next
    """
    from cgrseg.cli.common import split_settings, test_settings
    from cgrseg.data.pairs import find_pairs
    from cgrseg.data.resolve import resolve_spec
    from cgrseg.errors import ConfigError
    from cgrseg.evaluation.evaluate import refuse_other_classes
    from cgrseg.evaluation.outputs import refuse_own_data
    from cgrseg.evaluation.ranking import rank_images, rank_labels
    from cgrseg.inference import Predictor
    from cgrseg.inference.image_sources import find_images
    from cgrseg.precision import check_precision
    from cgrseg.reporting.ranking_page import (
        PAGE,
        refuse_existing,
        write_image_ranking,
        write_label_ranking,
    )

    names, settings = split_settings(arguments or [])
    if len(names) > 1 or (not names and not unlabeled):
        raise ConfigError(
            "CONFIG|FOLDER",
            found=", ".join(names) or "no labeled dataset and no images to label",
            expected="one labeled dataset, or images to label",
            remedy="cgrseg data rank CHECKPOINT FOLDER, or cgrseg data rank CHECKPOINT --unlabeled "
            "FOLDER",
        )
    hold_lock(out, below=True)
    refuse_existing(out, overwrite=overwrite)
    of_network = [text for text in settings if text.startswith("test.")]
    predictor = Predictor.from_pretrained(
        checkpoint,
        device,
        check_precision(precision),
        threads=threads,
        trust_code=trust_code,
    )
    predictor.test = test_settings(predictor.test, of_network, multi_scale=False)
    pairs, spec = [], None
    if names:
        config = _load(names[0], settings, data_root, dataset)
        spec = resolve_spec(config.data)
        pairs = find_pairs(spec, config.data.root, split or config.data.train_split)
        refuse_own_data(out, pairs, config.data.root)
    console = make_console()
    if unlabeled:
        images = find_images(unlabeled, leave_out=[out], channels=predictor.test.image_channels)
        with shown_progress("ranking") as progress:
            ranked, problems = rank_images(
                predictor, images, [pair.image for pair in pairs], progress=progress
            )
        title = f"What to label next, by {Path(checkpoint).name}"
        write_image_ranking(out, ranked, predictor, problems=problems, count=show, title=title)
        first = ", ".join(one.image.name for one in ranked[:3])
    else:
        assert spec is not None
        refuse_other_classes(predictor.classes, predictor.backend.num_classes, spec, checkpoint)
        with shown_progress("ranking") as progress:
            judged, problems = rank_labels(predictor, spec, pairs, progress=progress)
        title = f"Suspect labels of {spec.title}, by {Path(checkpoint).name}"
        write_label_ranking(
            out, judged, predictor, spec, problems=problems, count=show, title=title
        )
        first = ", ".join(one.pair.stem for one in judged[:3])
    for problem in problems:
        console.print(f"not ranked: {problem.error}", markup=False, soft_wrap=True)
    console.print(f"first: {first}", markup=False, soft_wrap=True)
    console.print(f"{out / PAGE}: open it in a browser", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(EXIT_PARTLY)


@data.command(cls=Command)
def synth(
    out: Annotated[Path, typer.Argument(help="Output folder.", show_default=False)],
    train_scenes: TrainScenes = 240,
    val_scenes: ValScenes = 60,
    size: Annotated[Any, size_option("Default: 256x256.")] = "256x256",
    seed: Seed = 0,
    workers: Workers = None,
    overwrite: Annotated[bool, overwrite_option("An identical earlier result is kept.")] = False,
) -> None:
    """Draw a synthetic dataset, which needs no download.

    Example:
      cgrseg data synth data/synthetic --train-scenes 240 --val-scenes 60
    """
    from cgrseg.data.synthetic import write_dataset

    with shown_progress("scenes") as progress:
        root = write_dataset(
            *(out, train_scenes, val_scenes, size, seed or 0),
            workers=2 if workers is None else workers,
            overwrite=overwrite,
            progress=progress,
        )
    make_console().print(
        f"{root}: {train_scenes} training and {val_scenes} validation scenes", markup=False
    )


def _load(
    subject: str, settings: list[str] | None, data_root: str | None, dataset: str | None
) -> Config:
    """A run's settings from a config, or from the folder of a dataset.

    A folder gets the training recipe of its dataset, where there is a published one.  For a file of
    annotations, the error names the command that converts it.
    """
    from cgrseg.addresses import local_folder
    from cgrseg.config import list_presets, load_config
    from cgrseg.data.guess import guess_dataset, refuse_known_formats
    from cgrseg.errors import ConfigError

    changes = with_changes(settings, data__root=data_root)
    folder = local_folder(subject)
    if folder.is_dir() and not (folder / "config.json").is_file():
        name = dataset or changes.get("data.dataset")
        if name is None and "data.classes" in changes:
            name = "custom"
        name = name or guess_dataset(subject).dataset
        presets = (each for each in list_presets() if load_config(each).data.dataset == name)
        found = {"data.dataset": name, "data.root": subject, **changes}
        return load_config(next(presets, "cgrseg-t_custom"), found)
    if dataset is not None:
        raise ConfigError(
            "--dataset",
            found=f"{dataset!r} together with the config {subject}",
            expected="--dataset for a folder only; a config says itself which dataset it uses",
            remedy=f"leave it out, or set data.dataset={dataset}",
        )
    try:
        return load_config(subject, changes)
    except ConfigError:
        if folder.is_file():
            refuse_known_formats(folder)
        raise
