"""Images that two splits share, as files, as images or as places on the ground.

Images are compared by their 32 x 32 gray thumbnails, upright and mirrored.  An image saved again
at JPEG quality 30, or at half its size, stays within 1.1 gray levels (root mean square) of
itself; the nearest frames of different CamVid splits are 17 apart, frames a fifteenth of a second
apart 4 or more while the camera moves.  So copies are found, and neighboring frames only where
the camera stands still.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from cgrseg.data.check.pair import THUMB_SIDE, Facts
from cgrseg.data.convert.image_names import same_content
from cgrseg.data.pairs import Pair
from cgrseg.datasets.findings import Finding

_LIMIT = 3.0  # gray levels, root mean square
_FLAT = 6.0  # below this contrast (standard deviation) all thumbnails look alike
_BLOCK = 2048


def overlapping_stems(splits: Mapping[str, Sequence[Pair]]) -> Iterator[Finding]:
    """Image files that two splits share, as lists may say."""
    for first, second in combinations(splits, 2):
        mine = {pair.image for pair in splits[first]}
        if mine == {pair.image for pair in splits[second]}:
            continue  # one split under two names, as some datasets publish it
        for pair in splits[second]:
            if pair.image in mine:
                yield Finding(
                    "error",
                    "split-overlap",
                    str(pair.image),
                    f"{pair.stem!r} belongs to {first} and to {second}",
                    "remove it from one of the two lists: a score on images that were trained on "
                    "says nothing",
                )


def trained_on(
    validation: Sequence[Pair], split: str, trained: Sequence[Pair], setting: str = "data.extra"
) -> Iterator[Finding]:
    """Validation images that a set of `setting` holds under the same name, as one finding."""
    named = defaultdict(list)
    for pair in validation:
        named[pair.image.name].append(pair.image)
    found = []
    for pair in trained:
        for other in named.get(pair.image.name, ()):
            with contextlib.suppress(OSError):  # what cannot be read is named by other checks
                if same_content(pair.image, other):
                    found.append((pair.image, other))
    if found:
        image, other = found[0]
        yield Finding(
            "warning",
            "leak-identical",
            str(image),
            f"a set in {setting} holds images of {split} of data.root ({len(found)} of them): "
            f"this one is {other}",
            "remove them from that set: a score on images that were trained on says nothing",
        )


def find_leaks(
    splits: Mapping[str, Sequence[Facts]], pairs: Mapping[str, Sequence[Pair]]
) -> Iterator[Finding]:
    """Identical and nearly identical images in different splits.

    Args:
        splits: split name to the facts of its pairs; only decoded images count.
        pairs: split name to its pairs.

    Yields:
        One finding for each image of the later split that an earlier one holds too.
    """
    for name, facts in splits.items():
        yield from _repeats(name, facts)
    images = {name: {pair.image for pair in chosen} for name, chosen in pairs.items()}
    for first, second in combinations(splits, 2):
        if images[first] != images[second]:  # else one split under two names
            yield from _shared(first, splits[first], second, splits[second])


def _repeats(name: str, facts: Sequence[Facts]) -> Iterator[Finding]:
    seen: dict[bytes, str] = {}
    for item in facts:
        if item.digest and item.digest in seen:
            yield Finding(
                "note",
                "duplicate-image",
                item.image,
                f"the same file as {seen[item.digest]}, both in {name}",
                "remove one of the two unless it is meant to count twice",
            )
        seen.setdefault(item.digest, item.image)


def _shared(
    first: str, mine: Sequence[Facts], second: str, others: Sequence[Facts]
) -> Iterator[Finding]:
    by_digest = {item.digest: item for item in mine if item.digest}
    left = []
    for item in others:
        if item.digest in by_digest:
            yield Finding(
                "error",
                "leak-identical",
                item.image,
                f"it is in {second} and, as {by_digest[item.digest].image}, in {first}",
                "remove it from one of the two: a score on images that were trained on says "
                "nothing",
            )
        elif item.thumb:
            left.append(item)
    usable = [item for item in mine if item.thumb]
    for item, (other, distance, mirrored) in zip(left, nearest(left, usable), strict=True):
        if distance <= _LIMIT:
            yield Finding(
                "warning",
                "leak-near-identical",
                item.image,
                f"in {second}, and {'mirrored ' if mirrored else ''}nearly the same image as "
                f"{other} in {first} ({distance:.1f} gray levels apart)",
                "look at both; if one is a copy of the other, remove it from one of the "
                "splits, and split before you augment",
            )


def find_touching(splits: Mapping[str, Sequence[Facts]]) -> Iterator[Finding]:
    """Georeferenced images of different splits that show one place, or touch.

    Only images in the same coordinate system are compared.

    Args:
        splits: split name to the facts of its pairs.

    Yields:
        One finding for each such image of the later split.
    """
    for (first, mine), (second, others) in combinations(splits.items(), 2):
        if {item.image for item in mine} == {item.image for item in others}:
            continue  # one split under two names
        for system in sorted({item.system for item in others if item.system}):
            pool = sorted(
                (item for item in mine if item.system == system), key=lambda item: item.bounds
            )
            boxes = np.array([item.bounds for item in pool]).reshape(-1, 4)
            widest = (boxes[:, 2] - boxes[:, 0]).max(initial=0)
            for item in (item for item in others if item.system == system):
                left, bottom, right, top = item.bounds
                near = (right - left) / item.size[1] / 2 if item.size else 0.0
                window = np.searchsorted(boxes[:, 0], (left - widest - near, right + near))
                chosen = boxes[slice(*window)]
                wide = np.minimum(chosen[:, 2], right) - np.maximum(chosen[:, 0], left)
                high = np.minimum(chosen[:, 3], top) - np.maximum(chosen[:, 1], bottom)
                depth = np.minimum(wide, high)
                if not depth.size or depth.max() < -near:
                    continue
                other = pool[window[0] + int(depth.argmax())].image
                overlaps = depth.max() > near
                yield Finding(
                    "error" if overlaps else "warning",
                    "leak-place",
                    item.image,
                    f"in {second}, it {'shows ground of' if overlaps else 'touches'} {other} in "
                    f"{first}",
                    "divide the scene by blocks with a gap, as `cgrseg data convert raster` does: "
                    "a score on ground that was trained on says nothing",
                )


def nearest(queries: Sequence[Facts], pool: Sequence[Facts]) -> list[tuple[str, float, bool]]:
    """The nearest image of the pool for each query; all images are decoded ones.

    Returns:
        Path of the nearest, distance in gray levels (root mean square over the
        thumbnail), and whether it is nearest when mirrored; infinitely far where the
        image is too flat to compare, or the pool is empty.
    """
    result = [("", float("inf"), False)] * len(queries)
    if not queries or not pool:
        return result
    wanted, stored = _thumbs(queries), _thumbs(pool)
    clear = wanted.std(axis=1) >= _FLAT
    flipped = np.ascontiguousarray(
        wanted.reshape(-1, THUMB_SIDE, THUMB_SIDE)[:, :, ::-1].reshape(len(wanted), -1)
    )
    for start in range(0, len(stored), _BLOCK):
        block = stored[start : start + _BLOCK]
        norms = (block**2).sum(axis=1)
        for mirrored, version in ((False, wanted), (True, flipped)):
            squares = (version**2).sum(axis=1)[:, None] + norms - 2.0 * (version @ block.T)
            best = squares.argmin(axis=1)
            for row in np.flatnonzero(clear):
                # The short form above loses digits; the candidate is measured exactly.
                gap = version[row] - block[best[row]]
                distance = float(np.sqrt(np.mean(gap**2)))
                if distance < result[row][1]:
                    result[row] = (pool[start + int(best[row])].image, distance, mirrored)
    return result


def _thumbs(items: Sequence[Facts]) -> np.ndarray:
    """(N, 1024) float32 gray levels."""
    joined = np.frombuffer(b"".join(item.thumb for item in items), dtype=np.uint8)
    return joined.reshape(len(items), -1).astype(np.float32)
