"""Check a dataset: find what is wrong with it before it costs a training run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cgrseg.addresses import local_folder
from cgrseg.config.schema import DataConfig, TestConfig
from cgrseg.config.settings import parse_overrides
from cgrseg.data.channels import measured_channels
from cgrseg.data.check.classes import (
    judge_class_list,
    judge_split,
    judge_stored_values,
    judge_training_split,
    never_occurring,
    stored_values,
    summarize,
)
from cgrseg.data.check.encoding import Tally, judge_encoding
from cgrseg.data.check.leakage import find_leaks, find_touching, overlapping_stems
from cgrseg.data.check.pair import Facts, Job, inspect_pair, judge_image_bits, judge_types
from cgrseg.data.check.report import CheckReport, SplitSummary
from cgrseg.data.convert.record import mixed_record
from cgrseg.data.folder_survey import READING, Survey, survey_folder
from cgrseg.data.guess import guess_dataset
from cgrseg.data.pairs import Pair, list_pairs
from cgrseg.data.parallel import run_parallel
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import CGRSegError
from cgrseg.progress import Progress

QUICK_LABELS = 500
"""Labels per split that a quick check reads; all of them up to twice as many."""

QUICK_IMAGES = 32
"""Images per split that a quick check decodes."""


def check_dataset(
    data: DataConfig | Path | str,
    *,
    splits: Sequence[str] | None = None,
    quick: bool = False,
    evaluate: bool = True,
    test: TestConfig | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Find everything that spoils training or its scores.

    The same functions decide here and in a training which splits there are, what belongs to
    them and how labels are read, so that a training starts where this finds no errors.

    Args:
        data: settings of a dataset, or its folder (then the dataset is guessed).
        splits: splits to check; None: all that the dataset folder has, and those that
            the settings name; with `quick` only the latter.
        quick: check all names, but only some of the files, as a run does before it starts.
            Up to 1,000 labels per split are all read, beyond that 500 spread evenly;
            32 images per split are decoded; leaks and rare classes are not looked for.
            Where these labels hold fewer than two classes, further labels of the training
            split are read until there are two.
        evaluate: whether the run validates (`train.evaluate`), which needs the split of
            the settings for it.
        test: how images are read; None: as 8-bit RGB.
        workers: number of processes (threads when quick); None: by the amount of work.
        progress: called with (done, total) over all files.

    Raises:
        ConfigError: the settings do not describe a dataset.
        DataError: the dataset cannot be described, for example without a class list.
            Everything else becomes a finding.
    """
    started = time.perf_counter()
    config = data if isinstance(data, DataConfig) else guess_dataset(data)
    test = TestConfig() if test is None else test
    spec, root = resolve_spec(config), local_folder(config.root)
    report = CheckReport(spec.name, str(root), spec.classes, quick=quick)
    report.add(spec.findings)
    pairs: dict[str, list[Pair]] = {}
    for name in splits if splits is not None else _chosen_splits(config, spec, quick, evaluate):
        chosen, findings = list_pairs(spec, root, name)
        report.add(findings)
        layout = spec.splits.get(name)
        if layout is None:
            continue
        pairs[name] = chosen
        if layout.labels is None and name in (config.train_split, config.eval_split):
            report.add([_without_labels(spec, name, root)])
    report.add(_mixed_encodings(root, [spec.splits[name].labels for name in pairs]))
    report.add(overlapping_stems(pairs))
    jobs = [job for name in pairs for job in _jobs(spec, name, pairs[name], quick, test)]
    facts: dict[str, list[Facts]] = {name: [] for name in pairs}
    tallies: dict[tuple[str, LabelRule], Tally] = {}
    results = run_parallel(inspect_pair, jobs, workers=workers, threads=quick, progress=progress)
    for job, item in zip(jobs, results, strict=True):
        facts[job.split].append(item)
        tallies.setdefault((job.split, job.rule), Tally()).add(item)
    labels = str(root / next((s.labels for s in spec.splits.values() if s.labels), ""))
    wrong_values = [
        *judge_class_list(spec, tallies, labels),
        *judge_stored_values(spec, tallies, labels),
    ]
    report.add(wrong_values)
    report.add(finding for items in facts.values() for item in items for finding in item.findings)
    everything = [item for items in facts.values() for item in items]
    channels = test.image_channels
    if channels is None:
        report.add(judge_image_bits(everything, test.image_bits))
    else:
        report.add(judge_types(everything))
        train = [pair.image for pair in pairs.get(config.train_split, [])]
        if train and not quick and report.ok:
            report.channels = measured_channels(train, channels)
    report.splits = {name: _summary(spec, name, pairs[name], facts[name]) for name in pairs}
    if not wrong_values:  # they explain the rest
        _judge_labels(report, spec, root, config.train_split, pairs, jobs, tallies)
    if not quick:
        report.add(find_leaks(facts, pairs))
        report.add(find_touching(facts))
        if not wrong_values:
            report.add(never_occurring(spec, list(report.splits.values()), str(root)))
    report.seconds = time.perf_counter() - started
    return report


