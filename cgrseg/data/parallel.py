"""Apply a function to many items in several processes or threads, with progress.

Processes are spawned, not forked: OpenCV's and PyTorch's thread pools do not survive a fork.  A
spawned process takes seconds to import the package, so short work stays in the calling process.
It also runs the calling script again, so a training uses threads.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from cgrseg.cpus import usable_cpus
from cgrseg.errors import EnvironmentProblem
from cgrseg.processes import end_with_parent, ignore_signals
from cgrseg.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_A_PROCESS = 512
_CHUNK = 8


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    threads: bool = False,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    Args:
        function: importable by a new process (no lambda, no closure) unless `threads`.
        items: picklable unless `threads`.
        workers: number of workers; 0 or 1: this thread; None: one per CPU that this process may
            use, and this process alone when there are fewer than 512 items.
        threads: threads of this process instead of processes.
        progress: called with (done, total) after each item.

    Raises:
        EnvironmentProblem: a worker process was killed from outside.
    """
    total = len(items)
    if workers is None:
        workers = usable_cpus() if threads or total >= _WORTH_A_PROCESS else 1
    workers = min(workers, (total + _CHUNK - 1) // _CHUNK)
    pool: concurrent.futures.Executor | None = None
    if workers > 1 and threads:
        pool = concurrent.futures.ThreadPoolExecutor(workers)
    elif workers > 1:
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker
        )
    try:
        results = pool.map(function, items, chunksize=_CHUNK) if pool else map(function, items)
        for done, result in enumerate(results, start=1):
            yield result
            if progress:
                progress(done, total)
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            "a worker process",
            found="it was killed from outside, most likely because memory ran out, or it "
            "could not start because the calling script has no __main__ guard",
            expected=f"{workers} processes that finish",
            remedy="run the same again with fewer workers (1 needs no processes); a script of "
            "your own must call this below `if __name__ == '__main__':`",
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    ignore_signals()
    end_with_parent()
    import cv2

    cv2.setNumThreads(1)
