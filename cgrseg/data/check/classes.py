"""Check which classes the labels hold: two at least in the training split.

A network of one class, and a split in which one class is labeled, reach a loss of 0 and an
mIoU of 100 % and have learned nothing.  The usual reasons are masks of 0 and 255 (255 means
"ignored") and a class list without the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cgrseg.data.check.encoding import Tally
from cgrseg.data.check.pair import Facts
from cgrseg.data.check.report import SplitSummary
from cgrseg.data.convert.record import RECORD_NAME
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import Pair
from cgrseg.datasets.findings import Finding, raise_for_errors
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError

NEEDED = 2
"""Number of classes that a training needs."""

_MASK = {0, 255}
_IMAGES_PER_CLASS = 3  # with fewer images than this per class, absent classes are normal


def summarize(
    facts: Sequence[Facts], num_classes: int, pairs: int, source: str = ""
) -> SplitSummary:
    """Class histogram of one split, from the facts of its pairs."""
    pixels, images = [0] * num_classes, [0] * num_classes
    for item in facts:
        for new, count in item.pixels.items():
            pixels[new] += count
            images[new] += 1
    sizes = sorted((item.size for item in facts if item.size), key=lambda hw: (hw[0] * hw[1], hw))
    return SplitSummary(
        pairs=pairs,
        inspected=sum(1 for item in facts if item.counts),
        pixels=tuple(pixels),
        images=tuple(images),
        ignored=sum(item.ignored for item in facts),
        sizes=(sizes[0], sizes[-1]) if sizes else None,
        source=source,
        median=sizes[len(sizes) // 2] if sizes else None,
    )


def stored_values(tallies: Mapping[tuple[str, LabelRule], Tally]) -> set[int]:
    """The values that the labels behind some tallies hold."""
    return {int(raw) for tally in tallies.values() for raw in np.flatnonzero(tally.pixels)}


def judge_split(
    spec: DatasetSpec, name: str, summary: SplitSummary, where: str, *, trains: bool = False
) -> Iterator[Finding]:
    """Warnings from a histogram; a split that trains has its own judgment of classes."""
    total = sum(summary.pixels) + summary.ignored
    if total and summary.ignored > total / 2:
        yield Finding(
            "warning",
            "mostly-ignored",
            where,
            f"{summary.ignored / total:.0%} of the pixels of {name} are ignored",
            "if the unlabeled rest is a class of its own (background), give it an id and a "
            "name; else check the ignore value",
        )
    present = [k for k, count in enumerate(summary.pixels) if count]
    if len(present) == 1 and spec.num_classes > 1 and not trains:
        yield Finding(
            "warning",
            "single-class",
            where,
            f"in {name} only {spec.classes[present[0]]!r} occurs: scores on this split do not "
            "show whether the network separates classes",
            "check that these are the labels of this class list, or validate on other images",
        )


def never_occurring(
    spec: DatasetSpec, summaries: Sequence[SplitSummary], where: str
) -> Iterator[Finding]:
    """Classes without a single pixel; with few images that is a note, else a warning."""
    labels = sum(summary.inspected for summary in summaries)
    absent = [
        name
        for k, name in enumerate(spec.classes)
        if not any(summary.pixels[k] for summary in summaries)
    ]
    if not labels or not absent:
        return
    if labels < _IMAGES_PER_CLASS * spec.num_classes:
        yield Finding(
            "note",
            "class-never-occurs",
            where,
            f"{len(absent)} of {spec.num_classes} classes do not occur, which {labels} labels "
            "are too few to judge",
            "nothing, if this is a sample of the dataset",
        )
        return
    for name in absent:
        yield Finding(
            "warning",
            "class-never-occurs",
            where,
            f"{name!r} (id {spec.classes.index(name)}) occurs in none of {labels} labels",
            "check the order and the spelling of the class list; a class that is meant to be "
            "absent goes into data.drop, or counts as 0 in the mean",
        )


def judge_class_list(
    spec: DatasetSpec, tallies: Mapping[tuple[str, LabelRule], Tally], where: str
) -> Iterator[Finding]:
    """An error for a class list of one class."""
    if spec.num_classes >= NEEDED:
        return
    only = spec.classes[0]
    if _is_converted(where):
        remedy = (
            f"name what surrounds {only!r} as a class: convert again into another folder with "
            "`cgrseg data convert labelme --background other`, likewise for coco"
        )
    else:
        remedy = "drop or merge fewer classes"
        if spec.is_custom:
            remedy = (
                f"name what surrounds {only!r} as a class: write background as the first line of "
                f"{spec.default_root}/classes.txt, before {only} (or set data.classes)"
            )
        if stored_values(tallies) == _MASK:
            remedy += (
                "; the labels hold 0 and 255, which data.label_threshold=128 reads as two classes"
            )
        elif spec.label_rule.lookup[0] == spec.ignore_index:
            remedy += ", and leave data.zero_is_ignore out"
    yield Finding(
        "error",
        "one-class",
        spec.default_root,
        f"{only!r} is the only class; expected: {NEEDED} classes at least, since a network of "
        "one class learns nothing",
        remedy,
    )


def judge_stored_values(
    spec: DatasetSpec, tallies: Mapping[tuple[str, LabelRule], Tally], where: str
) -> Iterator[Finding]:
    """An error for labels whose values are not class ids, but as many as there are classes."""
    rule, stored = spec.label_rule.unedited, stored_values(tallies)
    number = rule.num_classes
    as_stored = all(rule.lookup[k] == k for k in range(number))
    if not spec.is_custom or not as_stored or number < NEEDED or len(rule.allowed) == 256:
        return
    if stored == _MASK and not _is_converted(where):
        remedy = (
            "say which class 255 is, for example 'data.label_values={0:0,255:1}' with a class "
            f"list of two; the class list has {spec.num_classes}"
        )
        if spec.num_classes == NEEDED:
            remedy = (
                f"set data.label_threshold=128: 0 becomes {spec.classes[0]!r} and 255 "
                f"{spec.classes[1]!r}"
            )
        yield Finding(
            "error",
            "binary-labels",
            where,
            f"the labels hold nothing but 0 and 255, and 255 means ignored: "
            f"{spec.classes[0]!r} is the only class left",
            remedy,
        )
        return
    strange = stored - rule.allowed
    for values in (sorted(stored - {255}), sorted(stored)):
        if strange and strange != {number} and len(values) == number:
            table = ",".join(f"{raw}:{new}" for new, raw in enumerate(values))
            yield Finding(
                "error",
                "stored-values",
                where,
                f"the labels hold the values {', '.join(map(str, values))}; expected: "
                f"{rule.meaning}",
                f"set 'data.label_values={{{table}}}', if this is the order of the classes "
                f"({', '.join(spec.classes[:8])}{', ...' if number > 8 else ''})",
            )
            return


def judge_training_split(
    spec: DatasetSpec,
    name: str,
    summary: SplitSummary,
    stored: set[int],
    unread: Sequence[Pair],
    where: str,
) -> Iterator[Finding]:
    """An error where fewer than two classes are labeled in the training split.

    Args:
        spec: the dataset.
        name: name of the training split.
        summary: content of the labels that were read.
        stored: values that these labels hold.
        unread: pairs whose labels were not read yet; they are read until there are two classes.
        where: folder of the labels.
    """
    if not stored <= frozenset().union(*(rule.allowed for _, rule in spec.encodings)):
        return  # ids outside the class list are errors of their own, and explain this
    seen = {k for k, count in enumerate(summary.pixels) if count}
    seen = labeled_classes(spec, unread, seen)
    if summary.inspected:
        yield from nothing_to_learn(spec, name, seen, stored, where)


def labeled_classes(spec: DatasetSpec, pairs: Iterable[Pair], seen: Iterable[int] = ()) -> set[int]:
    """Training ids in the labels of pairs; reading stops once there are two.

    Labels that cannot be read, or hold other ids, are left to those who need them.
    """
    found = set(seen)
    for pair in _far_apart(list(pairs)):
        if len(found) >= NEEDED:
            break
        if pair.label is None:
            continue
        rule = spec.rule_for(pair.label)
        try:
            stored = np.flatnonzero(np.bincount(read_label(pair.label).ravel(), minlength=256))
        except DataError:
            continue
        found |= {rule.lookup[int(raw)] for raw in stored if int(raw) in rule.allowed}
        found.discard(rule.ignore_index)
    return found


def nothing_to_learn(
    spec: DatasetSpec, name: str, seen: set[int], stored: set[int], where: str
) -> Iterator[Finding]:
    """An error where the labels of a training split hold fewer than two classes.

    Args:
        spec: the dataset.
        name: name of the split.
        seen: training ids in its labels.
        stored: values in its labels, where they are known.
        where: folder of its labels.
    """
    if len(seen) >= NEEDED or spec.num_classes < NEEDED:
        return
    what = "no pixel of it is labeled: all are ignored"
    if seen:
        what = f"only {spec.classes[next(iter(seen))]!r} is labeled in it"
    if not spec.is_custom:
        remedy = "compare the labels with the class list, `cgrseg data browse` shows them"
    elif len(spec.label_rule.allowed) == 256 and len(stored) > 1:
        middle = (min(stored) + max(stored) + 1) // 2
        remedy = f"set data.label_threshold={middle}, between the stored values"
    else:
        remedy = (
            "label more of the images; if stored values are classes that are read as ignored, "
            "say so with 'data.label_values={VALUE:ID,...}'"
        )
    if stored:
        remedy += f"; the labels hold {', '.join(map(str, sorted(stored)[:8]))}"
    yield Finding(
        "error",
        "nothing-to-learn",
        where,
        f"the training split {name!r} teaches nothing: {what}; expected: labels of "
        f"{NEEDED} classes at least; {spec.label_rule.meaning}",
        remedy,
    )


def refuse_nothing_to_learn(
    spec: DatasetSpec, root: Path | str, split: str, pairs: Sequence[Pair]
) -> None:
    """Stop a training that could learn nothing, also where no check runs before it.

    Labels are read until two classes are found, which is one file in most datasets.

    Raises:
        DataError: a class list of one class, or fewer than two classes in the labels; or, where
            this is the reason, the first label that cannot be used.
    """
    where = str(Path(root) / (spec.splits[split].labels or spec.splits[split].images))
    raise_for_errors(where, judge_class_list(spec, {}, where))
    seen = labeled_classes(spec, pairs)
    nothing = list(nothing_to_learn(spec, split, seen, set(), where))
    for pair in pairs if nothing else ():
        if pair.label is not None:
            spec.rule_for(pair.label).check(read_label(pair.label), source=pair.label)
    raise_for_errors(where, nothing)


def _is_converted(labels: str) -> bool:
    """Whether our converters wrote the labels, in which 255 is what no shape covers."""
    return (Path(labels) / RECORD_NAME).is_file()


def _far_apart(pairs: list[Pair]) -> Iterator[Pair]:
    """All pairs, distant ones first: neighbors are often alike."""
    step = max(1, round(len(pairs) * 0.618))
    while np.gcd(step, max(len(pairs), 1)) != 1:
        step += 1
    for place in range(len(pairs)):
        yield pairs[place * step % len(pairs)]
