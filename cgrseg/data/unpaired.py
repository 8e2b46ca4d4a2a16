"""Findings for images without a label and labels without an image, with the fitting remedy.

The usual reasons: labels are named after their images with an addition (`0_mask.png`), lie in
a deeper folder, or have a format that holds no class ids.  A label that belongs to another
image is never proposed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from cgrseg.data.file_index import FileIndex
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.spec import DatasetSpec, SplitLayout

JPEG_REMEDY = (
    "JPEG changes values along every border, so class ids do not survive it: export the label "
    "maps as PNG; JPEG masks of two classes are read with data.label_threshold=128"
)
"""What to do about labels in JPEG files."""

# Ending of a file beside images or labels that is no label, to its conversion.
_OTHER_FORMATS = {
    ".jpg": JPEG_REMEDY,
    ".jpeg": JPEG_REMEDY,
    ".mat": "convert the MATLAB files: cgrseg data convert mat {images} {labels} OUT "
    "--classes NAMES",
    ".json": "convert LabelMe files: cgrseg data convert labelme {labels} OUT "
    "--image-folder {images}",
    ".npy": "save the arrays as 8-bit PNG files, for example with PIL.Image.fromarray(ids)",
    ".webp": "save the label maps as PNG",
}
_NOT_A_LABEL = "convert the labels to the form expected, or rename them if only the name differs"
_TRIED = 5  # images whose names are compared with those of all labels


@dataclass(frozen=True)
class Unpaired:
    """Images and labels of a split without a partner.

    Attributes:
        spec: the dataset.
        root: dataset root.
        layout: folders of the split.
        images: files below the image folder.
        labels: files below the label folder.
        missing: stems of images without a label.
        orphans: stem to label, of labels without an image.
    """

    spec: DatasetSpec
    root: Path
    layout: SplitLayout
    images: FileIndex
    labels: FileIndex
    missing: Sequence[str]
    orphans: Mapping[str, Path]

    def findings(self) -> list[Finding]:
        """An error for each image without a label.

        Where folders alone make the split, also a warning for each label without an image.
        """
        endings = " or ".join(suffix for suffix, _ in self.spec.encodings)
        folder = self.root / (self.layout.labels or "")
        found = []
        for stem in self.missing:
            message = f"no label of the stem {stem!r} in {folder}; expected: a file that ends in "
            message += endings
            if (other := self._other_file(stem)) is not None:
                message += f"; {other.name} is there"
            image = str(self.images.by_stem[stem])
            found.append(Finding("error", "missing-label", image, message, self._remedy(stem)))
        if self.layout.list_file is None and not self.layout.labeled_only:
            found += [
                Finding(
                    "warning",
                    "orphan-label",
                    str(path),
                    f"no image of the stem {stem!r} in {self.root / self.layout.images}",
                    "add the image, or remove the label; it is left out as it is",
                )
                for stem, path in sorted(self.orphans.items())
            ]
        return found

    def _remedy(self, stem: str) -> str:
        if self._deeper_folder is not None:
            return self._deeper_folder
        if self._label_name is not None:
            return f"labels that are named like {self._label_name[1]} are read with " + (
                f"data.label_name={self._label_name[0]}"
                if self.spec.is_custom
                else "data.dataset=custom and this setting; or rename them"
            )
        near = [name for name in self.orphans if is_addition(stem, name)]
        if near:
            return (
                f"rename {self.orphans[min(near)].name}, if that is its label: it must be called "
                f"{stem}{self.spec.label_suffix}"
            )
        other = self._other_file(stem)
        if other is not None:
            remedy = _OTHER_FORMATS.get(other.suffix.lower(), _NOT_A_LABEL)
            if remedy is JPEG_REMEDY and not (self.spec.is_custom and self.spec.num_classes == 2):
                remedy = remedy.partition(";")[0]
            return remedy.format(images=self.root / self.layout.images, labels=other.parent)
        remedy = "add the label, or move the image away"
        if self.orphans:
            names = [path.name for path in list(self.orphans.values())[:_TRIED]]
            more = ", ..." * (len(self.orphans) > _TRIED)
            remedy += f"; labels without an image: {', '.join(names)}{more}"
        return remedy

    def _other_file(self, stem: str) -> Path | None:
        """A file of the image's stem that is no label, among the labels or beside the image."""
        image = self.images.by_stem[stem]
        for by_stem in self._other_files:
            if by_stem.get(stem, image) != image:
                return by_stem[stem]
        return None

    @cached_property
    def _other_files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        labels = {_cut_ending(name): path for name, path in self.labels.others.items()}
        known = self.images.others.items()
        return labels, {
            _cut_ending(name): path for name, path in known if path.suffix in _OTHER_FORMATS
        }

    @cached_property
    def _label_name(self) -> tuple[str, str] | None:
        """`data.label_name` that pairs most of the missing images, and an example."""
        by_folder: dict[str, list[str]] = {}
        for folder, last in map(_parted, self.orphans):
            by_folder.setdefault(folder, []).append(last)
        candidates = set()
        for folder, last in map(_parted, self.missing[:_TRIED]):
            for name in by_folder.get(folder, []):
                if is_addition(last, name):
                    before, _, after = name.partition(last)
                    candidates.add((before, after))
        paired: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], str] = {}
        for before, after in sorted(candidates):
            for folder, last in map(_parted, self.missing):
                label = self.orphans.get(f"{folder}{before}{last}{after}")
                if label is not None:
                    paired[before, after] += 1
                    examples.setdefault((before, after), label.name)
        if not paired:
            return None
        best, times = paired.most_common(1)[0]
        if times < 2 or 2 * times < len(self.missing):
            return None
        return f"{best[0]}{{stem}}{best[1]}", examples[best]

    @cached_property
    def _deeper_folder(self) -> str | None:
        """The remedy for labels, or images, that all lie in one deeper folder."""
        if not self.spec.is_custom:
            return None
        labels, images = self.layout.labels or "", self.layout.images
        for names, partners, setting, folder in (
            (self.orphans, set(self.missing), "labels", labels),
            (self.missing, set(self.orphans), "images", images),
        ):
            folders = Counter(
                above
                for name in names
                for above in [str(parent) for parent in PurePosixPath(name).parents][:-1]
                if name.removeprefix(above + "/") in partners
            )
            best, times = next(iter(folders.most_common(1)), ("", 0))
            if 2 * times > len(self.missing):
                return f"the {setting} lie in {self.root / folder / best}: " + (
                    self._settings_of(setting, best) or f"move them into {self.root / folder}"
                )
        return None

    def _settings_of(self, which: str, below: str) -> str | None:
        """Settings that read images or labels one folder deeper, in every split; None: none do."""
        places = {(layout.images, layout.labels or "") for layout in self.spec.splits.values()}
        if len(places) == 1:
            folder = getattr(self.layout, which)
            return f"set data.{which}={folder}/{below}"
        name = next(name for name, layout in self.spec.splits.items() if layout == self.layout)
        images, labels = (
            "/".join("{split}" if part == name else part for part in (folder or "").split("/"))
            for folder in (self.layout.images, self.layout.labels)
        )
        if places != {
            (images.replace("{split}", s), labels.replace("{split}", s)) for s in self.spec.splits
        }:
            return None
        if which == "images":
            return f"set data.images={images}/{below} data.labels={labels}"
        return f"set data.images={images} data.labels={labels}/{below}"


def _cut_ending(name: str) -> str:
    folder, last = _parted(name)
    return folder + (last.rpartition(".")[0] or last)


def _parted(stem: str) -> tuple[str, str]:
    folder, slash, last = stem.rpartition("/")
    return folder + slash, last


def is_addition(stem: str, name: str) -> bool:
    """Whether a label's name is the image's with something before or after it.

    Digits after a digit, and letters after a letter, are no addition: `10` is not `1` with one,
    `1_mask` and `1mask` are.
    """

    def same_kind(one: str, other: str) -> bool:
        return (one.isdigit() and other.isdigit()) or (one.isalpha() and other.isalpha())

    short, long = sorted((stem, name), key=len)
    before, found, after = long.partition(short)
    if not found or short == long:
        return False
    return not (before and same_kind(before[-1], short[0])) and not (
        after and same_kind(short[-1], after[0])
    )
