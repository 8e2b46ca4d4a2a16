"""Label encodings: from the ids stored in a label file to the ids that the network learns.

Datasets write "unlabeled" in different ways: ADE20K as 0, Cityscapes as 255, COCO-Stuff-10k as 0
in one published form and as 255 in another.  A rule says for each of the 256 values of a label
which class it is, that it is ignored, or that it must not occur.  A forbidden value is an error
that names the file; otherwise it would end as an index out of range in a GPU kernel, or as a
network that learned its neighbor's name.

NumPy and OpenCV are imported when labels are read, so that descriptions of datasets stay light.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cgrseg.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Labels = NDArray[np.uint8]

_MANY = 16  # more forbidden ids than this are no class ids at all


@dataclass(frozen=True)
class Hint:
    """Advice for certain forbidden ids.

    Attributes:
        ids: raw ids; one of them is enough.
        text: what to do.
    """

    ids: frozenset[int]
    text: str


@dataclass(frozen=True, repr=False)
class LabelRule:
    """Map from raw id to training id.

    Attributes:
        lookup: training id of each of the 256 raw ids; `ignore_index` for raw ids that are
            ignored or forbidden.
        allowed: raw ids that may occur.
        num_classes: training ids are 0 .. num_classes - 1.
        ignore_index: training id of ignored pixels.
        meaning: the encoding in words.
        hints: advice for certain forbidden ids.
        published: the rule before classes were merged or dropped; None: this one.
    """

    lookup: tuple[int, ...]
    allowed: frozenset[int]
    num_classes: int
    ignore_index: int = 255
    meaning: str = ""
    hints: tuple[Hint, ...] = ()
    published: LabelRule | None = None

    def __repr__(self) -> str:
        return f"LabelRule({self.num_classes} classes: {self.meaning})"

    def __post_init__(self) -> None:
        if len(self.lookup) != 256:
            raise ValueError(f"a label rule has 256 entries, got {len(self.lookup)}")
        if not self.num_classes <= self.ignore_index < 256:
            raise ValueError(
                f"ignore index {self.ignore_index} must lie above the {self.num_classes} classes "
                "and below 256"
            )
        wrong = sorted({*self.lookup} - {*range(self.num_classes), self.ignore_index})
        if wrong:
            raise ValueError(f"training ids {wrong} are beyond {self.num_classes} classes")

    @classmethod
    def identity(
        cls, num_classes: int, ignore_index: int = 255, *, hints: Sequence[Hint] = ()
    ) -> LabelRule:
        """Raw id k is class k; `ignore_index` and 255 are ignored."""
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
        """Raw id k is class k - 1; 0 and the ids `ignored` are ignored."""
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
        """Two classes: values from `lowest` are class 1, lower ones class 0.

        This reads masks of two classes that went through JPEG or a smooth resize.
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
        """Rule from a table of raw id to training id, and the raw ids that are ignored.

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
        return cls(
            lookup=tuple(mapping.get(raw, ignore_index) for raw in range(256)),
            allowed=frozenset({*mapping, *ignored}),
            num_classes=len(trained),
            ignore_index=ignore_index,
            meaning=meaning or f"{len(mapping)} raw ids are the classes",
            hints=tuple(hints),
        )

    def remapped(self, new_ids: Sequence[int | None]) -> LabelRule:
        """Send training id k to `new_ids[k]`; None: ignored (merged and dropped classes)."""
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
        import numpy as np

        return np.array(self.lookup, dtype=np.uint8)

    @cached_property
    def _forbidden(self) -> Labels:
        import numpy as np

        return np.array([raw not in self.allowed for raw in range(256)], dtype=np.uint8)

    @cached_property
    def _forbidden_runs(self) -> list[tuple[int, int]]:
        """Forbidden ids as runs, each from its first to its last id."""
        runs: list[tuple[int, int]] = []
        for raw in sorted(set(range(256)) - self.allowed):
            first = runs.pop()[0] if runs and runs[-1][1] == raw - 1 else raw
            runs.append((first, raw))
        return runs

    def check(self, raw: Labels, *, source: Path) -> None:
        """Refuse ids that must not occur.

        Args:
            raw: (H, W) as stored.
            source: the file, for messages.

        Raises:
            DataError: the file holds forbidden ids.
        """
        import cv2

        # The largest id is found ten times faster than anything else.
        runs = self._forbidden_runs
        if not runs or raw.size == 0 or int(raw.max()) < runs[0][0]:
            return
        # Comparing one run is five times faster than a lookup.
        if len(runs) <= 2:
            wrong = any(cv2.countNonZero(cv2.inRange(raw, a, b)) for a, b in runs)
        else:
            wrong = cv2.countNonZero(cv2.LUT(raw, self._forbidden)) > 0
        if not wrong:
            return
        counts = _count_ids(raw)
        forbidden = self.forbidden_ids(raw)
        shown = ", ".join(
            f"{k} ({100.0 * counts[k] / raw.size:.2f} % of pixels)" for k in forbidden[:8]
        )
        more = f" and {len(forbidden) - 8} more" if len(forbidden) > 8 else ""
        raise DataError(
            source,
            found=f"ids outside the class list: {shown}{more}; all ids lie in "
            f"{min(counts)}..{max(counts)}",
            expected=f"{self.num_classes} classes: {self.meaning}",
            remedy=self.advice(raw),
        )

    def apply(self, raw: Labels, *, source: Path) -> Labels:
        """Turn stored ids into training ids.

        Args:
            raw: (H, W) as stored.
            source: the file, for messages.

        Returns:
            New array (H, W): 0 .. num_classes - 1, or `ignore_index`.

        Raises:
            DataError: the file holds forbidden ids.
        """
        import cv2
        import numpy as np

        self.check(raw, source=source)
        return np.asarray(cv2.LUT(raw, self.table), dtype=np.uint8)

    def forbidden_ids(self, raw: Labels) -> list[int]:
        """Ids of `raw` (H, W) that the rule does not allow, ascending."""
        return [k for k in _count_ids(raw) if k not in self.allowed]

    def advice(self, raw: Labels) -> str:
        """What to do about the forbidden ids of `raw` (H, W)."""
        forbidden = set(self.forbidden_ids(raw))
        for hint in self.hints:
            if forbidden & hint.ids:
                return hint.text
        number = self.unedited.num_classes
        if len(forbidden) > _MANY:
            return (
                "so many unexpected values are typical of a color mask turned gray, or of labels "
                "that went through JPEG or a smooth resize; convert color masks with "
                "`cgrseg data convert rgb` and keep labels in PNG"
            ) + ("; masks of two classes are read with data.label_threshold=128" * (number == 2))
        if number == 1:
            return "name the background as a class too: a network of one class learns nothing"
        if forbidden == {number} and self.unedited.lookup[0] == 0:
            return (
                f"the ids run up to {number} for {number} classes, as if they "
                "counted from 1 with 0 for 'unlabeled': a custom dataset says so with "
                "data.zero_is_ignore=true; or the class list lacks its last name"
            )
        return (
            "compare the class list with the ids, find all files concerned with "
            "`cgrseg data check`, then correct or convert the labels"
        )


def _count_ids(raw: Labels) -> dict[int, int]:
    """Number of pixels per id that occurs, ids ascending."""
    import numpy as np

    counts = np.bincount(raw.ravel(), minlength=256)
    return {int(k): int(counts[k]) for k in np.flatnonzero(counts)}
