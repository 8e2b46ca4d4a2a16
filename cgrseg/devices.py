"""Devices, CPU threads and freed memory of a process."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2

from cgrseg.cpus import usable_threads
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.processes import this_process

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger("cgrseg.training")

MOST_THREADS = 1024
"""More threads than any CPU has; the system refuses to start many more."""

_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Parameters of mallopt and their values, from glibc's malloc.h: M_MMAP_THRESHOLD (larger blocks
# still go straight back; glibc allows no more), M_TRIM_THRESHOLD (memory kept), M_TOP_PAD.
_KEEP_SOME = ((-3, 32 << 20), (-1, 128 << 20), (-2, 16 << 20))
# M_MMAP_MAX (no block of its own for large sizes), M_TRIM_THRESHOLD (all memory kept), M_TOP_PAD.
_KEEP_ALL = ((-4, 0), (-1, -1), (-2, 64 << 20))
_MMAP_MAX = (-4, 1 << 16)  # glibc's default


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads of OpenCV, and of PyTorch if loaded, for the whole process.

    Args:
        threads: 1 to `MOST_THREADS`; None: no more than the process may use
            (:func:`~cgrseg.cpus.usable_threads`), fewer stay as they are.

    Raises:
        ConfigError: another number.
    """
    torch_module = sys.modules.get("torch")
    libraries = [(cv2.getNumThreads, cv2.setNumThreads)]
    if torch_module is not None:
        libraries.append((torch_module.get_num_threads, torch_module.set_num_threads))
    if threads is None:
        usable = usable_threads()
        for current, change in libraries:
            if current() > usable:
                change(usable)
        return
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(
            "threads",
            found=str(threads),
            expected=f"1 to {MOST_THREADS}",
            remedy="leave it out to use all cores of this process",
        )
    for _, change in libraries:
        change(threads)


def cpu_threads() -> int:
    """Number of CPU threads of this process: PyTorch's where it is loaded, else OpenCV's."""
    torch_module = sys.modules.get("torch")
    if torch_module is not None:
        return int(torch_module.get_num_threads())
    return int(cv2.getNumThreads())


@contextlib.contextmanager
def fewer_threads(threads: int) -> Iterator[None]:
    """Give PyTorch, if loaded, some threads per computation, and OpenCV one (whole process)."""
    torch_module = sys.modules.get("torch")
    torch_threads = torch_module.get_num_threads() if torch_module is not None else 0
    opencv_threads = cv2.getNumThreads()
    if torch_module is not None:
        torch_module.set_num_threads(threads)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        if torch_module is not None:
            torch_module.set_num_threads(torch_threads)
        cv2.setNumThreads(opencv_threads)


def keep_freed_memory() -> bool:
    """Let the C library keep up to 128 MB of freed memory, for the whole process.

    glibc returns large blocks to the system as soon as they are freed, and gets them anew, page
    by page and zeroed, for the next layer.  A prediction touches some 100 MB that way; keeping
    the memory saves about a tenth of its time.

    Returns:
        Whether it took effect: only glibc (most of Linux) has the setting.
    """
    return _set_malloc(_KEEP_SOME)


@contextlib.contextmanager
def keeping_all_freed_memory() -> Iterator[None]:
    """Let the C library keep all freed memory inside the block; return it to the system after it.

    A training step on a CPU allocates and frees some GB.  Returned to the system, the memory would
    come back page by page and zeroed in the next step.  Has no effect without glibc.
    """
    kept = _set_malloc(_KEEP_ALL)
    try:
        yield
    finally:
        if kept:
            _set_malloc((*_KEEP_SOME, _MMAP_MAX))
            return_freed_memory()


