"""Locks of output folders: only one command at a time writes into a folder.

A command holds the lock of its output folder from before its first file until its end; a second
command is refused.  The lock belongs to the open file `.cgrseg.lock` in the folder, so it ends
with its process, by kill -9 as well.  The file is removed where possible; a remaining file blocks
nothing.

The processes of one job (`torchrun`, `srun`) share a lock: the first one takes it, the others
join it by the name of the job in the file.

On NFS the lock holds between machines.  A file system without locks causes a warning.  Windows
has no shared locks: there the lock of a job ends with the process that took it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import logging
import os
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from cgrseg.errors import EnvironmentProblem, hidden_secrets
from cgrseg.files import explained, make_folder, moved_folder, remove_leftovers, staying
from cgrseg.processes import job_name, signals_deferred

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".cgrseg.lock"

_LOG = logging.getLogger("cgrseg.locks")

Given = ParamSpec("Given")
Result = TypeVar("Result")
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Longest time in seconds between taking the lock and writing its owner; usually milliseconds.
_WRITTEN_WITHIN = 5.0
_RETRY = 0.02  # seconds between two attempts
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_WINDOWS_BYTE = 1 << 30  # the locked byte on Windows, beyond the content: it cannot be read


@dataclass
class _Held:
    """A lock held by this process.

    Attributes:
        descriptor: descriptor of the open lock file.
        place: descriptor of its folder, which may be renamed; None where unsupported.
        thread: the thread that may enter again.
        depth: number of blocks that hold it.
    """

    descriptor: int
    place: int | None
    thread: int
    depth: int = 1


_HELD: dict[Path, _Held] = {}


@contextlib.contextmanager
def output_lock(folder: Path | str, *, below: bool = False, share: str = "") -> Iterator[None]:
    """Hold the lock of an output folder, alone or with the other processes of the job.

    The folder is created if needed, and removed again if nothing was written into it.  Partial
    files of a killed process are removed.  Writes are refused once the folder is renamed or
    removed.  The same thread may enter several times.

    Args:
        folder: output folder of the block.
        below: remove partial files from its subfolders as well, for commands that write there.
        share: name of a job, where the environment names none.

    Raises:
        EnvironmentProblem: another process or thread holds the lock, or the folder is not
            writable.
    """
    folder = Path(folder)
    key = Path(os.path.realpath(folder))
    job = job_name() or share
    made = _missing(folder)
    try:
        try:
            _enter(folder, key, job, below)
            with staying(folder):
                try:
                    yield
                finally:
                    if moved_folder(folder):
                        made = []  # the folder of this name belongs to somebody else
        finally:
            _leave(key)
    finally:
        for empty in made:
            with contextlib.suppress(OSError):  # not empty, or removed already
                empty.rmdir()


def locking(
    folder: Callable[[Mapping[str, Any]], Path | str],
    *,
    below: bool = False,
    share: Callable[[Mapping[str, Any]], str] = lambda given: "",
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Decorate a function so that it holds the lock of its output folder (:func:`output_lock`).

    Args:
        folder: gives the folder from the function's arguments by name.
        below: as in :func:`output_lock`.
        share: gives the share from the function's arguments by name.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locked(*values: Given.args, **named: Given.kwargs) -> Result:
            bound = signature.bind(*values, **named)
            bound.apply_defaults()
            given = bound.arguments
            with output_lock(folder(given), below=below, share=share(given)):
                return function(*values, **named)

        return locked

    return decorate


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, innermost first."""
    return [place for place in (folder, *folder.parents) if not os.path.exists(place)]


def _enter(folder: Path, key: Path, job: str, below: bool) -> None:
    """Take a lock, or enter it again; :func:`_leave` always follows, after errors as well."""
    held = _HELD.get(key)
    if held is not None:
        if held.thread != threading.get_ident():
            raise _refusal(folder, _about(""))
        held.depth += 1
        return
    deadline = time.monotonic() + _WRITTEN_WITHIN
    while True:
        with signals_deferred():
            descriptor, owner = _attempt(folder, job, below)
            if descriptor is not None:
                place = os.open(folder, _FOLDER) if os.unlink in os.supports_dir_fd else None
                _HELD[key] = _Held(descriptor, place, threading.get_ident())
                return
        # Other processes of the job enter once the first one has written its name; until then the
        # file is empty, or names a killed process.
        early = (job or not owner) and time.monotonic() < deadline
        if not early and (not job or owner.get("job") != job):
            raise _refusal(folder, owner)
        time.sleep(_RETRY)


def _leave(key: Path) -> None:
    with signals_deferred():
        held = _HELD.get(key)
        # None in a forked child, and after a refusal.
        if held is None or held.thread != threading.get_ident():
            return
        held.depth -= 1
        if held.depth == 0:
            del _HELD[key]
            _let_go(held, key)