def proposed_settings(data: DataConfig, classes: Sequence[str]) -> tuple[Survey | None, list[str]]:
    """Settings with which a custom folder as it lies has no errors.

    Args:
        data: settings with which it has errors.
        classes: class names.

    Returns:
        What the folder holds; settings as KEY=VALUE that pass the quick check, empty: none do.
    """
    survey = survey_folder(local_folder(data.root), classes)
    if survey is None:
        return None, []
    other = [] if survey.alternative is None else [survey.alternative[1]]
    names = [name.removeprefix("data.") for name in READING if name != "data.classes"]
    usual = {name: DataConfig.model_fields[name].default for name in names}
    for settings in (survey.settings, *other):
        found = {key.removeprefix("data."): v for key, v in parse_overrides(settings).items()}
        with contextlib.suppress(CGRSegError):
            changed = DataConfig.model_validate(data.model_dump() | usual | found)
            if changed != data and check_dataset(changed, quick=True).ok:
                return survey, settings
    return survey, []


def _chosen_splits(config: DataConfig, spec: DatasetSpec, quick: bool, evaluate: bool) -> list[str]:
    """Splits that the settings name; unless quick, also those that the folder has."""
    root = local_folder(config.root)
    named = [config.train_split, *([config.eval_split] if evaluate else [])]
    chosen = list(dict.fromkeys(named))
    if quick:
        return chosen
    layouts = [spec.splits[name] for name in chosen if name in spec.splits]
    for name, layout in spec.splits.items():
        # 'val' and 'test' are one split in some datasets; once is enough.  'trainval' holds others.
        if "trainval" in (name, config.train_split):
            continue
        if layout in layouts or layout.labels is None or not (root / layout.images).is_dir():
            continue
        if layout.list_file is None or (root / layout.list_file).is_file():
            chosen.append(name)
            layouts.append(layout)
    return chosen


def _mixed_encodings(root: Path, labels: Sequence[str | None]) -> Iterator[Finding]:
    for folder in labels:
        if folder is not None and (record := mixed_record(root / folder, root)) is not None:
            yield Finding(
                "error",
                "conversion-unfinished",
                str(record),
                "a conversion with other settings was stopped half way: its label maps and those "
                "of the conversion before lie side by side",
                "run the same `cgrseg data convert` again, without --overwrite: it goes on where "
                "it stopped",
            )


def _without_labels(spec: DatasetSpec, name: str, root: Path) -> Finding:
    labeled = [other for other, layout in spec.splits.items() if layout.labels is not None]
    return Finding(
        "error",
        "split-unlabelled",
        str(root / spec.splits[name].images),
        f"{name!r} of {spec.title} has no labels to train on or to score with",
        f"set data.train_split and data.eval_split to {' or '.join(labeled)}; `cgrseg predict` "
        "needs no labels",
    )


def _jobs(
    spec: DatasetSpec, split: str, pairs: Sequence[Pair], quick: bool, test: TestConfig
) -> list[Job]:
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
            test=test,
        )
        for k in labels
    ]


def spread(length: int, count: int) -> list[int]:
    """`count` positions out of `length` (all, if there are fewer), evenly from the first on."""
    count = min(length, count)
    return [place * length // count for place in range(count)]


def _summary(
    spec: DatasetSpec, name: str, pairs: Sequence[Pair], facts: Sequence[Facts]
) -> SplitSummary:
    layout = spec.splits[name]
    source = layout.list_file or layout.images
    if layout.held_out is not None:
        share = layout.held_out.fraction
        source += f", {share if name == 'val' else 1 - share:.0%} by seed {layout.held_out.seed}"
    return summarize(facts, spec.num_classes, len(pairs), source)


def _judge_labels(
    report: CheckReport,
    spec: DatasetSpec,
    root: Path,
    train: str,
    pairs: Mapping[str, Sequence[Pair]],
    jobs: Sequence[Job],
    tallies: Mapping[tuple[str, LabelRule], Tally],
) -> None:
    for name in pairs:
        layout = spec.splits[name]
        where = str(root / (layout.labels or layout.images))
        # Labels of two encodings may lie side by side; each is judged by itself.
        own = {key: tally for key, tally in tallies.items() if key[0] == name}
        summary = report.splits[name]
        if name == train and layout.labels is not None:
            read = {job.pair.image for job in jobs if job.split == name}
            unread = [pair for pair in pairs[name] if pair.image not in read]
            stored = stored_values(own)
            report.add(judge_training_split(spec, name, summary, stored, unread, where))
        report.add(judge_split(spec, name, summary, where, trains=name == train))
        for (_, rule), tally in own.items():
            report.add(judge_encoding(spec, rule, name, tally, where))
