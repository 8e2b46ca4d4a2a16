"""The report of one run: one HTML file that stands alone, with JSON and CSV beside it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cgrseg.errors import DataError
from cgrseg.files import atomic_write_text, write_json
from cgrseg.locks import locking
from cgrseg.reporting.charts import Points, bar, line_chart, reliability_chart
from cgrseg.reporting.page import Section, escape, facts, page, percent
from cgrseg.reporting.records import (
    EvaluationRecord,
    ReportInput,
    check_evaluation,
    plain,
)
from cgrseg.reporting.samples import sample_cards
from cgrseg.reporting.tables import class_table, confusion_list, write_tables
from cgrseg.reporting.targets import TABLES, check_targets
from cgrseg.visual.palette import as_palette, make_palette
from cgrseg.visual.plots import curve_panels, series_of

_TILES = {
    "aAcc": "share of pixels that are right",
    "mAcc": "mean over classes of what is found",
    "mDice": "mean Dice over classes",
    "fwIoU": "IoU weighted by class frequency",
    "mBoundaryIoU": "mean IoU along borders",
    "ECE": "gap between confidence and accuracy",
}


@dataclass(frozen=True)
class ReportFiles:
    """What was written: the page, its numbers as JSON, its tables as CSV."""

    html: Path
    json: Path
    tables: tuple[Path, ...]


@locking(lambda given: Path(given["path"]).parent)
def write_report(path: Path | str, report: ReportInput) -> ReportFiles:
    """Write a report as `path` (.html), with `.json` and `_*.csv` of the same stem beside it.

    Every file is replaced whole or not at all; the page comes last.

    Args:
        path: the HTML file.
        report: what it shows.

    Raises:
        DataError: the evaluation is incomplete or does not fit the palette, or the name is an
            evaluation's or that of another file of runs.
        EnvironmentProblem: writing fails.
    """
    target = Path(path)
    check_targets(target, TABLES, overwrite=True)
    evaluation = check_evaluation(plain(report.evaluation), target)
    palette = _palette(report, target)
    stem = target.with_suffix("")
    numbers = {
        "title": report.title,
        "evaluation": {key: value for key, value in evaluation.items() if key != "confusion"},
        "notes": plain(report.notes),
        "config": plain(report.config),
        "versions": plain(report.versions),
    }
    tables = write_tables(stem, evaluation)
    json_path = stem.with_name(f"{stem.name}.json")
    write_json(json_path, numbers)
    atomic_write_text(target, report_page(report, evaluation, palette))
    return ReportFiles(target, json_path, tuple(tables))


def report_page(
    report: ReportInput, evaluation: EvaluationRecord, palette: npt.NDArray[np.uint8]
) -> str:
    """The page's HTML from checked plain values."""
    matrix = np.array(evaluation["confusion"], np.int64)
    sections = [
        Section("summary", "Summary", _summary(evaluation, report.notes)),
        Section("training", "Training", _curves(report.history, report.score_history)),
        Section("classes", "Classes", class_table(evaluation, palette)),
        Section("confusion", "Confusion", _confusion(report.classes, matrix, palette)),
        Section("calibration", "Calibration", _calibration(evaluation)),
        Section(
            "images",
            "Images",
            sample_cards(report.samples, report.classes, palette, report.ignore_index)
            + "".join(f"<p>{escape(reason)}</p>" for reason in report.missing),
        ),
        Section("settings", "Settings and versions", _settings(report, evaluation)),
    ]
    data = {"confusion": {"classes": report.classes, "matrix": evaluation["confusion"]}}
    return page(report.title, subtitle(evaluation), sections, data)


def subtitle(evaluation: EvaluationRecord) -> str:
    """What was measured on what, in one line."""
    settings = evaluation.get("settings", {})
    parts = [str(settings[key]) for key in ("variant", "dataset", "split") if settings.get(key)]
    if "images" in evaluation:
        parts.append(f"{evaluation['images']:,} images")
    if settings.get("checkpoint"):
        parts.append(str(settings["checkpoint"]))
    return " · ".join(parts)


def _palette(report: ReportInput, target: Path) -> npt.NDArray[np.uint8]:
    count = len(report.classes)
    if report.palette is None:
        return make_palette(count)
    palette = as_palette(report.palette)
    if len(palette) < count:
        raise DataError(
            target,
            found=f"a palette of {len(palette)} colours",
            expected=f"one colour for each of the {count} classes",
            remedy="give a longer palette, or none",
        )
    return palette


