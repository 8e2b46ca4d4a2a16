"""The report of one run: one complete HTML file, with JSON and CSV beside it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cgrseg.datasets.spec import distinct_colors
from cgrseg.errors import DataError
from cgrseg.files import atomic_write_text, write_json
from cgrseg.html import percent, render
from cgrseg.locks import locking
from cgrseg.reporting.charts import line_chart, reliability_chart
from cgrseg.reporting.records import (
    EvaluationRecord,
    ReportInput,
    Sample,
    check_evaluation,
    fact_rows,
    plain,
)
from cgrseg.reporting.report_files import TABLES, ReportFiles, check_targets, write_tables
from cgrseg.visual.overlay import (
    IGNORED_COLOR,
    RIGHT_COLOR,
    WRONG_COLOR,
    as_palette,
    class_shares,
    colorize,
    error_map,
)
from cgrseg.visual.plots import curve_panels, series_of

_SCORES = {
    "aAcc": "share of pixels that are right",
    "mAcc": "mean recall over classes",
    "mDice": "mean Dice over classes",
    "fwIoU": "IoU weighted by class frequency",
    "mBoundaryIoU": "mean IoU along borders",
    "ECE": "gap between confidence and accuracy",
}
_CLASS_COLUMNS = {
    "Acc": "share of the class's pixels that are found",
    "Precision": "share of the predicted pixels that are right",
    "Dice": "twice the intersection over the sum of both areas",
    "BoundaryIoU": "IoU of the bands along the borders",
    "Frequency": "share of the labeled pixels",
}
_GROUPS = {"worst": "Worst images", "typical": "In the middle", "best": "Best images"}
_MAX_SIDE = 512  # pixels of the longer side of an image in the page


@dataclass(frozen=True)
class Picture:
    """An encoded image of the page.

    Attributes:
        caption: below it.
        content: bytes of the image file.
        media_type: of those bytes.
        width: in pixels.
        height: in pixels.
    """

    caption: str
    content: bytes
    media_type: str
    width: int
    height: int


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
    atomic_write_text(target, _page(report, evaluation, palette))
    return ReportFiles(target, json_path, tuple(tables))


def _page(report: ReportInput, evaluation: EvaluationRecord, palette: npt.NDArray[np.uint8]) -> str:
    scores = evaluation["scores"]
    compared = {name: value for name, value in report.notes.items() if _is_miou(name, value)}
    others = {name: value for name, value in report.notes.items() if name not in compared}
    per_class: list[Mapping[str, Any]] = [*evaluation["per_class"]]
    order = sorted(
        range(len(per_class)),
        key=lambda k: (per_class[k]["IoU"] is None, -(per_class[k]["IoU"] or 0.0), k),
    )
    calibration = evaluation.get("calibration") or {}
    return render(
        "report.html",
        title=report.title,
        subtitle=subtitle(evaluation),
        data={"confusion": {"classes": report.classes, "matrix": evaluation["confusion"]}},
        scores=scores,
        score_names=_SCORES,
        interval=evaluation.get("interval"),
        images=evaluation.get("images"),
        compared={"mIoU of this network": scores.get("mIoU"), **compared} if compared else {},
        notes=fact_rows(plain(others)),
        curves=_curves(report),
        per_class=[(per_class[k], palette[k]) for k in order],
        class_columns={
            name: text
            for name, text in _CLASS_COLUMNS.items()
            if any(name in record for record in per_class)
        },
        classes=report.classes,
        palette=palette,
        confusions=top_confusions(np.array(evaluation["confusion"], np.int64)),
        ece=calibration.get("ECE"),
        reliability=reliability_chart(calibration.get("bins") or ()),
        groups=[
            (
                heading,
                [
                    _card(report, sample, palette)
                    for sample in report.samples
                    if sample.group == group
                ],
            )
            for group, heading in _GROUPS.items()
        ],
        error_colors=(
            {"right": RIGHT_COLOR, "wrong": WRONG_COLOR, "ignored": IGNORED_COLOR}
            if any(sample.label is not None for sample in report.samples)
            else {}
        ),
        missing=report.missing,
        settings=[
            ("Evaluation", fact_rows(evaluation.get("settings", {})), True),
            ("Run", fact_rows(plain(report.config)), False),
            ("Versions", fact_rows(report.versions), True),
        ],
    )


def subtitle(evaluation: EvaluationRecord) -> str:
    """Variant, dataset, split, number of images and checkpoint in one line."""
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
        return as_palette(distinct_colors(count))
    palette = as_palette(report.palette)
    if len(palette) < count:
        raise DataError(
            target,
            found=f"a palette of {len(palette)} colors",
            expected=f"one color for each of the {count} classes",
            remedy="give a longer palette, or none",
        )
    return palette


def _is_miou(name: str, value: Any) -> bool:
    return "miou" in name.lower() and isinstance(value, float) and 0.0 <= value <= 1.0


def _curves(report: ReportInput) -> list[str]:
    rows = [*report.history, *report.score_history]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    charts = []
    for panel, names in curve_panels(columns).items():
        series = {name: series_of(rows, name) for name in names}
        shares = panel == "Score"
        charts.append(line_chart(f"{panel}, %" if shares else panel, series, percents=shares))
    return [chart for chart in charts if chart]


def top_confusions(
    matrix: npt.NDArray[np.int64], count: int = 15
) -> list[tuple[int, int, int, float]]:
    """The most frequent confusions: label, prediction, pixels, share of the label's pixels."""
    off_diagonal = matrix.copy()
    np.fill_diagonal(off_diagonal, 0)
    totals = matrix.sum(axis=1)
    found = []
    for position in np.argsort(-off_diagonal, axis=None, kind="stable")[:count]:
        label, prediction = divmod(int(position), len(matrix))
        pixels = int(off_diagonal[label, prediction])
        if pixels > 0:
            found.append((label, prediction, pixels, pixels / int(totals[label])))
    return found


