"""From the ids stored in a label file to the ids that the network learns.

Each dataset writes "nothing here" in its own way: ADE20K as 0, Cityscapes as 255,
COCO-Stuff-10k as 0 in one published form and 255 in its sister's.  A rule says, for
each of the 256 values that a label can hold, which class it is, that it is ignored,
or that it must not occur.  The last is an error that names the file: it would
otherwise end as an index out of range deep inside a GPU kernel, or as a network that
learned the neighbour's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError, explain

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Hint:
    """What it means when a rule meets certain ids that it does not allow.

    Attributes:
        ids: the raw ids that give it away; one of them is enough.
        text: what the reader should try, as a sentence.
    """

    ids: frozenset[int]
    text: str


@dataclass(frozen=True, repr=False)
class LabelRule:
    """Raw id to training id.

    Attributes:
        lookup: 256 entries, the training id of each raw id; `ignore_index` for raw ids
            that are ignored and for those that must not occur.
        allowed: raw ids that may occur.
        num_classes: training ids are 0 .. num_classes - 1.
        ignore_index: training id of pixels that count nowhere.
        meaning: the encoding in words, for messages.
        hints: what certain forbidden ids tell.
        published: the rule before classes were merged or dropped; None: this one.  What the
            ids of a file tell about its encoding does not depend on such edits.
    """

    lookup: tuple[int, ...]
    allowed: frozenset[int]
    num_classes: int
    ignore_index: int = 255
    meaning: str = ""
    hints: tuple[Hint, ...] = field(default=())
    published: LabelRule | None = None

    def __repr__(self) -> str:
        return f"LabelRule({self.num_classes} classes: {self.meaning})"

    def __post_init__(self) -> None:
        if len(self.lookup) != 256:
            raise ValueError(f"a label rule has 256 entries, got {len(self.lookup)}")
        if self.num_classes <= self.ignore_index < 256:
            valid = {*range(self.num_classes), self.ignore_index}
        else:
            raise ValueError(
                f"ignore index {self.ignore_index} must lie above the {self.num_classes} classes "
                "and below 256"
            )
        wrong = sorted({*self.lookup} - valid)
        if wrong:
            raise ValueError(f"training ids {wrong} are beyond {self.num_classes} classes")

    @classmethod
    def identity(
        cls, num_classes: int, ignore_index: int = 255, *, hints: Sequence[Hint] = ()
    ) -> LabelRule:
        """Stored as learned: k is class k; `ignore_index` (and 255) is ignored."""
        return cls.from_mapping(
            {k: k for k in range(num_classes)},
            ignored={ignore_index, 255},
            ignore_index=ignore_index,
            meaning=f"0..{num_classes - 1} are the classes, "
            + ("255 is" if ignore_index == 255 else f"{ignore_index} and 255 are")
            + " ignored",
            hints=hints,
        )

    @classmethod
    def reduce_zero(
        cls,
        num_classes: int,
        *,
        ignored: Iterable[int] = (255,),
        ignore_index: int = 255,
        hints: Sequence[Hint] = (),
    ) -> LabelRule:
        """Zero is ignored and k is class k - 1; by default raw 255 stays ignored."""
        ignored = {0, *ignored}
        return cls.from_mapping(
            {k + 1: k for k in range(num_classes)},
            ignored=ignored,
            ignore_index=ignore_index,
            meaning=f"1..{num_classes} are the classes, "
            + " and ".join(str(k) for k in sorted(ignored))
            + (" are" if len(ignored) > 1 else " is")
            + " ignored",
            hints=hints,
        )

    @classmethod
    def threshold(cls, lowest: int, *, ignore_index: int = 255) -> LabelRule:
        """Two classes: values from `lowest` on are class 1, lower ones class 0.

        Masks of two classes that went through JPEG or a smooth resize are read like this.
        """
        return cls(
            lookup=tuple(int(raw >= lowest) for raw in range(256)),
            allowed=frozenset(range(256)),
            num_classes=2,
            ignore_index=ignore_index,
            meaning=f"values from {lowest} on are class 1, lower ones class 0",
        )

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[int, int],
        *,
        ignored: Iterable[int] = (255,),
        ignore_index: int = 255,
        meaning: str = "",
        hints: Sequence[Hint] = (),
    ) -> LabelRule:
        """Build a rule from raw id -> training id, and the raw ids that are ignored.

        Raises:
            ValueError: a raw id is both a class and ignored, or outside 0..255, or the
                training ids have gaps.
        """
        ignored = frozenset(ignored)
        both = sorted(ignored & set(mapping))
        if both:
            raise ValueError(f"raw ids {both} are both classes and ignored")
        outside = sorted(k for k in {*mapping, *ignored} if not 0 <= k <= 255)
        if outside:
            raise ValueError(f"raw ids {outside} do not fit into 8 bits")
        trained = set(mapping.values())
        if trained != set(range(len(trained))):
            raise ValueError(f"training ids have gaps: {sorted(trained)}")
        lookup = [ignore_index] * 256
        for raw, training in mapping.items():
            lookup[raw] = training
        return cls(
            lookup=tuple(lookup),
            allowed=frozenset({*mapping, *ignored}),
            num_classes=len(trained),
            ignore_index=ignore_index,
            meaning=meaning or f"{len(mapping)} raw ids are the classes",
            hints=tuple(hints),
        )

    def remapped(self, new_ids: Sequence[int | None]) -> LabelRule:
        """Send training id k to `new_ids[k]`; None ignores it (merged and dropped classes)."""
        if len(new_ids) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes need as many new ids, got {len(new_ids)}")
        kept = {new for new in new_ids if new is not None}
        if kept != set(range(len(kept))):
            raise ValueError(f"new ids have gaps: {sorted(kept)}")
        table = {old: self.ignore_index if new is None else new for old, new in enumerate(new_ids)}
        table[self.ignore_index] = self.ignore_index
        return replace(
            self,
            lookup=tuple(table[old] for old in self.lookup),
            num_classes=len(kept),
            published=self.unedited,
        )

    @property
    def unedited(self) -> LabelRule:
        """This rule before classes were merged or dropped."""
        return self.published or self

    def with_ignore_index(self, ignore_index: int) -> LabelRule:
        """The same rule with another training id for ignored pixels."""
        moved = (ignore_index if new == self.ignore_index else new for new in self.lookup)
        return replace(self, lookup=tuple(moved), ignore_index=ignore_index)

    @cached_property
    def table(self) -> Labels:
        """The lookup as an array, (256,) uint8."""
        return np.array(self.lookup, dtype=np.uint8)

    @cached_property
    def _forbidden(self) -> Labels:
        table = np.ones(256, dtype=np.uint8)
        table[sorted(self.allowed)] = 0
        return table

    @cached_property
    def _gaps(self) -> tuple[tuple[int, int], ...]:
        """The ids that must not occur, as runs from the first to the last."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self._forbidden, [0])).astype(int)))
        return tuple((int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True))

    def check(self, raw: Labels, *, source: Path) -> None:
        """Make sure that a label holds only ids that may occur.

        Args:
            raw: (H, W) as read from the file.
            source: the file, for messages.

        Raises:
            DataError: the file holds ids that this rule does not allow.
        """
        # The highest id is found ten times faster than anything else, and where it lies below
        # all forbidden ones nothing else is needed.
        if not self._gaps or raw.size == 0 or int(raw.max()) < self._gaps[0][0]:
            return
        # Most rules have one run of forbidden ids, which is compared five times faster than
        # looked up.
        if len(self._gaps) <= 2:
            wrong = any(cv2.countNonZero(cv2.inRange(raw, a, b)) for a, b in self._gaps)
        else:
            wrong = cv2.countNonZero(cv2.LUT(raw, self._forbidden)) > 0
        if wrong:
            raise DataError(self._complaint(raw, source))

    def apply(self, raw: Labels, *, source: Path) -> Labels:
        """Turn stored ids into training ids.

        Args:
            raw: (H, W) as read from the file.
            source: the file, for messages.

        Returns:
            (H, W), a new array: 0 .. num_classes - 1, or `ignore_index`.

        Raises:
            DataError: the file holds ids that this rule does not allow.
        """
        self.check(raw, source=source)
        return np.asarray(cv2.LUT(raw, self.table), dtype=np.uint8)

    def forbidden_ids(self, raw: Labels) -> list[int]:
        """Ids of `raw` (H, W) that the rule does not allow, ascending."""
        counts = np.bincount(raw.ravel(), minlength=256)
        return [int(k) for k in np.flatnonzero(counts) if k not in self.allowed]

    def advice(self, raw: Labels) -> str:
        """What the forbidden ids of `raw` (H, W) suggest, in words."""
        forbidden = set(self.forbidden_ids(raw))
        for hint in self.hints:
            if forbidden & hint.ids:
                return hint.text
        number = self.unedited.num_classes
        if len(forbidden) > 16:
            return (
                "so many strange values are typical of a color mask turned gray, or of labels "
                "that went through JPEG or a smooth resize; convert color masks with "
                "`cgrseg data convert rgb` and keep labels in PNG"
            ) + ("; masks of two classes are read with data.label_threshold=128" * (number == 2))
        if number == 1:
            return "name the background as a class too: a network of one class learns nothing"
        if forbidden == {number} and self.unedited.lookup[0] == 0:
            return (
                f"the ids run up to {number} for {number} classes, as if they "
                "counted from 1 with 0 for 'unlabelled': a custom dataset says so with "
                "data.zero_is_ignore=true; or the class list lacks its last name"
            )
        return (
            "compare the class list with the ids, find all files concerned with "
            "`cgrseg data check`, then correct or convert the labels"
        )

    def _complaint(self, raw: Labels, source: Path) -> str:
        counts = np.bincount(raw.ravel(), minlength=256)
        listed = ", ".join(
            f"{k} ({100.0 * int(counts[k]) / raw.size:.2f} % of pixels)"
            for k in self.forbidden_ids(raw)[:8]
        )
        more = len(self.forbidden_ids(raw)) - 8
        present = np.flatnonzero(counts)
        return explain(
            source,
            found=f"ids outside the class list: {listed}"
            + (f" and {more} more" if more > 0 else "")
            + f"; all ids lie in {present.min()}..{present.max()}",
            expected=f"{self.num_classes} classes: {self.meaning}",
            remedy=self.advice(raw),
        )
