"""The report of a run folder: its evaluation, curves, settings, and images predicted again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgrseg.config import load_config
from cgrseg.config.presets import named_preset
from cgrseg.config.settings import stored_test_settings
from cgrseg.data.channels import as_picture
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import CGRSegError, ConfigError, DataError
from cgrseg.inference.ready_backend import make_backend
from cgrseg.inference.segmenting import segment
from cgrseg.locks import locking, output_lock
from cgrseg.models import load_model
from cgrseg.models.digest import weights_digest
from cgrseg.reporting.records import (
    EvaluationRecord,
    Group,
    ImageRecord,
    ReportInput,
    Sample,
    evaluation_file,
    plain,
    read_evaluation,
)
from cgrseg.reporting.report import software_versions, write_report
from cgrseg.reporting.report_files import TABLES, ReportFiles, check_targets
from cgrseg.training.run_log import read_table

if TYPE_CHECKING:
    from cgrseg.config import Config
    from cgrseg.evaluation.result import EvaluationResult
    from cgrseg.inference import Predictor
    from cgrseg.inference.backends import Backend

_LOG = logging.getLogger("cgrseg.reporting")

# Largest difference between the accuracy of an image in the evaluation and in the report: other
# hardware and another precision change single pixels, another network changes far more.
_TOLERANCE = 0.01
_FEW_PIXELS = 3  # accepted number of changed pixels where they are more than that share


def report_on(
    run: Path | str,
    *,
    checkpoint: str | Path | None = None,
    config: Config | None = None,
    data_root: str | Path | None = None,
    out: Path | str | None = None,
    pictures: bool = True,
    device: str | None = None,
    overwrite: bool = False,
) -> ReportFiles:
    """Write the report of an evaluated run: scores, classes, confusion, images, settings.

    Args:
        run: run folder, or one of its evaluation files.
        checkpoint: checkpoint that predicts the images; None: the one that was evaluated.
        config: config of the run; None: the one in its folder, else the preset of its name.
        data_root: dataset root, where it is not the one of the config.
        out: the HTML file; None: beside the evaluation, `report.html` for `evaluation.json`,
            `report_test.html` for `evaluation_test.json`.
        pictures: predict and show images.  Without config, data or checkpoint, the report has no
            images and says why.
        device: device that predicts; None: a GPU if there is one.
        overwrite: replace an older page, its numbers and its tables.

    Raises:
        DataError: no evaluation, an existing file, or a checkpoint whose predictions are not those
            that were evaluated.
        EnvironmentProblem: writing fails, or there is no such device.
    """
    source = evaluation_file(run)
    evaluation = read_evaluation(source)
    stem = "report" + source.stem.removeprefix("evaluation")
    target = Path(out) if out is not None else source.with_name(f"{stem}.html")
    with output_lock(target.parent):
        check_targets(target, TABLES, overwrite=overwrite)
        missing: list[str] = []
        if config is None:
            config = _config(source, evaluation, data_root, missing)
        backend = None
        if not pictures:
            missing = ["The images were left out on request."]
        elif config is not None:
            backend = _backend(source, evaluation, checkpoint, device, missing)
        return _write(target, source.parent, config, evaluation, backend, {}, missing)


@locking(lambda given: given["run_dir"])
def write_run_report(
    run_dir: Path | str,
    config: Config,
    result: EvaluationResult,
    predictor: Predictor | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
    name: str = "report",
) -> Path:
    """Write the report of an evaluation in memory into its run folder.

    Args:
        run_dir: run folder; `metrics.csv` and `scores.csv` in it are shown.
        config: config of the run.
        result: result of the evaluation.
        predictor: its network predicts the images, with the settings of the evaluation; None: the
            report shows no images.
        notes: see :class:`ReportInput`.
        name: file name without its suffix.

    Returns:
        The HTML file.

    Raises:
        DataError: an image that cannot be read, or a network that was not the evaluated one.
        EnvironmentProblem: writing fails.
    """
    folder = Path(run_dir)
    evaluation: EvaluationRecord = plain(result.as_json())
    backend = None if predictor is None else predictor.backend
    page = folder / f"{name}.html"
    return _write(page, folder, config, evaluation, backend, notes or {}, []).html


def _write(
    target: Path,
    folder: Path,
    config: Config | None,
    evaluation: EvaluationRecord,
    backend: Backend | None,
    notes: Mapping[str, Any],
    missing: list[str],
) -> ReportFiles:
    spec = None if config is None else resolve_spec(config.data)
    samples: list[Sample] = []
    if config is not None and backend is not None:
        samples = _samples(config, evaluation, backend, missing)
    settings = evaluation.get("settings", {})
    return write_report(
        target,
        ReportInput(
            title=config.name if config is not None else str(settings.get("run", folder.name)),
            evaluation=evaluation,
            palette=None if spec is None else spec.palette,
            history=read_table(folder / "metrics.csv"),
            score_history=read_table(folder / "scores.csv"),
            samples=samples,
            missing=missing,
            notes=notes,
            config={} if config is None else config.model_dump(mode="json"),
            versions=software_versions(),
            ignore_index=255 if spec is None else spec.ignore_index,
        ),
    )


def _config(
    source: Path,
    evaluation: EvaluationRecord,
    data_root: str | Path | None,
    missing: list[str],
) -> Config | None:
    """The config in the run folder, else the preset of its name."""
    changes = {} if data_root is None else {"data.root": str(data_root)}
    stored = source.parent / "config.json"
    run = str(evaluation.get("settings", {}).get("run"))
    try:
        if stored.is_file():
            return load_config(stored, changes)
        # A name in a result is no path: it never chooses a Python file to run.
        if named_preset(run) is None:
            raise ConfigError(
                source,
                found=f"no config.json beside it, and no preset is called {run!r}",
                expected="the config of the run",
                remedy="put the config.json of the run beside it",
            )
        return load_config(run, changes)
    except CGRSegError as error:
        _tell(missing, f"the report has no images: {error}")
        return None


def _backend(
    source: Path,
    evaluation: EvaluationRecord,
    checkpoint: str | Path | None,
    device: str | None,
    missing: list[str],
) -> Backend | None:
    """The network that was evaluated, at the precision of the evaluation."""
    settings = evaluation.get("settings", {})
    evaluated = settings.get("weights")
    places: list[str | Path]
    if checkpoint is not None:
        places = [checkpoint]
    else:
        named = str(settings.get("checkpoint"))
        beside = source.parent / Path(named).name  # where the run folder was moved or copied
        places = [named, beside] if beside.exists() else [named]
    problem: CGRSegError | None = None
    other = False
    for place in places:
        try:
            model = load_model(place)
        except CGRSegError as error:
            problem = problem or error
            continue
        if evaluated in (None, weights_digest(model)):
            return make_backend(model, device, settings.get("precision", "fp32"))
        other = True
    if other:
        raise _another_network(places[0], "it has other weights")
    assert problem is not None
    if checkpoint is not None:
        raise problem
    _tell(
        missing,
        "the report has no images (cgrseg report RUN --checkpoint CHECKPOINT names "
        f"one): {problem}",
    )
    return None


def _is_evaluated(backend: Backend, evaluation: EvaluationRecord) -> bool:
    """Whether the weights are known to be those that were evaluated."""
    evaluated = evaluation.get("settings", {}).get("weights")
    return evaluated is not None and bool(backend.digest() == evaluated)


def _samples(
    config: Config, evaluation: EvaluationRecord, backend: Backend, missing: list[str]
) -> list[Sample]:
    """The worst, some typical and the best images, predicted as in the evaluation."""
    settings = evaluation.get("settings", {})
    same = _is_evaluated(backend, evaluation)
    stored = settings.get("test")
    test = stored_test_settings(stored, "evaluation.json") if stored else config.preprocessing
    split = settings.get("split")
    try:
        dataset = EvalDataset.from_config(config, str(split) if split else None)
    except CGRSegError as error:
        _tell(missing, f"the report has no images: {error}")
        return []
    position = {pair.stem: k for k, pair in enumerate(dataset.pairs)}
    records = evaluation.get("per_image", [])
    samples = []
    for k, group in choose_images(records):
        record = records[k]
        if record["image"] not in position:
            raise DataError(
                config.data.root,
                found=f"no image {record['image']} in split {split}",
                expected="the images that were evaluated",
                remedy="name the folder of that data: cgrseg report RUN --data-root FOLDER; "
                "or leave the images out: cgrseg report RUN --no-pictures",
            )
        item = dataset[position[record["image"]]]
        labels = segment(backend, item["image"], test).labels
        judged = item["label"] != dataset.spec.ignore_index
        accuracy = float((labels == item["label"])[judged].mean()) if judged.any() else None
        expected = record.get("aAcc")
        allowed = max(_TOLERANCE, _FEW_PIXELS / max(1, int(judged.sum())))
        if accuracy is None or expected is None or abs(accuracy - expected) > allowed:
            found = f"the share of right pixels is {accuracy}, in the evaluation it was {expected}"
            if not same:
                raise _another_network(record["image"], found)
            _tell(missing, f"{record['image']} is not shown: {found}, with the same weights")
            continue
        scores = {name: record.get(name) for name in ("mIoU", "aAcc")}
        samples.append(
            Sample(
                item["stem"],
                as_picture(item["image"], test.image_channels),
                item["label"],
                np.asarray(labels),
                group,
                scores,  # type: ignore[arg-type]
            )
        )
    return samples


def _tell(missing: list[str], reason: str) -> None:
    """Say why images are missing, now and on the page."""
    _LOG.warning("%s", reason)
    missing.append(reason)


def _another_network(where: object, found: str) -> DataError:
    return DataError(
        where,
        found=found,
        expected="the network and the data that were evaluated",
        remedy="name its checkpoint: cgrseg report RUN --checkpoint CHECKPOINT; evaluate "
        "again; or leave the images out: cgrseg report RUN --no-pictures",
    )


def choose_images(
    records: Sequence[ImageRecord], worst: int = 4, typical: int = 2, best: int = 4
) -> list[tuple[int, Group]]:
    """Positions of the images to show, by mIoU; no image is chosen twice.

    Args:
        records: one per image; an image without a score is never chosen.
        worst: number of images with the lowest scores, lowest first.
        typical: number of images around the median.
        best: number of images with the highest scores, highest first.
    """
    scored = [(record.get("mIoU"), k) for k, record in enumerate(records)]
    ranked = [k for score, k in sorted((s, k) for s, k in scored if s is not None)]
    low = ranked[:worst]
    high = ranked[max(len(low), len(ranked) - best) :][::-1]
    middle = ranked[len(low) : len(ranked) - len(high)]
    first = max(0, (len(middle) - typical) // 2)
    groups: list[tuple[int, Group]] = [(k, "worst") for k in low]
    groups += [(k, "typical") for k in middle[first : first + typical]]
    return groups + [(k, "best") for k in high]
