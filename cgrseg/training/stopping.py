"""Ending a training early without losing it: SIGTERM, SIGUSR1 and Ctrl-C.

The signal only raises a flag; the loop sees it after the step under way, agrees on it
with the other processes, writes a checkpoint and ends.  During an evaluation, which
may take minutes, the checkpoint of that iteration is already on disk, so the signal
ends the evaluation at once.  A second Ctrl-C, a second later or more, ends the process
without ceremony; one that follows at once is the same one, handed on by `torchrun`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from cgrseg.distributed import Exchange

#: SIGUSR1 is what batch systems are often told to send some time before the end.
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
_AGAIN = 1.0  # seconds after which a second Ctrl-C is meant as such


class StopNow(BaseException):
    """Ends an evaluation from within a signal handler.

    Not an :class:`Exception`, so that no `except Exception` on the way swallows it.
    """


class GiveUp(BaseException):
    """A second Ctrl-C.  Not KeyboardInterrupt, for which Lightning ends the process itself."""


class StopRequest:
    """Whether somebody asked this run to end.

    Args:
        exchange: talk with the other processes.

    Attributes:
        received: the signal that came to this process, or none.
        last_agreed: the one that all processes last agreed on.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.received: signal.Signals | None = None
        self.last_agreed: signal.Signals | None = None
        self._exchange = exchange
        self._when = 0.0
        self._interruptible = False
        self._settled = False

    @contextlib.contextmanager
    def listening(self, *, at_once: bool = True) -> Iterator[None]:
        """Take the signals in this block, and give them back to whoever had them.

        Args:
            at_once: from its beginning, rather than from :meth:`take_signals` on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        if at_once:
            self.take_signals()
        else:
            self.let_launcher_end_this()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take_signals(self) -> None:
        """Answer the signals here (main thread only; elsewhere nothing happens).

        Once more when training starts, since Lightning puts a handler of its own before.
        """
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def let_launcher_end_this(self) -> None:
        """Let SIGTERM end this process while it waits for the others to join.

        When one of them has failed before that, the launcher ends the rest; a handler, such as
        Lightning's, would not run before the wait is over.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = signal.Signals(number), now
        elif number == signal.SIGINT and now - self._when > _AGAIN:
            raise GiveUp
        if self._interruptible:
            self._interruptible = False  # once: a second one would end the clean-up of the first
            raise StopNow

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal raise :class:`StopNow` in this block, until :meth:`settle`.

        Every process that enters calls :meth:`settle` once, or is stopped before.
        """
        self._interruptible, self._settled = True, False
        try:
            if self.received is not None:
                raise StopNow
            yield
        except StopNow:
            self._interruptible = False
            if not self._settled:
                self._settled = True
                self.agreed()  # those who were not stopped ask in `settle`
            raise
        finally:
            self._interruptible = False

    def settle(self) -> None:
        """Agree that nobody was asked to stop; from here on signals wait for the next step.

        Raises:
            StopNow: somebody was.
        """
        self._interruptible = False
        self._settled = True
        if self.agreed() is not None:
            raise StopNow

    def agreed(self) -> signal.Signals | None:
        """The signal that any process received; every process asks at the same step."""
        found = self._exchange.largest(0 if self.received is None else int(self.received))
        self.last_agreed = signal.Signals(found) if found else None
        return self.last_agreed
