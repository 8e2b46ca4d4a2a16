"""Writing files so that a crash, a full disk or a signal never leaves half of one.

Everything is written beside its target, in the same folder (so on the same file
system), flushed to disk, then renamed into place: a reader sees the old file or
the new one, nothing between.

What is written so has a name that ends in `.cgrseg.partial` (and perhaps the target's ending).
It is removed when the writing fails and when a signal ends the process; what a killed process
leaves, the next command that locks the folder removes (:mod:`cgrseg.locks`).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from cgrseg.errors import CGRSegError, DataError, EnvironmentProblem, option
from cgrseg.processes import signals_deferred

PARTIAL = ".cgrseg.partial"
"""Part of every name of what is not finished."""
_LEFTOVER = re.compile(r"\..*" + re.escape(PARTIAL) + r"(\.\w+)?")
# Characters of the target's name in that of its partial file: a name may have 255 bytes in all.
_SHOWN = 40

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
    errno.ELOOP: (
        "a symlink leads back to itself",
        "remove that symlink, or choose another folder",
    ),
    errno.EISDIR: ("a folder of that name is in the way", "choose another name"),
}


class UnusableNameError(DataError):
    """A file whose name is too long: others beside it can be written."""


def writing_problem(path: Path | str, error: OSError) -> CGRSegError:
    """Turn a failed write into a message that says what to do.

    Returns:
        An `UnusableNameError` or an `EnvironmentProblem`.
    """
    if error.errno == errno.ENAMETOOLONG:
        return UnusableNameError(
            path,
            found=f"the file name has {len(os.fsencode(Path(path).name))} bytes, which is too "
            "long for this file system",
            expected="at most 255 bytes for most file systems, and 4,096 for the whole path",
            remedy="rename the file that it is made from, or choose a shorter output folder",
        )
    found, remedy = _REASONS.get(
        error.errno or 0, (f"writing failed ({error.strerror or error})", "see the reason given")
    )
    return EnvironmentProblem(
        path, found=found, expected="a place that can be written", remedy=remedy
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
    refuse_moved(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


# Folders that must stay where they are while this process writes to them: device and inode.
_STAYING: dict[str, tuple[int, int]] = {}


@contextlib.contextmanager
def staying(folder: Path) -> Iterator[None]:
    """Write nothing into a folder of this name in this block if it is no longer the same one.

    Without it, a folder that somebody renames or removes would be made anew by the next file.

    Args:
        folder: which exists.
    """
    name = os.path.abspath(folder)
    if name in _STAYING:
        yield
        return
    _STAYING[name] = _identity(name)
    try:
        yield
    finally:
        del _STAYING[name]


def refuse_moved(path: Path | str) -> None:
    """Refuse to write to a path below a folder that was renamed or removed meanwhile.

    Raises:
        EnvironmentProblem: it is not the folder that this process began to write to.
    """
    moved = moved_folder(path)
    if moved is not None:
        raise EnvironmentProblem(
            moved,
            found="the folder was renamed or removed while this command writes to it",
            expected="a folder that stays in its place until the command has ended",
            remedy="give the folder its name back, if it was renamed, and run the command "
            f"again (a training goes on with {option('--resume')})",
        )


def moved_folder(path: Path | str) -> str | None:
    """The folder of :func:`staying` above a path that is no longer the same one, if any."""
    target = os.path.abspath(path) if _STAYING else ""
    for name, identity in list(_STAYING.items()):
        if target != name and not target.startswith(name.rstrip(os.sep) + os.sep):
            continue
        try:
            if _identity(name) != identity:
                return name
        except (FileNotFoundError, NotADirectoryError):
            return name
        except OSError:
            continue  # the write itself says what is wrong
    return None


def _identity(folder: str) -> tuple[int, int]:
    known = os.stat(folder)
    return known.st_dev, known.st_ino


# Partial files and folders of this process that still have to go, with the process's id: a
# forked child must not remove those of its parent.
_PARTIALS: dict[Path, int] = {}


def _new_partial(folder: Path, name: str, ending: str, *, is_folder: bool) -> tuple[int, Path]:
    """An empty file (with its open descriptor) or folder whose name says that it is partial."""
    start, end = f".{name[:_SHOWN]}.", PARTIAL + ending
    with signals_deferred():
        descriptor, made = -1, ""
        if is_folder:
            made = tempfile.mkdtemp(end, start, folder)
        else:
            descriptor, made = tempfile.mkstemp(end, start, folder)
        partial = Path(made)
        _PARTIALS[partial] = os.getpid()
    return descriptor, partial


def _remove_partial(partial: Path) -> None:
    with signals_deferred():
        _remove(partial)
        _PARTIALS.pop(partial, None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()  # gone already once it has replaced its target


@atexit.register
def _remove_partials() -> None:
    """Remove what an exception at an unlucky moment has left."""
    for partial, process in list(_PARTIALS.items()):
        if process == os.getpid():
            _remove(partial)


def remove_leftovers(folder: Path, *, below: bool = False, other_lock: str = "") -> None:
    """Remove partial files and folders that a killed process has left; nobody else may write.

    Args:
        folder: where to look.
        below: in its subfolders as well.
        other_lock: subfolders that hold a file of this name are left alone.
    """
    for place, folders, names in os.walk(folder):
        if other_lock in names and Path(place) != folder:
            folders.clear()
            continue
        for name in [*folders, *names]:
            if _LEFTOVER.fullmatch(name):
                _remove(Path(place) / name)
        folders[:] = [name for name in folders if below and not _LEFTOVER.fullmatch(name)]


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
def _replacing(target: Path, name: str, ending: str = "") -> Iterator[tuple[int, Path]]:
    """An empty file beside `target` that replaces it once the block ends without an error.

    Args:
        target: the file; its folder is created if need be.
        name: shown in the name of the partial file.
        ending: of the partial file.

    Yields:
        Its descriptor, which the block closes once all is written and synced, and its path.
    """
    make_folder(target.parent)
    with explained(target):
        descriptor, partial = _new_partial(target.parent, name, ending, is_folder=False)
    try:
        yield descriptor, partial
        refuse_moved(target.parent)
        with explained(target):
            os.chmod(partial, 0o666 & ~_UMASK)
            os.replace(partial, target)
        _sync_folder(target.parent)
    finally:
        _remove_partial(partial)


@contextlib.contextmanager
def partial_folder(folder: Path, name: str) -> Iterator[Path]:
    """A folder for what is not finished; gone at the end of the block, with all that is in it.

    Args:
        folder: where to make it; it exists.
        name: shown in its name, after a dot.

    Raises:
        OSError: it cannot be made.
    """
    _, partial = _new_partial(folder, name, "", is_folder=True)
    try:
        yield partial
    finally:
        _remove_partial(partial)


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` once the block ends without an error.

    The folder is created if need be.  On any error the target stays as it was and
    the partial file is removed; errors of the block itself pass through unchanged.

    Raises:
        EnvironmentProblem: full disk, read-only folder and the like.
    """
    target = Path(path)
    with _replacing(target, target.name) as (descriptor, _):
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
    with _replacing(target, target.stem, target.suffix) as (descriptor, partial):
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
