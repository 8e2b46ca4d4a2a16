"""What a dataset is: names, colours, encoding and folders, as plain data.

One object per dataset (:mod:`cgrseg.data.datasets`), found through
:mod:`cgrseg.data.catalogue`.  The number of classes is never written anywhere: it is
the length of the class list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cgrseg.class_names import counted
from cgrseg.data.findings import Finding
from cgrseg.data.label_rules import LabelRule

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class SplitLayout:
    """Where the files of one split lie, relative to the dataset's root.

    Attributes:
        images: folder of images (searched with its subfolders).
        labels: folder of labels; None: the split is published without labels.
        list_file: text file with one stem a line; None: every image of the folder.
        held_out: only for folders without a published split: the stems that belong to
            this split are chosen by :func:`cgrseg.data.pairs.split_stems`.
        labeled_only: images without a label are no part of the split, as in Pascal VOC,
            where one folder holds the images of several tasks.
    """

    images: str
    labels: str | None
    list_file: str | None = None
    held_out: HeldOut | None = None
    labeled_only: bool = False


@dataclass(frozen=True)
class HeldOut:
    """An automatic split: which share is validation, by which seed, and which part this is."""

    seed: int
    fraction: float
    validation: bool


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
        stem: path below the image folder without its suffix, with `/` between folders.
        image: the image file.
        label: the label file; None where the split has no labels.
    """

    stem: str
    image: Path
    label: Path | None


@dataclass(frozen=True, repr=False)
class DatasetSpec:
    """One dataset.

    Attributes:
        name: what `data.dataset` says.
        title: what people call it.
        classes: names in training-id order.
        palette: RGB 0..255 per class.
        label_rule: encoding of files that end in `label_suffix`.
        splits: split name to layout.
        default_root: where the configs look for it.
        how_to_get: what to fetch, from where, and where it goes.
        image_suffixes: endings of image files, compared without case.
        label_suffix: ending of label files, compared without case; the rest of the name
            is the stem.
        label_prefix: what the names of label files begin with, before the stem.
        other_encodings: further endings that are accepted, each with its rule.
        ignore_index: training id of pixels that count nowhere.
        findings: what was noticed when the folder's layout was read.
        notes: what a user should know about the labels.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    label_rule: LabelRule
    splits: Mapping[str, SplitLayout]
    default_root: str
    how_to_get: str
    image_suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")
    label_suffix: str = ".png"
    label_prefix: str = ""
    other_encodings: tuple[tuple[str, LabelRule], ...] = ()
    ignore_index: int = 255
    findings: tuple[Finding, ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"{self.name}: {len(self.classes)} classes but {len(self.palette)} colours"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: class names repeat")
        for suffix, rule in self.encodings:
            if (rule.num_classes, rule.ignore_index) != (len(self.classes), self.ignore_index):
                raise ValueError(
                    f"{self.name}: the rule of {suffix} has {rule.num_classes} classes and ignores "
                    f"{rule.ignore_index}; the class list has {len(self.classes)} and "
                    f"{self.ignore_index}"
                )

    def __repr__(self) -> str:
        return (
            f"DatasetSpec({self.name!r}, {counted(self.classes)}, splits {', '.join(self.splits)})"
        )

    @property
    def num_classes(self) -> int:
        """How many classes there are: the length of the list, nothing else."""
        return len(self.classes)

    @property
    def encodings(self) -> tuple[tuple[str, LabelRule], ...]:
        """All accepted endings of label files with their rules, the usual one first."""
        return ((self.label_suffix, self.label_rule), *self.other_encodings)

    def rule_for(self, label: Path) -> LabelRule:
        """The rule of one label file, told by its ending (the longest one that fits)."""
        name = label.name.lower()
        fitting = [(s, rule) for s, rule in self.encodings if name.endswith(s.lower())]
        return max(fitting, key=lambda item: len(item[0]))[1] if fitting else self.label_rule
