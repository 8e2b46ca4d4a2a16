"""The check as a whole: which files, looked at how, and the verdict on all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cgrseg.config.schema import DataConfig
from cgrseg.data.catalogue import DatasetSpec, LabelRule, Pair, resolve_spec
from cgrseg.data.check.encoding import (
    Tally,
    judge_encoding,
    judge_split,
    never_occurring,
    summarise,
)
from cgrseg.data.check.findings import CheckReport, Finding, SplitSummary
from cgrseg.data.check.guess import guess_dataset
from cgrseg.data.check.inspect import Facts, Job, inspect_pair
from cgrseg.data.check.inventory import list_pairs, overlapping_stems
from cgrseg.data.check.leakage import find_leaks
from cgrseg.data.parallel import Progress, run_parallel

QUICK_LABELS = 500
"""Labels per split that the quick check reads; all of them up to twice as many."""

QUICK_IMAGES = 32
"""Images per split that the quick check decodes."""


def check_dataset(
    data: DataConfig | Path | str,
    *,
    splits: Sequence[str] | None = None,
    quick: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Look for everything that spoils training or its scores.

    Args:
        data: settings of a dataset, or its folder (then the dataset is guessed).
        splits: which to check; None: all that the dataset's folder has, and those that
            the settings name.
        quick: all names, but only some of the files: what a run does before it starts.
            Up to 1,000 labels a split all are read, beyond that 500 spread evenly;
            32 images a split are decoded; leaks and rare classes are not looked for.
        workers: processes (threads when quick); None chooses by the amount of work.
        progress: called with (done, total) over all files.

    Raises:
        ConfigError, DataError: the dataset cannot even be described (no class list, an
            unknown name); everything else becomes a finding.
    """
    started = time.perf_counter()
    config = data if isinstance(data, DataConfig) else guess_dataset(data)
    spec, root = resolve_spec(config), Path(config.root)
    report = CheckReport(spec.name, str(root), spec.classes, quick=quick)
    pairs: dict[str, list[Pair]] = {}
    for name in _choose_splits(config, spec, root, splits, quick):
        if name not in spec.splits:
            report.add([_no_such_split(spec, name, root)])
            continue
        if spec.splits[name].labels is None and name in (config.train_split, config.eval_split):
            report.add([_without_labels(spec, name, root)])
        pairs[name], findings = list_pairs(spec, root, name)
        report.add(findings)
    report.add(overlapping_stems(pairs))
    jobs = [job for name in pairs for job in _jobs(spec, name, pairs[name], quick)]
    facts: dict[str, list[Facts]] = {name: [] for name in pairs}
    tallies: dict[tuple[str, LabelRule], Tally] = {}
    results = run_parallel(inspect_pair, jobs, workers=workers, threads=quick, progress=progress)
    for job, item in zip(jobs, results, strict=True):
        facts[job.split].append(item)
        tallies.setdefault((job.split, job.rule), Tally()).add(item)
    report.add(finding for items in facts.values() for item in items for finding in item.findings)
    report.splits = _judge(report, spec, root, pairs, facts, tallies)
    if not quick:
        report.add(find_leaks(facts, _same_split(pairs)))
        report.add(never_occurring(spec, list(report.splits.values()), str(root)))
    report.seconds = time.perf_counter() - started
    return report


def quick_check(
    config: DataConfig,
    *,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """What a run does before its first iteration; see :func:`check_dataset`.

    Only the training and evaluation splits of the settings are looked at, or `splits`.
    """
    return check_dataset(config, splits=splits, quick=True, workers=workers, progress=progress)


def _choose_splits(
    config: DataConfig,
    spec: DatasetSpec,
    root: Path,
    splits: Sequence[str] | None,
    quick: bool,
) -> list[str]:
    if splits is not None:
        return list(splits)
    named = [config.train_split, config.eval_split]
    if quick:
        return list(dict.fromkeys(named))
    chosen = list(dict.fromkeys(named))
    layouts = [spec.splits[name] for name in chosen if name in spec.splits]
    for name, layout in spec.splits.items():
        # 'val' and 'test' are one split in some datasets; once is enough.
        if layout in layouts or layout.labels is None or not (root / layout.images).is_dir():
            continue
        if layout.list_file is None or (root / layout.list_file).is_file():
            chosen.append(name)
            layouts.append(layout)
    return chosen


def _no_such_split(spec: DatasetSpec, name: str, root: Path) -> Finding:
    return Finding(
        "error",
        "split-missing",
        str(root),
        f"there is no split {name!r}, only {', '.join(spec.splits)}",
        "set data.train_split and data.eval_split, or add the folders of that split",
    )


def _without_labels(spec: DatasetSpec, name: str, root: Path) -> Finding:
    labelled = [other for other, layout in spec.splits.items() if layout.labels is not None]
    return Finding(
        "error",
        "split-unlabelled",
        str(root / spec.splits[name].images),
        f"{name!r} of {spec.title} has no labels to train on or to score with",
        f"set data.train_split and data.eval_split to {' or '.join(labelled)}; `cgrseg predict` "
        "needs no labels",
    )


def _jobs(spec: DatasetSpec, split: str, pairs: Sequence[Pair], quick: bool) -> list[Job]:
    labels = images = list(range(len(pairs)))
    if quick:
        if len(pairs) > 2 * QUICK_LABELS:
            labels = spread(len(pairs), QUICK_LABELS)
        images = spread(len(labels), QUICK_IMAGES)
    decoded = {labels[k] for k in images}
    return [
        Job(
            split=split,
            pair=pairs[k],
            rule=spec.label_rule if (label := pairs[k].label) is None else spec.rule_for(label),
            decode_image=k in decoded,
        )
        for k in labels
    ]


def spread(length: int, count: int) -> list[int]:
    """`count` positions out of `length` (all, if there are fewer), evenly from the first on."""
    count = min(length, count)
    return [place * length // count for place in range(count)]


def _judge(
    report: CheckReport,
    spec: DatasetSpec,
    root: Path,
    pairs: Mapping[str, Sequence[Pair]],
    facts: Mapping[str, Sequence[Facts]],
    tallies: Mapping[tuple[str, LabelRule], Tally],
) -> dict[str, SplitSummary]:
    summaries = {}
    for name in pairs:
        where = str(root / (spec.splits[name].labels or spec.splits[name].images))
        summaries[name] = summarise(facts[name], spec.num_classes, len(pairs[name]))
        report.add(judge_split(spec, name, summaries[name], where))
        # Labels of two encodings may lie side by side; each is judged by itself.
        for (split, rule), tally in tallies.items():
            if split == name:
                report.add(judge_encoding(spec, rule, name, tally, where))
    return summaries


def _same_split(pairs: Mapping[str, Sequence[Pair]]) -> set[frozenset[str]]:
    """Names that stand for one and the same list of images."""
    images = {name: {pair.image for pair in chosen} for name, chosen in pairs.items()}
    return {
        frozenset((one, other))
        for one in images
        for other in images
        if one != other and images[one] == images[other]
    }
