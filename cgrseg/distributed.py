"""Several processes of one job: join the process group, gather values, share decisions.

`torchrun` or SLURM's `srun` starts the processes (:func:`cgrseg.processes.this_process`). An
evaluation exchanges integer counts at its end, so its result does not depend on the number of
processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from cgrseg.devices import device_of_process, resolve_device
from cgrseg.errors import EnvironmentProblem
from cgrseg.processes import Launcher, signals_end_at_once, this_process

# All processes must have started within this time. They then wait for the slowest process,
# which may have the largest images or the slowest machine.
_STARTED_WITHIN = timedelta(minutes=30)
_FINISHED_WITHIN = timedelta(days=30)


@dataclass(frozen=True)
class Place:
    """Rank, world size and device of a process; rank 0 writes the results."""

    rank: int
    world_size: int
    device: torch.device


@contextlib.contextmanager
def joined_processes(
    launcher: Launcher | str = "auto", device: str | torch.device | None = None
) -> Iterator[Place]:
    """Join the process group of the job for the duration of a block.

    Args:
        launcher: who started the processes: "pytorch" (torchrun), "slurm" (srun), "none" for
            one process alone, "auto" to read it from the environment.
        device: as in :func:`cgrseg.devices.device_of_process`.

    Raises:
        EnvironmentProblem: a variable of the launcher is missing, or there are fewer GPUs
            than processes.
        ConfigError: one GPU for several processes.
    """
    if launcher == "auto":
        launcher = this_process().launcher
    if dist.is_initialized() and launcher != "none":
        yield Place(dist.get_rank(), dist.get_world_size(), device_of_process(device))
        return
    if launcher == "none":
        yield Place(0, 1, resolve_device(device))
        return
    if launcher == "slurm":
        set_torchrun_variables()
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise EnvironmentProblem(
            f"launcher {launcher}",
            found=f"the environment lacks {', '.join(missing)}",
            expected="the variables that torchrun sets for each process",
            remedy="start with tools/dist_test.sh or torchrun, or leave the launcher out",
        )
    own = device_of_process(device)
    # When another process fails, the launcher ends this one while it waits.
    with signals_end_at_once():
        store, rank, world_size = next(rendezvous("env://", timeout=_STARTED_WITHIN))
        # NCCL reads from the store at the first exchange only.
        store.set_timeout(_FINISHED_WITHIN)
        dist.init_process_group(
            "nccl" if own.type == "cuda" else "gloo",
            timeout=_FINISHED_WITHIN,
            store=store,
            rank=rank,
            world_size=world_size,
        )
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()


def set_torchrun_variables() -> None:
    """Set the variables of torchrun from those of `srun`: PyTorch and Lightning read these."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = os.environ
    # Before the others are set: with them, all processes would count as those of one machine.
    environment["LOCAL_WORLD_SIZE"] = str(this_process().local_world_size)
    for ours, theirs in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),  # of this srun; the job may have more tasks
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        if theirs in environment:
            environment[ours] = environment[theirs]
    job = environment.get("SLURM_JOB_ID", "")[-4:]
    port = environment.get("PORT") or (str(15000 + int(job)) if job.isdecimal() else "29500")
    environment.setdefault("MASTER_PORT", port)
    # Machines of this srun, which may differ from the first machines of the job.
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST")
    count = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1"
    if "MASTER_ADDR" not in environment and nodes:
        first = SLURMEnvironment.resolve_root_node_address(nodes)
        environment["MASTER_ADDR"] = "127.0.0.1" if count == "1" else first


@contextlib.contextmanager
def others_present() -> Iterator[None]:
    """Raise a message of ours when another process ends during the exchange in this block.

    Raises:
        EnvironmentProblem: the exchange failed.
    """
    try:
        yield
    except RuntimeError as error:
        raise EnvironmentProblem(
            "processes",
            found="another process of this evaluation ended before its counts were here",
            expected="counts of all processes",
            remedy=f"see its own message, and start again ({str(error).splitlines()[0]})",
        ) from error


def gather_in_order(rows: dict[int, Any], world_size: int) -> list[Any]:
    """Rows of all processes, sorted by their number, in every process."""
    if world_size > 1:
        everyone: list[dict[int, Any]] = [{} for _ in range(world_size)]
        dist.all_gather_object(everyone, rows)
        rows = {number: row for part in everyone for number, row in part.items()}
    return [rows[number] for number in sorted(rows)]


def from_first(value: Any, world_size: int) -> Any:
    """The value of the first process, in every process; all wait for it.

    Raises:
        EnvironmentProblem: another process has ended.
    """
    given = [value]
    if world_size > 1:
        with others_present():
            dist.broadcast_object_list(given, src=0)
            dist.barrier()
    return given[0]


class Exchange:
    """Exchange of small values among the processes of a training, apart from gradients.

    The values go through a process group of their own on the CPU, so the GPU does not wait.
    All processes call the same methods at the same steps. One process alone gets its own value.
    """

    def __init__(self) -> None:
        self._group: Any = None

    @property
    def several(self) -> bool:
        """Whether there are several processes, once they have joined."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def largest(self, value: int) -> int:
        """The largest value of all processes."""
        if not self.several:
            return value
        number = torch.tensor([value])
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._cpu_group())
        return int(number.item())

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every process."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._cpu_group())
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of the first one, such as batch norm statistics.

        Norms that are not synchronized collect statistics of their own process's images;
        checkpoints hold those of the first process.
        """
        if self.several:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def _cpu_group(self) -> Any:
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        return self._group
