"""Which files a dataset has, and what does not match among their names.

:func:`cgrseg.data.catalogue.find_pairs` stops at the first problem, as a run must.
This goes on and reports all of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from cgrseg.data.catalogue import DatasetSpec, Pair, SplitLayout, split_stems
from cgrseg.data.check.findings import Finding


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


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    """Visible files below a folder: name relative to it with `/`, and path."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(parent, name)
                yield path.relative_to(folder).as_posix(), path


def _stem(name: str, suffixes: Iterable[str]) -> str | None:
    """The name without the longest suffix that it ends in, whatever its case."""
    fitting = [s for s in suffixes if name.lower().endswith(s.lower())]
    return name[: -len(max(fitting, key=len))] if fitting else None


def _collect_images(spec: DatasetSpec, folder: Path, findings: list[Finding]) -> dict[str, Path]:
    if not folder.is_dir():
        findings.append(_missing_folder(spec, folder))
        return {}
    found: dict[str, Path] = {}
    for name, path in _files(folder):
        stem = _stem(name, spec.image_suffixes)
        if stem is None:
            continue
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
    order = {suffix: place for place, (suffix, _) in enumerate(spec.encodings)}
    found: dict[str, tuple[int, Path]] = {}
    for name, path in _files(folder):
        fitting = [suffix for suffix in order if name.endswith(suffix)]
        if not fitting:
            continue
        suffix = max(fitting, key=len)
        stem = name[: -len(suffix)]
        if stem not in found or order[suffix] < found[stem][0]:
            found[stem] = (order[suffix], path)
    return {stem: path for stem, (_, path) in found.items()}


def _choose_stems(
    spec: DatasetSpec,
    root: Path,
    layout: SplitLayout,
    images: Mapping[str, Path],
    findings: list[Finding],
) -> list[str]:
    if layout.list_file is not None:
        return _listed_stems(spec, root / layout.list_file, images, findings)
    if layout.held_out is not None and len(images) >= 2:
        return split_stems(images, layout.held_out)
    return sorted(images)


def _listed_stems(
    spec: DatasetSpec, path: Path, images: Mapping[str, Path], findings: list[Finding]
) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        findings.append(
            Finding(
                "error", "list-unusable", str(path), f"it cannot be read ({error})", spec.how_to_get
            )
        )
        return []
    names = [line.strip() for line in lines if line.strip()]
    stems = [_stem(name, spec.image_suffixes) or name for name in names]
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
