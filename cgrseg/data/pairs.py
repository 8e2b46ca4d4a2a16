"""Which image goes with which label.

Images and labels are matched by name below their folders.  What does not match is never
skipped silently: :func:`list_pairs` returns every problem as a finding, as a check reports
them, and :func:`find_pairs` stops at the first error, as a run does.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cgrseg.data.file_index import FileIndex, index_images, index_labels
from cgrseg.data.folder_layout import nearby_folder
from cgrseg.data.split_lists import read_split_list
from cgrseg.data.unpaired import Unpaired
from cgrseg.datasets.findings import Finding, raise_for_errors
from cgrseg.datasets.spec import DatasetSpec, HeldOut, SplitLayout

_LOG = logging.getLogger("cgrseg.data")
_NAMED = 5  # how many names a message lists before it only counts


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
        stem: path below the image folder without its suffix, with `/` between folders.
        image: the image file.
        label: the label file; None: the split has no labels.
    """

    stem: str
    image: Path
    label: Path | None


def find_pairs(spec: DatasetSpec, root: Path | str, split: str) -> list[Pair]:
    """All pairs of one split, sorted by stem (in the list's order where there is one).

    Args:
        spec: the dataset.
        root: folder that holds the dataset's own folders.
        split: a key of `spec.splits`.

    Raises:
        DataError: unknown split, missing or empty folder, images without labels, listed
            stems without images, or several images of one stem.
    """
    root = Path(root)
    pairs, findings = list_pairs(spec, root, split)
    raise_for_errors(root, findings)
    if spec.splits[split].labeled_only:  # scores are not those of the published split
        findings = [*spec.findings, *findings]
    warnings: dict[str, list[Finding]] = {}
    for finding in findings:
        warnings.setdefault(finding.code, []).append(finding)
    for same in warnings.values():
        more = f" (and {len(same) - 1} more of this kind)" if len(same) > 1 else ""
        _LOG.warning("%s: %s%s", same[0].file, same[0].message, more)
    return pairs


def list_pairs(spec: DatasetSpec, root: Path, split: str) -> tuple[list[Pair], list[Finding]]:
    """The usable pairs of a split, and everything wrong with the others.

    Args:
        spec: the dataset.
        root: its folder.
        split: name of the split.

    Returns:
        Pairs that have image and label, sorted by stem or in the list's order; findings.
    """
    if not root.is_dir():
        return [], [_missing_root(spec, root)]
    if split not in spec.splits:
        return [], [_no_such_split(spec, root, split)]
    layout = spec.splits[split]
    findings: list[Finding] = []
    images = _images(spec, root, layout, findings)
    if layout.labels is None:
        stems = sorted(images.by_stem)
        return [Pair(stem, images.by_stem[stem], None) for stem in stems], findings
    labels = _labels(spec, root, layout.labels, findings)
    given: Mapping[str, Path | None] = {}
    if layout.list_file is not None:
        listed = read_split_list(spec, root, layout, images.by_stem, labels.by_stem)
        findings += listed.findings
        given = listed.labels
        stems = list(given)
    else:
        stems = _stems_of_folder(root, layout, images.by_stem, labels.by_stem, findings)
    chosen = {stem: given.get(stem) or labels.by_stem.get(stem) for stem in stems}
    missing = [stem for stem, label in chosen.items() if label is None]
    # A list that names its labels needs none of the images' names.
    used = set(chosen.values())
    orphans = {
        stem: path
        for stem, path in labels.by_stem.items()
        if stem not in images.by_stem and path not in used
    }
    unpaired = Unpaired(spec, root, layout, images, labels, missing, orphans)
    findings += unpaired.missing_labels()
    findings += unpaired.orphan_labels()
    return [
        Pair(stem, images.by_stem[stem], label) for stem, label in chosen.items() if label
    ], findings


def split_stems(stems: Iterable[str], rule: HeldOut) -> list[str]:
    """Stems of one part of an automatic split, sorted.

    Each stem is drawn by a hash of seed and name, so that adding files moves none of the
    old ones from one part to the other, with one exception that keeps both parts usable:
    the stem with the smallest draw is always validation and that with the largest always
    training.

    Args:
        stems: all of them; at least two.
        rule: seed, share, and which part to return.
    """
    draws = sorted((_draw(stem, rule.seed), stem) for stem in stems)
    chosen = []
    for place, (draw, stem) in enumerate(draws):
        held_out = place == 0 or (draw < rule.fraction and place < len(draws) - 1)
        if held_out == rule.validation:
            chosen.append(stem)
    return sorted(chosen)


