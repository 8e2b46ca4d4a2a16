"""Progress with the time left: a bar on a terminal, plain lines otherwise.

Only the first process of a job shows it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cgrseg.processes import is_first_process

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

Progress = Callable[[int, int], None]
"""Receives the number of finished items, and the number of all items."""

_LINE_EVERY = 30.0  # seconds between plain lines


def progress_bar(console: Console) -> RichProgress:
    """A bar with description, count, and the text of the field `text` of its task."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),  # it may hold a file name
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,
    )


@contextlib.contextmanager
def shown_progress(
    what: str, enabled: bool = True, *, unit: str = "images"
) -> Iterator[Progress | None]:
    """Show progress on standard error.

    Args:
        what: description of the work, in one or two words.
        enabled: False shows nothing.
        unit: what is counted.

    Yields:
        A function of (done, total), total 0 where it is unknown; None where nothing is shown.
        What was done before the first call, as of a resumed download, does not count as speed.
    """
    if not enabled or not is_first_process():
        yield None
        return
    from rich.console import Console

    console, begun = Console(stderr=True), time.monotonic()
    before: int | None = None

    def speed_and_rest(done: int, total: int) -> tuple[float, str]:
        nonlocal before
        before = max(done - 1, 0) if before is None else before
        rate = (done - before) / max(time.monotonic() - begun, 1e-9)
        known = rate > 0 and total >= done
        return rate, format_seconds((total - done) / rate if known else float("nan"))

    if not console.is_terminal:
        last = begun

        def print_line(done: int, total: int) -> None:
            nonlocal last
            rate, rest = speed_and_rest(done, total)
            if time.monotonic() - last < (_LINE_EVERY if done < total or not total else 0):
                return
            last = float("inf") if 0 < total <= done else time.monotonic()
            line = f"{what}: {done}/{total or '?'} {unit}, {rate:.1f} {unit}/s, left {rest}"
            print(line, file=sys.stderr, flush=True)

        yield print_line
        return
    with progress_bar(console) as bar:
        task = bar.add_task(what, total=None, text="")

        def move(done: int, total: int) -> None:
            rate, rest = speed_and_rest(done, total)
            text = f"{rate:.1f} {unit}/s  left {rest}"
            bar.update(task, completed=done, total=total or None, text=text)

        yield move


def format_seconds(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`; `?` when unknown (NaN)."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
