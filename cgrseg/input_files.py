"""Opening input files: regular files only.

A named pipe blocks forever, a device is endless, and a symlink may lead to either or to itself.
Every reader of this package opens its files here.  Anything else raises an `OSError` whose
`strerror` gives the reason, so that each reader has its own message.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

_KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_input(path: Path | str) -> IO[bytes]:
    """Open a regular file for reading, after following symlinks.

    Returns:
        A buffered binary stream, which the caller closes.

    Raises:
        OSError: missing, not permitted, a symlink to nothing or to itself, or no regular file;
            `strerror` says which.
    """
    # Opening a pipe may block, and opening some devices has side effects.
    refuse_special(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)  # it may have been replaced since
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path: Path | str) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: as :func:`open_input`; or the file does not fit into memory.
    """
    with open_input(path) as stream:
        try:
            return stream.read()
        except MemoryError:
            size = os.fstat(stream.fileno()).st_size
            raise OSError(
                errno.ENOMEM, f"memory is too small for its {size:,} bytes", str(path)
            ) from None


def read_input_text(path: Path | str, encoding: str = "utf-8") -> str:
    """Content of a regular text file; each line ends in a line feed.

    Raises:
        OSError: as :func:`read_input`.
        UnicodeDecodeError: it is not text in this encoding.
    """
    return read_input(path).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def refuse_special(path: Path | str) -> None:
    """Check that a path leads to a regular file, for readers that accept a path only.

    Raises:
        OSError: as :func:`open_input`.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        reason = _reason_of_link(Path(path), error)
        if reason is None:
            raise
        raise OSError(error.errno, reason, str(path)) from None
    _check_kind(path, mode)


def _check_kind(path: Path | str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
        raise OSError(errno.EACCES, "it is a folder that may not be entered", str(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, f"it is {kind}, not a regular file", str(path))


def _reason_of_link(path: Path, error: OSError) -> str | None:
    """Why a symlink cannot be followed; None if the path is not a symlink."""
    if error.errno == errno.ELOOP:
        return "it is a symlink that leads back to itself"
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"it is a symlink to {os.readlink(path)!r}, which does not exist"
    return None
