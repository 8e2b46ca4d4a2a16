"""Progress with the time left: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgrseg.evaluation.loop import Progress

_LOG_EVERY = 30.0  # seconds between lines where there is no terminal


@contextlib.contextmanager
def shown_progress(what: str, enabled: bool = True) -> Iterator[Progress | None]:
    """Give a callable (done, total) that shows how far things are.

    Args:
        what: in a word, before the numbers.
        enabled: False gives None, for processes that should be quiet.
    """
    if not enabled:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun = time.monotonic()
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(what, total=None, rate="")

        def show(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - begun, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f} images/s")

        yield show


class _Lines:
    """The same for a log file."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < _LOG_EVERY and done < total:
            return
        self._last = now
        rate = done / max(now - self._begun, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        print(
            f"{self._what}: {done}/{total}, {rate:.1f} images/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
