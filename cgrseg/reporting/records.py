"""Input of reports: the results of an evaluation as plain values.

:mod:`cgrseg.evaluation` writes them as `evaluation.json`.  A report can be made from any file with
the same keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from cgrseg.errors import MALFORMED, DataError
from cgrseg.input_files import read_input_text

EVALUATION = "evaluation.json"

Group = Literal["worst", "typical", "best"]

ClassRecord = TypedDict(
    "ClassRecord",
    {
        "class": str,
        "IoU": "float | None",
        "Acc": "float | None",
        "Dice": "float | None",
        "Fscore": "float | None",
        "Precision": "float | None",
        "Recall": "float | None",
        "Frequency": "float | None",
        "BoundaryIoU": "float | None",
    },
    total=False,
)
ClassRecord.__doc__ = """Scores of one class in 0..1 (None: undefined). `Frequency` is the share of
the labeled pixels. `class` and `IoU` are required."""


class ImageRecord(TypedDict, total=False):
    """Scores of one image in 0..1 over its own classes, and its number of labeled pixels."""

    image: str
    mIoU: float | None
    aAcc: float | None
    pixels: int


class IntervalRecord(TypedDict):
    """Confidence interval of a score; `confidence` is in 0..1."""

    of: str
    confidence: float
    low: float
    high: float


class EvaluationRecord(TypedDict, total=False):
    """The content of `evaluation.json`. Required: `scores`, `per_class`, `confusion`.

    Attributes:
        settings: settings of the evaluation.
        images: number of images.
        scores: scalar scores by name (mIoU, aAcc, ...), 0..1, None where undefined.
        interval: confidence interval of mIoU over images, or None.
        per_class: in id order.
        per_image: in the order of the dataset.
        confusion: pixel counts, row = label, column = prediction.
        calibration: `ECE` and `bins` of `pixels`, `confidence`, `accuracy`.
    """

    format: int
    settings: dict[str, Any]
    images: int
    scores: dict[str, float | None]
    interval: IntervalRecord | None
    per_class: list[ClassRecord]
    per_image: list[ImageRecord]
    confusion: list[list[int]]
    calibration: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One image of the report with its prediction.

    Attributes:
        stem: name of the image.
        image: RGB uint8 (H, W, 3).
        label: class ids (H, W), the ignore index where ignored; None without labels.
        prediction: class ids (H, W).
        group: heading that it is shown under.
        scores: scores of this image by name, 0..1.
    """

    stem: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.integer] | None
    prediction: npt.NDArray[np.integer]
    group: Group = "typical"
    scores: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInput:
    """Content of the report of one run; only the first two are required.

    Attributes:
        title: title of the page.
        evaluation: see :class:`EvaluationRecord`.
        palette: RGB 0..255 per class; None: a palette is made.
        history: rows of `metrics.csv` by column (text or numbers).
        score_history: rows of `scores.csv` by column.
        samples: images to show.
        missing: reasons why images are not shown, one sentence each.
        notes: further facts for the summary, by name. Numbers in 0..1 whose name contains mIoU are
            shown as bars beside the mIoU of the run.
        config: settings of the run as nested plain values.
        versions: names and versions of the software and the machine.
        ignore_index: label value of ignored pixels.
    """

    title: str
    evaluation: EvaluationRecord
    palette: npt.ArrayLike | None = None
    history: Sequence[Mapping[str, Any]] = ()
    score_history: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Sample] = ()
    missing: Sequence[str] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    ignore_index: int = 255

    @property
    def classes(self) -> list[str]:
        """Class names in id order."""
        return [record["class"] for record in self.evaluation["per_class"]]


def plain(value: Any) -> Any:
    """Values that JSON has: arrays become lists, non-finite numbers None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as pairs of dotted name and value."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def fact_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested settings as pairs of dotted name and text."""
    return [(name, _text(value)) for name, value in flatten(values)]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return str(value)


def read_evaluation(path: Path | str) -> EvaluationRecord:
    """Read an evaluation; see :func:`evaluation_file` for what `path` may be.

    Raises:
        DataError: it is missing, or not what an evaluation writes.
    """
    source = evaluation_file(path)
    try:
        value = json.loads(read_input_text(source))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(source, f"it cannot be read as JSON ({error})") from error
    return check_evaluation(value, source)


def evaluation_file(path: Path | str) -> Path:
    """The evaluation file of a run folder, or the file itself.

    In a folder that is `evaluation.json`, or the only other one (such as
    `evaluation_test.json`); earlier results do not count.

    Raises:
        DataError: there is none, or several without `evaluation.json`; the message names them.
    """
    source = Path(path)
    if source.is_file():
        return source
    found = sorted(
        file.name for file in source.glob("evaluation*.json") if "_earlier" not in file.stem
    )
    if EVALUATION in found:
        return source / EVALUATION
    if len(found) == 1:
        return source / found[0]
    if found:
        raise DataError(
            source,
            found=f"several evaluations ({', '.join(found)}) and no {EVALUATION}",
            expected="one evaluation",
            remedy=f"name the file: {source / found[0]}",
        )
    raise DataError(
        source,
        found="no evaluation in this folder" if source.is_dir() else "there is no such file",
        expected=f"a run folder with {EVALUATION} in it, or such a file",
        remedy="evaluate the checkpoint first: cgrseg evaluate [CONFIG] CHECKPOINT",
    )


def check_evaluation(value: Any, source: object) -> EvaluationRecord:
    """Check that plain values are a usable evaluation.

    Raises:
        DataError: a key is missing, or the sizes of the tables do not agree.
    """
    if not isinstance(value, dict):
        raise _unreadable(source, f"it contains {type(value).__name__}, not an object")
    missing = [key for key in ("scores", "per_class", "confusion") if key not in value]
    if missing:
        raise _unreadable(source, f"it lacks {', '.join(missing)}")
    classes, matrix = value["per_class"], value["confusion"]
    try:
        named = classes and all(
            isinstance(c, dict) and {"class", "IoU"} <= c.keys() for c in classes
        )
        if not named:
            raise _unreadable(source, "per_class does not name each class with its IoU")
        if len(matrix) != len(classes) or any(len(row) != len(classes) for row in matrix):
            size = f"{len(classes)} x {len(classes)}"
            raise _unreadable(source, f"confusion is not {size}, one row per class")
        checked: EvaluationRecord = plain(value)
    except MALFORMED as error:
        raise _unreadable(source, f"its tables have another form ({error})") from error
    return checked


def _unreadable(source: object, found: str) -> DataError:
    return DataError(
        source,
        found=found,
        expected="scores, per_class and confusion, as an evaluation writes them",
        remedy="evaluate again, or give the evaluation.json of a run",
    )
