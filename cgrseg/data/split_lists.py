"""Text files that name the images of a split, in the forms in which tools write them.

A line holds a stem (`day/0`), the path of an image (`images/day/0.jpg`, absolute paths and
backslashes included), or an image and its label, separated by a blank, a tab or a comma.
Lines that begin with `#` are comments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cgrseg.class_names import read_lines
from cgrseg.data.file_index import cut_name, plain_form
from cgrseg.data.unpaired import JPEG_REMEDY
from cgrseg.datasets.findings import Finding, finding_from_error
from cgrseg.datasets.spec import DatasetSpec, SplitLayout
from cgrseg.errors import DataError

FORMS = "an image stem a line, the path of an image, or the paths of an image and its label"

_GAP = re.compile(r"\s*[,;\t]\s*|\s+")
_FLAGS = ("-1", "0", "1")  # Pascal's lists of one class say whether it occurs


@dataclass(frozen=True)
class SplitList:
    """Content of a list.

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
        root: dataset root.
        layout: the split; it has a list file.
        images: stem to image below the image folder.
        labels: stem to label below the label folder.
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

    def add(code: str, message: str, remedy: str) -> None:
        findings.append(Finding("error", code, str(path), message, remedy))

    for line in filter(None, lines):
        entry = reader.read(line)
        if entry is None:
            if not line.startswith("#"):
                unknown.append(line)
            continue
        stem, label = entry
        if isinstance(label, str):
            endings = reader.label_endings
            jpeg = label.lower().endswith((".jpg", ".jpeg")) and ".jpg" not in endings
            add(
                "list-without-label",
                f"the line {line!r} names the label {label!r}; expected: a file below the "
                f"dataset's root that ends in {' or '.join(endings)}",
                "correct the line, or remove the label from it"
                + (f"; {JPEG_REMEDY}" if jpeg else ""),
            )
            label = None
        found.append((stem, label))
    if not found and not unknown:
        add("list-unusable", "the list is empty", spec.how_to_get)
    elif not found and len(unknown) > 1:
        add(
            "list-unusable",
            f"none of its {len(unknown)} lines names an image of {root / layout.images}; the "
            f"first line is {unknown[0]!r}; expected: {FORMS}",
            "set data.images to the folder of these images, or write their stems, one a line",
        )
    else:
        for line in unknown:
            add(
                "list-without-image",
                f"{line!r} is listed, but has no image",
                "fetch the image, or remove the line",
            )
    for stem, times in Counter(stem for stem, _ in found).items():
        if times > 1:
            add("list-repeats", f"{stem!r} is listed {times} times", "remove the repeated lines")
    return SplitList(dict(found), findings)


class _LineReader:
    """Finds the image and the label that a line names."""

    def __init__(
        self,
        spec: DatasetSpec,
        root: Path,
        layout: SplitLayout,
        images: Mapping[str, Path],
        labels: Mapping[str, Path],
    ) -> None:
        self._root = root
        self._images = images
        self._image_name = spec.image_prefix, spec.image_suffixes
        self._image_folder = (layout.images, (root / layout.images).resolve().as_posix())
        folder = layout.labels or ""
        self._label_folder = (folder, (root / folder).resolve().as_posix())
        self._labels_by_name = {
            plain_form(path.relative_to(root / folder).as_posix()): path for path in labels.values()
        }
        # Endings of label files, whatever stands before them.
        self.label_endings = list(
            dict.fromkeys(Path(f"_{ending}").suffix for ending, _ in spec.encodings)
        )

    def read(self, line: str) -> tuple[str, Path | str | None] | None:
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
        for name in _names_below(text, *self._image_folder):
            # A line may leave the ending of the image out.
            for written in (name, name + Path(f"_{self._image_name[1][0]}").suffix):
                cut = cut_name(written, *self._image_name)
                for stem in (name, cut[0] if cut else name):
                    if stem in self._images:
                        return stem
        return None

    def _label(self, text: str) -> Path | None:
        for name in _names_below(text, *self._label_folder):
            if name in self._labels_by_name:
                return self._labels_by_name[name]
        beside = self._root / _clean(text)
        inside = ".." not in PurePosixPath(_clean(text)).parts
        fits = beside.suffix.lower() in self.label_endings
        return beside if inside and fits and beside.is_file() else None


def _clean(text: str) -> str:
    return plain_form(text.strip().strip("\"'").replace("\\", "/")).removeprefix("./")


def _names_below(text: str, folder: str, absolute: str) -> list[str]:
    """Names below a folder of the dataset that a path may mean, most literal first."""
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