def return_freed_memory() -> None:
    """Return the freed memory that the C library keeps to the system; without glibc, nothing."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def _set_malloc(settings: tuple[tuple[int, int], ...]) -> bool:
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(number, value) == 1 for number, value in settings])


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Resolve a device setting; None or "auto": the current GPU, or the CPU without a GPU.

    Raises:
        EnvironmentProblem: the device does not exist here.
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        found = torch.device(device)
        if found.type not in _DEVICES:
            raise RuntimeError(f"networks cannot run on devices of type {found.type!r}")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentProblem(
            f"device {device}",
            found=str(error).splitlines()[0],
            expected="a device of this machine, such as 'cpu' or 'cuda:0'",
            remedy="choose another device, or leave it out to take the best there is",
        ) from error
    return found


def device_of_process(device: str | torch.device | None = None) -> torch.device:
    """Device of this process among the processes of its machine.

    Args:
        device: one choice for all processes; None, "auto" or "cuda": each process gets its own
            GPU. Without GPUs, None and "auto" give the CPU.

    Raises:
        EnvironmentProblem: fewer GPUs than processes, or a device that does not exist.
        ConfigError: a GPU by number, for several processes of this machine.
    """
    import torch

    process = this_process()
    if str(device).startswith("cuda:") and process.local_world_size > 1:
        raise ConfigError(
            "device",
            found=f"{device} for {process.local_world_size} processes of this machine, which "
            "would all use it",
            expected="a GPU for each of them",
            remedy="leave the device out, or choose GPUs with CUDA_VISIBLE_DEVICES",
        )
    own = str(device) in ("None", "auto") or (str(device) == "cuda" and process.world_size > 1)
    if not own or not torch.cuda.is_available():
        return resolve_device(device)
    visible, number = torch.cuda.device_count(), process.local_rank
    if visible == 1 and process.launcher == "slurm":
        number = 0  # srun --gpus-per-task shows each process only its own GPU
    if number >= visible:
        raise EnvironmentProblem(
            "processes",
            found=f"process {number} of this machine, which has {visible} GPUs",
            expected="at most one process per GPU",
            remedy="start fewer processes, or hide the GPUs with CUDA_VISIBLE_DEVICES=",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@dataclass(frozen=True)
class Placement:
    """Device and rank of a training process.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        index: chosen GPU number; None: the local rank.
        rank: rank among all processes, from 0.
        local_rank: rank among the processes of this machine.
        world_size: number of processes.
        local_world_size: number of processes of this machine.
    """

    kind: str
    index: int | None = None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def torch_device(self) -> torch.device:
        """Device of this process."""
        import torch

        if self.kind == "cuda":
            return torch.device("cuda", self.local_rank if self.index is None else self.index)
        return torch.device(self.kind)

    @property
    def description(self) -> str:
        """Device and process in words, for the log and for messages."""
        import torch

        if self.kind == "cuda":
            device = self.torch_device
            name = f"GPU {device.index} ({torch.cuda.get_device_name(device)})"
        else:
            name = {"mps": "Apple GPU (MPS)", "cpu": "cpu"}[self.kind]
        if self.world_size > 1:
            return f"{name}, process {self.rank + 1} of {self.world_size}"
        return name


def find_placement(device: str = "auto") -> Placement:
    """Resolve the device of a training process; log a warning where it is the CPU by default.

    Args:
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:<number>" or "mps".

    Raises:
        EnvironmentProblem: the device does not exist, or this machine has fewer GPUs than
            processes.
        ConfigError: an unknown device, or one GPU for several processes.
    """
    import torch

    process = this_process()
    kind, _, number = device.partition(":")
    kind = {"gpu": "cuda"}.get(kind, kind)
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ConfigError(
            "device",
            found=repr(device),
            expected="auto, cpu, cuda, cuda:<number> or mps",
            remedy="leave it out to use a GPU when there is one",
        )
    if number and process.world_size > 1:
        raise ConfigError(
            "device",
            found=f"{device} for {process.world_size} processes",
            expected="one GPU per process, which the launcher assigns",
            remedy="leave it out; CUDA_VISIBLE_DEVICES chooses the GPUs of this machine",
        )
    has_mps = torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        if kind == "cpu" and process.rank == 0:
            _LOG.warning(
                "no GPU was found: training runs on the CPU, many times slower; smaller "
                "augment.crop_size and train.batch_size help"
            )
    index = int(number) if number else None
    if kind == "cuda":
        _check_gpus(index, process.local_world_size)
    if kind == "mps" and not has_mps:
        raise _missing("mps", "PyTorch sees no Apple GPU")
    return Placement(
        kind,
        index,
        process.rank,
        process.local_rank,
        process.world_size,
        process.local_world_size,
    )


def _check_gpus(index: int | None, local_processes: int) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise _missing("cuda", "PyTorch sees no NVIDIA GPU")
    if index is not None and index >= count:
        raise _missing(f"cuda:{index}", f"this machine has {count} GPU(s), numbered from 0")
    if local_processes > count:
        raise EnvironmentProblem(
            "number of processes",
            found=f"{local_processes} processes on a machine with {count} GPU(s)",
            expected="at most one process per GPU",
            remedy=f"start {count} process(es) and set train.accumulate="
            f"{-(-local_processes // count)} to keep the number of images per optimizer step",
        )


def _missing(device: str, found: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"device {device}",
        found=found,
        expected="the requested device",
        remedy="check the driver and that PyTorch was installed for it "
        "(python -m torch.utils.collect_env), or leave the device out to use the CPU",
    )
