"""A comparison of runs as a page that stands alone, with JSON and CSV beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cgrseg.data.catalogue import get_spec, list_specs
from cgrseg.files import atomic_write_text, write_json
from cgrseg.locks import locking
from cgrseg.reporting.charts import difference_bar
from cgrseg.reporting.comparison import FALSE_DISCOVERY_RATE, Comparison, Difference
from cgrseg.reporting.page import Section, escape, facts, flatten, page, percent
from cgrseg.reporting.records import plain
from cgrseg.reporting.report import ReportFiles, subtitle
from cgrseg.reporting.tables import sortable, swatch, write_csv
from cgrseg.reporting.targets import COMPARISON_TABLES, check_targets
from cgrseg.visual.palette import as_palette, make_palette

Cell = tuple[float | str | None, str]

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
        title: of the page.
        overwrite: replace an older page and its numbers.

    Raises:
        DataError: one of the files is there already, or the name is that of a run's file.
        EnvironmentProblem: writing fails.
    """
    target = Path(path)
    check_targets(target, COMPARISON_TABLES, overwrite=overwrite)
    stem = target.with_suffix("")
    table = stem.with_name(f"{stem.name}_classes.csv")
    write_csv(table, *_csv(comparison))
    json_path = stem.with_name(f"{stem.name}.json")
    write_json(json_path, comparison_json(comparison, title))
    sections = [
        Section("summary", "Summary", _summary(comparison)),
        Section("classes", "Classes", _classes(comparison)),
        Section("settings", "Settings that differ", _settings(comparison)),
    ]
    names = ", ".join(run.name for run in comparison.runs)
    about = f"{names} · {subtitle_of_data(comparison)}"
    atomic_write_text(target, page(title, about, sections))
    return ReportFiles(target, json_path, (table,))


def subtitle_of_data(comparison: Comparison) -> str:
    """Dataset, split and number of images, which all runs share."""
    evaluation = comparison.runs[0].evaluation
    settings = evaluation.get("settings", {})
    kept: dict[str, Any] = {key: settings.get(key) for key in ("dataset", "split")}
    return subtitle({**evaluation, "settings": kept})


def comparison_json(comparison: Comparison, title: str) -> dict[str, Any]:
    """The comparison as plain values; undefined numbers are None."""
    first = comparison.runs[0]
    found: dict[str, Any] = {
        "title": title,
        "reference": first.name,
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
        "warnings": list(comparison.warnings),
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
                        "significant": bool(change.significant[k]),
                    }
                    for k, name in enumerate(comparison.classes)
                ],
            }
            for change in comparison.differences
        ],
    }
    plain_values: dict[str, Any] = plain(found)
    return plain_values


