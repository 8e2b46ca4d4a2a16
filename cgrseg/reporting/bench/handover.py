"""A way of predicting handed to another process: its name, the network, the setting."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import cv2
import torch

from cgrseg.errors import CGRSegError
from cgrseg.models import CGRSeg
from cgrseg.processes import end_with_parent
from cgrseg.reporting.bench.subjects import Setting, Subject, make_subject

_REASON, _END = "cgrseg cannot go on: ", "(end of the reason)"


def write_network(model: CGRSeg, file: Path) -> None:
    """Write a network so that :func:`subject_of` can build it again."""
    torch.save({"state": model.state_dict(), "options": model.options()}, file)


def job_of(subject: str, weights: Path, setting: Setting) -> str:
    """What the other process is told, as JSON.

    Args:
        subject: a name that :func:`~cgrseg.reporting.bench.subjects.make_subject` knows.
        weights: a file of :func:`write_network`.
        setting: of the run.
    """
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


def subject_of(text: str) -> tuple[Subject, Setting]:
    """Build the subject of a job in this process, with as many threads as the other has."""
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


def command_of(function: Callable[[str, TextIO], None], job: str) -> list[str]:
    """What starts a process that calls a function of a module with a job, see :func:`child`."""
    # With this process's module path: the working folder may hold foreign modules.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from cgrseg.reporting.bench.handover import child; "
        f"from {function.__module__} import {function.__name__}; "
        f"child({function.__name__}, sys.argv[1], int(sys.argv[2]))"
    )
    return [sys.executable, "-c", program, job, str(os.getpid())]


def child(function: Callable[[str, TextIO], None], job: str, parent: int) -> None:
    """Call a function with its job and the stream of its answers, as a process of its own.

    The standard output is for answers alone: whatever libraries print goes to the standard
    error, what they print past Python too.  The process ends with its parent.
    """
    end_with_parent(parent)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        try:
            function(job, answers)
        except CGRSegError as error:
            sys.exit(f"{_REASON}{error}\n{_END}")


def reason_in(said: str) -> str:
    """Why a child ended, from what it wrote to its standard error."""
    if _REASON in said:
        lines = said.rpartition(_REASON)[2].partition(_END)[0].splitlines()
        return "; ".join(line.strip() for line in lines if line.strip())
    return (said.strip().splitlines() or ["no message"])[-1]
