"""Which image goes with which label.

Images and labels are matched by name below their folders.  What does not match is never
skipped: an image without its label, a listed stem without its image, or two images of
one stem stop the run with their names; labels without an image are counted in a warning.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cgrseg.data.spec import DatasetSpec, HeldOut, Pair, SplitLayout
from cgrseg.data.text_lists import read_lines
from cgrseg.errors import DataError, explain

_LOG = logging.getLogger("cgrseg.data")
_NAMED = 5  # how many names a message lists before it only counts


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
    if split not in spec.splits:
        raise DataError(
            explain(
                f"split {split!r} of {spec.name}",
                found="no such split",
                expected="one of " + ", ".join(spec.splits),
                remedy="set data.train_split or data.eval_split to one of these",
            )
        )
    layout = spec.splits[split]
    image_folder = _folder(spec, root, layout.images)
    images = _by_stem(image_folder, spec.image_suffixes, spec)
    if not images:
        raise DataError(
            explain(
                image_folder,
                found="no images in it" + _what_is_there(image_folder),
                expected="files that end in " + ", ".join(spec.image_suffixes),
                remedy=spec.how_to_get,
            )
        )
    labels: dict[str, Path] = {}
    if layout.labels is not None:
        labels = labels_by_stem(_folder(spec, root, layout.labels), spec)
    stems = _stems(spec, root, layout, images)
    if layout.labels is not None:
        _every_image_has_a_label(spec, root / layout.labels, stems, images, labels)
        if layout.list_file is None and layout.held_out is None:
            _count_orphans(root / layout.labels, images, labels)
    return [Pair(stem, images[stem], labels.get(stem)) for stem in stems]


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


def _folder(spec: DatasetSpec, root: Path, below: str) -> Path:
    folder = root / below
    if folder.is_dir():
        return folder
    if not root.is_dir():
        found, remedy = f"the root of {spec.title} is not there", spec.how_to_get
    else:
        inside = sorted(p.name for p in root.iterdir() if p.is_dir())[:8]
        found = "this folder is not there; the root holds " + (", ".join(inside) or "no folders")
        remedy = spec.how_to_get
    raise DataError(
        explain(
            folder,
            found=found,
            expected=f"the folder {below} below the root {root}",
            remedy=f"point data.root (--data-root) at the folder that holds {below}; or {remedy}",
        )
    )


def visible_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files below a folder as (relative name with `/`, path); hidden ones are left out."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(parent).relative_to(folder).as_posix()
        for name in sorted(names):
            if not name.startswith("."):
                yield (name if prefix == "." else f"{prefix}/{name}"), Path(parent, name)


def cut_suffix(name: str, suffixes: Iterable[str]) -> tuple[str, str] | None:
    """Stem and the longest suffix that the name ends in, whatever its case."""
    lowered = name.lower()
    fitting = [s for s in suffixes if lowered.endswith(s.lower())]
    if not fitting:
        return None
    suffix = max(fitting, key=len)
    return name[: len(name) - len(suffix)], suffix


def _by_stem(folder: Path, suffixes: tuple[str, ...], spec: DatasetSpec) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in visible_files(folder):
        cut = cut_suffix(name, suffixes)
        if cut is None:
            continue
        stem = cut[0]
        if stem in found:
            raise DataError(
                explain(
                    path,
                    found=f"a second image of the stem {stem!r}, beside {found[stem].name}",
                    expected="one image per label",
                    remedy="remove or rename one of the two",
                )
            )
        found[stem] = path
    return found


def labels_by_stem(folder: Path, spec: DatasetSpec) -> dict[str, Path]:
    """Label per stem; where several encodings are present the spec's first one wins."""
    order = {suffix: place for place, (suffix, _) in enumerate(spec.encodings)}
    found: dict[str, tuple[int, Path]] = {}
    for name, path in visible_files(folder):
        cut = cut_suffix(name, order)
        if cut is None:
            continue
        stem, suffix = cut
        if stem not in found or order[suffix] < found[stem][0]:
            found[stem] = (order[suffix], path)
    return {stem: path for stem, (_, path) in found.items()}


def _stems(
    spec: DatasetSpec, root: Path, layout: SplitLayout, images: Mapping[str, Path]
) -> list[str]:
    if layout.list_file is not None:
        return _read_list(spec, root / layout.list_file, images)
    if layout.held_out is None:
        return sorted(images)
    if len(images) < 2:
        raise DataError(
            explain(
                root / layout.images,
                found="a single image, which cannot be split into training and validation",
                expected="two images or more",
                remedy="add images, or make folders named train and val below images and labels",
            )
        )
    return split_stems(images, layout.held_out)


def listed_names(spec: DatasetSpec, path: Path) -> list[str]:
    """The stems that a split list names, in its order; endings of images are cut off.

    Raises:
        DataError: the list cannot be read.
    """
    lines = read_lines(
        path,
        what="the list of the split",
        expected="a text file with one image stem a line",
        remedy=spec.how_to_get,
    )
    cuts = ((name, cut_suffix(name, spec.image_suffixes)) for name in lines if name)
    return [cut[0] if cut else name for name, cut in cuts]


def _read_list(spec: DatasetSpec, path: Path, images: Mapping[str, Path]) -> list[str]:
    stems = listed_names(spec, path)
    if not stems:
        raise DataError(
            explain(
                path,
                found="the list is empty",
                expected="one image stem a line",
                remedy=spec.how_to_get,
            )
        )
    repeated = sorted(stem for stem, times in Counter(stems).items() if times > 1)
    if repeated:
        raise DataError(
            explain(
                path,
                found=f"{len(repeated)} stems are listed more than once: {_names(repeated)}",
                expected="each stem once",
                remedy="remove the repeated lines",
            )
        )
    missing = [stem for stem in stems if stem not in images]
    if missing:
        raise DataError(
            explain(
                path,
                found=f"{len(missing)} of {len(stems)} listed stems have no image: "
                f"{_names(missing)}",
                expected=f"an image for each, ending in {', '.join(spec.image_suffixes)}",
                remedy="fetch the missing images, or remove these lines",
            )
        )
    return stems


def _every_image_has_a_label(
    spec: DatasetSpec,
    folder: Path,
    stems: list[str],
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
) -> None:
    missing = [stem for stem in stems if stem not in labels]
    if not missing:
        return
    endings = " or ".join(suffix for suffix, _ in spec.encodings)
    orphans = len(set(labels) - set(images))
    if not labels:
        found = "no labels in it" + _what_is_there(folder)
        remedy = f"{spec.how_to_get}; or make the labels with `cgrseg data convert`"
    else:
        found = (
            f"{len(missing)} of {len(stems)} images have no label: "
            + _names([images[stem].name for stem in missing])
            + f"; {orphans} labels have no image"
        )
        remedy = "add the missing labels, or move these images away"
    raise DataError(
        explain(
            folder,
            found=found,
            expected=f"for each image a label of the same stem that ends in {endings}",
            remedy=remedy,
        )
    )


def _count_orphans(folder: Path, images: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
    orphans = sorted(set(labels) - set(images))
    if orphans:
        _LOG.warning(
            "%s: %d labels have no image and are left out: %s",
            folder,
            len(orphans),
            _names([labels[stem].name for stem in orphans]),
        )


def _what_is_there(folder: Path) -> str:
    names = [name for name, _ in visible_files(folder)]
    return f"; it holds {_names(names)}" if names else "; it is empty"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
