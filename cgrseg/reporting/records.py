"""What reports are made of: the results of an evaluation as plain values.

:mod:`cgrseg.evaluation` writes them as `evaluation.json`; anything that writes the same
keys can be reported on.
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
ClassRecord.__doc__ = """Scores of one class in 0..1 (None: undefined); `Frequency` is its share of
the labelled pixels. `class` and `IoU` are needed."""


class ImageRecord(TypedDict, total=False):
    """Scores of one image in 0..1 over its own classes, and its labelled pixels."""

    image: str
    mIoU: float | None
    aAcc: float | None
    pixels: int


class IntervalRecord(TypedDict):
    """Range that holds a score with a confidence of 0..1."""

    of: str
    confidence: float
    low: float
    high: float


class EvaluationRecord(TypedDict, total=False):
    """The content of `evaluation.json`. Needed: `scores`, `per_class`, `confusion`.

    Attributes:
        settings: what was evaluated and how.
        images: number of images.
        scores: scalar scores by name (mIoU, aAcc, ...), 0..1, None where undefined.
        interval: of mIoU over images; None where there is none.
        per_class: in id order.
        per_image: in the dataset's order.
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
    """One image for the report, with what was predicted for it.

    Attributes:
        stem: its name.
        image: RGB uint8 (H, W, 3).
        label: class ids (H, W), the ignore index where not judged; None without labels.
        prediction: class ids (H, W).
        group: under which heading it stands.
        scores: of this image by name, 0..1.
    """

    stem: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.integer] | None
    prediction: npt.NDArray[np.integer]
    group: Literal["worst", "typical", "best"] = "typical"
    scores: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInput:
    """Everything that a report of one run can show; only the first two are needed.

    Attributes:
        title: of the page.
        evaluation: see :class:`EvaluationRecord`.
        palette: RGB 0..255 per class; None: one is made.
        history: rows of `metrics.csv` by column (text or numbers).
        score_history: rows of `scores.csv` likewise.
        samples: images to show.
        missing: why images are not shown, a sentence each.
        notes: further facts for the summary, by name. Numbers in 0..1 whose name speaks of
            mIoU are shown beside the run's own, as something to compare with.
        config: the run's settings as nested plain values.
        versions: names and versions of what computed it.
        ignore_index: label value of pixels that are not judged.
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
    """The same as values that JSON knows: arrays become lists, undefined numbers None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


def read_evaluation(path: Path | str) -> EvaluationRecord:
    """Read `evaluation.json`, or that file in a run's folder.

    Raises:
        DataError: it is absent, or not what an evaluation writes.
    """
    source = evaluation_file(path)
    try:
        value = json.loads(read_input_text(source))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(source, f"it cannot be read as JSON ({error})") from error
    return check_evaluation(value, source)


def evaluation_file(path: Path | str) -> Path:
    """The evaluation that a run's folder or a file name stands for.

    In a folder that is `evaluation.json`, or the only other one (such as
    `evaluation_test.json`); earlier results are not meant.

    Raises:
        DataError: there is none, or several without a plain one; the message names them.
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
        expected="a run's folder with evaluation.json in it, or such a file",
        remedy="evaluate the checkpoint first: cgrseg evaluate [CONFIG] CHECKPOINT",
    )


def check_evaluation(value: Any, source: object) -> EvaluationRecord:
    """Check that plain values are a usable evaluation.

    Raises:
        DataError: a key is missing, or sizes do not fit each other.
    """
    if not isinstance(value, dict):
        raise _unreadable(source, f"it holds {type(value).__name__}, not an object")
    missing = [key for key in ("scores", "per_class", "confusion") if key not in value]
    if missing:
        raise _unreadable(source, f"it lacks {', '.join(missing)}")
    try:
        return _checked(value, source)
    except MALFORMED as error:
        raise _unreadable(source, f"its tables have another form ({error})") from error


def _checked(value: dict[str, Any], source: object) -> EvaluationRecord:
    classes = value["per_class"]
    if not classes or not all(
        isinstance(c, dict) and {"class", "IoU"} <= c.keys() for c in classes
    ):
        raise _unreadable(source, "per_class does not name each class with its IoU")
    matrix = value["confusion"]
    if len(matrix) != len(classes) or any(len(row) != len(classes) for row in matrix):
        raise _unreadable(
            source, f"confusion is not {len(classes)} x {len(classes)}, one row per class"
        )
    checked: EvaluationRecord = plain(value)
    return checked


def _unreadable(source: object, found: str) -> DataError:
    return DataError(
        source,
        found=found,
        expected="scores, per_class and confusion, as an evaluation writes them",
        remedy="evaluate again, or give the evaluation.json of a run",
    )
