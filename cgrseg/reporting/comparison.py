"""Is one run better than another, and where?

The first run is the reference.  Differences are judged by the paired bootstrap over
images (:func:`cgrseg.evaluation.bootstrap.paired_difference`); with many classes some
small p-values come by chance, so that a class counts as changed only when it passes the
procedure of Benjamini and Hochberg (1995), which keeps the expected share of false
findings at 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cgrseg.errors import DataError
from cgrseg.reporting.records import EvaluationRecord, evaluation_file, read_evaluation

if TYPE_CHECKING:
    from cgrseg.evaluation.bootstrap import Interval

FALSE_DISCOVERY_RATE = 0.05

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        name: how it is called.
        source: its `evaluation.json`.
        evaluation: its content.
        counts: (N, 3, K) pixels hit, predicted and labelled per image and class; None when
            the file with them is absent.
        stems: names of the N images; empty without counts.
    """

    name: str
    source: Path
    evaluation: EvaluationRecord
    counts: Counts | None
    stems: tuple[str, ...]

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """IoU per class, not a number where undefined."""
        values = [record["IoU"] for record in self.evaluation["per_class"]]
        return np.array([np.nan if value is None else value for value in values], np.float64)


@dataclass(frozen=True)
class Difference:
    """A run against the first one.

    Attributes:
        name: of the run.
        miou: its mIoU minus the first one's (-1..1).
        interval: 95 % interval of that; None when significance could not be judged.
        p_value: two-sided; None likewise.
        per_class: difference of IoU per class (K,), not a number where undefined.
        per_class_p: two-sided p-values (K,); not a number where undefined or not judged.
        significant: classes whose change is significant (K,).
        shared_images: number of images that both have counts for.
    """

    name: str
    miou: float
    interval: Interval | None
    p_value: float | None
    per_class: npt.NDArray[np.float64]
    per_class_p: npt.NDArray[np.float64]
    significant: npt.NDArray[np.bool_]
    shared_images: int


