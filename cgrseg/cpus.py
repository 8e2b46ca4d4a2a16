"""CPUs that this process may use, and threads that give way to other programs.

A container, a SLURM job and `taskset` give a process a part of the machine.  PyTorch, OpenCV and
loader processes would take all CPUs of the machine: threads beyond a quota are stopped by the
system for a part of every tenth of a second, and threads that wait for each other then stand still.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

from cgrseg.errors import EnvironmentProblem
from cgrseg.processes import Process, this_process

SPIN_COUNT = "4000"
"""Number of checks of a waiting OpenMP thread before it sleeps, under 1 ms; GNU's own: 300000."""


def usable_cpus(process: Process | None = None, root: Path = Path("/")) -> int:
    """Number of CPUs that this process may use, at least 1.

    The smallest of: CPU affinity; the quotas of its control groups, rounded down; its task's CPUs
    in a SLURM job.  The processes that torchrun starts on one machine get equal shares.

    Args:
        process: place of this process in its job; None: read from the environment.
        root: folder that holds `proc` and `sys`.
    """
    if process is None:
        process = Process()
        with contextlib.suppress(EnvironmentProblem):  # reported by the commands that need it
            process = this_process()
    limits = [float(len(_affinity())), *_quotas(root)]
    per_task = _whole_number("SLURM_CPUS_PER_TASK")
    on_node = _whole_number("SLURM_CPUS_ON_NODE")
    if per_task:
        limits.append(per_task)
    elif process.launcher == "slurm" and on_node:
        limits.append(on_node / process.local_world_size)
    shares = process.local_world_size if process.launcher == "pytorch" else 1
    return max(1, math.floor(min(limits) / shares))


def usable_threads(root: Path = Path("/")) -> int:
    """Number of threads for one computation: `OMP_NUM_THREADS`, or one per usable core.

    Two hardware threads of a core compute no faster than one.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    asked = _whole_number("OMP_NUM_THREADS")
    return asked or min(usable_cpus(root=root), _cores(root))


def prepare_openmp(environment: MutableMapping[str, str], root: Path = Path("/")) -> None:
    """Set the OpenMP variables of a process that has not loaded PyTorch yet.

    A variable that is set already stays.  The number of threads follows :func:`usable_threads`
    where it is smaller than PyTorch's own.  Waiting threads sleep after a short time, so that
    other programs get the CPU.

    Args:
        environment: changed, usually `os.environ`.
        root: folder that holds `proc` and `sys`.
    """
    if "OMP_NUM_THREADS" not in environment and usable_cpus(root=root) < len(_affinity()):
        environment["OMP_NUM_THREADS"] = str(usable_threads(root))
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT  # GNU OpenMP, of PyTorch's packages for Linux
        environment["KMP_BLOCKTIME"] = "1"  # milliseconds; Intel's and LLVM's OpenMP


def _affinity() -> set[int]:
    """CPUs that the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cores(root: Path) -> int:
    """Number of cores among the CPUs of this process, whose hardware threads count once."""
    cores = set()
    for cpu in _affinity():
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(_content(siblings) or str(cpu))
    return len(cores)


def _whole_number(name: str) -> int:
    """First number of an environment variable such as "4" or "4,2"; 0: none."""
    found = re.match(r"\s*(\d{1,6})\s*(,|$)", os.environ.get(name, ""))
    return int(found[1]) if found else 0


def _quotas(root: Path) -> Iterator[float]:
    """Numbers of CPUs that the control groups of this process and their parents allow."""
    groups = [line.split(":", 2) for line in _content(root / "proc/self/cgroup").splitlines()]
    for kind, options, mounted, top in _mounts(root):
        for group in groups:
            if len(group) != 3:
                continue
            _, controllers, path = group
            if kind == "cgroup2" and not controllers:
                read = _quota_v2
            elif kind == "cgroup" and "cpu" in options and "cpu" in controllers.split(","):
                read = _quota_v1
            else:
                continue
            below = PurePosixPath("/")
            # Where a container sees the paths of its host, the mount shows a part of them.
            with contextlib.suppress(ValueError):
                below = PurePosixPath("/") / PurePosixPath(path).relative_to(top)
            for folder in (below, *below.parents):
                if ".." in folder.parts:
                    continue
                quota = read(mounted / folder.relative_to("/"))
                if quota is not None:
                    yield quota


def _mounts(root: Path) -> Iterator[tuple[str, list[str], Path, str]]:
    """Mounted control groups: file system, its options, mount point, and the part that it shows."""
    for line in _content(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            top, point = (re.sub(r"\\(\d{3})", _octal, each) for each in fields[3:5])
            yield kind[0], kind[2].split(","), root / point.lstrip("/"), top


def _octal(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _content(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_content(folder / f"cpu.cfs_{each}_us") for each in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """Quota in CPUs; None: no limit ("max", -1), or no such file."""
    if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
        return int(quota) / int(period)
    return None


def _content(path: Path) -> str:
    """Text of a file of the system; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
