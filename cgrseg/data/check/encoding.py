"""Check the label encoding of a whole split.

A label that is off by one is valid: every id is some class.  The positions of classes reveal it:
skies and ceilings lie above the middle of an image, roads, floors and grass below.  On CamVid,
ADE20K, COCO-Stuff and Pascal Context samples the mean distance from the middle, towards the
expected side, is 0.24 to 0.34 of the height with the right ids, and 0.13 at most when ids are
read one or two places off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cgrseg.data.check.pair import Facts
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import DatasetSpec

_ABOVE = frozenset({"sky", "cloud", "clouds", "ceiling"})
# fmt: off
_BELOW = frozenset({
    "road", "floor", "grass", "ground", "sidewalk", "pavement", "rug", "carpet", "earth", "sand",
    "dirt", "path", "runway", "gravel", "mud", "playingfield", "terrain", "sea", "river", "snow",
    "water", "field", "land",
})
# fmt: on
_RIGHT = 0.18  # score from which a reading counts as right
_WRONG = 0.15  # score up to which it counts as wrong
_MARGIN = 0.10
_MIN_CLASSES = 2
_MIN_SEEN = 6


def _zeros() -> np.ndarray:
    return np.zeros(256, dtype=np.int64)


@dataclass
class Tally:
    """Sums over the labels of one split, per raw id.

    Attributes:
        pixels: (256,) number of pixels.
        files: (256,) number of labels that hold the id.
        centers: (256,) sum of mean rows, 0 (top) to 1 (bottom).
        seen: (256,) number of labels in that sum.
        labels: number of labels that were read.
    """

    pixels: np.ndarray = field(default_factory=_zeros)
    files: np.ndarray = field(default_factory=_zeros)
    centers: np.ndarray = field(default_factory=lambda: np.zeros(256))
    seen: np.ndarray = field(default_factory=_zeros)
    labels: int = 0

    def add(self, facts: Facts) -> None:
        """Count one label in."""
        self.labels += bool(facts.counts)
        for raw, count in facts.counts.items():
            self.pixels[raw] += count
            self.files[raw] += 1
        for raw, center in facts.centers.items():
            self.centers[raw] += center
            self.seen[raw] += 1


def judge_encoding(
    spec: DatasetSpec, rule: LabelRule, name: str, tally: Tally, where: str
) -> list[Finding]:
    """Errors in the encoding of the labels of split `name`, which lie in folder `where`."""
    if not tally.labels:
        return []
    shift = looks_shifted(tally, spec.classes, rule)
    # Where raw 0 is ignored and 1 is the first class, labels are often reduced beforehand.
    # A first class that was dropped (data.drop) is ignored too, but says nothing of this.
    stored = rule.unedited
    if stored.lookup[0] == stored.ignore_index and 1 in stored.allowed:
        twice = _reduced_twice(spec, rule, name, tally, shift, where)
        if twice is not None:
            return [twice]
    beyond = {int(k) for k in np.flatnonzero(tally.pixels)} - stored.allowed
    one_too_far = stored.lookup[0] == 0 and beyond == {stored.num_classes}
    if shift or (one_too_far and not _fits(tally, spec.classes, rule)):
        return [_shifted(spec, rule, name, shift, where)]
    return []


def position_score(
    tally: Tally, classes: Sequence[str], rule: LabelRule, shift: int
) -> tuple[float, int, int]:
    """How well known classes lie on their side when raw ids are read `shift` places off.

    Returns:
        Mean distance from the middle towards the expected side (share of the height),
        number of classes it rests on, and number of sightings.
    """
    distances, seen = [], 0
    for raw in sorted(rule.allowed):
        new = rule.lookup[raw]
        if new == rule.ignore_index:
            continue
        word = re.split(r"[^a-z]+", classes[new].lower())[0]
        side = (word in _ABOVE) - (word in _BELOW)
        other = raw + shift
        if side and 0 <= other < 256 and tally.seen[other]:
            distances.append(side * (0.5 - tally.centers[other] / tally.seen[other]))
            seen += int(tally.seen[other])
    return (float(np.mean(distances)) if distances else 0.0), len(distances), seen


def looks_shifted(tally: Tally, classes: Sequence[str], rule: LabelRule) -> int:
    """-1 or 1 when classes seem to be stored that far from their ids, else 0."""
    here, _, _ = position_score(tally, classes, rule, 0)
    best = 0
    best_score = max(_RIGHT, here + _MARGIN)
    for shift in (-1, 1):
        score, kinds, seen = position_score(tally, classes, rule, shift)
        if kinds >= _MIN_CLASSES and seen >= _MIN_SEEN and score >= best_score and here <= _WRONG:
            best, best_score = shift, score
    return best


def _fits(tally: Tally, classes: Sequence[str], rule: LabelRule) -> bool:
    """Whether known classes lie where they belong, on enough evidence."""
    score, kinds, seen = position_score(tally, classes, rule, 0)
    return kinds >= _MIN_CLASSES and seen >= _MIN_SEEN and score > _WRONG


def _shifted(spec: DatasetSpec, rule: LabelRule, name: str, shift: int, where: str) -> Finding:
    number = rule.unedited.num_classes
    if shift:
        found = (
            f"in {name}, classes such as sky and road lie where they belong when each is looked "
            f"for one id {'above' if shift > 0 else 'below'} its own"
        )
    else:
        found = f"in {name}, ids run from 0 to {number}, one more than there are classes"
    remedy = "convert the labels to the form expected, or correct the class list"
    if spec.is_custom and shift >= 0:
        remedy = "if 0 means unlabeled and the classes count from 1, set data.zero_is_ignore=true"
        if not shift:
            remedy += f"; if {number} does, set data.ignore_index={number}"
    elif spec.is_custom or spec.classes[0] == "background":
        remedy = "if the labels have no background at 0, take it out of the class list"
    return Finding(
        "error",
        "shifted-by-one",
        where,
        f"{found}; expected: {rule.meaning}",
        f"{remedy}; `cgrseg data browse` shows labels over their images",
    )


def _reduced_twice(
    spec: DatasetSpec, rule: LabelRule, name: str, tally: Tally, shift: int, where: str
) -> Finding | None:
    """Labels in which 0 is a class and 255 unlabeled, though 0 should be unlabeled.

    Certain when known classes lie one id below their own.  Probable when 255 occurs,
    which the published forms never hold, the last id does not, and the positions of
    classes do not speak against it.
    """
    if shift > 0:
        return None
    if shift == 0:
        stored = rule.unedited
        last = max(raw for raw in stored.allowed if stored.lookup[raw] != stored.ignore_index)
        if not tally.pixels[255] or 255 not in rule.allowed or tally.pixels[last]:
            return None
        if _fits(tally, spec.classes, rule):
            return None
    return Finding(
        "error" if shift else "warning",
        "zero-reduced-twice",
        where,
        f"in {name}, ids run from 0 to {int(np.flatnonzero(tally.pixels[:255]).max(initial=0))}, "
        f"and {int(tally.files[255])} of {tally.labels} labels hold 255, as if 0 had been turned "
        f"into 255 and the rest moved down already; expected: {rule.meaning}",
        "use the labels as they were published, or describe yours as data.dataset=custom",
    )
