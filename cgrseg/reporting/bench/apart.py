"""A way of predicting in a process of its own, timed there whenever it is asked to run.

Ways that share a process share what changes their speed: pools of threads, and the C library's
keeping of freed memory, which our networks turn on and the plain path then profits from.
Apart, each runs as it would alone, and they still take turns.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from cgrseg.errors import EnvironmentProblem
from cgrseg.reporting.bench.handover import command_of, job_of, reason_in, subject_of
from cgrseg.reporting.bench.subjects import Setting
from cgrseg.reporting.bench.timing import Clock
from cgrseg.reporting.bench.work import Work, stopwatches


class Apart:
    """One subject in its process, which ends with the `with` block.

    Args:
        subject: a name that :func:`~cgrseg.reporting.bench.subjects.make_subject` knows.
        weights: a file of :func:`~cgrseg.reporting.bench.handover.write_network`, in a folder
            that stays as long as the process, which also keeps there what it says.
        setting: of the run.
    """

    def __init__(self, subject: str, weights: Path, setting: Setting) -> None:
        self._subject = subject
        command = command_of(serve, job_of(subject, weights, setting))
        # What it says goes to a file: a pipe that nobody reads would fill up and hold it.
        with tempfile.NamedTemporaryFile("w", dir=weights.parent, delete=False) as said:
            self._said = Path(said.name)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self) -> None:
        """Wait until the subject is ready.

        Raises:
            EnvironmentProblem: as for :meth:`seconds`.
        """
        self._answer()

    def seconds(self, work: Work, batch: int, clock: Clock) -> float:
        """Do the work twice and say how long the second time took; after :meth:`wait`.

        Raises:
            EnvironmentProblem: the process failed; its last words are in the message.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a process that ended: its answer is missing too
            self._process.stdin.write(json.dumps([work, batch, clock]) + "\n")
            self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if answer:
            return answer
        status = self._process.wait()
        reason = reason_in(self._said.read_text(errors="replace"))
        raise EnvironmentProblem(
            f"speed of {self._subject}",
            found=f"its process ended with status {status}: {reason}",
            expected="a process that predicts when it is asked to",
            remedy="free memory, or leave this subject out",
        )


def serve(job: str, answers: TextIO) -> None:
    """Build the subject, say so, then answer every line of the standard input with seconds."""
    subject, setting = subject_of(job)
    print("ready", file=answers, flush=True)
    prepared: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        if line not in prepared:
            work, batch, clock = json.loads(line)
            prepared |= stopwatches({line: subject}, work, batch, setting, clock)
        print(prepared[line](), file=answers, flush=True)
