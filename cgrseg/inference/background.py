"""Threads that read ahead of the network, run it on several images and write behind it.

Threads are enough: decoding and encoding release Python's lock.  Both parts hold a bounded number
of items, whatever the length of the input.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar, cast

T = TypeVar("T")
Result = TypeVar("Result")
_WAIT = 0.1  # seconds between checks whether the reader of a full queue has left


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, produced in a thread while earlier items are used.

    Args:
        items: iterated once; its errors are raised here, in their place.
        depth: maximum number of waiting items, at least 1.
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
        if thread.ident is not None:  # None: a signal came before the thread began
            thread.join()


def map_in_threads(
    function: Callable[[T], Result], items: Iterable[T], threads: int
) -> Generator[Result, None, None]:
    """`function(item)` of every item, in order, computed by several threads.

    Args:
        function: called by the threads.
        items: iterated here, a few items ahead; an error of theirs is raised in its place, after
            the results of the items before it.
        threads: number of threads, and maximum number of finished results that wait.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="label")
    failure: Exception | None = None
    source = iter(items)
    try:
        while failure is None:
            try:
                waiting.append(pool.submit(function, next(source)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Budget:
    """Room that threads share: one of them waits while the others hold too much.

    Args:
        amount: held by all threads together; a thread that asks for more gets it alone.
    """

    def __init__(self, amount: int) -> None:
        self._amount = amount
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Generator[None, None, None]:
        """Wait until there is room for this amount, and hold it for the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self._amount)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


class BackgroundWriter:
    """Threads that run jobs while the caller goes on.

    A context manager: leaving it waits for all jobs.  The error of a job is raised by the next
    :meth:`add` or on leaving; jobs that have not begun are then dropped.

    Args:
        threads: number of threads; 1 keeps the jobs in order.
        waiting: maximum number of unfinished jobs; :meth:`add` blocks beyond it.
    """

    def __init__(self, threads: int = 1, waiting: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write-behind")
        self._jobs: deque[Future[Any]] = deque()
        self._waiting = waiting

    def add(self, job: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Run `job(*arguments)` soon."""
        while self._jobs and (len(self._jobs) >= self._waiting or self._jobs[0].done()):
            self._jobs.popleft().result()
        added = self._pool.submit(job, *arguments)
        self._jobs.append(added)
        return added

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while kind is None and self._jobs:
                self._jobs.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
