"""Which folder was meant: the dataset's root is above or below the one that was given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_DEPTH = 2  # folders below the given one that are looked into
_LOOKED_AT = 200  # largest number of such folders


def nearby_root(root: Path, below: str) -> Path | None:
    """The folder near `root` that holds `below`, where `root` itself does not.

    Args:
        root: the folder that was given.
        below: relative path that the right folder has.
    """
    return nearby_folder(root, lambda folder: (folder / below).is_dir(), [Path(below).parts[0]])


def nearby_folder(root: Path, fits: Callable[[Path], bool], inside: Iterable[str]) -> Path | None:
    """The first folder below `root` that fits, or the one above it; None: there is none.

    Args:
        root: the folder that was given.
        fits: whether a folder is the one that was meant.
        inside: names of the folders that a dataset holds: where `root` has one of these, the
            folder above it is looked at too.
    """
    for folder in _below(root):
        if fits(folder):
            return folder
    return root.parent if root.name in inside and fits(root.parent) else None


def _below(root: Path) -> Iterator[Path]:
    level, count = [root], 0
    for _ in range(_DEPTH):
        found: list[Path] = []
        for folder in level:
            with contextlib.suppress(OSError):  # a folder that may not be entered holds nothing
                found += sorted(
                    path
                    for path in folder.iterdir()
                    if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
                )
        for path in found:
            count += 1
            if count > _LOOKED_AT:
                return
            yield path
        level = found
