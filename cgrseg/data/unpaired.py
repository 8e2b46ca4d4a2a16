"""What to do about images without a label, and labels without an image.

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

# Endings of files that people have beside their images, and what to do with them.
_OTHER_FORMATS = {
    ".jpg": JPEG_REMEDY,
    ".jpeg": JPEG_REMEDY,
    ".mat": "convert the MATLAB files: cgrseg data convert mat {images} {labels} OUT "
    "--classes NAMES",
    ".json": "convert LabelMe files: cgrseg data convert labelme {labels} OUT "
    "--image-folder {images}",
    ".npy": "save the arrays as 8-bit PNG files, for example with PIL.Image.fromarray(ids)",
    ".webp": "save the label maps as PNG",
    ".gif": "save the label maps as PNG",
}
_NOT_A_LABEL = "convert the labels to the form expected, or rename them if only the name differs"
_TRIED = 5  # images whose names are compared with those of all labels


@dataclass(frozen=True)
class Unpaired:
    """The files of a split that found no partner.

    Attributes:
        spec: the dataset.
        root: its folder.
        layout: folders of the split.
        images: files below the folder of images.
        labels: files below the folder of labels.
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

    def missing_labels(self) -> list[Finding]:
        """An error for each image without a label."""
        endings = " or ".join(suffix for suffix, _ in self.spec.encodings)
        folder = self.root / (self.layout.labels or "")
        return [
            Finding(
                "error",
                "missing-label",
                str(self.images.by_stem[stem]),
                f"no label of the stem {stem!r} in {folder}; expected: a file that ends in "
                f"{endings}" + (f"; {other.name} is there" if (other := self._other(stem)) else ""),
                self._advice(stem),
            )
            for stem in self.missing
        ]

    def orphan_labels(self) -> list[Finding]:
        """A warning for each label without an image, where folders alone make the split."""
        if self.layout.list_file is not None or self.layout.labeled_only:
            return []
        return [
            Finding(
                "warning",
                "orphan-label",
                str(path),
                f"no image of the stem {stem!r} in {self.root / self.layout.images}",
                "add the image, or remove the label; it is left out as it is",
            )
            for stem, path in sorted(self.orphans.items())
        ]

    def _advice(self, stem: str) -> str:
        if self._deeper is not None:
            return self._deeper
        if self._template is not None:
            return f"labels that are named like {self._template[1]} are read with " + (
                f"data.label_name={self._template[0]}"
                if self.spec.name == "custom"
                else "data.dataset=custom and this setting; or rename them"
            )
        near = [name for name in self.orphans if _is_addition(stem, name)]
        if near:
            suffix = self.spec.label_suffix
            return (
                f"rename {self.orphans[min(near)].name}, if that is its label: it must be called "
                f"{stem}{suffix}"
            )
        other = self._other(stem)
        if other is not None:
            remedy = _OTHER_FORMATS.get(other.suffix.lower(), _NOT_A_LABEL)
            if other.suffix.lower() in (".jpg", ".jpeg") and self.spec.name != "custom":
                remedy = remedy.partition(";")[0]
            return remedy.format(images=self.root / self.layout.images, labels=other.parent)
        remedy = "add the label, or move the image away"
        if self.orphans:
            names = [path.name for path in list(self.orphans.values())[:_TRIED]]
            remedy += f"; labels without an image: {', '.join(names)}" + ", ..." * (
                len(self.orphans) > _TRIED
            )
        return remedy

    def _other(self, stem: str) -> Path | None:
        """A file of the image's stem that is no label, among the labels or beside the image."""
        image = self.images.by_stem[stem]
        for by_stem in (self._other_labels, self._other_images):
            if by_stem.get(stem, image) != image:
                return by_stem[stem]
        return None

    @cached_property
    def _other_labels(self) -> dict[str, Path]:
        return {_cut_ending(name): path for name, path in self.labels.others.items()}

    @cached_property
    def _other_images(self) -> dict[str, Path]:
        known = self.images.others.items()
        return {_cut_ending(name): path for name, path in known if path.suffix in _OTHER_FORMATS}

    @cached_property
    def _template(self) -> tuple[str, str] | None:
        """`data.label_name` that pairs most of the missing images, and an example."""
        ways: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], str] = {}
        by_folder: dict[str, list[str]] = {}
        for name in self.orphans:
            folder, last = _parted(name)
            by_folder.setdefault(folder, []).append(last)
        orphans = set(self.orphans)
        candidates = {
            way
            for folder, last in map(_parted, self.missing[:_TRIED])
            for way in _additions(last, by_folder.get(folder, []))
        }
        for way in sorted(candidates):
            for folder, last in map(_parted, self.missing):
                name = f"{folder}{way[0]}{last}{way[1]}"
                if name in orphans:
                    ways[way] += 1
                    examples.setdefault(way, self.orphans[name].name)
        if not ways:
            return None
        best, times = ways.most_common(1)[0]
        if times < 2 or 2 * times < len(self.missing):
            return None
        return f"{best[0]}{{stem}}{best[1]}", examples[best]

    @cached_property
    def _deeper(self) -> str | None:
        """The setting for labels, or images, that all lie in one deeper folder."""
        if self.spec.name != "custom":
            return None
        labels, images = self.layout.labels or "", self.layout.images
        for names, partners, setting, folder in (
            (self.orphans, set(self.missing), "labels", labels),
            (self.missing, set(self.orphans), "images", images),
        ):
            folders = Counter(
                above
                for name in names
                for above in _folders_above(name)
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


def _folders_above(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name).parents][:-1]


def _additions(last: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after) of the names that hold `last` as a whole word."""
    found = []
    for name in names:
        if _is_addition(last, name):
            before, _, after = name.partition(last)
            found.append((before, after))
    return found


def _is_addition(stem: str, name: str) -> bool:
    """Whether a label's name is the image's with something before or after it.

    Digits after a digit, and letters after a letter, are no addition: `10` is not `1` with one,
    `1_mask` and `1mask` are.
    """
    short, long = sorted((stem, name), key=len)
    before, found, after = long.partition(short)
    if not found or short == long:
        return False
    return not (before and _same_kind(before[-1], short[0])) and not (
        after and _same_kind(short[-1], after[0])
    )


def _same_kind(one: str, other: str) -> bool:
    return (one.isdigit() and other.isdigit()) or (one.isalpha() and other.isalpha())
