"""Early end of a training by SIGTERM, SIGUSR1 or Ctrl-C, with a checkpoint.

The handler only sets a flag; after the current step the loop agrees on it with the other
processes, writes a checkpoint and ends.  During an evaluation, which may take minutes, the
checkpoint of that iteration is already on disk, so the signal ends the evaluation immediately.
A second Ctrl-C after one second or more aborts the process; an earlier one is the first Ctrl-C,
forwarded by `torchrun`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from cgrseg.distributed import Exchange
from cgrseg.processes import SignalRaised

#: Batch systems are often configured to send SIGUSR1 some time before the end.
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
_SECOND_CTRL_C = 1.0  # seconds; an earlier one is the first Ctrl-C, forwarded


class StopNow(SignalRaised):
    """Ends an evaluation from a signal handler; no `except Exception` catches it."""


class Abort(SignalRaised):
    """A second Ctrl-C. Not KeyboardInterrupt, on which Lightning ends the process itself."""


class StopRequest:
    """Request by a signal to end this run.

    Args:
        exchange: exchange with the other processes.

    Attributes:
        received: signal that this process received, if any.
        last_agreed: signal that all processes agreed on last, if any.
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
        """Handle the signals in this block, then restore the earlier handlers.

        Args:
            at_once: from the start of the block, not only from :meth:`take_signals` on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        if at_once:
            self.take_signals()
        else:
            self.end_on_sigterm()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take_signals(self) -> None:
        """Install the handlers (main thread only; no effect in other threads).

        Called again when training starts, because Lightning has installed its own by then.
        """
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def end_on_sigterm(self) -> None:
        """Let SIGTERM end this process while it waits for the others to join.

        If one of them has failed, the launcher ends the rest; a Python handler would not run
        before the wait is over.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = signal.Signals(number), now
        elif number == signal.SIGINT and now - self._when > _SECOND_CTRL_C:
            raise Abort(signal.Signals(number))
        if self._interruptible:
            self._interruptible = False  # once: a second one would end the first one's clean-up
            raise StopNow(signal.Signals(number), self._raise_once_more)

    def _raise_once_more(self) -> None:
        """Let the next signal raise again, since Python ignored what this one raised."""
        self._interruptible = not self._settled

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal raise :class:`StopNow` in this block, until :meth:`settle`.

        Every process calls :meth:`settle` once, or is stopped before.
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
                self.agreed()  # the other processes ask in `settle`
            raise
        finally:
            self._interruptible = False

    def settle(self) -> None:
        """Agree that no process was asked to stop; later signals wait for the next step.

        Raises:
            StopNow: a process was asked to stop.
        """
        self._interruptible = False
        self._settled = True
        if self.agreed() is not None:
            raise StopNow

    def agreed(self) -> signal.Signals | None:
        """The signal that any process received; all processes call this at the same step."""
        found = self._exchange.largest(0 if self.received is None else int(self.received))
        self.last_agreed = signal.Signals(found) if found else None
        return self.last_agreed