def _attempt(folder: Path, job: str, below: bool) -> tuple[int | None, dict[str, Any]]:
    """Try to take the lock of a folder; return its descriptor or None, and the owner's record."""
    make_folder(folder)
    try:
        descriptor = _open(folder / NAME)
    except FileNotFoundError:  # its owner has ended and removed the folder in the meantime
        return None, {}
    owner: dict[str, Any] = {}
    taken = False
    try:
        if _lock(descriptor, folder):
            # Otherwise its owner has removed the file after it was opened here.
            if _is_current(descriptor, folder):
                _write(descriptor, job)
                if not _is_below_another(folder):
                    remove_leftovers(folder, below=below, other_lock=NAME)
                taken = not job or _lock(descriptor, folder, shared=True)
        else:
            owner = _read(descriptor)
            if job and owner.get("job") == job and _lock(descriptor, folder, shared=True):
                taken = _is_current(descriptor, folder) and _read(descriptor).get("job") == job
    finally:
        if not taken:
            os.close(descriptor)
    return (descriptor if taken else None), owner


def _is_below_another(folder: Path) -> bool:
    """Whether another command holds the lock of a folder above this one."""
    above = Path(os.path.realpath(folder)).parents
    return any(place not in _HELD and os.path.exists(place / NAME) for place in above)


def _open(path: Path) -> int:
    """Open the lock file without following symlinks or blocking on a FIFO."""
    flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        try:
            descriptor = os.open(path, flags | os.O_RDWR, 0o666)
        except PermissionError:
            descriptor = os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)  # another user's
    except FileNotFoundError:
        if path.parent.is_dir() and path.is_symlink():
            raise _not_a_file(path) from None
        raise
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _not_a_file(path) from error
        with explained(path.parent):
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_file(path)
    return descriptor


def _not_a_file(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        path,
        found="a link, a folder or a device",
        expected="the lock file of this folder, or nothing",
        remedy="remove it",
    )


def _lock(descriptor: int, folder: Path, *, shared: bool = False) -> bool:
    """Lock an open file, or change its lock, without waiting; false if others hold it."""
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif not shared:
            os.lseek(descriptor, _WINDOWS_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno in _NO_LOCKS:
            _LOG.warning(
                "%s: its file system has no file locks (%s): make sure that no other command "
                "writes into this folder",
                folder,
                error.strerror,
            )
            return True
        with explained(folder):
            raise
    return True


def _is_current(descriptor: int, folder: Path, place: int | None = None) -> bool:
    """Whether the open file is still the lock file of the folder."""
    path = folder / NAME if place is None else NAME
    try:
        known, named = os.fstat(descriptor), os.stat(path, dir_fd=place, follow_symlinks=False)
    except OSError:
        return False
    return known.st_nlink > 0 and os.path.samestat(known, named)


def _let_go(held: _Held, folder: Path) -> None:
    """Release a lock; the last process of a job removes the file."""
    descriptor, place = held.descriptor, held.place
    if place is not None:
        # The file is removed while locked: a process that has it open sees that it was removed.
        with contextlib.suppress(OSError, EnvironmentProblem):
            if _lock(descriptor, folder) and _is_current(descriptor, folder, place):
                os.unlink(NAME, dir_fd=place)
        os.close(place)
    os.close(descriptor)
    if place is None:
        with contextlib.suppress(OSError):  # another process has it open (Windows)
            (folder / NAME).unlink()


def _write(descriptor: int, job: str) -> None:
    """Write the owner's record; a failure only leaves the name out of messages."""
    content = json.dumps(_about(job)).encode("utf-8")
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, content)


def _about(job: str | None) -> dict[str, Any]:
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    program = "cgrseg" if program == "__main__.py" else program
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": hidden_secrets(shlex.join([program, *sys.argv[1:]]))[:500],
        "job": job,
    }


def _read(descriptor: int) -> dict[str, Any]:
    """The owner's record in a lock file; empty where there is none (yet)."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 1 << 16).decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(folder: Path, owner: dict[str, Any]) -> EnvironmentProblem:
    def shown(key: str) -> str:
        text = str(owner.get(key, "unknown"))[:500]
        return "".join(letter if letter.isprintable() else "?" for letter in text)

    return EnvironmentProblem(
        folder,
        found=f"another command writes into this folder: process {shown('process')} on "
        f"{shown('host')} ({shown('command')})",
        expected="one command at a time in an output folder",
        remedy="wait until that command has ended, or choose another output folder; nothing "
        "was changed",
    )


def _after_fork() -> None:
    """Close the parent's locks in a forked child: they must end with the parent."""
    for held in _HELD.values():
        os.close(held.descriptor)
        if held.place is not None:
            os.close(held.place)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
