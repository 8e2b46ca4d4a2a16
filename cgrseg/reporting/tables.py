"""The numbers of a report as tables: HTML for the page, CSV beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cgrseg.files import atomic_write_text
from cgrseg.reporting.charts import bar
from cgrseg.reporting.page import escape, percent
from cgrseg.reporting.records import EvaluationRecord

_CLASS_COLUMNS = {
    "Acc": "share of the class's pixels that are found",
    "Precision": "share of the predicted pixels that are right",
    "Dice": "twice the intersection over the sum of both areas",
    "BoundaryIoU": "IoU of the bands along the borders",
    "Frequency": "share of the labelled pixels",
}


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table atomically; undefined values stay empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if value is None else value for value in row])
    atomic_write_text(path, text.getvalue())


def sortable(
    header: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[tuple[float | str | None, str]]],
    *,
    kind: str = "",
) -> str:
    """A table whose columns sort by a click on their heading.

    Args:
        header: heading and explanation (shown on hover) per column.
        rows: for each cell the value that it sorts by and its HTML.
        kind: further CSS classes.
    """
    words = [any(isinstance(row[column][0], str) for row in rows) for column in range(len(header))]
    heads = "".join(
        f'<th scope="col" tabindex="0"{_kind(word)} title="{escape(tip)}">{escape(name)}</th>'
        for (name, tip), word in zip(header, words, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{_kind(word)} data-value="{"" if value is None else escape(value)}">{cell}</td>'
            for (value, cell), word in zip(row, words, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="sortable {kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(word: bool) -> str:
    return ' class="word"' if word else ""


def swatch(colour: npt.ArrayLike, name: str) -> str:
    """A class's colour and name."""
    red, green, blue = (int(value) for value in np.asarray(colour))
    return (
        f'<span class="class"><i style="background:rgb({red},{green},{blue})"></i>'
        f"{escape(name)}</span>"
    )


def class_table(evaluation: EvaluationRecord, palette: npt.NDArray[np.uint8]) -> str:
    """One row per class, best IoU first, those that do not occur last."""
    records: list[Mapping[str, Any]] = [*evaluation["per_class"]]
    columns = [name for name in _CLASS_COLUMNS if any(name in record for record in records)]
    mean = evaluation["scores"].get("mIoU")
    order = sorted(
        range(len(records)),
        key=lambda k: (records[k]["IoU"] is None, -(records[k]["IoU"] or 0.0), k),
    )
    rows: list[list[tuple[float | str | None, str]]] = []
    for k in order:
        record = records[k]
        row: list[tuple[float | str | None, str]] = [
            (str(record["class"]), swatch(palette[k], str(record["class"]))),
            (record["IoU"], bar(record["IoU"], mark=mean)),
        ]
        for name in columns:
            digits = 2 if name == "Frequency" else 1
            row.append((record.get(name), percent(record.get(name), digits)))
        rows.append(row)
    header = [("class", "name"), ("IoU, %", "intersection over union; the line is the mean")]
    header += [(f"{name}, %", _CLASS_COLUMNS[name]) for name in columns]
    return sortable(header, rows, kind="classes")


def top_confusions(
    matrix: npt.NDArray[np.int64], count: int = 15
) -> list[tuple[int, int, int, float]]:
    """The pairs that are mixed up most: label, prediction, pixels, share of the label's pixels."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    totals = matrix.sum(axis=1)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    found = []
    for position in order:
        label, prediction = divmod(int(position), len(matrix))
        pixels = int(off[label, prediction])
        if pixels > 0:
            found.append((label, prediction, pixels, pixels / int(totals[label])))
    return found


def confusion_list(
    matrix: npt.NDArray[np.int64], classes: Sequence[str], palette: npt.NDArray[np.uint8]
) -> str:
    """The most frequent confusions as a table."""
    rows: list[list[tuple[float | str | None, str]]] = [
        [
            (classes[label], swatch(palette[label], classes[label])),
            (classes[prediction], swatch(palette[prediction], classes[prediction])),
            (pixels, f"{pixels:,}"),
            (share, percent(share)),
        ]
        for label, prediction, pixels, share in top_confusions(matrix)
    ]
    if not rows:
        return "<p>No labelled pixel was predicted wrongly.</p>"
    header = [
        ("labelled", "what it is"),
        ("predicted", "what it was taken for"),
        ("pixels", "how many"),
        ("share, %", "of the pixels of the labelled class"),
    ]
    return sortable(header, rows)


def write_tables(stem: Path, evaluation: EvaluationRecord) -> list[Path]:
    """Write classes, images and confusion as CSV; the files written.

    Args:
        stem: path of the report without its suffix; `_classes.csv` and so on is added.
        evaluation: what to write.
    """
    classes = [record["class"] for record in evaluation["per_class"]]
    written: list[Path] = []

    def beside(kind: str) -> Path:
        path = stem.with_name(f"{stem.name}_{kind}.csv")
        written.append(path)
        return path

    records: list[Mapping[str, Any]] = [*evaluation["per_class"]]
    columns = list(dict.fromkeys(name for record in records for name in record))
    write_csv(
        beside("classes"), columns, [[record.get(name) for name in columns] for record in records]
    )
    images: list[Mapping[str, Any]] = [*evaluation.get("per_image", [])]
    if images:
        columns = list(dict.fromkeys(name for record in images for name in record))
        rows = [[record.get(name) for name in columns] for record in images]
        write_csv(beside("images"), columns, rows)
    matrix = [[name, *row] for name, row in zip(classes, evaluation["confusion"], strict=True)]
    write_csv(beside("confusion"), ["label \\ prediction", *classes], matrix)
    return written