def _csv(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    header = ["class"] + [f"IoU {run.name}" for run in comparison.runs]
    for change in comparison.differences:
        header += [f"{what} {change.name}" for what in ("difference", "p_value", "significant")]
    rows: list[list[Any]] = []
    for k, name in enumerate(comparison.classes):
        row: list[Any] = [name, *(plain(run.iou[k]) for run in comparison.runs)]
        for change in comparison.differences:
            row += [
                plain(change.per_class[k]),
                plain(change.per_class_p[k]),
                int(change.significant[k]),
            ]
        rows.append(row)
    return header, rows


def _summary(comparison: Comparison) -> str:
    shown = [
        name for name in _SCORES if any(name in run.evaluation["scores"] for run in comparison.runs)
    ]
    header = [("run", "the first is the reference")]
    header += [(f"{name}, %", "") for name in shown]
    header += [
        ("mIoU against the first", "difference in points, with its 95 % interval over images"),
        ("p", "chance of such a difference, were there none; two-sided"),
    ]
    rows: list[list[Cell]] = []
    changes: list[Difference | None] = [None, *comparison.differences]
    for run, change in zip(comparison.runs, changes, strict=True):
        row: list[Cell] = [(run.name, escape(run.name))]
        for name in shown:
            value = run.evaluation["scores"].get(name)
            row.append((value, percent(value)))
        row += _verdict(change)
        rows.append(row)
    said = [_sentence(change, comparison.runs[0].name) for change in comparison.differences]
    notes = [escape(warning) for warning in comparison.warnings]
    return "".join(f"<p>{text}</p>" for text in [*said, *notes]) + sortable(header, rows)


def _verdict(change: Difference | None) -> list[Cell]:
    if change is None:
        return [(None, "reference"), (None, "")]
    value = plain(change.miou)
    points = "–" if value is None else f"{100 * value:+.2f}"
    if change.interval is not None:
        points += f" ({100 * change.interval.low:+.2f} to {100 * change.interval.high:+.2f})"
    return [(value, points), (change.p_value, _p_text(change.p_value))]


def _sentence(change: Difference, reference: str) -> str:
    name, first = f"<strong>{escape(change.name)}</strong>", escape(reference)
    if change.p_value is None or change.interval is None:
        return f"{name} against {first}: significance was not judged."
    gains = int((change.significant & (change.per_class > 0)).sum())
    losses = int((change.significant & (change.per_class < 0)).sum())
    if change.p_value <= 0.05:
        side = "better" if change.miou > 0 else "worse"
        tone = "gain-text" if change.miou > 0 else "loss-text"
        verdict = f'is <span class="{tone}">{side}</span> than {first}'
    else:
        verdict = f"cannot be told apart from {first}"
    return (
        f"{name} {verdict} in mIoU ({100 * change.miou:+.2f} points, p {_p_text(change.p_value)}, "
        f"{change.shared_images:,} images). Classes that gain significantly: {gains}; "
        f"that lose: {losses}."
    )


def _p_text(p_value: float | None) -> str:
    if p_value is None or np.isnan(p_value):
        return "–"
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def _classes(comparison: Comparison) -> str:
    palette = _palette(comparison)
    finite = np.abs(np.concatenate([change.per_class for change in comparison.differences]))
    largest = max(float(np.nanmax(finite, initial=0.0)), 0.01)
    several = len(comparison.differences) > 1
    header = [("class", "name")] + [(f"{run.name}, %", "IoU") for run in comparison.runs]
    for change in comparison.differences:
        about = f": {change.name}" if several else ""
        header.append((f"difference{about}", "IoU in points against the first run"))
        header.append((f"p{about}", "a star marks what is significant among all classes"))
    leading = comparison.differences[0].per_class
    order = sorted(
        range(len(comparison.classes)), key=lambda k: _by_difference(float(leading[k]), k)
    )
    rows: list[list[Cell]] = []
    for k in order:
        name = comparison.classes[k]
        row: list[Cell] = [(name, swatch(palette[k], name))]
        for run in comparison.runs:
            value = plain(run.iou[k])
            row.append((value, percent(value)))
        for change in comparison.differences:
            value, chance = plain(change.per_class[k]), plain(change.per_class_p[k])
            star = " ★" if change.significant[k] else ""
            row.append((value, difference_bar(value, largest)))
            row.append((chance, _p_text(chance) + star))
        rows.append(row)
    note = (
        '<p class="hint">★ marks a class whose change stands out among all classes '
        f"(at most {100 * FALSE_DISCOVERY_RATE:.0f} % of the stars are expected to be chance; "
        "bootstrap over images). Bars are scaled to the largest difference.</p>"
    )
    return note + sortable(header, rows, kind="changes")


def _palette(comparison: Comparison) -> npt.NDArray[np.uint8]:
    """The dataset's own colours where its name tells them, else made ones."""
    name = comparison.runs[0].evaluation.get("settings", {}).get("dataset")
    if name in list_specs():
        spec = get_spec(name)
        if spec.classes == comparison.classes:
            return as_palette(spec.palette)
    return make_palette(len(comparison.classes))


def _by_difference(value: float, position: int) -> tuple[bool, float, int]:
    undefined = bool(np.isnan(value))
    return (undefined, 0.0 if undefined else -float(value), position)


def _settings(comparison: Comparison) -> str:
    """Settings whose values differ between runs, one column per run."""
    every = [dict(flatten(run.evaluation.get("settings", {}))) for run in comparison.runs]
    keys = list(dict.fromkeys(key for settings in every for key in settings))
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in every}) > 1]
    header: Sequence[tuple[str, str]] = [
        ("setting", ""),
        *((run.name, "") for run in comparison.runs),
    ]
    rows: list[list[Cell]] = [
        [(key, escape(key)), *((str(s.get(key)), escape(s.get(key, "–"))) for s in every)]
        for key in differing
    ]
    files = facts({run.name: str(run.source) for run in comparison.runs})
    table = sortable(header, rows) if rows else "<p>All settings are the same.</p>"
    return table + "<h3>Files</h3>" + files
