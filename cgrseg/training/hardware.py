"""Which devices and processes a training runs on.

One process by default; several when `torchrun` or SLURM started them, one per device.
Without a GPU the CPU is used, with a warning; asking for a device that is not there is
an error, and so are more processes than GPUs.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from cgrseg.config.overrides import merge
from cgrseg.config.schema import Config
from cgrseg.config.validation import build
from cgrseg.errors import ConfigError, EnvironmentProblem, environment_number
from cgrseg.precision import choose_precision, slow_precision

_LOG = logging.getLogger("cgrseg.training")

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "fp64": "64-true"}


@dataclass(frozen=True)
class Placement:
    """Where this process stands.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        index: GPU number when one was chosen; none: the process's own.
        rank: of this process among all, from 0.
        local_rank: of this process on its machine.
        world_size: processes in all.
        local_world_size: processes on this machine.
    """

    kind: str
    index: int | None = None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def torch_device(self) -> torch.device:
        """The device of this process."""
        if self.kind == "cuda":
            return torch.device("cuda", self.local_rank if self.index is None else self.index)
        return torch.device(self.kind)

    @property
    def description(self) -> str:
        """In words, for the log and for messages."""
        if self.kind == "cuda":
            device = self.torch_device
            name = f"GPU {device.index} ({torch.cuda.get_device_name(device)})"
        else:
            name = {"mps": "Apple GPU (MPS)", "cpu": "cpu"}[self.kind]
        if self.world_size > 1:
            return f"{name}, process {self.rank + 1} of {self.world_size}"
        return name


def find_placement(device: str = "auto") -> Placement:
    """Resolve the device of this process.

    Args:
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:<number>" or "mps".

    Raises:
        EnvironmentProblem: a device that was asked for is not there, or there are fewer
            GPUs than processes on this machine.
        ConfigError: a device of another name.
    """
    processes = _processes()
    kind, _, number = device.partition(":")
    kind = {"gpu": "cuda"}.get(kind, kind)
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ConfigError(
            "device",
            found=repr(device),
            expected="auto, cpu, cuda, cuda:<number> or mps",
            remedy="leave it out to use a GPU when there is one",
        )
    if number and processes.get("world_size", 1) > 1:
        raise ConfigError(
            "device",
            found=f"{device} for {processes['world_size']} processes",
            expected="a GPU of its own for each process, which their launcher deals out",
            remedy="leave it out; CUDA_VISIBLE_DEVICES chooses the GPUs of this machine",
        )
    if kind == "auto":
        kind = _best_kind()
        if kind == "cpu" and processes.get("rank", 0) == 0:
            _LOG.warning(
                "no GPU was found: training runs on the CPU, many times slower; smaller "
                "augment.crop_size and train.batch_size help"
            )
    if kind == "cuda":
        _check_gpus(int(number) if number else None, processes.get("local_world_size", 1))
    if kind == "mps" and not _has_mps():
        raise _missing("mps", "PyTorch sees no Apple GPU")
    return Placement(kind, int(number) if number else None, **processes)


def _processes() -> dict[str, int]:
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:  # torchrun
        world = environment_number("WORLD_SIZE", 1)
        return {
            "rank": environment_number("RANK", 0),
            "local_rank": environment_number("LOCAL_RANK", 0),
            "world_size": world,
            "local_world_size": environment_number("LOCAL_WORLD_SIZE", world),
        }
    tasks = environment_number("SLURM_NTASKS", 1)
    # An interactive SLURM shell also has these, under the job name "bash" or "interactive":
    # there nobody started one process per task.
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if tasks > 1 and "SLURM_PROCID" in environment and not interactive:
        return {
            "rank": environment_number("SLURM_PROCID", 0),
            "local_rank": environment_number("SLURM_LOCALID", 0),
            "world_size": tasks,
            "local_world_size": tasks // max(1, environment_number("SLURM_NNODES", 1)),
        }
    return {}


def _best_kind() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if _has_mps() else "cpu"


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _check_gpus(index: int | None, local_processes: int) -> None:
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
            f"{-(-local_processes // count)} to keep the images per optimiser step",
        )


def _missing(device: str, found: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"device {device}",
        found=found,
        expected="the device that was asked for",
        remedy="check the driver and that PyTorch was installed for it "
        "(python -m torch.utils.collect_env), or leave the device out to use the CPU",
    )


def _slurm() -> Any:
    """SLURM's places without Lightning's own requeueing, which answers SIGUSR1 in our stead."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    if "RANK" in os.environ or not SLURMEnvironment.detect():
        return None
    return [SLURMEnvironment(auto_requeue=False)]


def settle_precision(
    config: Config, placement: Placement, stored: str | None = None
) -> tuple[Config, str]:
    """The config with `train.precision=auto` replaced by what it stands for here.

    Args:
        config: the run.
        placement: device and processes.
        stored: precision of the checkpoint that the run resumes from.  It wins over "auto", so
            that a run keeps its arithmetic on another machine.

    Returns:
        The config, and the precision in words for the log, with its reason if there was a choice.
    """
    device, words = placement.torch_device, str(config.train.precision)
    if config.train.precision == "auto":
        choice = choose_precision(device)
        precision, words = str(choice.precision), str(choice)
        if stored is not None:
            precision, words = stored, f"{stored} (as this run began)"
        config = build(merge(config.model_dump(), {"train.precision": precision}))
    warning = slow_precision(device, config.train.precision)
    if warning and placement.rank == 0:
        _LOG.warning("train.precision: %s", warning)
    return config, words


def trainer_options(config: Config, placement: Placement) -> dict[str, Any]:
    """What Lightning's Trainer needs to know about devices, processes and precision.

    Raises:
        ConfigError: a precision that this device cannot do.
    """
    from lightning.pytorch.strategies import DDPStrategy

    precision = config.train.precision
    if (placement.kind == "cpu" and precision == "fp16") or (
        placement.kind == "mps" and precision == "fp64"
    ):
        raise ConfigError(
            "train.precision",
            found=f"{precision} on {placement.kind}, which PyTorch does not offer",
            expected="fp32 or bf16",
            remedy="set train.precision=auto or fp32",
        )
    several = placement.world_size > 1
    devices: Any = placement.local_world_size
    if placement.kind == "cuda" and not several:
        devices = [placement.index or 0]
    backend = "gloo" if placement.kind == "cpu" else None
    return {
        "accelerator": {"cuda": "gpu"}.get(placement.kind, placement.kind),
        "devices": devices,
        "num_nodes": placement.world_size // placement.local_world_size,
        "plugins": _slurm() if several else None,
        "strategy": DDPStrategy(process_group_backend=backend) if several else "auto",
        "sync_batchnorm": several and placement.kind == "cuda" and config.model.sync_norm,
        "precision": _PRECISION[precision],
        # Deterministic kernels exist for almost everything; the rest is named in a warning.
        "deterministic": "warn" if config.train.deterministic else None,
        "benchmark": placement.kind == "cuda" and not config.train.deterministic,
    }
