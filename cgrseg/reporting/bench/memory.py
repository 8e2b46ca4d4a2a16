"""Memory that a way of predicting adds to the loaded network, in a process of its own.

The child loads everything (a compiled network from disk), notes what the process holds,
predicts a few images and notes the highest value in between.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch

from cgrseg.errors import EnvironmentProblem
from cgrseg.models import CGRSeg
from cgrseg.reporting.bench.handover import (
    command_of,
    job_of,
    reason_in,
    subject_of,
    write_network,
)
from cgrseg.reporting.bench.subjects import Setting

_IMAGES = 4


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes (of the GPU where it runs there).

    Attributes:
        loaded: with the network loaded and nothing predicted.
        peak: the highest while images are predicted.
    """

    loaded: int
    peak: int

    @property
    def grown(self) -> int:
        """What predicting adds."""
        return max(0, self.peak - self.loaded)


def memory_is_known(device: torch.device) -> bool:
    """Whether the memory of a process can be read here: not on a CPU under Windows."""
    return device.type == "cuda" or importlib.util.find_spec("resource") is not None


def measure_memory(
    subject: str,
    model: CGRSeg,
    size: tuple[int, int],
    *,
    device: torch.device,
    folder: Path | None,
    batch: int = 1,
    trust_code: bool = False,
) -> Memory:
    """Run a subject in a child process and watch its memory.

    Args:
        subject: a name that :func:`~cgrseg.reporting.bench.subjects.make_subject` knows.
        model: its weights are handed over in a temporary file.
        size: height and width in pixels.
        device: where to run.
        folder: of compiled networks, which should hold the one that is needed.
        batch: images at once.
        trust_code: run the machine code of compiled packages.

    Raises:
        EnvironmentProblem: the child failed; its last words are in the message.
    """
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "model.pt"
        write_network(model, weights)
        setting = Setting(size, device, folder, (batch,), warm_up=False, trust_code=trust_code)
        done = subprocess.run(
            command_of(watch, job_of(subject, weights, setting)),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode:
        reason = reason_in(done.stderr)
        raise EnvironmentProblem(
            f"memory of {subject}",
            found=f"the measuring process ended with status {done.returncode}: {reason}",
            expected="a process that predicts a few images",
            remedy="free memory, or leave this subject out",
        )
    return Memory(**json.loads(done.stdout))


def _held() -> int:
    """Bytes of this process that are in memory now."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE
    return _highest()


def _forget_highest() -> None:
    """Let the highest value start anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _highest() -> int:
    """The highest value so far in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource  # Windows has none, see `memory_is_known`

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def watch(job: str, answers: TextIO) -> None:
    """Build the subject, predict a few images, and answer with the memory that it took."""
    subject, setting = subject_of(job)
    (height, width), (batch,), device = setting.size, setting.batches, setting.device
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        loaded = torch.cuda.memory_allocated(device)
    else:
        _forget_highest()
        loaded = _held()
    with torch.inference_mode():
        for _ in range(_IMAGES):
            subject.decode(subject.logits(images))
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _highest()
    print(json.dumps(asdict(Memory(loaded, peak))), file=answers)
