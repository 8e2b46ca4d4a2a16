"""The machine of a measurement: names, versions and peak throughput."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from cgrseg.bench.timing import wait_for
from cgrseg.cpus import usable_cpus
from cgrseg.precision import Precision, bf16_in_hardware, dtype_of

_PACKAGES = ("torch", "numpy", "opencv-python-headless", "transformers", "onnxruntime", "openvino")
_BUSY = 0.5  # load per core, beside this process, above which durations are doubtful


@dataclass(frozen=True)
class Machine:
    """Names and versions.

    Attributes:
        device: name of the CPU or GPU.
        cores: number of cores that this process may use.
        threads: number of threads that PyTorch uses.
        memory_gib: memory of the computer in GiB.
        system: operating system and Python.
        versions: package to version.
        load: load average of the last minute; None: unknown.
    """

    device: str
    cores: int
    threads: int
    memory_gib: float
    system: str
    versions: dict[str, str]
    load: float | None

    @property
    def busy(self) -> bool:
        """Whether other programs used the processor so much that durations are doubtful."""
        return self.load is not None and self.load > self.cores * (1 + _BUSY)


@dataclass(frozen=True)
class Peaks:
    """Measured peak throughput of the device.

    Attributes:
        flops: floating-point operations per second of a large matrix product, by precision that
            the device computes in hardware.
        bandwidth: bytes per second, read and written, of a copy far larger than any cache.
    """

    flops: dict[str, float]
    bandwidth: float


def describe_machine(device: torch.device) -> Machine:
    """Names and versions of this machine."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    load: float | None = None
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    if device.type == "cuda":
        named = torch.cuda.get_device_name(device)
        versions["cuda"] = str(torch.version.cuda)
    else:
        named = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
    return Machine(
        named,
        usable_cpus(),
        torch.get_num_threads(),
        _memory_gib(),
        f"{platform.platform()}, Python {platform.python_version()}",
        versions,
        load,
    )


def measure_peaks(device: torch.device, seconds: float = 1.0) -> Peaks:
    """Time matrix products and copies, `seconds` each; the best one counts.

    Emulated bf16 has no peak of its own and would take minutes: it is left out.
    """
    side = 8192 if device.type == "cuda" else 2048
    precisions: list[Precision] = ["fp32"]
    if bf16_in_hardware(device)[0]:
        precisions.append("bf16")
    flops: dict[str, float] = {}
    with torch.inference_mode():
        for name in precisions:
            left = torch.randn(side, side, device=device).to(dtype_of(name))
            right = torch.randn(side, side, device=device).to(dtype_of(name))
            flops[name] = 2 * side**3 / _best(partial(torch.matmul, left, right), device, seconds)
        source = torch.ones(64 << 20, device=device)  # 256 MB
        target = torch.empty_like(source)
        copied = 2 * source.nbytes / _best(lambda: target.copy_(source), device, seconds)
    return Peaks(flops, copied)


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    work()
    wait_for(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        wait_for(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return 0.0
