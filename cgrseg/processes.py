"""How processes end: signals become exceptions, and no child outlives its parent.

A command runs inside :func:`ending_by_signals`.  There SIGTERM, SIGHUP and Ctrl-C raise an
exception in the main thread, so that every `finally` on the way removes what is half done;
the exit status is 128 plus the number of the signal.  A training answers signals itself
(:mod:`cgrseg.training.stopping`).  Nothing here changes a program that imports the package.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_ENDING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
_AGAIN = 1.0  # seconds after which a second Ctrl-C is meant as such, and not handed on
_RAISED_AGAIN = 0.05  # seconds until a signal that Python swallowed is raised again
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LOOK = 0.5  # seconds between two looks at the parent, where the system does not tell


class Terminated(SystemExit):
    """A signal ends this process; no :class:`Exception`, so that no `except` on the way takes it.

    Ctrl-C raises KeyboardInterrupt first, as usual.
    """


class _Signals:
    """Signals of this process: what came, whether it may raise now, and whether it was told."""

    received: signal.Signals | None = None
    when = 0.0
    held_back = 0
    pending = False
    told = False


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    # One signal is enough; more of them would end the clean-up that the first one began.
    again = number == signal.SIGINT and now - _Signals.when > _AGAIN
    if _Signals.received is not None and not again:
        return
    _Signals.received, _Signals.when = signal.Signals(number), now
    if _Signals.held_back:
        _Signals.pending = True
    else:
        _raise(_Signals.received)


def _raise(number: signal.Signals) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


def _raise_again(unraisable: Any) -> None:
    """Raise a signal again whose exception came up where Python ignores exceptions.

    That is in a finalizer, or in a callback of the garbage collector or of a fork.
    """
    if not isinstance(unraisable.exc_value, (Terminated, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)
        return
    number = _Signals.received or signal.SIGINT
    _Signals.received = None

    def send() -> None:
        if sys.platform == "win32":
            signal.raise_signal(number)
        else:  # to the main thread itself, which may sleep
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    again = threading.Timer(_RAISED_AGAIN, send)
    again.daemon = True
    with contextlib.suppress(RuntimeError):  # the interpreter ends already
        again.start()


def _end_at_once() -> None:
    """Let Ctrl-C end the process without a trace while the interpreter shuts down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """Let signals end the work of this block in order (main thread only).

    Raises:
        Terminated: with the status 128 plus the number of the signal that came, whatever the
            block made of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.received, _Signals.pending, _Signals.told = None, False, False
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    before = {}
    for number in _ENDING:
        handler = signal.getsignal(number)
        # `nohup` and shells in the background ask for a signal to be ignored.
        if handler is not None and handler is not signal.SIG_IGN:
            before[number] = signal.signal(number, _handle)
    try:
        yield
    except BaseException as error:
        received = _Signals.received
        if received is None:
            raise
        if isinstance(error, (Terminated, KeyboardInterrupt)) and not _Signals.told:
            by = "" if received == signal.SIGINT else f" by {received.name}"
            print(f"\nstopped{by}", file=sys.stderr, flush=True)
        _Signals.told = True
        raise Terminated(128 + received) from None
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGINT in before:
            atexit.unregister(_end_at_once)
            atexit.register(_end_at_once)  # the last one to be registered is called first


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Let signals wait until the end of this block, which is short.

    For steps that belong together, such as making a file and noting that it must be removed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.held_back += 1
    try:
        yield
    finally:
        _Signals.held_back -= 1
        if _Signals.pending and not _Signals.held_back and _Signals.received is not None:
            _Signals.pending = False
            _raise(_Signals.received)


@contextlib.contextmanager
def signals_end_at_once() -> Iterator[None]:
    """Let SIGTERM end this process without ceremony in this block (main thread only).

    For waiting in native code, where no handler of Python runs before the wait is over.
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
    """End this process as soon as its parent has ended, however that was (kill -9 too).

    Args:
        parent: process id of the parent; None: of the process that `multiprocessing` says.
    """
    known = multiprocessing.parent_process()
    if parent is None:
        if known is None:
            return
        parent = known.pid
    # A fork server starts processes for another one: then the real parent is watched.
    direct = hasattr(os, "getppid") and os.getppid() == parent
    if direct and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before this was asked for
            os._exit(1)
        return

    def watch() -> None:
        if known is not None:
            known.join()
        while known is None and direct and os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(1)

    if known is not None or hasattr(os, "getppid"):
        threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def ignore_signals() -> None:
    """Leave signals to the parent, which answers them (in a child process that ends with it).

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 reach every process of a terminal or a batch job.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