def _summary(evaluation: EvaluationRecord, notes: Mapping[str, Any]) -> str:
    scores = evaluation["scores"]
    interval = evaluation.get("interval")
    extra = "mean intersection over union"
    if interval is not None:
        extra = (
            f"{percent(interval['low'])} to {percent(interval['high'])} with "
            f"{100 * interval['confidence']:.0f} % confidence"
        )
    tiles = [_tile("mIoU, %", percent(scores.get("mIoU")), extra, main=True)]
    for name, meaning in _TILES.items():
        if name in scores:
            tiles.append(_tile(f"{name}, %", percent(scores[name]), meaning))
    if "images" in evaluation:
        tiles.append(_tile("images", f"{evaluation['images']:,}", "measured"))
    versus = {name: value for name, value in notes.items() if _is_miou(name, value)}
    rest = {name: value for name, value in notes.items() if name not in versus}
    parts = [f'<dl class="tiles">{"".join(tiles)}</dl>']
    if versus:
        rows = {"mIoU of this network": scores.get("mIoU"), **versus}
        parts.append(
            '<div class="versus">'
            + "".join(
                f'<div class="row"><span>{escape(name)}</span>{bar(value)}</div>'
                for name, value in rows.items()
            )
            + "</div>"
        )
    return "".join(parts) + facts(plain(rest))


def _is_miou(name: str, value: Any) -> bool:
    return "miou" in name.lower() and isinstance(value, float) and 0.0 <= value <= 1.0


def _tile(name: str, value: str, meaning: str, *, main: bool = False) -> str:
    return (
        f'<div class="tile{" main" if main else ""}"><dt>{escape(name)}</dt>'
        f"<dd>{escape(value)}<small>{escape(meaning)}</small></dd></div>"
    )


def _curves(history: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> str:
    rows = [*history, *scores]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    charts = []
    for panel, names in curve_panels(columns).items():
        series: dict[str, Points] = {name: series_of(rows, name) for name in names}
        shares = panel == "Score"
        charts.append(line_chart(f"{panel}, %" if shares else panel, series, percents=shares))
    joined = "".join(charts)
    return f'<div class="charts">{joined}</div>' if joined else ""


def _confusion(
    classes: Sequence[str], matrix: npt.NDArray[np.int64], palette: npt.NDArray[np.uint8]
) -> str:
    return (
        '<div class="tools">'
        '<button type="button" data-mode="row" aria-pressed="true">share of the label</button>'
        '<button type="button" data-mode="column" aria-pressed="false">share of the prediction'
        "</button>"
        '<button type="button" data-mode="pixels" aria-pressed="false">pixels</button>'
        '<button type="button" id="diagonal" aria-pressed="false">only confusions</button>'
        '<span class="spread"></span>'
        '<button type="button" data-zoom="1.6" aria-label="zoom in">+</button>'
        '<button type="button" data-zoom="0.625" aria-label="zoom out">−</button>'
        '<button type="button" data-zoom="0">all</button></div>'
        f'<div class="{"stacked" if len(classes) > 24 else "abreast"}">'
        '<div><canvas id="confusion-view" tabindex="0" role="img" '
        'aria-label="confusion matrix; its largest entries are in the table"></canvas>'
        '<p class="hint">Rows are what was labelled, columns what was predicted. Point at a cell '
        "for names and counts; double-click, the buttons or Ctrl with the wheel zoom; drag to "
        "move.</p></div><div><h3>Most frequent confusions</h3>"
        + confusion_list(matrix, classes, palette)
        + "</div></div>"
    )


def _calibration(evaluation: EvaluationRecord) -> str:
    found = evaluation.get("calibration")
    if not found or not found.get("bins"):
        return ""
    said = f"<p>Expected calibration error: {percent(found.get('ECE'), 2)} %.</p>"
    return said + reliability_chart(found["bins"])


def _settings(report: ReportInput, evaluation: EvaluationRecord) -> str:
    parts = []
    for heading, values, is_open in (
        ("Evaluation", evaluation.get("settings", {}), True),
        ("Run", plain(report.config), False),
        ("Versions", report.versions, True),
    ):
        table = facts(values)
        if table:
            start = "<details open>" if is_open else "<details>"
            parts.append(f"{start}<summary>{heading}</summary>{table}</details>")
    return "".join(parts)


def software_versions() -> dict[str, str]:
    """Names and versions of what computes: this package, Python, libraries, machine."""
    from importlib import metadata

    import cv2
    import torch

    import cgrseg

    found = {"cgrseg": cgrseg.__version__, "Python": platform.python_version()}
    for name in ("torch", "lightning", "torchmetrics", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["opencv"] = str(cv2.__version__)
    found["system"] = f"{platform.system()} {platform.machine()}"
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
        found["CUDA"] = str(torch.version.cuda)
    return found
