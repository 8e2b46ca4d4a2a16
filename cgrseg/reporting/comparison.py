"""Compare runs: differences in IoU, and which of them are significant.

The first run is the reference.  Differences are judged by the paired bootstrap over images
(:func:`cgrseg.evaluation.bootstrap.paired_difference`).  With many classes, some p-values are
small by chance: a class counts as changed only if it passes the procedure of Benjamini and
Hochberg (1995), which keeps the expected share of false discoveries at 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        name: name in the comparison.
        source: its evaluation file.
        evaluation: content of that file.
        counts: (N, 3, K) pixels hit, predicted and labeled per image and class; None without
            the file that has them.
        stems: names of the N images; empty without counts.
    """

    name: str
    source: Path
    evaluation: EvaluationRecord
    counts: Counts | None
    stems: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in id order."""
        return tuple(record["class"] for record in self.evaluation["per_class"])

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """IoU per class; NaN where undefined."""
        return np.array([record["IoU"] for record in self.evaluation["per_class"]], np.float64)


@dataclass(frozen=True)
class Difference:
    """A run compared with the first one.

    Attributes:
        name: name of the run.
        miou: its mIoU minus the mIoU of the first run (-1..1).
        interval: 95 % confidence interval of `miou`; None when significance was not judged.
        p_value: two-sided p-value; None when significance was not judged.
        per_class: difference of IoU per class (K,); NaN where undefined.
        per_class_p: two-sided p-values (K,); NaN where undefined or not judged.
        significant: whether the change of a class is significant (K,).
        shared_images: number of images that both runs have counts for.
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
    """Runs with the same classes, and the difference of each later run from the first.

    Attributes:
        runs: in the given order; the first is the reference.
        classes: class names in id order.
        differences: one per run after the first.
        warnings: sentences for the reader, such as about missing counts.
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
        paths: run folders, or evaluation files (`evaluation*.json`). Significance needs the `.npz`
            of the same stem beside the file.
        names: names of the runs; None: short names are taken from the folders.
        draws: number of bootstrap draws.

    Raises:
        DataError: fewer than two runs, a run without an evaluation, other classes, or other
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
    chosen = run_names(sources) if names is None else names
    first, *others = runs = [_load(*each) for each in zip(chosen, sources, strict=True)]
    warnings: list[str] = []
    differences = [_difference(first, run, draws, warnings) for run in others]
    return Comparison(tuple(runs), first.classes, tuple(differences), tuple(warnings))


def run_names(sources: Sequence[Path]) -> list[str]:
    """Short names that differ: the last parts of the paths, as many as are needed.

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
    """Whether each p-value is significant by the procedure of Benjamini and Hochberg.

    Args:
        p_values: (K,); NaN counts as not significant.
        rate: accepted share of false discoveries, 0..1.
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
    from cgrseg.evaluation.result import read_counts

    evaluation = read_evaluation(source)
    beside = source.with_suffix(".npz")
    if not beside.is_file():
        return Run(name, source, evaluation, None, ())
    stems, classes, counts = read_counts(beside)
    run = Run(name, source, evaluation, counts, stems)
    if tuple(classes) != run.classes:
        raise DataError(
            beside,
            found="classes other than those of the .json beside it",
            expected="both files of one evaluation",
            remedy="evaluate again",
        )
    return run


def _difference(first: Run, run: Run, draws: int, warnings: list[str]) -> Difference:
    from cgrseg.evaluation.bootstrap import paired_difference

    if run.classes != first.classes:
        raise _mismatch(first, run, "other classes or another order of them")
    missing = [each.name for each in (first, run) if each.counts is None]
    if missing:
        warnings.append(
            f"{run.name}: significance was not judged, since {' and '.join(missing)} lacks the "
            ".npz file with counts per image beside its evaluation."
        )
        before, after = (each.evaluation["scores"].get("mIoU") for each in (first, run))
        return Difference(
            name=run.name,
            miou=float("nan") if before is None or after is None else after - before,
            interval=None,
            p_value=None,
            per_class=run.iou - first.iou,
            per_class_p=np.full(len(run.iou), np.nan),
            significant=np.zeros(len(run.iou), bool),
            shared_images=0,
        )
    reference, counts = _aligned(first, run)
    found = paired_difference(reference, counts, draws=draws)
    return Difference(
        name=run.name,
        miou=found.interval.value,
        interval=found.interval,
        p_value=found.p_value,
        per_class=found.per_class,
        per_class_p=found.per_class_p,
        significant=false_discoveries(found.per_class_p),
        shared_images=len(reference),
    )


def _aligned(first: Run, run: Run) -> tuple[Counts, Counts]:
    """Counts of both runs for the same images in the same order."""
    assert first.counts is not None and run.counts is not None
    position = {stem: k for k, stem in enumerate(run.stems)}
    if set(first.stems) != set(run.stems) or len(position) != len(run.stems):
        extra = sorted(set(first.stems) ^ set(run.stems))[:3]
        raise _mismatch(first, run, f"other images (for example {', '.join(extra)})")
    counts = run.counts[[position[stem] for stem in first.stems]]
    if not np.array_equal(first.counts[:, 2], counts[:, 2]):
        raise _mismatch(first, run, "other labels for the same images")
    return first.counts, counts


def _mismatch(first: Run, run: Run, found: str) -> DataError:
    return DataError(
        run.source,
        found=f"{found} than in {first.source}",
        expected="evaluations of the same split with the same classes",
        remedy="evaluate both on the same data",
    )
