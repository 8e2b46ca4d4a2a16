"""Messages for exhausted resources: memory, open files, threads, shared memory, disks, permissions.

Libraries report one problem in many ways: PyTorch as a `RuntimeError`, OpenCV as its own error,
Python as a `MemoryError`.  This module recognizes them, so that no file is called damaged because
memory was short, and no command ends in a stack trace because of its machine.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from cgrseg.errors import CGRSegError, EnvironmentProblem
from cgrseg.files import writing_problem
from cgrseg.processes import print_no_memory_errors

LEAST_WIDTH = 60
"""Least number of columns for tables; a narrower terminal wraps their lines."""

_NO_MEMORY = (
    "out of memory",
    "outofmemory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "insufficient memory",
    "failed to allocate",
    "unable to allocate",
    "bad_alloc",
    "bad allocation",
    # Failed imports, and a failed allocation that no code checked.
    "failed to map segment",
    "error return without exception set",
)
_NO_THREADS = (
    "can't start new thread",
    "resource temporarily unavailable",
    "thread creation failed",
    "pthread_create",
)
_NO_SHARED_MEMORY = ("shared memory", "unable to write to file </torch_", "/dev/shm")
_CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_NEVER_REFUSED = 256 << 20  # bytes; less is not checked
_SEMAPHORES = ("multiprocessing", "synchronize.py")
_NO_FILES = ("too many open files",)
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Error types in which libraries wrap such a problem.
_WRAPPERS = (RuntimeError, OSError, MemoryError, SystemError, ImportError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the device or the machine ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return _says(error, _NO_MEMORY)


def machine_problem(
    error: BaseException | None, where: object = "this machine"
) -> CGRSegError | None:
    """The message for an exhausted resource; None for any other error.

    Args:
        error: error of a library; its causes are checked as well.
        where: the work, or the file that was being read.
    """
    while error is not None:
        if isinstance(error, CGRSegError):
            return None
        problem = _problem(error, where)
        if problem is not None:
            return problem
        # PyTorch's writer, for example, fails again while the first error is handled.
        error = error.__cause__ or error.__context__
    return None


def _problem(error: BaseException, where: object) -> CGRSegError | None:
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or _says(error, _NO_FILES):
        return EnvironmentProblem(
            where,
            found="the limit of open files is reached",
            expected="some 256 open files (data.workers and each process need more)",
            remedy="raise the limit (ulimit -n 4096), or set data.workers=0",
        )
    if is_out_of_memory(error):
        return EnvironmentProblem(
            where,
            found=f"memory ran out ({first_line(error)})",
            expected="enough free memory, and no lower limit (ulimit -v, a container's limit)",
            remedy="close other programs or raise the limit; smaller images, fewer images at "
            "once and fewer worker processes need less",
        )
    if number == errno.EAGAIN or _says(error, _NO_THREADS):
        return EnvironmentProblem(
            where,
            found=f"no further thread or process can be started ({first_line(error)})",
            expected="some 64 threads and processes for this user",
            remedy="raise the limit (ulimit -u, a container's pids limit), or use fewer: "
            "OMP_NUM_THREADS=1 before the command, data.workers=0",
        )
    if _says(error, _NO_SHARED_MEMORY) or _is_of_semaphores(error):
        return EnvironmentProblem(
            where,
            found=f"shared memory cannot be used ({first_line(error)})",
            expected="a writable /dev/shm with room for the batches of the worker processes",
            remedy="data.workers=0 needs no shared memory; in a container give more of it "
            "(docker run --shm-size=8g)",
        )
    return None


def available_memory() -> int | None:
    """Free memory in bytes: of the machine, or the container's limit if that is less.

    None where the system does not tell.
    """
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for name in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(Path(name).read_text(encoding="ascii")))
    return min(found, default=None)


def memory_from_now() -> int:
    """Bytes of this process that are in memory now; its peak starts anew here (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE
    return peak_memory()


def peak_memory() -> int:
    """Maximum number of bytes of this process in memory so far; not under Windows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def missing_memory(needed: int) -> MemoryError | None:
    """The error for work that cannot fit into memory; None where it may fit.

    Systems grant more memory than they have and kill a process when it is used, so work that
    certainly does not fit is refused before.

    Args:
        needed: least number of bytes of the work.
    """
    if needed < _NEVER_REFUSED:
        return None
    available = available_memory()
    if available is None or needed <= available:
        return None
    return MemoryError(
        f"at least {needed / 2**30:,.1f} GiB are needed, {available / 2**30:,.1f} GiB are free"
    )


@contextlib.contextmanager
def readable_machine_problems() -> Iterator[None]:
    """Replace errors of exhausted resources and refused files by messages; for whole commands.

    A closed pipe passes: the reader of the output has ended.

    Raises:
        EnvironmentProblem: in place of the error of a library.
    """
    try:
        yield
    except (CGRSegError, BrokenPipeError):
        raise
    except Exception as error:
        problem = machine_problem(error)
        if problem is not None:
            print_no_memory_errors()
        elif isinstance(error, OSError):
            problem = _file_problem(error)
        if problem is None:
            raise
        raise problem from error


def raise_machine_problem(error: BaseException, where: object) -> None:
    """Raise the message for an exhausted resource; return for any other error.

    For readers that call a file damaged when a library fails on it.

    Raises:
        EnvironmentProblem: memory, open files, threads or shared memory are exhausted.
    """
    problem = machine_problem(error, where)
    if problem is not None:
        raise problem from error


def _file_problem(error: OSError) -> CGRSegError:
    where = "a file or stream of this command" if error.filename is None else error.filename
    if error.errno in _CANNOT_WRITE:
        return writing_problem(where, error)
    return EnvironmentProblem(
        where,
        found=f"the system refuses it ({error.strerror or error})",
        expected="a file or folder that this user may read, and write where results go",
        remedy="check that it exists, its permissions, and those of the folders above it",
    )


def _is_of_semaphores(error: BaseException) -> bool:
    """Whether an error comes from Python's semaphores, which use shared memory."""
    if not isinstance(error, OSError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-2:] == _SEMAPHORES for frame in frames)


def _says(error: BaseException, parts: tuple[str, ...]) -> bool:
    # OpenCV and ONNX Runtime have their own error types, derived from Exception.
    foreign = type(error).__module__.partition(".")[0] not in ("builtins", "cgrseg")
    if not isinstance(error, _WRAPPERS) and not foreign:
        return False
    text = str(error).lower()
    return any(part in text for part in parts)


def first_line(error: BaseException) -> str:
    """First line of an error's text, at most 300 characters; its type where there is no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
