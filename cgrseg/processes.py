"""Processes of this package: rank and launcher, ending by signals, ending with the parent.

`torchrun` and SLURM's `srun` start the processes of one job; :func:`this_process` reads the
place of this process from the environment.

A command runs inside :func:`ending_by_signals`: SIGTERM, SIGHUP and Ctrl-C raise an exception in
the main thread, so that every `finally` removes unfinished files; the exit status is 128 plus
the number of the signal.  A training handles signals itself (:mod:`cgrseg.training.stopping`).
Importing this module changes nothing in a program.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from cgrseg.errors import EnvironmentProblem

Launcher = Literal["auto", "none", "pytorch", "slurm"]


@dataclass(frozen=True)
class Process:
    """Place of a process among the processes of its job.

    Attributes:
        rank: rank among all processes, from 0; rank 0 prints and writes.
        world_size: number of processes.
        local_rank: rank among the processes of this machine.
        local_world_size: number of processes of this machine.
        launcher: "pytorch" (torchrun), "slurm" (srun), or "none" for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: Launcher = "none"


def this_process() -> Process:
    """Read the place of this process from the variables of its launcher.

    SLURM counts inside `srun` with several tasks only: a batch script and an interactive shell
    see the number of tasks as well, but are one process.

    Raises:
        EnvironmentProblem: a variable is no whole number, or there is a world size without a rank.
    """
    tasks = _number("SLURM_STEP_NUM_TASKS", 1)
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if world > 1 and "RANK" not in os.environ:
        raise EnvironmentProblem(
            "environment variable WORLD_SIZE",
            found=f"{world} processes, but no variable RANK",
            expected="both variables, as torchrun sets them, or none for a single process",
            remedy="unset WORLD_SIZE, or start the processes with torchrun or srun",
        )
    if world > 1:
        # Inside srun the variables may be srun's own (cgrseg.distributed), or torchrun's.
        of_srun = (rank, world) == (_number("SLURM_PROCID", -1), tasks)
        launcher: Launcher = "slurm" if of_srun else "pytorch"
        local_world = _number("LOCAL_WORLD_SIZE", world)
        return Process(rank, world, _number("LOCAL_RANK", 0), local_world, launcher)
    if "RANK" in os.environ or tasks < 2 or os.environ.get("SLURM_JOB_NAME") == "bash":
        return Process()
    machines = _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1))
    local_world = max(1, tasks // max(1, machines))
    local_rank = _number("SLURM_LOCALID", 0)
    return Process(_number("SLURM_PROCID", 0), tasks, local_rank, local_world, "slurm")


def process_rank() -> int:
    """Rank of this process; 0 where a variable is no whole number, so that it prints."""
    with contextlib.suppress(EnvironmentProblem):
        return this_process().rank
    return 0


def is_first_process() -> bool:
    """Whether this process prints and writes; known before the processes have joined."""
    return process_rank() == 0


def job_name() -> str:
    """Name of the job of this process, equal in all of its processes; empty without a job."""
    environment = os.environ
    if _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return f"slurm {environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    world = _number("WORLD_SIZE", 1)
    if world < 2:
        return ""
    # On one machine the host name is added, since every machine may call itself localhost.
    host = socket.gethostname() if environment.get("LOCAL_WORLD_SIZE") == str(world) else ""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(["torchrun", host, str(world), *(environment.get(n, "") for n in names)])


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which takes a tenth of the time and finds nothing.

    In a new process, later collections skip what was there and what was imported.
    """
    new, collecting = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if new:
            gc.freeze()
        if collecting:
            gc.enable()


def _number(name: str, default: int) -> int:
    """Value of a launcher's variable; the default where it is missing or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if text.isascii() and text.isdecimal():
        return int(text)
    raise EnvironmentProblem(
        f"environment variable {name}",
        found=repr(text),
        expected="a whole number, as torchrun and srun set it",
        remedy=f"unset {name}, or start the processes with torchrun or srun",
    )


_ENDING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
_SECOND_CTRL_C = 1.0  # seconds; an earlier one is the first Ctrl-C, forwarded by a launcher
_RESEND_AFTER = 0.05  # seconds until a signal whose exception Python ignored is sent again
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_PARENT_POLL = 0.5  # seconds between two checks of the parent, where the system does not notify


class Terminated(SystemExit):
    """A signal ends this process; not an :class:`Exception`, so no `except Exception` catches it.

    Ctrl-C raises KeyboardInterrupt first, as usual.
    """


class SignalRaised(BaseException):
    """Base class of exceptions that other signal handlers raise (training's, for instance).

    Args:
        number: the signal; None: raised by no handler.
        ignored: called where Python ignored this exception, before the signal is sent again.
    """

    def __init__(
        self, number: signal.Signals | None = None, ignored: Callable[[], object] | None = None
    ) -> None:
        super().__init__()
        self.number = number
        self.ignored = ignored


class _Signals:
    """Signal state of this process: received signal, deferral, and whether it was printed."""

    received: signal.Signals | None = None
    received_at = 0.0
    deferrals = 0
    pending = False
    printed = False


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    # Further signals are ignored: they would end the clean-up that the first one started.
    again = number == signal.SIGINT and now - _Signals.received_at > _SECOND_CTRL_C
    if _Signals.received is not None and not again:
        return
    _Signals.received, _Signals.received_at = signal.Signals(number), now
    if _Signals.deferrals:
        _Signals.pending = True
    else:
        _raise(_Signals.received)


def _raise(number: signal.Signals) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


def _raise_again(unraisable: Any) -> None:
    """Send a signal again whose exception Python ignored: in a finalizer or a callback."""
    error = unraisable.exc_value
    if isinstance(error, SignalRaised) and error.number is not None:
        number = error.number
        if error.ignored is not None:
            error.ignored()
    elif isinstance(error, (Terminated, KeyboardInterrupt)):
        number = _Signals.received or signal.SIGINT
        _Signals.received = None
    else:
        sys.__unraisablehook__(unraisable)
        return

    def send() -> None:
        if sys.platform == "win32":
            signal.raise_signal(number)
        else:  # to the main thread itself, which may sleep
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    again = threading.Timer(_RESEND_AFTER, send)
    again.daemon = True
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
        again.start()


def print_no_memory_errors() -> None:
    """Print no stack trace of a MemoryError in a finalizer, from now until the process ends.

    For a command that ends because memory ran out: finalizers of libraries fail for the same
    reason, which the command has already printed.
    """
    hook, excepthook = sys.unraisablehook, sys.excepthook

    def ignore_unraisable(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, MemoryError):
            hook(unraisable)

    def ignore(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not isinstance(error, MemoryError):  # weakref.finalize calls this hook at exit
            excepthook(kind, error, trace)

    sys.unraisablehook, sys.excepthook = ignore_unraisable, ignore


def _end_at_once() -> None:
    """Let Ctrl-C end the process without a stack trace while the interpreter shuts down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """End the block by an exception when a signal arrives (main thread only).

    Raises:
        Terminated: with status 128 plus the number of the signal, whatever exception the block
            raised after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.received, _Signals.pending, _Signals.printed = None, False, False
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    before = {}
    for number in _ENDING:
        handler = signal.getsignal(number)
        # `nohup` and background shells ask processes to ignore a signal.
        if handler is not None and handler is not signal.SIG_IGN:
            before[number] = signal.signal(number, _handle)
    try:
        yield
    except BaseException as error:
        received = _Signals.received
        if received is None:
            raise
        if isinstance(error, (Terminated, KeyboardInterrupt)) and not _Signals.printed:
            by = "" if received == signal.SIGINT else f" by {received.name}"
            print(f"\nstopped{by}", file=sys.stderr, flush=True)
        _Signals.printed = True
        raise Terminated(128 + received) from None
    finally:
        if sys.unraisablehook is _raise_again:
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGINT in before:
            atexit.unregister(_end_at_once)
            atexit.register(_end_at_once)  # the last registered function is called first


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle signals at the end of this short block, whose steps belong together.

    Example: create a file and register it for removal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.deferrals += 1
    try:
        yield
    finally:
        _Signals.deferrals -= 1
        if _Signals.pending and not _Signals.deferrals and _Signals.received is not None:
            _Signals.pending = False
            _raise(_Signals.received)


@contextlib.contextmanager
def signals_end_at_once() -> Iterator[None]:
    """Let SIGTERM end this process immediately in this block (main thread only).

    For waits in native code: Python runs no signal handler before such a wait is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def end_with_parent(parent: int | None = None) -> None:
    """End this process as soon as its parent has ended, by kill -9 as well.

    Args:
        parent: process id of the parent; None: the parent that `multiprocessing` knows.
    """
    known = multiprocessing.parent_process()
    if parent is None:
        if known is None:
            return
        parent = known.pid
    # A fork server starts processes for another process: that one is watched.
    direct = hasattr(os, "getppid") and os.getppid() == parent
    if direct and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl
            os._exit(1)
        return

    def watch() -> None:
        if known is not None:
            known.join()
        while known is None and direct and os.getppid() == parent:
            time.sleep(_PARENT_POLL)
        os._exit(1)

    if known is not None or hasattr(os, "getppid"):
        threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def ignore_signals() -> None:
    """Ignore signals in a child process that ends with its parent, which handles them.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 reach every process of a terminal or a batch job.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_when_parent_terminates() -> None:
    """End this process at a SIGTERM from its parent; one from elsewhere is ignored (Linux only).

    `multiprocessing` sends it to daemon processes when the interpreter exits, and then waits for
    them.  Threads and processes that this process starts later inherit the blocked signal.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, name="wait-for-sigterm", daemon=True).start()
