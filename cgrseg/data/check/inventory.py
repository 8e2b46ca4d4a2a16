"""Which files a dataset has, and what does not match among their names.

:func:`cgrseg.data.catalogue.find_pairs` stops at the first problem, as a run must.
This goes on and reports all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cgrseg.data.catalogue import DatasetSpec, Pair, SplitLayout, split_stems
from cgrseg.data.check.findings import Finding, finding_from_error
from cgrseg.data.pairs import cut_suffix, labels_by_stem, listed_names, visible_files
from cgrseg.errors import DataError


def list_pairs(spec: DatasetSpec, root: Path, split: str) -> tuple[list[Pair], list[Finding]]:
    """The usable pairs of a split, and everything wrong with the others.

    Args:
        spec: the dataset.
        root: its folder.
        split: a key of `spec.splits`.

    Returns:
        Pairs that have image and label, sorted by stem or in the list's order; findings.
    """
    layout = spec.splits[split]
    findings: list[Finding] = []
    images = _collect_images(spec, root / layout.images, findings)
    if layout.labels is None:
        return [Pair(stem, path, None) for stem, path in sorted(images.items())], findings
    labels = _collect_labels(spec, root / layout.labels, findings)
    stems = _choose_stems(spec, root, layout, images, findings)
    suffixes = " or ".join(suffix for suffix, _ in spec.encodings)
    pairs = []
    for stem in stems:
        if stem in labels:
            pairs.append(Pair(stem, images[stem], labels[stem]))
            continue
        findings.append(
            Finding(
                "error",
                "missing-label",
                str(images[stem]),
                f"no label {stem}{suffixes} in {root / layout.labels}",
                _pairing_advice(stem, labels, suffixes),
            )
        )
    for stem in sorted(set(labels) - set(images)):
        findings.append(
            Finding(
                "warning",
                "orphan-label",
                str(labels[stem]),
                f"no image of the stem {stem!r} in {root / layout.images}",
                "add the image, or remove the label; it is left out as it is",
            )
        )
    return pairs, findings


def overlapping_stems(splits: Mapping[str, list[Pair]]) -> list[Finding]:
    """Stems of the very same image file that two splits share, as lists may say."""
    findings = []
    names = list(splits)
    for place, first in enumerate(names):
        mine = {pair.image: pair.stem for pair in splits[first]}
        for second in names[place + 1 :]:
            shared = [pair for pair in splits[second] if pair.image in mine]
            if len(shared) == len(splits[first]) == len(splits[second]):
                continue  # one split under two names, as some datasets publish it
            findings += [
                Finding(
                    "error",
                    "split-overlap",
                    str(pair.image),
                    f"{pair.stem!r} belongs to {first} and to {second}",
                    "remove it from one of the two lists: a score on images that were trained on "
                    "says nothing",
                )
                for pair in shared
            ]
    return findings


def _collect_images(spec: DatasetSpec, folder: Path, findings: list[Finding]) -> dict[str, Path]:
    if not folder.is_dir():
        findings.append(_missing_folder(spec, folder))
        return {}
    found: dict[str, Path] = {}
    for name, path in visible_files(folder):
        cut = cut_suffix(name, spec.image_suffixes)
        if cut is None:
            continue
        stem = cut[0]
        if stem in found:
            findings.append(
                Finding(
                    "error",
                    "duplicate-stem",
                    str(path),
                    f"the same stem as {found[stem].name}; one label cannot belong to both",
                    "remove or rename one of the two",
                )
            )
            continue
        found[stem] = path
    if not found:
        findings.append(
            Finding(
                "error",
                "no-images",
                str(folder),
                f"no files that end in {', '.join(spec.image_suffixes)}",
                spec.how_to_get,
            )
        )
    return found


def _collect_labels(spec: DatasetSpec, folder: Path, findings: list[Finding]) -> dict[str, Path]:
    if not folder.is_dir():
        findings.append(_missing_folder(spec, folder))
        return {}
    return labels_by_stem(folder, spec)


def _choose_stems(
    spec: DatasetSpec,
    root: Path,
    layout: SplitLayout,
    images: Mapping[str, Path],
    findings: list[Finding],
) -> list[str]:
    if layout.list_file is not None:
        return _listed_stems(spec, root / layout.list_file, images, findings)
    if layout.held_out is not None:
        if len(images) >= 2:
            return split_stems(images, layout.held_out)
        if images:
            findings.append(
                Finding(
                    "error",
                    "too-few-images",
                    str(root / layout.images),
                    "a single image, which cannot be split into training and validation",
                    "add images, or make folders named train and val below images and labels",
                )
            )
    return sorted(images)


def _listed_stems(
    spec: DatasetSpec, path: Path, images: Mapping[str, Path], findings: list[Finding]
) -> list[str]:
    try:
        stems = listed_names(spec, path)
    except DataError as error:
        findings.append(finding_from_error("list-unusable", path, error))
        return []
    if not stems:
        findings.append(
            Finding("error", "list-unusable", str(path), "it names no images", spec.how_to_get)
        )
    for stem, times in Counter(stems).items():
        if times > 1:
            findings.append(
                Finding(
                    "error",
                    "list-repeats",
                    str(path),
                    f"{stem!r} is listed {times} times",
                    "remove the repeated lines",
                )
            )
        if stem not in images:
            findings.append(
                Finding(
                    "error",
                    "list-without-image",
                    str(path),
                    f"{stem!r} is listed, but has no image",
                    "fetch the image, or remove the line",
                )
            )
    return [stem for stem in dict.fromkeys(stems) if stem in images]


def _missing_folder(spec: DatasetSpec, folder: Path) -> Finding:
    return Finding("error", "folder-missing", str(folder), "no such folder", spec.how_to_get)


def _pairing_advice(stem: str, labels: Mapping[str, Path], suffixes: str) -> str:
    """Say so when labels only differ from the image's name by an addition."""
    near = sorted(name for name in labels if stem in name or name in stem)
    if near:
        return (
            f"rename {labels[near[0]].name}, if that is its label: it must be called "
            f"{stem}{suffixes}"
        )
    return "add the label, or move the image away"
