"""Result of an evaluation: scores, files, and tables for the terminal.

Two files: `evaluation.json` for people and scripts (scores, per class, per image, settings), and
`evaluation.npz` beside it with the integer counts behind them (confusion matrix, counts per image),
from which two runs are compared without predicting again.  Neither holds times or the number of
processes: the same evaluation gives the same files.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError
from cgrseg.evaluation.bootstrap import Interval, miou_interval
from cgrseg.evaluation.extra_metrics import Calibration
from cgrseg.evaluation.metrics import Counts, Scores, SegmentationScores, mean_of_defined
from cgrseg.files import atomic_write, writing_problem
from cgrseg.input_files import open_input, read_input
from cgrseg.surroundings import LEAST_WIDTH

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT = 1
# Columns per class and entries of the summary of each metric, as the published evaluation prints
# them.
_COLUMNS = {
    "mIoU": ("IoU", "Acc"),
    "mDice": ("Dice", "Acc"),
    "mFscore": ("Fscore", "Precision", "Recall"),
    "mBoundaryIoU": ("BoundaryIoU",),
    "ECE": (),
}


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """Scores of a checkpoint on a split, with the counts behind them.

    Attributes:
        classes: names in id order (K).
        stems: names of the images (N), in the dataset's order.
        confusion: int64 (K, K), row = label, column = prediction.
        counts: int64 (N, 3, K): pixels hit, predicted and labeled, per image and class.
        boundary: boundary IoU per class (K,); None unless asked for.
        calibration: calibration of confidences; None unless asked for.
        settings: settings of the evaluation, as plain values.
        scores: scores of the whole set.
        interval: 95 % interval of mIoU over images; None without labeled images.
    """

    classes: tuple[str, ...]
    stems: tuple[str, ...]
    confusion: Counts
    counts: Counts
    boundary: Scores | None = None
    calibration: Calibration | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: SegmentationScores = field(init=False)
    interval: Interval | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", SegmentationScores.from_matrix(self.confusion))
        labeled = len(self.stems) and bool(self.confusion.any())
        object.__setattr__(self, "interval", miou_interval(self.counts) if labeled else None)

    def __repr__(self) -> str:
        """Dataset and mean scores in one line; `metrics` and `per_class()` have the rest."""
        where = [str(self.settings[key]) for key in ("dataset", "split") if key in self.settings]
        return (
            f"EvaluationResult({' '.join([*where, str(len(self.stems)), 'images'])}, "
            f"{len(self.classes)} classes: mIoU {100 * self.scores.mean_iou:.2f} %, "
            f"aAcc {100 * self.scores.pixel_accuracy:.2f} %)"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """All scalar scores in 0..1 by name, NaN where undefined."""
        found = self.scores.summary()
        if self.boundary is not None:
            found["mBoundaryIoU"] = mean_of_defined(self.boundary)
        if self.calibration is not None:
            found["ECE"] = self.calibration.error
        return found

    def per_class(self) -> dict[str, Scores]:
        """Per-class scores by name, each (K,)."""
        found = self.scores.per_class()
        if self.boundary is not None:
            found["BoundaryIoU"] = self.boundary
        return found

    def per_image(self) -> list[dict[str, Any]]:
        """One row per image: stem, aAcc, mIoU over its own classes, labeled pixels."""
        rows = []
        for stem, (hit, predicted, labeled) in zip(self.stems, self.counts, strict=True):
            own = SegmentationScores.from_counts(hit, predicted, labeled)
            rows.append(
                {
                    "image": stem,
                    "aAcc": _number(own.pixel_accuracy),
                    "mIoU": _number(own.mean_iou),
                    "pixels": int(labeled.sum()),
                }
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """Plain values; undefined scores are null."""
        columns = self.per_class()
        found: dict[str, Any] = {
            "format": FORMAT,
            "settings": dict(self.settings),
            "images": len(self.stems),
            "scores": {name: _number(value) for name, value in self.metrics.items()},
            "interval": None,
            "per_class": [
                {"class": name, **{key: _number(values[k]) for key, values in columns.items()}}
                for k, name in enumerate(self.classes)
            ],
            "per_image": self.per_image(),
            "confusion": self.confusion.tolist(),
        }
        if self.interval is not None:
            found["interval"] = {
                "of": "mIoU",
                "confidence": self.interval.confidence,
                "low": self.interval.low,
                "high": self.interval.high,
            }
        if self.calibration is not None:
            found["calibration"] = {
                "ECE": _number(self.calibration.error),
                "bins": [
                    {"pixels": int(n), "confidence": _number(c), "accuracy": _number(a)}
                    for n, c, a in zip(
                        self.calibration.pixels,
                        self.calibration.confidence,
                        self.calibration.accuracy,
                        strict=True,
                    )
                ],
            }
        return found

    def write(self, folder: Path | str, name: str = "evaluation") -> Written:
        """Write `<name>.json` and `<name>.npz` into a folder; nothing earlier is lost.

        Files of these names with another content are kept as `<name>_earlier1` and so on.
        """
        target = Path(folder) / f"{name}.json"
        files = {target.with_suffix(".npz"): self._counts_file(), target: self._json_file()}
        earlier = keep_earlier(files)
        for path, content in files.items():
            atomic_write_bytes(path, content)
        return Written(target, earlier)

    def write_copy(self, path: Path | str) -> list[Path]:
        """Write the scores (`.json`) or the counts (`.npz`); what was kept, as in :meth:`write`."""
        target = Path(path)
        counts = target.suffix.lower() == ".npz"
        content = self._counts_file() if counts else self._json_file()
        earlier = keep_earlier({target: content})
        atomic_write_bytes(target, content)
        return earlier

    def _json_file(self) -> bytes:
        return readable_json(self.as_json()).encode("utf-8")

    def _counts_file(self) -> bytes:
        """The integer counts (NPZ without pickles)."""
        # The smallest integers that hold the counts: most are zero or small.
        counts = self.counts.astype(np.int32 if self.counts.max(initial=0) < 2**31 else np.int64)
        stream = io.BytesIO()
        np.savez_compressed(
            stream,
            confusion=self.confusion,
            counts=counts,
            stems=np.array(self.stems, dtype=np.str_),
            classes=np.array(self.classes, dtype=np.str_),
        )
        return stream.getvalue()


@dataclass(frozen=True)
class Written:
    """Files of a result.

    Attributes:
        json: the readable file; the counts are beside it, as `.npz`.
        earlier: new names of files that had these names with another content.
    """

    json: Path
    earlier: list[Path]


def keep_earlier(files: Mapping[Path, bytes]) -> list[Path]:
    """Copy files that are about to be replaced by another content to names of their own.

    Files that belong together get the same number.

    Returns:
        The new names, with `_earlier<number>` before the suffix.

    Raises:
        EnvironmentProblem: they cannot be written.
    """
    try:
        old = {path: read_input(path) for path in files if path.is_file()}
    except OSError as error:
        raise writing_problem(next(iter(files)), error) from error
    if all(content == files[path] for path, content in old.items()):
        return []

    def name(path: Path, number: int) -> Path:
        return path.with_name(f"{path.stem}_earlier{number}{path.suffix}")

    number = 1
    while any(name(path, number).exists() for path in files):
        number += 1
    kept = [name(path, number) for path in old]
    # Copied before they are replaced: a stop in between leaves one too many, never one too few.
    for path, content in old.items():
        atomic_write_bytes(name(path, number), content)
    return kept


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(content)


def read_counts(path: Path | str) -> tuple[tuple[str, ...], tuple[str, ...], Counts]:
    """Stems, classes and counts (N, 3, K) that :meth:`EvaluationResult.write` wrote.

    Raises:
        DataError: no such file, or another content.
    """
    try:
        with open_input(path) as stream, np.load(stream, allow_pickle=False) as found:
            counts: NDArray[np.int64] = found["counts"].astype(np.int64)
            stems = tuple(str(stem) for stem in found["stems"])
            classes = tuple(str(name) for name in found["classes"])
        if counts.shape != (len(stems), 3, len(classes)) or (counts < 0).any():
            raise ValueError(f"counts of shape {counts.shape}")
        return stems, classes, counts
    except Exception as error:  # damaged bytes fail anywhere in numpy, zip and zlib
        raise DataError(
            path,
            found=f"it cannot be read as counts of an evaluation ({error})",
            expected="the .npz that an evaluation writes beside its .json",
            remedy="evaluate again",
        ) from error


def readable_json(value: Mapping[str, Any]) -> str:
    """JSON with one line per key and per row of a list: readable, and short for matrices."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Sequence) and not isinstance(item, str) and item:
            rows = ",\n    ".join(_compact(row) for row in item)
            lines.append(f"  {_compact(key)}: [\n    {rows}\n  ]")
        elif isinstance(item, Mapping) and item:
            pairs = (f"{_compact(name)}: {_compact(row)}" for name, row in item.items())
            rows = ",\n    ".join(pairs)
            lines.append(f"  {_compact(key)}: {{\n    {rows}\n  }}")
        else:
            lines.append(f"  {_compact(key)}: {_compact(item)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _class_table(result: EvaluationResult, metrics: Sequence[str] | None) -> Table:
    """One row per class, in percent; a dash where a score is undefined."""
    from rich import box
    from rich.table import Table

    scores = result.per_class()
    columns = list(scores)
    if metrics is not None:
        columns = list(dict.fromkeys(name for metric in metrics for name in _COLUMNS[metric]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for number, title in enumerate(result.classes):
        table.add_row(title, *(_percent(float(scores[name][number])) for name in columns))
    return table


def _summary(result: EvaluationResult, metrics: Sequence[str] | None) -> str:
    """Number of images and the means, in percent, with the interval of mIoU."""
    wanted = list(result.metrics)
    if metrics is not None:
        wanted = ["aAcc"]
        for metric in metrics:
            means = [metric] if metric == "ECE" else [f"m{name}" for name in _COLUMNS[metric]]
            wanted += [name for name in means if name not in wanted]
    parts = [f"{name} {_percent(result.metrics[name])}" for name in wanted]
    if result.interval is not None and "mIoU" in wanted:
        low, high = _percent(result.interval.low), _percent(result.interval.high)
        parts.append(f"(mIoU {low} to {high} with {100 * result.interval.confidence:.0f} %)")
    line = f"{len(result.stems)} images, in percent: {'  '.join(parts)}"
    caution = result.scores.caution
    return f"{line}\nwarning: {caution}" if caution else line


def print_scores(
    result: EvaluationResult,
    metrics: Sequence[str] | None = None,
    console: Console | None = None,
) -> None:
    """Print the table per class and the summary, at any width of the terminal.

    Args:
        result: what to show.
        metrics: as in `--eval`; None: all that were measured.
        console: where to print; None: standard output.
    """
    if console is None:
        from rich.console import Console

        console = Console(highlight=False)
        # Programs without a terminal set COLUMNS=0, at which rich prints nothing.
        console.width = max(console.width, LEAST_WIDTH)
    console.print(_class_table(result, metrics))
    console.print(_summary(result, metrics), soft_wrap=True)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
