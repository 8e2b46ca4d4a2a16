"""Messages of commands and scripts on standard error: problems, warnings, log lines."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from cgrseg.errors import CGRSegError
from cgrseg.processes import is_first_process, process_rank

_FIRST_PRINTS_WITHIN = 20.0  # seconds


def report_problem(error: CGRSegError) -> None:
    """Print a problem on standard error; the first process prints one that all processes have."""
    rank = process_rank()
    if rank and error.in_all_processes:
        # A launcher ends all processes as soon as one has ended, so the first process must print
        # before that. A process that is still running then had a problem of its own.
        time.sleep(_FIRST_PRINTS_WITHIN)
    where = f"[process {rank}] " if rank else ""
    print(f"{where}error: {error}", file=sys.stderr, flush=True)


class _Plain(logging.Formatter):
    """`warning: message`; information without a prefix."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:  # a bug that did not end the process
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings and log lines of this package as plain lines on standard error.

    Only the first process prints warnings of other packages.  Notices of this package are log
    lines, not Python warnings: `python -W error` does not end the work.
    """
    logger = logging.getLogger("cgrseg")
    if any(isinstance(handler.formatter, _Plain) for handler in logger.handlers):
        yield  # inside another command, which prints them
        return

    def show(message: Warning | str, *_rest: Any, **_named: Any) -> None:
        if is_first_process():
            print(f"warning: {message}", file=sys.stderr, flush=True)

    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextlib.contextmanager
def native_output_hidden() -> Iterator[None]:
    """Hide what libraries write to standard output and standard error, native ones included.

    For libraries that print their progress; their errors are exceptions.
    """
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "wb"))
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            os.dup2(null.fileno(), descriptor)
            stack.callback(os.dup2, kept, descriptor)
            stack.callback(stream.flush)  # to nowhere, before the descriptor is back
        yield
