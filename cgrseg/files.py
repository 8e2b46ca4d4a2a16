"""Atomic writes: a crash, a full disk or a signal never leaves an incomplete file.

A file is written beside its target (so on the same file system), flushed to disk and renamed
into place: a reader sees the old file or the new one.

Partial files have `.cgrseg.partial` in their names.  They are removed when the write fails and
when a signal ends the process; the next command that locks the folder removes those of a killed
process (:mod:`cgrseg.locks`).
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
"""Part of the name of every partial file and folder."""
_LEFTOVER = re.compile(r"\..*" + re.escape(PARTIAL) + r"(\.\w+)?")
# Characters of the target's name in the name of its partial file; a name has at most 255 bytes.
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
    """A file whose name is too long; other files of its folder can be written."""


def writing_problem(path: Path | str, error: OSError) -> CGRSegError:
    """The error of ours for a failed write: `UnusableNameError` or `EnvironmentProblem`."""
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
    """Replace an `OSError` of the block by :func:`writing_problem`.

    Args:
        target: file that is written, or its folder.
    """
    try:
        yield
    except OSError as error:
        raise writing_problem(target, error) from error


def cache_folder() -> Path:
    """`$CGRSEG_CACHE`, else `cgrseg` in the user's cache folder."""
    chosen = os.environ.get("CGRSEG_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "cgrseg"
    try:
        return Path.home() / ".cache" / "cgrseg"
    except RuntimeError:  # no HOME, and a user without an entry, as in containers
        user = os.getuid() if hasattr(os, "getuid") else 0
        return Path(tempfile.gettempdir()) / f"cgrseg-{user}"


def make_folder(path: Path | str) -> Path:
    """Create a folder with its parents.

    Raises:
        EnvironmentProblem: the folder cannot be created.
    """
    folder = Path(path)
    refuse_moved(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


# Folders that this process writes to, with device and inode.
_STAYING: dict[str, tuple[int, int]] = {}


@contextlib.contextmanager
def staying(folder: Path) -> Iterator[None]:
    """Refuse writes to an existing folder that is renamed or removed during this block.

    Otherwise the next written file would create a new folder of that name.
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
    """Refuse to write to a path below a folder of :func:`staying` that is no longer the same.

    Raises:
        EnvironmentProblem: the folder was renamed or removed.
    """
    moved = moved_folder(path)
    if moved is not None:
        raise EnvironmentProblem(
            moved,
            found="the folder was renamed or removed while this command writes to it",
            expected="a folder that stays in its place until the command has ended",
            remedy="give the folder its name back, if it was renamed, and run the command "
            f"again (a training resumes with {option('--resume')})",
        )


def moved_folder(path: Path | str) -> str | None:
    """The folder of :func:`staying` above a path that was renamed or removed, if any."""
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
            continue  # the write itself reports the error
    return None


def _identity(folder: str) -> tuple[int, int]:
    known = os.stat(folder)
    return known.st_dev, known.st_ino


# Partial files and folders of this process, with its process id: a forked child must not remove
# those of its parent.
_PARTIALS: dict[Path, int] = {}


def _new_partial(folder: Path, name: str, ending: str, *, is_folder: bool) -> tuple[int, Path]:
    """Create an empty partial file (with its open descriptor) or folder."""
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
        path.unlink()  # it no longer exists once it has replaced its target


@atexit.register
def _remove_partials() -> None:
    """Remove partial files that an exception has left."""
    for partial, process in list(_PARTIALS.items()):
        if process == os.getpid():
            _remove(partial)


def remove_leftovers(folder: Path, *, below: bool = False, other_lock: str = "") -> None:
    """Remove partial files and folders of a killed process; no other process may be writing.

    Args:
        folder: folder to clean.
        below: clean its subfolders as well.
        other_lock: skip subfolders that contain a file of this name.
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
    """A binary stream whose failed writes name the target file."""

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
    """An empty file beside `target` that replaces it when the block ends without an error.

    The block writes, syncs and closes the yielded descriptor.  `name` and `ending` are parts of
    the name of the partial file; the folder is created if needed.
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
    """A temporary folder for unfinished files, removed with its content after the block.

    Args:
        folder: existing folder to create it in.
        name: shown in its name, after a dot.

    Raises:
        OSError: the folder cannot be created.
    """
    _, partial = _new_partial(folder, name, "", is_folder=True)
    try:
        yield partial
    finally:
        _remove_partial(partial)


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    The folder is created if needed.  On any error the target stays unchanged and the partial
    file is removed; errors of the block itself pass unchanged.

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
    """A path of the same ending to write instead of `path`, for writers without streams.

    It replaces `path` as :func:`atomic_write` does.

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
    """Replace `path` atomically by `text` in UTF-8.

    Characters that UTF-8 cannot encode (bytes of a file name that are no text) are written as
    JSON escapes, from which they are read back unchanged.
    """
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: Any) -> None:
    """Replace `path` atomically by `value` as indented JSON; NaN is refused."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _read_umask() -> int:
    # The umask can only be read by setting it, for all threads; so it is read once, at import.
    current = os.umask(0o022)
    os.umask(current)
    return current


# mkstemp creates private files; written files get the usual permissions of open().
_UMASK = _read_umask()


def _sync_folder(folder: Path) -> None:
    """Sync the rename to disk where the platform supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
