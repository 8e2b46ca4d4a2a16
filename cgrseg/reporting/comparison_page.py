"""The page of a comparison of runs, with JSON and CSV beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cgrseg.datasets import get_spec, list_specs
from cgrseg.datasets.spec import distinct_colors
from cgrseg.files import atomic_write_text, write_json
from cgrseg.html import render
from cgrseg.locks import locking
from cgrseg.reporting.comparison import FALSE_DISCOVERY_RATE, Comparison
from cgrseg.reporting.records import fact_rows, flatten, plain
from cgrseg.reporting.report import subtitle
from cgrseg.reporting.report_files import (
    COMPARISON_TABLES,
    ReportFiles,
    check_targets,
    write_csv,
)
from cgrseg.visual.overlay import as_palette

_SCORES = ("mIoU", "aAcc", "mAcc", "mDice", "mFscore", "fwIoU", "mBoundaryIoU", "ECE")


@locking(lambda given: Path(given["path"]).parent)
def write_comparison(
    path: Path | str,
    comparison: Comparison,
    *,
    title: str = "Comparison of runs",
    overwrite: bool = False,
) -> ReportFiles:
    """Write a comparison as `path` (.html), with `.json` and `_classes.csv` beside it.

    Every file is replaced whole or not at all; the page comes last.

    Args:
        path: the HTML file.
        comparison: what it shows.
        title: title of the page.
        overwrite: replace an older page and its numbers.

    Raises:
        DataError: one of the files exists, or the name is that of a file of a run folder.
        EnvironmentProblem: writing fails.
    """
    target = Path(path)
    check_targets(target, COMPARISON_TABLES, overwrite=overwrite)
    stem = target.with_suffix("")
    table = stem.with_name(f"{stem.name}_classes.csv")
    write_csv(table, *_csv(comparison))
    json_path = stem.with_name(f"{stem.name}.json")
    write_json(json_path, _json(comparison, title))
    atomic_write_text(target, _page(comparison, title))
    return ReportFiles(target, json_path, (table,))


def _json(comparison: Comparison, title: str) -> Any:
    """The comparison as plain values; undefined numbers are None."""
    return plain(
        {
            "title": title,
            "reference": comparison.runs[0].name,
            "false_discovery_rate": FALSE_DISCOVERY_RATE,
            "warnings": comparison.warnings,
            "runs": [
                {
                    "name": run.name,
                    "scores": run.evaluation["scores"],
                    "interval": run.evaluation.get("interval"),
                    "settings": run.evaluation.get("settings", {}),
                }
                for run in comparison.runs
            ],
            "differences": [
                {
                    "name": change.name,
                    "mIoU": change.miou,
                    "low": change.interval.low if change.interval else None,
                    "high": change.interval.high if change.interval else None,
                    "p_value": change.p_value,
                    "images": change.shared_images,
                    "per_class": [
                        {
                            "class": name,
                            "difference": change.per_class[k],
                            "p_value": change.per_class_p[k],
                            "significant": change.significant[k],
                        }
                        for k, name in enumerate(comparison.classes)
                    ],
                }
                for change in comparison.differences
            ],
        }
    )


def _csv(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    columns: list[tuple[str, Any]] = [("class", comparison.classes)]
    columns += [(f"IoU {run.name}", run.iou) for run in comparison.runs]
    for change in comparison.differences:
        columns.append((f"difference {change.name}", change.per_class))
        columns.append((f"p_value {change.name}", change.per_class_p))
        columns.append((f"significant {change.name}", change.significant.astype(int)))
    header, values = zip(*columns, strict=True)
    return list(header), [list(row) for row in zip(*map(plain, values), strict=True)]


def _page(comparison: Comparison, title: str) -> str:
    evaluation = comparison.runs[0].evaluation
    settings = evaluation.get("settings", {})
    shared: dict[str, Any] = {key: settings.get(key) for key in ("dataset", "split")}
    about = subtitle({**evaluation, "settings": shared})
    differences, palette = comparison.differences, _palette(comparison)
    finite = np.abs(np.concatenate([change.per_class for change in differences]))
    # Classes whose IoU grows most come first, undefined differences last.
    order = np.argsort(-differences[0].per_class, kind="stable")
    return render(
        "comparison.html",
        title=title,
        subtitle=f"{', '.join(run.name for run in comparison.runs)} · {about}",
        runs=comparison.runs,
        differences=differences,
        warnings=comparison.warnings,
        scores=[
            name
            for name in _SCORES
            if any(name in run.evaluation["scores"] for run in comparison.runs)
        ],
        verdicts=[
            {
                "points": plain(change.miou),
                "gains": int((change.significant & (change.per_class > 0)).sum()),
                "losses": int((change.significant & (change.per_class < 0)).sum()),
            }
            for change in differences
        ],
        classes=[
            {
                "name": comparison.classes[k],
                "iou": [plain(run.iou[k]) for run in comparison.runs],
                "changes": [
                    (
                        plain(change.per_class[k]),
                        plain(change.per_class_p[k]),
                        change.significant[k],
                    )
                    for change in differences
                ],
                "color": palette[k],
            }
            for k in order
        ],
        largest=max(float(np.nanmax(finite, initial=0.0)), 0.01),
        false_discovery_rate=FALSE_DISCOVERY_RATE,
        settings=_differing_settings(comparison),
        files=fact_rows({run.name: str(run.source) for run in comparison.runs}),
    )


def _palette(comparison: Comparison) -> npt.NDArray[np.uint8]:
    """The palette of the dataset where its name is known, else a made one."""
    name = comparison.runs[0].evaluation.get("settings", {}).get("dataset")
    if name in list_specs():
        spec = get_spec(name)
        if spec.classes == comparison.classes:
            return as_palette(spec.palette)
    return as_palette(distinct_colors(len(comparison.classes)))


def _differing_settings(comparison: Comparison) -> dict[str, list[Any]]:
    """Settings whose values differ between runs, with the value of each run."""
    every = [dict(flatten(run.evaluation.get("settings", {}))) for run in comparison.runs]
    keys = dict.fromkeys(key for settings in every for key in settings)
    return {
        key: [settings.get(key, "–") for settings in every]
        for key in keys
        if len({repr(settings.get(key)) for settings in every}) > 1
    }
