"""Files of a report: the page, its numbers as JSON and its tables as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrseg.errors import DataError
from cgrseg.files import atomic_write_text
from cgrseg.input_files import read_input_text
from cgrseg.reporting.records import EvaluationRecord

TABLES = ("classes", "images", "confusion")
"""Tables beside the report of one run: `report_classes.csv` and so on."""
COMPARISON_TABLES = ("classes",)
"""Tables beside a comparison."""

# Files in a run folder that the JSON or CSV of a page with the same name would replace.
_RUN_FILES = ("config", "metrics", "scores")


@dataclass(frozen=True)
class ReportFiles:
    """The written files: the page, its numbers as JSON, its tables as CSV."""

    html: Path
    json: Path
    tables: tuple[Path, ...]


def check_targets(
    page: Path | str,
    tables: Sequence[str],
    *,
    overwrite: bool = False,
    own: str | None = None,
) -> None:
    """Refuse to write a page where it, or a file beside it, would replace another file.

    Args:
        page: the HTML file; `.json` and `_<table>.csv` of the same stem are beside it.
        tables: names of the tables.
        overwrite: replace existing files.
        own: name of a run; an earlier report of this run may be replaced.

    Raises:
        DataError: one of the files exists; or the page has the name of a file of a run folder,
            even with `overwrite`.
    """
    target = Path(page)
    stem = target.with_suffix("")
    numbers = stem.with_name(f"{stem.name}.json")
    reserved = stem.name.startswith("evaluation") or stem.name in _RUN_FILES
    if reserved or target.suffix.lower() in (".json", ".csv"):
        raise DataError(
            target,
            found=f"a page of this name, whose numbers ({numbers.name}) and tables could "
            "replace a run's own files",
            expected="another name, ending in .html",
            remedy="call it report.html",
        )
    files = [target, numbers, *(stem.with_name(f"{stem.name}_{table}.csv") for table in tables)]
    existing = [file for file in files if file.exists()]
    if existing and not overwrite and not (own is not None and _is_report_of(numbers, own)):
        raise DataError(
            existing[0],
            found="it exists already",
            expected=f"new files ({target.name} and the files beside it)",
            remedy="choose another name with `cgrseg report --out`, or replace it with "
            "`cgrseg report --overwrite`",
        )


def _is_report_of(numbers: Path, run: str) -> bool:
    try:
        found = json.loads(read_input_text(numbers))
        return {"title", "versions", "config"} <= found.keys() and (
            found["evaluation"]["settings"]["run"] == run
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table atomically; undefined values stay empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if value is None else value for value in row])
    atomic_write_text(path, text.getvalue())


def write_tables(stem: Path, evaluation: EvaluationRecord) -> list[Path]:
    """Write classes, images and confusion matrix as CSV.

    Args:
        stem: path of the report without its suffix; `_classes.csv` and so on is added.
        evaluation: the source of the numbers.

    Returns:
        The written files; without records of images, there is no table of images.
    """
    classes = [record["class"] for record in evaluation["per_class"]]
    matrix = [[name, *row] for name, row in zip(classes, evaluation["confusion"], strict=True)]
    tables = {
        "classes": _table([*evaluation["per_class"]]),
        "images": _table([*evaluation.get("per_image", [])]),
        "confusion": (["label \\ prediction", *classes], matrix),
    }
    written = []
    for name, (header, rows) in tables.items():
        if rows:
            written.append(stem.with_name(f"{stem.name}_{name}.csv"))
            write_csv(written[-1], header, rows)
    return written


def _table(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    header = list(dict.fromkeys(name for record in records for name in record))
    return header, [[record.get(name) for name in header] for record in records]
