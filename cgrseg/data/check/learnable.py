"""Is there something to learn: two classes at least, in the labels of the training split?

A network of one class, and a split in which one class is labeled, reach a loss of 0 and an
mIoU of 100 % and have learned nothing.  The usual reasons are masks of 0 and 255 (255 means
"ignored") and a class list without the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cgrseg.data.check.encoding import Tally
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


def judge_class_list(
    spec: DatasetSpec, tallies: Mapping[tuple[str, LabelRule], Tally], where: str
) -> list[Finding]:
    """An error for a class list of one class."""
    if spec.num_classes >= NEEDED:
        return []
    only = spec.classes[0]
    converted = _is_converted(where)
    remedy = (
        f"name what surrounds {only!r} as a class: write background as the first line of "
        f"{spec.default_root}/classes.txt, before {only} (or set data.classes)"
        if spec.name == "custom"
        else "drop or merge fewer classes"
    )
    if converted:
        remedy = (
            f"name what surrounds {only!r} as a class: convert again into another folder with "
            "`cgrseg data convert labelme --background other`, likewise for coco"
        )
    elif stored_values(tallies) == _MASK:
        remedy += "; the labels hold 0 and 255, which data.label_threshold=128 reads as two classes"
    elif spec.label_rule.lookup[0] == spec.ignore_index:
        remedy += ", and leave data.zero_is_ignore out"
    return [
        Finding(
            "error",
            "one-class",
            spec.default_root,
            f"{only!r} is the only class; expected: {NEEDED} classes at least, since a network of "
            "one class learns nothing",
            remedy,
        )
    ]


def judge_stored_values(
    spec: DatasetSpec, tallies: Mapping[tuple[str, LabelRule], Tally], where: str
) -> list[Finding]:
    """Labels whose values are not class ids, but as many as there are classes."""
    rule, stored = spec.label_rule.unedited, stored_values(tallies)
    number = rule.num_classes
    as_stored = all(rule.lookup[k] == k for k in range(number))
    if spec.name != "custom" or not as_stored or number < NEEDED or len(rule.allowed) == 256:
        return []
    if stored == _MASK and not _is_converted(where):
        return [
            Finding(
                "error",
                "binary-labels",
                where,
                f"the labels hold nothing but 0 and 255, and 255 means ignored: "
                f"{spec.classes[0]!r} is the only class left",
                _binary_remedy(spec),
            )
        ]
    strange = stored - rule.allowed
    for values in (sorted(stored - {255}), sorted(stored)):
        if strange and strange != {number} and len(values) == number:
            table = ",".join(f"{raw}:{new}" for new, raw in enumerate(values))
            return [
                Finding(
                    "error",
                    "stored-values",
                    where,
                    f"the labels hold the values {', '.join(map(str, values))}; expected: "
                    f"{rule.meaning}",
                    f"set 'data.label_values={{{table}}}', if this is the order of the classes "
                    f"({', '.join(spec.classes[:8])}{', ...' if number > 8 else ''})",
                )
            ]
    return []


def judge_training_split(
    spec: DatasetSpec,
    name: str,
    summary: SplitSummary,
    stored: set[int],
    unread: Sequence[Pair],
    where: str,
) -> list[Finding]:
    """An error where fewer than two classes are labeled in the training split.

    Args:
        spec: the dataset.
        name: of the training split.
        summary: what was seen of its labels.
        stored: the values that these labels hold.
        unread: pairs whose labels were not read yet; they are read until two classes are
            found.
        where: folder of its labels.
    """
    if not stored <= frozenset().union(*(rule.allowed for _, rule in spec.encodings)):
        return []  # ids outside the class list are errors of their own, and explain this
    seen = {k for k, count in enumerate(summary.pixels) if count}
    if len(seen) < NEEDED:
        seen = labeled_classes(spec, unread, seen)
    return nothing_to_learn(spec, name, seen, stored, where) if summary.inspected else []


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
) -> list[Finding]:
    """An error where the labels of a training split hold fewer than two classes.

    Args:
        spec: the dataset.
        name: of the split.
        seen: training ids in its labels.
        stored: values in its labels, where they are known.
        where: folder of its labels.
    """
    if len(seen) >= NEEDED or spec.num_classes < NEEDED:
        return []
    what = "no pixel of it is labeled: all are ignored"
    if seen:
        what = f"only {spec.classes[next(iter(seen))]!r} is labeled in it"
    return [
        Finding(
            "error",
            "nothing-to-learn",
            where,
            f"the training split {name!r} teaches nothing: {what}; expected: labels of "
            f"{NEEDED} classes at least; {spec.label_rule.meaning}",
            _remedy(spec, stored),
        )
    ]


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
    nothing = nothing_to_learn(spec, split, labeled_classes(spec, pairs), set(), where)
    for pair in pairs if nothing else ():
        if pair.label is not None:
            spec.rule_for(pair.label).check(read_label(pair.label), source=pair.label)
    raise_for_errors(where, nothing)


def _remedy(spec: DatasetSpec, stored: set[int]) -> str:
    values = f"; the labels hold {', '.join(map(str, sorted(stored)[:8]))}" if stored else ""
    if spec.name != "custom":
        return f"compare the labels with the class list, `cgrseg data browse` shows them{values}"
    if len(spec.label_rule.allowed) == 256 and len(stored) > 1:
        middle = (min(stored) + max(stored) + 1) // 2
        return f"set data.label_threshold={middle}, between the stored values{values}"
    return (
        "label more of the images; if stored values are classes that are read as ignored, say so "
        f"with 'data.label_values={{VALUE:ID,...}}'{values}"
    )


def _binary_remedy(spec: DatasetSpec) -> str:
    if spec.num_classes == NEEDED:
        return (
            f"set data.label_threshold=128: 0 becomes {spec.classes[0]!r} and 255 "
            f"{spec.classes[1]!r}"
        )
    return (
        "say which class 255 is, for example 'data.label_values={0:0,255:1}' with a class list of "
        f"two; the class list has {spec.num_classes}"
    )


def _is_converted(labels: str) -> bool:
    """Whether our converters wrote the labels, in which 255 is what no shape covers."""
    return (Path(labels) / RECORD_NAME).is_file()


def stored_values(tallies: Mapping[tuple[str, LabelRule], Tally]) -> set[int]:
    """The values that the labels behind some tallies hold."""
    return {int(raw) for tally in tallies.values() for raw in np.flatnonzero(tally.pixels)}


def _far_apart(pairs: list[Pair]) -> Iterator[Pair]:
    """All pairs, distant ones first: neighbors are often alike."""
    step = max(1, round(len(pairs) * 0.618))
    while np.gcd(step, max(len(pairs), 1)) != 1:
        step += 1
    for place in range(len(pairs)):
        yield pairs[place * step % len(pairs)]
