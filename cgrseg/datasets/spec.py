"""Description of a dataset as plain data: classes, colors, label encoding, folders, recipe.

The number of classes is the length of the class list; it is never written anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgrseg.class_names import counted
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.label_rules import LabelRule

Color = tuple[int, int, int]
"""RGB, 0..255."""


def class_table(text: str) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Class names and palette from entries `name rrggbb`, separated by commas."""
    entries = [entry.rsplit(maxsplit=1) for entry in text.split(",")]
    palette = [bytes.fromhex(color) for _, color in entries]
    return (
        tuple(" ".join(name.split()) for name, _ in entries),
        tuple((red, green, blue) for red, green, blue in palette),
    )


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Colors from the bit pattern of the index (the PASCAL VOC color map).

    Index 0 of that map is black, which overlays use for ignored pixels, so it is left out.
    """

    def channel(index: int, offset: int) -> int:
        # Bits offset, offset + 3, ... of the index are the bits of the value, highest first.
        return sum((index >> (3 * k + offset) & 1) << (7 - k) for k in range(8))

    return tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(1, count + 1))


@dataclass(frozen=True)
class HeldOut:
    """Automatic split: seed, validation share, and whether this is the validation part."""

    seed: int
    fraction: float
    validation: bool


@dataclass(frozen=True)
class SplitLayout:
    """Folders of one split, relative to the dataset root.

    Attributes:
        images: image folder, searched with its subfolders.
        labels: label folder; None: the split is published without labels.
        list_file: text file with one stem per line; None: every image of the folder.
        held_out: automatic split, for folders without a published split
            (:func:`cgrseg.data.pairs.split_stems`).
        labeled_only: leave out images without a label, as in Pascal VOC, where one folder holds
            the images of several tasks.
    """

    images: str
    labels: str | None
    list_file: str | None = None
    held_out: HeldOut | None = None
    labeled_only: bool = False


@dataclass(frozen=True)
class Recipe:
    """Training preset of a dataset.

    Attributes:
        suffix: last part of the preset's name.
        about: one sentence: what the preset trains, and the source of its settings.
        settings: differences from the schema's defaults, which are the published ADE20K run.
            `data.dataset` and `data.root` follow from the dataset.
    """

    suffix: str
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawDownload:
    """A dataset as it is downloaded, in a form that needs a conversion.

    Attributes:
        signs: glob patterns below the folder; all of them must match.
        found: description for the message.
        command: conversion, with `{root}` for the folder.
    """

    signs: tuple[str, ...]
    found: str
    command: str


@dataclass(frozen=True)
class Archive:
    """One file of a download.

    Attributes:
        name: file name.
        addresses: where it is published; the next one is tried where one fails.  Empty: it is
            downloaded by hand.
        parts: folder or file in the archive to its place below the dataset root.  A part may lie
            below one more folder.  Everything else is left out.
        size: about, in bytes; 0: not published.
        digest: as "md5:..." or "sha1:..."; empty: none is known.
        digest_from: who published the digest.
        raw: the parts are input of the converter, not parts of the dataset.
    """

    name: str
    addresses: tuple[str, ...]
    parts: Mapping[str, str]
    size: int = 0
    digest: str = ""
    digest_from: str = ""
    raw: bool = False


@dataclass(frozen=True)
class Download:
    """What `cgrseg data fetch` downloads, and how it becomes the dataset.

    Attributes:
        archives: files to download.
        terms: conditions of use, in words.
        terms_page: their page.
        converter: command below `cgrseg data convert` for the raw parts; empty: none is needed.
        converter_source: file or folder among the raw parts that the converter reads.
        package: import name of an optional package that the converter needs.
        by_hand: what to do where a login is needed; empty: the archives have addresses.
    """

    archives: tuple[Archive, ...]
    terms: str
    terms_page: str
    converter: str = ""
    converter_source: str = ""
    package: str = ""
    by_hand: str = ""


@dataclass(frozen=True, repr=False)
class DatasetSpec:
    """One dataset.

    Attributes:
        name: value of `data.dataset`.
        title: name for people.
        classes: class names in training-id order.
        palette: one color per class.
        label_rule: encoding of files that end in `label_suffix`.
        splits: split name to layout.
        default_root: default of `data.root` in presets.
        download: what `cgrseg data fetch` downloads; None: nothing is published.
        how_to_make: how to make a dataset that is not downloaded.
        image_suffixes: endings of image files, compared without case.
        label_suffix: ending of label files, compared without case; the rest is the stem.
        image_prefix: start of image file names, before the stem.
        label_prefix: start of label file names, before the stem.
        other_encodings: further accepted endings, each with its rule.
        ignore_index: training id of ignored pixels.
        companions: starts and ends of the stems of further files of an image in its folder, which
            are no images of their own.
        findings: what was noticed when the folder layout was read.
        notes: what a user should know about the labels.
        order: place in lists; equal places are sorted by name.
        recipe: training preset; None: the dataset has none.
        known_by_class_count: published checkpoints may lack class names; the number of classes
            identifies this dataset.
        known_by_class_list: the folders are those of any custom dataset, so only `classes.txt`
            identifies this dataset, and a `classes.txt` that differs is an error.
        shares_folders_of: dataset with the same folders, which a guess prefers.
        raw_download: form that must be converted first.
        submission_ids: label id of each class for the evaluation server; None: the stored ids.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    label_rule: LabelRule
    splits: Mapping[str, SplitLayout]
    default_root: str
    download: Download | None = None
    how_to_make: str = ""
    image_suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")
    label_suffix: str = ".png"
    image_prefix: str = ""
    label_prefix: str = ""
    other_encodings: tuple[tuple[str, LabelRule], ...] = ()
    ignore_index: int = 255
    companions: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: str = ""
    order: int = 100
    recipe: Recipe | None = None
    known_by_class_count: bool = False
    known_by_class_list: bool = False
    shares_folders_of: str | None = None
    raw_download: RawDownload | None = None
    submission_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"{self.name}: {len(self.classes)} classes but {len(self.palette)} colors"
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
        """Length of the class list."""
        return len(self.classes)

    @property
    def is_custom(self) -> bool:
        """Whether this is a person's own folder, described by settings."""
        return self.name == "custom"

    @property
    def how_to_get(self) -> str:
        """What to do where the dataset is missing."""
        if self.download is None:
            return self.how_to_make
        names = " and ".join(archive.name for archive in self.download.archives)
        if self.download.by_hand:
            return (
                f"{self.download.by_hand}, and run "
                f"`cgrseg data fetch {self.name} --from FOLDER --out {self.default_root}`"
            )
        return (
            f"`cgrseg data fetch {self.name} --out {self.default_root}` downloads {names} "
            "and makes that folder, after it has shown the terms of use"
        )

    @property
    def encodings(self) -> tuple[tuple[str, LabelRule], ...]:
        """All accepted endings of label files with their rules, the preferred one first."""
        return ((self.label_suffix, self.label_rule), *self.other_encodings)

    def rule_for(self, label: Path) -> LabelRule:
        """The rule of a label file: that of the longest ending which fits."""
        name = label.name.lower()
        fitting = [(s, rule) for s, rule in self.encodings if name.endswith(s.lower())]
        return max(fitting, key=lambda item: len(item[0]))[1] if fitting else self.label_rule