def _card(report: ReportInput, sample: Sample, palette: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Image, label, prediction and error map of a sample, and the classes in it."""
    pictures = [encode_picture(sample.image, "image")]
    shares = class_shares(sample.prediction, len(report.classes))
    if sample.label is not None:
        pictures.append(encode_picture(colorize(sample.label, palette), "label", exact=True))
        shares = np.maximum(shares, class_shares(sample.label, len(report.classes)))
    pictures.append(encode_picture(colorize(sample.prediction, palette), "prediction", exact=True))
    if sample.label is not None:
        errors = error_map(
            sample.label, sample.prediction, ignore_index=report.ignore_index, image=sample.image
        )
        pictures.append(encode_picture(errors, "error map"))
    height, width = sample.prediction.shape
    scores = [f"{name} {percent(value)}" for name, value in sample.scores.items()]
    # A class that covers less than half a percent is hard to see and would lengthen the legend.
    shown = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] >= 0.005]
    return {
        "title": sample.stem,
        "about": " · ".join([*scores, f"{width} × {height}"]),
        "pictures": pictures,
        "legend": [(palette[k], report.classes[k]) for k in shown[:24]],
    }


def encode_picture(
    pixels: npt.NDArray[np.uint8], caption: str, *, longest: int = _MAX_SIDE, exact: bool = False
) -> Picture:
    """Reduce and encode an image for the page.

    Args:
        pixels: RGB uint8 (H, W, 3).
        caption: below the image.
        longest: maximum length of its longer side in pixels.
        exact: PNG, which keeps the colors of label maps; else JPEG.
    """
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_NEAREST if exact else cv2.INTER_AREA
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=method), np.uint8)
    kind = "png" if exact else "jpeg"
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9] if exact else [cv2.IMWRITE_JPEG_QUALITY, 86]
    encoded, data = cv2.imencode(f".{kind}", np.ascontiguousarray(pixels[..., ::-1]), options)
    assert encoded  # an array of ours always has a form that can be encoded
    height, width = pixels.shape[:2]
    return Picture(caption, data.tobytes(), f"image/{kind}", width, height)


def software_versions() -> dict[str, str]:
    """Names and versions of this package, Python, libraries and machine."""
    from importlib import metadata

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