@dataclass(frozen=True)
class Comparison:
    """Runs on the same classes, and each later one's difference from the first.

    Attributes:
        runs: as given, the first is the reference.
        classes: names in id order.
        differences: one per run after the first.
        warnings: what the reader must know, such as missing counts.
    """

    runs: tuple[Run, ...]
    classes: tuple[str, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


def compare_runs(
    paths: Sequence[Path | str], names: Sequence[str] | None = None, *, draws: int = 1000
) -> Comparison:
    """Compare two or more evaluations; the first is the reference.

    Args:
        paths: run folders, or evaluation files (`evaluation*.json`, with the `.npz` of the
            same stem beside it for significance).
        names: how to call them; None: told from their folders.
        draws: resampled sets of the bootstrap.

    Raises:
        DataError: fewer than two runs, a run without evaluation, other classes, or other
            images.
    """
    if len(paths) < 2 or (names is not None and len(names) != len(paths)):
        raise DataError(
            "comparison of runs",
            found=f"{len(paths)} runs" + ("" if names is None else f", {len(names)} names"),
            expected="two runs or more, and a name for each or none",
            remedy="name the folders of at least two runs",
        )
    sources = [evaluation_file(path) for path in paths]
    called = list(names) if names is not None else run_names(sources)
    runs = [_load(name, source) for name, source in zip(called, sources, strict=True)]
    first = runs[0]
    classes = _class_names(first)
    warnings: list[str] = []
    differences = []
    for run in runs[1:]:
        if _class_names(run) != classes:
            raise _mismatch(first, run, "other classes or another order of them")
        differences.append(_difference(first, run, draws, warnings))
    return Comparison(tuple(runs), classes, tuple(differences), tuple(warnings))


def run_names(sources: Sequence[Path]) -> list[str]:
    """Short names that differ: the parts of the paths that are not common to all.

    A file other than `evaluation.json` adds its stem; names that are still equal get a number.
    """
    parts = []
    for source in sources:
        stem = [] if source.stem == "evaluation" else [source.stem]
        parts.append([*source.resolve().parent.parts, *stem])
    depth = 1
    longest = max(len(part) for part in parts)
    while depth < longest and len({tuple(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    names = ["/".join(part[-depth:]) for part in parts]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def false_discoveries(
    p_values: npt.NDArray[np.float64], rate: float = FALSE_DISCOVERY_RATE
) -> npt.NDArray[np.bool_]:
    """Which p-values are significant by the procedure of Benjamini and Hochberg.

    Args:
        p_values: any shape (K,); those that are not a number are left out.
        rate: tolerated share of false findings, 0..1.
    """
    found = np.zeros(p_values.shape, bool)
    defined = np.flatnonzero(~np.isnan(p_values))
    if defined.size == 0:
        return found
    order = defined[np.argsort(p_values[defined], kind="stable")]
    limits = rate * np.arange(1, order.size + 1) / order.size
    passing = np.flatnonzero(p_values[order] <= limits)
    if passing.size:
        found[order[: passing[-1] + 1]] = True
    return found


def _load(name: str, source: Path) -> Run:
    evaluation = read_evaluation(source)
    from cgrseg.evaluation.result import read_counts

    beside = source.with_suffix(".npz")
    if not beside.is_file():
        return Run(name, source, evaluation, None, ())
    stems, classes, counts = read_counts(beside)
    run = Run(name, source, evaluation, counts, stems)
    if list(classes) != [record["class"] for record in evaluation["per_class"]]:
        raise DataError(
            beside,
            found="classes other than those of the .json beside it",
            expected="both files of one evaluation",
            remedy="evaluate again",
        )
    return run


def _class_names(run: Run) -> tuple[str, ...]:
    return tuple(record["class"] for record in run.evaluation["per_class"])


def _difference(first: Run, run: Run, draws: int, warnings: list[str]) -> Difference:
    count = len(run.iou)
    nothing = np.full(count, np.nan)
    missing = [each.name for each in (first, run) if each.counts is None]
    scores = (first.evaluation["scores"].get("mIoU"), run.evaluation["scores"].get("mIoU"))
    plain_difference = float("nan") if None in scores else float(scores[1]) - float(scores[0])  # type: ignore[arg-type]
    if missing:
        warnings.append(
            f"{run.name}: significance was not judged, since {' and '.join(missing)} lacks the "
            ".npz file with counts per image beside its evaluation."
        )
        return Difference(
            run.name,
            plain_difference,
            None,
            None,
            run.iou - first.iou,
            nothing,
            np.zeros(count, bool),
            0,
        )
    from cgrseg.evaluation.bootstrap import paired_difference

    ours, theirs = _aligned(first, run)
    found = paired_difference(ours, theirs, draws=draws)
    return Difference(
        run.name,
        found.interval.value,
        found.interval,
        found.p_value,
        found.per_class,
        found.per_class_p,
        false_discoveries(found.per_class_p),
        len(ours),
    )


def _aligned(first: Run, run: Run) -> tuple[Counts, Counts]:
    """Counts of both runs for the same images in the same order."""
    assert first.counts is not None and run.counts is not None
    position: Mapping[str, int] = {stem: k for k, stem in enumerate(run.stems)}
    if set(first.stems) != set(run.stems) or len(position) != len(run.stems):
        extra = sorted(set(first.stems) ^ set(run.stems))[:3]
        raise _mismatch(first, run, f"other images (for example {', '.join(extra)})")
    theirs = run.counts[[position[stem] for stem in first.stems]]
    if not np.array_equal(first.counts[:, 2], theirs[:, 2]):
        raise _mismatch(first, run, "other labels for the same images")
    return first.counts, theirs


def _mismatch(first: Run, run: Run, found: str) -> DataError:
    return DataError(
        run.source,
        found=f"{found} than in {first.source}",
        expected="evaluations of the same split with the same classes",
        remedy="evaluate both on the same data",
    )
