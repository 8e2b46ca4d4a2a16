"""Writing files so that a crash, a full disk or a signal never leaves half of one.

Everything is written beside its target, in the same folder (so on the same file
system), flushed to disk, then renamed into place: a reader sees the old file or
the new one, nothing between.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from cgrseg.errors import EnvironmentProblem, explain

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another folder"),
    errno.EFBIG: (
        "the file would be larger than files may be here",
        "raise that limit (ulimit -f), or choose another folder",
    ),
    errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
    errno.EACCES: ("writing is not permitted", "choose a folder that can be written"),
    errno.EPERM: ("writing is not permitted", "choose a folder that can be written"),
    errno.ENOTDIR: ("a parent of it is a file, not a folder", "choose another folder"),
    errno.EEXIST: ("a file is where a folder should be", "choose another folder"),
    errno.EISDIR: ("a folder of that name is in the way", "choose another name"),
}


def writing_problem(path: Path | str, error: OSError) -> EnvironmentProblem:
    """Turn a failed write into a message that says what to do."""
    found, remedy = _REASONS.get(
        error.errno or 0, (f"writing failed ({error.strerror or error})", "see the reason given")
    )
    return EnvironmentProblem(
        explain(path, found=found, expected="a place that can be written", remedy=remedy)
    )


@contextlib.contextmanager
def explained(target: Path | str) -> Iterator[None]:
    """Turn a failed step of writing into its message.

    Args:
        target: what is written, or the folder that it is written to.

    Raises:
        EnvironmentProblem: in place of an `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        raise writing_problem(target, error) from error


def make_folder(path: Path | str) -> Path:
    """Create a folder with its parents.

    Raises:
        EnvironmentProblem: when it cannot be created; the message names the reason.
    """
    folder = Path(path)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


class _ReportingStream:
    """A binary stream whose failed writes say which file they were meant for."""

    def __init__(self, stream: IO[bytes], target: Path) -> None:
        self._stream = stream
        self._target = target

    def write(self, content: Any) -> int:
        try:
            return self._stream.write(content)
        except OSError as error:
            raise writing_problem(self._target, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _replacing(target: Path, prefix: str, suffix: str) -> Iterator[tuple[int, Path]]:
    """An empty file beside `target` that replaces it once the block ends without an error.

    Args:
        target: the file; its folder is created if need be.
        prefix: how the name of the partial file begins.
        suffix: how it ends.

    Yields:
        Its descriptor, which the block closes once all is written and synced, and its path.
    """
    make_folder(target.parent)
    with explained(target):
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix)
    partial = Path(name)
    try:
        yield descriptor, partial
        with explained(target):
            os.chmod(partial, 0o666 & ~_UMASK)
            os.replace(partial, target)
        _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()  # gone already once it has replaced the target


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` once the block ends without an error.

    The folder is created if need be.  On any error the target stays as it was and
    the partial file is removed; errors of the block itself pass through unchanged.

    Raises:
        EnvironmentProblem: full disk, read-only folder and the like.
    """
    target = Path(path)
    with _replacing(target, f".{target.name}.", ".partial") as (descriptor, _):
        stream = os.fdopen(descriptor, "wb")
        try:
            yield cast(IO[bytes], _ReportingStream(stream, target))
            with explained(target):
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
        finally:
            with contextlib.suppress(OSError):
                stream.close()


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path to write instead of `path`, for writers that want a name and not a stream.

    It has the same ending.  Once the block ends without an error it replaces `path`; on any
    error the target stays as it was and the partial file is removed.

    Raises:
        EnvironmentProblem: full disk, read-only folder and the like.
    """
    target = Path(path)
    with _replacing(target, f".{target.stem}.partial", target.suffix) as (descriptor, partial):
        os.close(descriptor)
        yield partial
        with explained(target), partial.open("rb+") as stream:
            os.fsync(stream.fileno())


def atomic_write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all.

    What UTF-8 cannot hold (a byte of a file name that is not text) is written as an escape, as
    JSON has them: read back, it is what it was.
    """
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: Any) -> None:
    """Replace `path` by `value` as readable JSON (NaN is refused: it is no JSON)."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _read_umask() -> int:
    # The umask can only be read by setting it, for all threads: once, at import.
    current = os.umask(0o022)
    os.umask(current)
    return current


# mkstemp makes files that nobody else may read; ours get the permissions that open() gives.
_UMASK = _read_umask()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the platform allows it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
