"""Pairs of images and labels, matched by name below their folders.

What does not match is never skipped silently: :func:`list_pairs` returns every problem as a
finding, for checks; :func:`find_pairs` stops at the first error, for runs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cgrseg.addresses import local_folder
from cgrseg.data.file_index import FileIndex, index_images, index_labels
from cgrseg.data.folder_layout import nearby_folder
from cgrseg.data.split_lists import read_split_list
from cgrseg.data.unpaired import Unpaired
from cgrseg.datasets.findings import Finding, raise_for_errors
from cgrseg.datasets.spec import DatasetSpec, HeldOut, SplitLayout

_LOG = logging.getLogger("cgrseg.data")
_SHOWN_NAMES = 5


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
        root: dataset root, which may be an address (:func:`cgrseg.addresses.local_folder`).
        split: a key of `spec.splits`.

    Raises:
        DataError: unknown split, missing or empty folder, images without labels, listed
            stems without images, or several images of one stem.
    """
    root = local_folder(root)
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
    """The usable pairs of a split, and findings about the others.

    Args:
        spec: the dataset.
        root: dataset root.
        split: name of the split.

    Returns:
        Pairs that have image and label, sorted by stem or in the list's order; findings.
    """
    if not root.is_dir():
        return [], [
            Finding(
                "error",
                "folder-missing",
                str(root),
                f"the root of {spec.title} is not there",
                f"set data.root (--data-root) to the dataset's folder; {spec.how_to_get}",
            )
        ]
    if split not in spec.splits:
        return [], [_no_such_split(spec, root, split)]
    layout = spec.splits[split]
    findings: list[Finding] = []
    images = _index_images(spec, root, layout, findings)
    if layout.labels is None:
        stems = sorted(images.by_stem)
        return [Pair(stem, images.by_stem[stem], None) for stem in stems], findings
    labels = _index_labels(spec, root, layout.labels, findings)
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
    findings += Unpaired(spec, root, layout, images, labels, missing, orphans).findings()
    return [
        Pair(stem, images.by_stem[stem], label) for stem, label in chosen.items() if label
    ], findings


def split_stems(stems: Iterable[str], rule: HeldOut) -> list[str]:
    """Stems of one part of an automatic split, sorted.

    A hash of seed and stem decides, so that adding files moves no stem from one part to the
    other, with one exception that keeps both parts usable: the stem with the smallest hash is
    always validation and that with the largest always training.

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


def _index_images(
    spec: DatasetSpec, root: Path, layout: SplitLayout, findings: list[Finding]
) -> FileIndex:
    folder = root / layout.images
    if not folder.is_dir():
        findings.append(_missing_folder(spec, root, layout.images))
        return FileIndex()
    index = index_images(folder, spec, beside_labels=layout.images == layout.labels)
    findings += _links(index)
    for second, first in index.repeated:
        message = f"the same stem as {first.name}; one label cannot belong to both"
        remedy = "remove or rename one of the two"
        findings.append(Finding("error", "duplicate-stem", str(second), message, remedy))
    if not index.by_stem:
        names = list(index.others)
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        content = f"it holds {', '.join(names[:_SHOWN_NAMES])}{more}" if names else "it is empty"
        findings.append(
            Finding(
                "error",
                "no-images",
                str(folder),
                f"no images in it; {content}; expected: files that end in "
                + ", ".join(spec.image_suffixes),
                spec.how_to_get,
            )
        )
    return index


def _index_labels(spec: DatasetSpec, root: Path, below: str, findings: list[Finding]) -> FileIndex:
    if not (root / below).is_dir():
        findings.append(_missing_folder(spec, root, below))
        return FileIndex()
    index = index_labels(root / below, spec)
    findings += _links(index)
    for second, read in index.repeated:
        message = f"the same stem as {read.name}, which is read; this file is not"
        remedy = "remove or rename the one that is not meant"
        findings.append(Finding("warning", "duplicate-stem", str(second), message, remedy))
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
    if stems and layout.held_out.fraction > 0:
        findings.append(
            Finding(
                "error",
                "too-few-images",
                str(root / layout.images),
                "a single image, which cannot be split into training and validation",
                "add images, or make folders named train and val below images and labels; to train "
                "on it without validation: data.val_fraction=0 train.evaluate=false",
            )
        )
    return stems


def _links(index: FileIndex) -> list[Finding]:
    message = "a symbolic link to a folder above it, which is not followed"
    return [
        Finding("warning", "link-loop", str(link), message, "remove the link")
        for link in index.links
    ]


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
    if spec.is_custom and "train" in there and split == "val":
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
