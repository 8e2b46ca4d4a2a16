"""Files of a run folder that grow during the training: `train.log` and the CSV tables.

`metrics.csv` has a row per logged iteration, `scores.csv` a row per evaluation; the first column
is the iteration, in optimizer steps done.  A resumed run drops the rows beyond its checkpoint, so
each iteration occurs once.

`train.log` has the lines on the screen and every warning.  The run folder is created only when the
run is accepted; earlier lines are buffered and written then.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgrseg.errors import DataError
from cgrseg.files import atomic_write_text, explained, refuse_moved
from cgrseg.input_files import read_input_text

METRICS = "metrics.csv"
SCORES = "scores.csv"
LOG = "train.log"

# Loggers whose warnings are recorded.
_LOGGERS = ("cgrseg", "lightning.pytorch", "lightning.fabric")


class RunTable:
    """An append-only table whose first column is `iteration`.

    Args:
        path: the CSV file.
        columns: names of the other columns.
        keep_until: last iteration whose row is kept from an earlier part of the run; later rows
            and an unfinished last line are removed.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int) -> None:
        self.path = path
        self.columns = ["iteration", *columns]
        kept = [row for row in read_table(path) if int(row["iteration"]) <= keep_until]
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(kept)
        atomic_write_text(path, text.getvalue())

    def append(self, iteration: int, values: Mapping[str, float | str]) -> None:
        """Add a row; columns without a value stay empty.

        Raises:
            EnvironmentProblem: the file cannot be written.
        """
        refuse_moved(self.path)
        row = {name: v if isinstance(v, str) else f"{v:.9g}" for name, v in values.items()}
        with explained(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
            self._writer(stream).writerow({"iteration": str(iteration), **row})

    def _writer(self, stream: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(
            stream, self.columns, restval="", extrasaction="ignore", lineterminator="\n"
        )


def read_table(path: Path | str) -> list[dict[str, str]]:
    """Rows of a run's CSV as text by column; empty without a file.

    The unfinished last line of a killed process is skipped.

    Raises:
        DataError: the file cannot be read as text.
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
    """The error for a table that cannot be read."""
    return DataError(
        path,
        found=f"it cannot be read as a run's table ({found})",
        expected="a CSV file of numbers, as a training writes it",
        remedy="the file is damaged: copy it again, or move it out of the run folder",
    )


def last_metrics(run_dir: Path) -> dict[str, float]:
    """Means of the last evaluation in `scores.csv`, in 0..1; empty without an evaluation."""
    rows = read_table(run_dir / SCORES)
    if not rows:
        return {}
    try:
        return {
            name: float(value)
            for name, value in rows[-1].items()
            if name != "iteration" and not name.startswith("IoU.") and value
        }
    except ValueError as error:
        raise damaged_table(run_dir / SCORES, str(error)) from error


def print_line(text: str) -> None:
    """Print a line, unbuffered."""
    print(text, flush=True)


class Transcript:
    """Lines and warnings of a run, on the screen and in `train.log`.

    Args:
        active: false in every process but the first, which alone prints and writes.

    Attributes:
        show: prints a line; a progress bar replaces it.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.show: Callable[[str], None] = print_line
        self._early: list[str] = []
        self._log: Path | None = None
        self._recording = False

    def say(self, text: str) -> None:
        """Print a line and add it to the log."""
        if self.active:
            self.keep(text)
            self.show(text)

    def keep(self, text: str) -> None:
        """Add a line to the log only.

        Raises:
            EnvironmentProblem: the log cannot be written.
        """
        if not self.active:
            return
        stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self._early.append(f"{stamp} {text}\n")
        if self._log is not None:
            refuse_moved(self._log)
            lines, self._early = self._early, []
            with explained(self._log), self._log.open("a", encoding="utf-8") as stream:
                stream.writelines(lines)

    def write_to(self, log: Path) -> None:
        """Write all lines into a file: the buffered ones, and from now on each line."""
        self._log = log

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Add every warning of this block to the log: Python warnings and logged warnings."""
        if self._recording or not self.active:
            yield
            return
        shown, handler = warnings.showwarning, _Recorder(self)

        def record(message: Warning | str, *rest: Any, **named: Any) -> None:
            handler.keep(str(message))
            shown(message, *rest, **named)  # type: ignore[arg-type]

        self._recording, warnings.showwarning = True, record
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield
        finally:
            self._recording = False
            if warnings.showwarning is record:
                warnings.showwarning = shown
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(handler)


class _Recorder(logging.Handler):
    """Adds warnings to a transcript; prints those that no other handler prints."""

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(logging.WARNING)
        self._transcript = transcript
        # Without any handler Python prints warnings itself; this handler would end that.
        self._alone = not logging.getLogger("cgrseg").hasHandlers()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.keep(text)
        if self._alone and record.name.startswith("cgrseg"):
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def keep(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the next line reports a full disk
            self._transcript.keep(f"warning: {text}")
