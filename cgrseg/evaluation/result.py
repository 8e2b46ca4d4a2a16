"""What an evaluation found, and how it is kept.

Two files: `evaluation.json` for people and scripts (scores, per class, per image,
settings), and `evaluation.npz` beside it with the integer counts behind them (confusion
matrix, counts per image), from which two runs are compared without predicting again.
Neither holds times or the number of processes: the same evaluation gives the same files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError, explain
from cgrseg.evaluation.bootstrap import Interval, miou_interval
from cgrseg.evaluation.calibration import Calibration
from cgrseg.evaluation.metrics import Counts, Scores, SegmentationScores, mean_of_defined
from cgrseg.files import atomic_write, atomic_write_text

FORMAT = 1


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a checkpoint on a split, with the counts behind them.

    Attributes:
        classes: names in id order (K).
        stems: names of the images (N), in the dataset's order.
        confusion: int64 (K, K), row = label, column = prediction.
        counts: int64 (N, 3, K): per image the pixels hit, predicted and labelled per class.
        boundary: boundary IoU per class (K,); None unless asked for.
        calibration: reliability of confidences; None unless asked for.
        settings: what was evaluated and how, as plain values.
        scores: of the whole set.
        interval: 95 % interval of mIoU over images; None without labelled images.
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
        labelled = len(self.stems) and bool(self.confusion.any())
        object.__setattr__(self, "interval", miou_interval(self.counts) if labelled else None)

    @property
    def metrics(self) -> dict[str, float]:
        """All scalar scores in 0..1 by name, not a number where undefined."""
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
        """One row per image: stem, aAcc, mIoU over its own classes, labelled pixels."""
        rows = []
        for stem, (hit, predicted, labelled) in zip(self.stems, self.counts, strict=True):
            own = SegmentationScores.from_counts(hit, predicted, labelled)
            rows.append(
                {
                    "image": stem,
                    "aAcc": _number(own.pixel_accuracy),
                    "mIoU": _number(own.mean_iou),
                    "pixels": int(labelled.sum()),
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

    def write_json(self, path: Path | str) -> None:
        """Replace `path` by the readable form, whole or not at all."""
        atomic_write_text(path, readable_json(self.as_json()))

    def write_counts(self, path: Path | str) -> None:
        """Replace `path` by the integer counts (NPZ without pickles)."""
        # The smallest integers that hold the counts: most are zero or small.
        counts = self.counts.astype(np.int32 if self.counts.max(initial=0) < 2**31 else np.int64)
        with atomic_write(path) as stream:
            np.savez_compressed(
                stream,
                confusion=self.confusion,
                counts=counts,
                stems=np.array(self.stems, dtype=np.str_),
                classes=np.array(self.classes, dtype=np.str_),
            )

    def write(self, folder: Path | str, name: str = "evaluation") -> Path:
        """Write `<name>.json` and `<name>.npz` into a folder; the path of the former."""
        target = Path(folder) / f"{name}.json"
        self.write_counts(target.with_suffix(".npz"))
        self.write_json(target)
        return target


def read_counts(path: Path | str) -> tuple[tuple[str, ...], tuple[str, ...], Counts]:
    """Stems, classes and counts (N, 3, K) that :meth:`EvaluationResult.write_counts` wrote.

    Raises:
        DataError: no such file, or another content.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            counts: NDArray[np.int64] = found["counts"].astype(np.int64)
            stems = tuple(str(stem) for stem in found["stems"])
            return stems, tuple(str(name) for name in found["classes"]), counts
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            explain(
                path,
                found=f"it cannot be read as counts of an evaluation ({error})",
                expected="the .npz that an evaluation writes beside its .json",
                remedy="evaluate again",
            )
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
