"""The files below a folder, by stem.

Names are compared in one Unicode form (NFC), because macOS writes names decomposed (NFD) and other
systems composed.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from cgrseg.addresses import Address
from cgrseg.datasets.spec import DatasetSpec

File = TypeVar("File", bound=Path | Address)


@dataclass
class FileIndex:
    """Files of one folder and its subfolders.

    Attributes:
        by_stem: path below the folder without the suffix, in NFC and with `/`, to the file.
        repeated: (second file, first file) of one stem.
        others: files with another suffix, by relative name in NFC.
        links: symlinks that lead back to a folder above them; they are not followed.
    """

    by_stem: dict[str, Path] = field(default_factory=dict)
    repeated: list[tuple[Path, Path]] = field(default_factory=list)
    others: dict[str, Path] = field(default_factory=dict)
    links: list[Path] = field(default_factory=list)


def plain_form(name: str) -> str:
    """A name in the form in which names are compared (NFC)."""
    return unicodedata.normalize("NFC", name)


def visible_files(folder: Path, links: list[Path] | None = None) -> Iterator[tuple[str, Path]]:
    """Files below a folder as (relative name with `/`, path), without hidden ones.

    Args:
        folder: where to start.
        links: receives the symlinks that lead back to a folder above them.
    """
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            if name.startswith("."):
                continue
            if _leads_back(folder, Path(parent), name):
                if links is not None:
                    links.append(Path(parent, name))
                continue
            kept.append(name)
        folders[:] = kept
        prefix = Path(parent).relative_to(folder).as_posix()
        for name in sorted(names):
            if not name.startswith("."):
                yield (name if prefix == "." else f"{prefix}/{name}"), Path(parent, name)


def _leads_back(start: Path, parent: Path, name: str) -> bool:
    """Whether a folder is a symlink to a folder above it, directly or through other symlinks."""
    if not os.path.islink(parent / name):
        return False
    target = os.path.realpath(parent / name)
    below = PurePosixPath(parent.relative_to(start).as_posix())
    above = [start, start / below, *(start / folder for folder in below.parents)]
    return any(
        os.path.commonpath([target, real]) == target for real in map(os.path.realpath, above)
    )


def cut_suffix(name: str, suffixes: Iterable[str]) -> tuple[str, str] | None:
    """Stem and the longest suffix that the name ends in, compared without case."""
    lowered = name.lower()
    fitting = [s for s in suffixes if lowered.endswith(s.lower())]
    if not fitting:
        return None
    suffix = max(fitting, key=len)
    return name[: len(name) - len(suffix)], suffix


def index_images(folder: Path, spec: DatasetSpec, *, beside_labels: bool = False) -> FileIndex:
    """Images below a folder.

    Args:
        folder: searched with its subfolders.
        spec: gives the endings of images.
        beside_labels: labels lie in the same folder; the spec tells their names.
    """
    index = FileIndex()
    for name, path in visible_files(folder, index.links):
        name = plain_form(name)
        cut = cut_name(name, spec.image_prefix, spec.image_suffixes)
        if cut is None or (beside_labels and _label_stem(name, spec) is not None):
            index.others[name] = path
        elif cut[0] in index.by_stem:
            index.repeated.append((path, index.by_stem[cut[0]]))
        else:
            index.by_stem[cut[0]] = path
    further = companions_among(index.by_stem.values(), spec.companions)
    index.others.update((path.name, path) for path in further)
    index.by_stem = {stem: path for stem, path in index.by_stem.items() if path not in further}
    return index


def companions_among(files: Iterable[File], names: Sequence[tuple[str, str]]) -> set[File]:
    """Files that are further files of another image in their folder.

    Args:
        files: image files.
        names: what stands before and after an image's stem in the stem of a further file.
    """
    if not names:
        return set()
    files = list(files)
    there = {(path.parent, path.stem) for path in files}
    return {
        path
        for path in files
        for before, after in names
        if path.stem.startswith(before)
        and path.stem.endswith(after)
        and len(path.stem) > len(before) + len(after)
        and (path.parent, path.stem[len(before) : len(path.stem) - len(after)]) in there
    }


def index_labels(folder: Path, spec: DatasetSpec) -> FileIndex:
    """Labels below a folder; of several encodings of one label, the spec's first one is kept."""
    index = FileIndex()
    order = {suffix: place for place, (suffix, _) in enumerate(spec.encodings)}
    rules = dict(spec.encodings)
    found: dict[str, tuple[str, Path]] = {}
    for name, path in visible_files(folder, index.links):
        name = plain_form(name)
        cut = _label_stem(name, spec)
        if cut is None:
            index.others[name] = path
            continue
        stem, suffix = cut
        if stem not in found:
            found[stem] = (suffix, path)
            continue
        other, known = found[stem]
        if order[suffix] < order[other]:
            found[stem], path = (suffix, path), known
        # Two encodings of one label are expected; two files of one encoding are not.
        if rules[suffix] == rules[other]:
            index.repeated.append((path, found[stem][1]))
    index.by_stem = {stem: path for stem, (_, path) in found.items()}
    return index


def _label_stem(name: str, spec: DatasetSpec) -> tuple[str, str] | None:
    """Stem and suffix of a label's relative name; None: not the name of a label."""
    return cut_name(name, spec.label_prefix, [suffix for suffix, _ in spec.encodings])


def cut_name(name: str, prefix: str, suffixes: Iterable[str]) -> tuple[str, str] | None:
    """Stem and suffix of a relative name, without the prefix of its last part; None: another name.

    Args:
        name: with `/` between folders.
        prefix: start of the last part.
        suffixes: ends of the name, compared without case.
    """
    cut = cut_suffix(name, suffixes)
    if cut is None:
        return None
    folder, slash, last = cut[0].rpartition("/")
    if not last.startswith(prefix):
        return None
    return folder + slash + last.removeprefix(prefix), cut[1]
