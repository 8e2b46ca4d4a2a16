"""Ending a training early without losing it: SIGTERM and Ctrl-C.

The signal only raises a flag; the loop sees it after the step under way, agrees on it
with the other processes, writes a checkpoint and ends.  During an evaluation, which
may take minutes, the checkpoint of that iteration is already on disk, so the signal
ends the evaluation at once.  A second Ctrl-C ends the process without ceremony.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopNow(BaseException):
    """Ends an evaluation from within a signal handler.

    Not an :class:`Exception`, so that no `except Exception` on the way swallows it.
    """


class StopRequest:
    """Whether somebody asked this run to end.

    Attributes:
        received: the signal that came, or none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interruptible = False
        self._group: Any = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over the signals (main thread only; elsewhere nothing happens)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if self._interruptible:
            raise StopNow

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal raise :class:`StopNow` in this block."""
        self._interruptible = True
        try:
            if self.received is not None:
                raise StopNow
            yield
        finally:
            self._interruptible = False

    def agreed(self) -> bool:
        """Whether any process was asked to end; every process calls it at the same step.

        Goes through a group of its own on the CPU, so it does not make a GPU wait.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received is not None
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        flag = torch.tensor([int(self.received is not None)])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag.item())