def _draw(stem: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{stem}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _images(
    spec: DatasetSpec, root: Path, layout: SplitLayout, findings: list[Finding]
) -> FileIndex:
    folder = root / layout.images
    if not folder.is_dir():
        findings.append(_missing_folder(spec, root, layout.images))
        return FileIndex()
    index = index_images(folder, spec, beside_labels=layout.images == layout.labels)
    findings += _links(index)
    findings += [
        Finding(
            "error",
            "duplicate-stem",
            str(second),
            f"the same stem as {first.name}; one label cannot belong to both",
            "remove or rename one of the two",
        )
        for second, first in index.repeated
    ]
    if not index.by_stem:
        findings.append(
            Finding(
                "error",
                "no-images",
                str(folder),
                "no images in it"
                + _what_is_there(index)
                + f"; expected: files that end in {', '.join(spec.image_suffixes)}",
                spec.how_to_get,
            )
        )
    return index


def _labels(spec: DatasetSpec, root: Path, below: str, findings: list[Finding]) -> FileIndex:
    if not (root / below).is_dir():
        findings.append(_missing_folder(spec, root, below))
        return FileIndex()
    index = index_labels(root / below, spec)
    findings += _links(index)
    findings += [
        Finding(
            "warning",
            "duplicate-stem",
            str(second),
            f"the same stem as {read.name}, which is read; this file is not",
            "remove or rename the one that is not meant",
        )
        for second, read in index.repeated
    ]
    return index


def _stems_of_folder(
    root: Path,
    layout: SplitLayout,
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    findings: list[Finding],
) -> list[str]:
    stems = sorted(stem for stem in images if stem in labels or not layout.labeled_only)
    if layout.held_out is None:
        return stems
    if len(stems) >= 2:
        return split_stems(stems, layout.held_out)
    if stems:
        findings.append(
            Finding(
                "error",
                "too-few-images",
                str(root / layout.images),
                "a single image, which cannot be split into training and validation",
                "add images, or make folders named train and val below images and labels",
            )
        )
    return stems


def _links(index: FileIndex) -> list[Finding]:
    return [
        Finding(
            "warning",
            "link-loop",
            str(link),
            "a symbolic link to a folder above it, which is not followed",
            "remove the link",
        )
        for link in index.links
    ]


def _missing_root(spec: DatasetSpec, root: Path) -> Finding:
    return Finding(
        "error",
        "folder-missing",
        str(root),
        f"the root of {spec.title} is not there",
        f"set data.root (--data-root) to the dataset's folder; {spec.how_to_get}",
    )


def _missing_folder(spec: DatasetSpec, root: Path, below: str) -> Finding:
    near = nearby_folder(root, lambda folder: (folder / below).is_dir(), [Path(below).parts[0]])
    if near is not None:
        return Finding(
            "error",
            "folder-missing",
            str(root),
            f"no folder {below} in it, but {near} holds one",
            f"set data.root (--data-root) to {near}",
        )
    inside = sorted(p.name for p in root.iterdir() if p.is_dir())[:8]
    return Finding(
        "error",
        "folder-missing",
        str(root / below),
        "no such folder; the root holds " + (", ".join(inside) or "no folders"),
        f"point data.root (--data-root) at the folder that holds {below}; or {spec.how_to_get}",
    )


def _no_such_split(spec: DatasetSpec, root: Path, split: str) -> Finding:
    there = list(spec.splits)
    remedy = "set data.train_split and data.eval_split, or add the folders of that split"
    if spec.name == "custom" and "train" in there and split == "val":
        layout = spec.splits["train"]
        remedy = (
            "to validate on a fifth of the training images: "
            f"data.images={layout.images} data.labels={layout.labels}; "
            "to train without validation: train.evaluate=false; or add the folders of that split"
        )
        if "test" in there:
            remedy = f"to validate on the test split: data.eval_split=test; {remedy}"
    return Finding(
        "error",
        "split-missing",
        str(root),
        f"no split {split!r}; expected: one of {', '.join(there)}",
        remedy,
    )


def _what_is_there(index: FileIndex) -> str:
    names = list(index.others)
    shown = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        shown += f" and {len(names) - _NAMED} more"
    return f"; it holds {shown}" if names else "; it is empty"
