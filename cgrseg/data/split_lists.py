"""Text files that name the images of a split, in the forms in which tools write them.

A line holds a stem (`day/0`), a path of an image (`images/day/0.jpg`, absolute paths and
backslashes included), or an image and its label, separated by a blank, a tab or a comma.
Lines that begin with `#` are comments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from cgrseg.class_names import read_lines
from cgrseg.data.file_index import cut_suffix, plain_form
from cgrseg.data.unpaired import JPEG_REMEDY
from cgrseg.datasets.findings import Finding, finding_from_error
from cgrseg.datasets.spec import DatasetSpec, SplitLayout
from cgrseg.errors import DataError

FORMS = "an image stem a line, the path of an image, or the paths of an image and its label"

_GAP = re.compile(r"\s*[,;\t]\s*|\s+")
_FLAGS = ("-1", "0", "1")  # Pascal's lists of one class say whether it occurs


@dataclass(frozen=True)
class SplitList:
    """What a list names.

    Attributes:
        labels: stem to the label that the list itself gives, or None, in the list's order.
        findings: what is wrong with the list.
    """

    labels: dict[str, Path | None]
    findings: list[Finding]


def read_split_list(
    spec: DatasetSpec,
    root: Path,
    layout: SplitLayout,
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
) -> SplitList:
    """Read the list of a split.

    Args:
        spec: the dataset.
        root: its folder.
        layout: the split; it has a list file.
        images: stem to image below the folder of images.
        labels: stem to label below the folder of labels.
    """
    path = root / (layout.list_file or "")
    try:
        lines = read_lines(
            path, what="the list of the split", expected=FORMS, remedy=spec.how_to_get
        )
    except DataError as error:
        return SplitList({}, [finding_from_error("list-unusable", path, error)])
    reader = _LineReader(spec, root, layout, images, labels)
    found: list[tuple[str, Path | None]] = []
    unknown: list[str] = []
    findings: list[Finding] = []
    for line in filter(None, lines):
        entry = reader.entry(line)
        if entry is None:
            if not line.startswith("#"):
                unknown.append(line)
            continue
        stem, label = entry
        if isinstance(label, str):
            findings.append(_no_such_label(path, line, label, reader.label_endings))
            label = None
        found.append((stem, label))
    if not found and not unknown:
        findings.append(
            Finding("error", "list-unusable", str(path), "the list is empty", spec.how_to_get)
        )
    elif not found and len(unknown) > 1:
        findings.append(_foreign_list(path, unknown, root / layout.images))
    else:
        findings += [_no_such_image(path, line) for line in unknown]
    findings += [
        Finding(
            "error",
            "list-repeats",
            str(path),
            f"{stem!r} is listed {times} times",
            "remove the repeated lines",
        )
        for stem, times in Counter(stem for stem, _ in found).items()
        if times > 1
    ]
    return SplitList(dict(found), findings)


@dataclass(frozen=True)
class _LineReader:
    spec: DatasetSpec
    root: Path
    layout: SplitLayout
    images: Mapping[str, Path]
    labels: Mapping[str, Path]

    def entry(self, line: str) -> tuple[str, Path | str | None] | None:
        """Stem and label of a line; a label that is not there is returned as its text."""
        stem = self._image(line)
        if stem is not None:
            return stem, None
        # Names may hold blanks, so every gap is tried as the one between image and label.
        for gap in _GAP.finditer(line):
            stem = self._image(line[: gap.start()])
            if stem is None:
                continue
            rest = line[gap.end() :]
            if rest in _FLAGS:
                return stem, None
            return stem, self._label(rest) or rest
        return None

    def _image(self, text: str) -> str | None:
        for name in _below(text, self.layout.images, self._image_folder):
            cut = cut_suffix(name, self.spec.image_suffixes)
            for stem in (name, cut[0] if cut else name):
                if stem in self.images:
                    return stem
        return None

    def _label(self, text: str) -> Path | None:
        for name in _below(text, self.layout.labels or "", self._label_folder):
            if name in self._labels_by_name:
                return self._labels_by_name[name]
        beside = self.root / _clean(text)
        inside = ".." not in PurePosixPath(_clean(text)).parts
        fits = beside.suffix.lower() in self.label_endings
        return beside if inside and fits and beside.is_file() else None

    @cached_property
    def label_endings(self) -> list[str]:
        """Endings of label files, whatever stands before them."""
        return list(dict.fromkeys(Path(f"_{ending}").suffix for ending, _ in self.spec.encodings))

    @cached_property
    def _image_folder(self) -> str:
        return (self.root / self.layout.images).resolve().as_posix()

    @cached_property
    def _label_folder(self) -> str:
        return (self.root / (self.layout.labels or "")).resolve().as_posix()

    @cached_property
    def _labels_by_name(self) -> dict[str, Path]:
        folder = self.root / (self.layout.labels or "")
        return {
            plain_form(path.relative_to(folder).as_posix()): path for path in self.labels.values()
        }


def _clean(text: str) -> str:
    return plain_form(text.strip().strip("\"'").replace("\\", "/")).removeprefix("./")


def _below(text: str, folder: str, absolute: str) -> list[str]:
    """What a path of a list may mean below a folder of the dataset, most literal first."""
    name = _clean(text)
    found = [name]
    if name.startswith(absolute + "/"):
        found.append(name.removeprefix(absolute + "/"))
    # A list written on another machine, or from another folder, has the folder's own name.
    last, parts = PurePosixPath(folder).parts, PurePosixPath(name).parts
    for place in range(len(parts) - len(last)):
        if last and parts[place : place + len(last)] == last:
            found.append("/".join(parts[place + len(last) :]))
    return found


def _no_such_image(path: Path, line: str) -> Finding:
    return Finding(
        "error",
        "list-without-image",
        str(path),
        f"{line!r} is listed, but has no image",
        "fetch the image, or remove the line",
    )


def _foreign_list(path: Path, unknown: list[str], images: Path) -> Finding:
    return Finding(
        "error",
        "list-unusable",
        str(path),
        f"none of its {len(unknown)} lines names an image of {images}; the first line is "
        f"{unknown[0]!r}; expected: {FORMS}",
        "set data.images to the folder of these images, or write their stems, one a line",
    )


def _no_such_label(path: Path, line: str, label: str, endings: list[str]) -> Finding:
    return Finding(
        "error",
        "list-without-label",
        str(path),
        f"the line {line!r} names the label {label!r}; expected: a file below the dataset's root "
        f"that ends in {' or '.join(endings)}",
        "correct the line, or remove the label from it"
        + (
            f"; {JPEG_REMEDY}"
            if label.lower().endswith((".jpg", ".jpeg")) and ".jpg" not in endings
            else ""
        ),
    )
