"""Room for what visitors send: counted while it arrives and while it lies on the disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

KEPT_SECONDS = 600
"""How long an upload lies there."""

# An empty file costs a place in a folder too.
_LEAST = 64 << 10


class Room:
    """A folder with an end.

    Args:
        folder: where all uploads lie.
        most: bytes that may lie there or be under way.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._arriving = 0

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Count what arrives in this block, before it lies anywhere."""
        self._arriving += size
        try:
            yield
        finally:
            self._arriving -= size

    def is_full(self) -> bool:
        """Whether more lies there, or is under way, than there is room for.

        What is too old is deleted: uploads that broke off are known to nobody else.
        """
        kept = 0
        oldest = time.time() - KEPT_SECONDS
        for here, folders, files in os.walk(self._folder, topdown=False):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                for name in files:
                    path = Path(here, name)
                    about = path.lstat()
                    if about.st_mtime < oldest:
                        path.unlink()
                    else:
                        kept += max(about.st_size, _LEAST)
            if Path(here) in (self._folder, *self._folder.iterdir()):
                continue  # the server's own
            with contextlib.suppress(OSError):  # not empty
                if not folders and Path(here).stat().st_mtime < oldest:
                    Path(here).rmdir()
        return kept + self._arriving > self._most
