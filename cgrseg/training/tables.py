"""A run's numbers as CSV files that survive crashes and resumes.

`metrics.csv` has a row per logged iteration, `scores.csv` one per evaluation; the
first column of both is the iteration, counted in optimiser steps done.  When a run
resumes, rows from beyond the checkpoint are dropped, so that each iteration occurs
once.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cgrseg.errors import DataError
from cgrseg.files import atomic_write_text, explained, refuse_moved
from cgrseg.input_files import read_input_text

METRICS = "metrics.csv"
SCORES = "scores.csv"


class RunTable:
    """An append-only table whose first column is `iteration`.

    Args:
        path: the CSV file.
        columns: names of the other columns.
        keep_until: rows of an earlier part of the run up to this iteration stay, later
            ones (and a half-written last line) go.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int) -> None:
        self.path = path
        self.columns = ["iteration", *columns]
        kept = [row for row in read_table(path) if int(row["iteration"]) <= keep_until]
        text = io.StringIO()
        writer = csv.DictWriter(
            text, self.columns, restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(kept)
        atomic_write_text(path, text.getvalue())

    def append(self, iteration: int, values: Mapping[str, float | str]) -> None:
        """Add one row; columns without a value stay empty.

        Raises:
            EnvironmentProblem: when the file cannot be written.
        """
        refuse_moved(self.path)
        row = {"iteration": str(iteration)}
        row.update({name: _shown(value) for name, value in values.items()})
        with (
            explained(self.path),
            self.path.open("a", newline="", encoding="utf-8") as stream,
        ):
            csv.DictWriter(
                stream, self.columns, restval="", extrasaction="ignore", lineterminator="\n"
            ).writerow(row)


def read_table(path: Path | str) -> list[dict[str, str]]:
    """Rows of a run's CSV as text by column; none when there is no file.

    A last line that a killed process left unfinished is skipped.

    Raises:
        DataError: it cannot be read as text.
    """
    source = Path(path)
    if not source.is_file():
        return []
    try:
        rows = list(csv.reader(read_input_text(source).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise damaged_table(source, str(error)) from error
    if not rows or not rows[0] or rows[0][0] != "iteration":
        return []
    header, *body = rows
    return [
        dict(zip(header, row, strict=True))
        for row in body
        if len(row) == len(header) and re.fullmatch(r"[0-9]{1,15}", row[0])
    ]


def damaged_table(path: Path, found: str) -> DataError:
    """What is said of a table that cannot be read."""
    return DataError(
        path,
        found=f"it cannot be read as a run's table ({found})",
        expected="a CSV file of numbers, as a training writes it",
        remedy="the file is damaged: copy it again, or move it out of the run's folder",
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.9g}"
