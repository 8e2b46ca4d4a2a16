"""What a run says: lines on the screen, and in `train.log` the same lines and every warning.

The log exists once the run's folder does, which is made only when nothing can be refused any
more; what is said before is kept and written then.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cgrseg.files import explained, refuse_moved

LOG = "train.log"

# Where our own warnings and those of Lightning are logged.
_LOGGERS = ("cgrseg", "lightning.pytorch", "lightning.fabric")


def print_line(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


class Transcript:
    """Lines and warnings of one run.

    Args:
        active: false in every process but the first: then nothing is shown or written.

    Attributes:
        show: prints a line; a progress bar puts its own way in here.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.show: Callable[[str], None] = print_line
        self._early: list[str] = []
        self._log: Path | None = None
        self._recording = False

    def say(self, text: str) -> None:
        """Print a line and add it to the log."""
        if self.active:
            self.keep(text)
            self.show(text)

    def keep(self, text: str) -> None:
        """Add a line to the log alone.

        Raises:
            EnvironmentProblem: the log cannot be written.
        """
        if not self.active:
            return
        stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self._early.append(f"{stamp} {text}\n")
        if self._log is not None:
            refuse_moved(self._log)
            lines, self._early = self._early, []
            with explained(self._log), self._log.open("a", encoding="utf-8") as stream:
                stream.writelines(lines)

    def write_to(self, log: Path) -> None:
        """Write what was said so far, and from now on each line at once, into a file."""
        self._log = log

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Add every warning that this block shows to the log: Python's and logged ones."""
        if self._recording or not self.active:
            yield
            return
        shown, handler = warnings.showwarning, _Recorder(self)

        def record(message: Warning | str, *rest: Any, **named: Any) -> None:
            handler.keep(str(message))
            shown(message, *rest, **named)  # type: ignore[arg-type]

        self._recording, warnings.showwarning = True, record
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield
        finally:
            self._recording = False
            if warnings.showwarning is record:
                warnings.showwarning = shown
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(handler)


class _Recorder(logging.Handler):
    """Puts warnings into a transcript; shows those that nobody else would show."""

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(logging.WARNING)
        self._transcript = transcript
        # Without any handler Python prints warnings by itself; this one must not end that.
        self._alone = not logging.getLogger("cgrseg").hasHandlers()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.keep(text)
        if self._alone and record.name.startswith("cgrseg"):
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def keep(self, text: str) -> None:
        with contextlib.suppress(Exception):  # a full disk is met, and said, at the next line
            self._transcript.keep(f"warning: {text}")
