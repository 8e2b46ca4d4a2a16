"""Work done at the same time: reading ahead of the network, writing behind it.

Decoding and encoding of pictures leave Python to the others, so that threads are enough.
Both keep a bounded number of items, whatever the length of the input.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar, cast

T = TypeVar("T")
_WAIT = 0.1  # seconds between looks at whether the reader of a full queue has left


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, taken in a thread of their own while earlier ones are used.

    Args:
        items: what to take; its errors are raised here, in their place.
        depth: most items that wait, at least 1.
    """
    waiting: queue.Queue[tuple[bool, object]] = queue.Queue(maxsize=depth)
    left = threading.Event()
    end = object()

    def offer(fine: bool, item: object) -> bool:
        while not left.is_set():
            try:
                waiting.put((fine, item), timeout=_WAIT)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not offer(True, item):
                    return
        except BaseException as error:  # raised again where the items are used
            offer(False, error)
        else:
            offer(True, end)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    try:
        thread.start()
        while True:
            fine, item = waiting.get()
            if not fine:
                raise cast(BaseException, item)
            if item is end:
                return
            yield cast(T, item)
    finally:
        left.set()
        if thread.ident is not None:  # else a signal came before it began
            thread.join()


class Behind:
    """Jobs that run in threads while the caller goes on; an error of one ends the work.

    Used as a context manager: leaving it waits for all jobs.  A job's error is raised by
    the next :meth:`add`, or on leaving; jobs that have not begun are then dropped.

    Args:
        threads: that work; 1 keeps the jobs in their order.
        waiting: most jobs under way or waiting; :meth:`add` blocks beyond that.
    """

    def __init__(self, threads: int = 1, waiting: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write-behind")
        self._jobs: deque[Future[Any]] = deque()
        self._waiting = waiting

    def add(self, job: Callable[..., object], *arguments: object) -> None:
        """Run `job(*arguments)` soon."""
        while self._jobs and (len(self._jobs) >= self._waiting or self._jobs[0].done()):
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(job, *arguments))

    def finish(self) -> None:
        """Wait until all jobs so far are done."""
        while self._jobs:
            self._jobs.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
