"""A subject in a process of its own, which times its work or measures its memory when asked.

Subjects that share a process share what changes their speed: thread pools, and the C library's
cache of freed memory, which our networks turn on and the plain path then profits from.  In
processes of their own they still take turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import torch

from cgrseg.bench.subjects import Setting, Subject, make_subject
from cgrseg.bench.timing import Clock, Work, subject_stopwatch
from cgrseg.errors import CGRSegError, EnvironmentProblem
from cgrseg.models import CGRSeg
from cgrseg.processes import end_with_parent
from cgrseg.surroundings import memory_from_now, peak_memory

_REASON, _END = "cgrseg cannot go on: ", "(end of the reason)"
_MEMORY_IMAGES = 4


@dataclass(frozen=True)
class Memory:
    """Memory of one process in bytes (GPU memory where it runs on a GPU).

    Attributes:
        loaded: with the network loaded and nothing predicted.
        peak: maximum while images are predicted.
    """

    loaded: int
    peak: int

    @property
    def grown(self) -> int:
        """Memory that predicting adds."""
        return max(0, self.peak - self.loaded)


def memory_is_known(device: torch.device) -> bool:
    """Whether the memory of a process can be read here: not on a CPU under Windows."""
    return device.type == "cuda" or importlib.util.find_spec("resource") is not None


class SubjectProcess:
    """One subject in a process, which ends with the `with` block.

    Args:
        subject: a name that :func:`~cgrseg.bench.subjects.make_subject` knows.
        weights: file of :func:`write_network`, in a folder that stays as long as the process,
            which also keeps there what it prints.
        setting: settings of the run.
    """

    def __init__(self, subject: str, weights: Path, setting: Setting) -> None:
        self._subject = subject
        # With this process's module path: the working folder may hold foreign modules.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import child; child(sys.argv[1], int(sys.argv[2]))"
        )
        job = job_of(subject, weights, setting)
        # Messages go to a file: a pipe that nobody reads would fill up and block the process.
        with tempfile.NamedTemporaryFile("w", dir=weights.parent, delete=False) as messages:
            self._messages = Path(messages.name)
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, job, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )

    def __enter__(self) -> SubjectProcess:
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
        """Wait until the subject is ready; errors as for :meth:`seconds`."""
        self._answer()

    def seconds(self, work: Work, batch: int, clock: Clock) -> float:
        """Do the work twice and return the seconds of the second time; after :meth:`wait`.

        Raises:
            EnvironmentProblem: the process failed; its last message is in the error.
        """
        return float(self._ask([work, batch, clock]))

    def memory(self) -> Memory:
        """Predict a few images and return the memory; once, after :meth:`wait`, errors as above."""
        return Memory(*self._ask(None))

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a process that ended: its answer is missing too
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if answer:
            return json.loads(answer)
        status = self._process.wait()
        reason = reason_in(self._messages.read_text(errors="replace"))
        raise EnvironmentProblem(
            f"measuring {self._subject}",
            found=f"its process ended with status {status}: {reason}",
            expected="a process that predicts when it is asked to",
            remedy="free memory, or leave this subject out",
        )


def measure_memory(subject: str, model: CGRSeg, setting: Setting) -> Memory:
    """Measure the memory of a subject in a new process.

    Raises:
        EnvironmentProblem: the process failed; its last message is in the error.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.pt"
        write_network(model, weights)
        with SubjectProcess(subject, weights, setting) as process:
            process.wait()
            return process.memory()


def write_network(model: CGRSeg, file: Path) -> None:
    """Write a network for :func:`read_job`."""
    torch.save({"state": model.state_dict(), "options": model.options()}, file)


def job_of(subject: str, weights: Path, setting: Setting) -> str:
    """What a process gets, as JSON: subject, file of the network, settings, threads."""
    return json.dumps(
        {
            "subject": subject,
            "weights": str(weights),
            "size": setting.size,
            "device": str(setting.device),
            "folder": None if setting.folder is None else str(setting.folder),
            "batches": setting.batches,
            "warm_up": setting.warm_up,
            "trust_code": setting.trust_code,
            "threads": torch.get_num_threads(),
            "opencv_threads": cv2.getNumThreads(),
        }
    )


def read_job(text: str) -> tuple[Subject, Setting]:
    """Build the subject of a job in this process, with as many threads as in the first one."""
    job: dict[str, Any] = json.loads(text)
    torch.set_num_threads(int(job["threads"]))
    cv2.setNumThreads(int(job["opencv_threads"]))
    stored = torch.load(str(job["weights"]), weights_only=True)
    model = CGRSeg(**stored["options"]).eval()
    model.load_state_dict(stored["state"])
    del stored
    height, width = (int(side) for side in job["size"])
    setting = Setting(
        (height, width),
        torch.device(job["device"]),
        Path(job["folder"]) if job["folder"] else None,
        tuple(int(batch) for batch in job["batches"]),
        warm_up=bool(job["warm_up"]),
        trust_code=bool(job["trust_code"]),
    )
    return make_subject(str(job["subject"]), model, setting), setting


def child(job: str, parent: int) -> None:
    """Serve a job as a process of its own, which ends with its parent.

    The standard output is for answers alone: whatever libraries print goes to the standard
    error, also what they print past Python.
    """
    end_with_parent(parent)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        try:
            serve(job, answers)
        except CGRSegError as error:
            sys.exit(f"{_REASON}{error}\n{_END}")


def serve(job: str, answers: TextIO) -> None:
    """Build the subject, say so, then answer every line of the standard input, all in JSON."""
    subject, setting = read_job(job)
    print(json.dumps("ready"), file=answers, flush=True)
    prepared: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if question is None:
            memory = _watch(subject, setting)
            print(json.dumps([memory.loaded, memory.peak]), file=answers, flush=True)
            continue
        if line not in prepared:
            work, batch, clock = question
            prepared[line] = subject_stopwatch(subject, work, batch, setting, clock)
        print(json.dumps(prepared[line]()), file=answers, flush=True)


def reason_in(messages: str) -> str:
    """Why a process ended, from what it wrote to its standard error."""
    if _REASON in messages:
        lines = messages.rpartition(_REASON)[2].partition(_END)[0].splitlines()
        return "; ".join(line.strip() for line in lines if line.strip())
    return (messages.strip().splitlines() or ["no message"])[-1]


def _watch(subject: Subject, setting: Setting) -> Memory:
    """Predict a few images and read the memory of this process before and in between."""
    (height, width), device = setting.size, setting.device
    images = torch.randn(
        setting.batches[0], 3, height, width, generator=torch.Generator().manual_seed(0)
    ).to(device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        loaded = torch.cuda.memory_allocated(device)
    else:
        loaded = memory_from_now()
    with torch.inference_mode():
        for _ in range(_MEMORY_IMAGES):
            subject.decode(subject.logits(images))
    return Memory(loaded, torch.cuda.max_memory_allocated(device) if on_gpu else peak_memory())
