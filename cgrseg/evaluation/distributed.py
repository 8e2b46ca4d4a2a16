"""Several processes evaluating one set, each image exactly once.

`torchrun` (and SLURM's `srun`) start the processes; here each learns its place and joins
the others.  An evaluation only exchanges integer counts at its end, so it gives the same
numbers for any number of processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cgrseg.errors import ConfigError, EnvironmentProblem, environment_number
from cgrseg.inference.backends import resolve_device
from cgrseg.processes import signals_end_at_once

Launcher = Literal["auto", "none", "pytorch", "slurm"]

# All must have started after so long; then they wait for the slowest, whose images may be the
# largest ones or whose machine the slowest, and lose nothing by it.
_STARTED_WITHIN = timedelta(minutes=30)
_FINISHED_WITHIN = timedelta(days=30)


@dataclass(frozen=True)
class Place:
    """Where this process stands among all that evaluate.

    Attributes:
        rank: 0 for the one that writes the results.
        world_size: number of processes.
        device: where this one computes.
    """

    rank: int
    world_size: int
    device: torch.device


@contextlib.contextmanager
def joined_processes(
    launcher: Launcher = "auto", device: str | torch.device | None = None
) -> Iterator[Place]:
    """Take this process's place among those that were started together.

    Args:
        launcher: who started them: "pytorch" (torchrun), "slurm" (srun), "none" for one
            process alone, "auto" to look at the environment (``started_by``).
        device: None: the GPU of this process's local rank where there is one, else the CPU.

    Raises:
        EnvironmentProblem: the launcher's variables are missing, or there are fewer GPUs
            than processes.
        ConfigError: one GPU for several processes.
    """
    if launcher == "auto":
        launcher = started_by()
    if dist.is_initialized() and launcher != "none":
        yield Place(dist.get_rank(), dist.get_world_size(), device_of_process(device))
        return
    if launcher == "none":
        yield Place(0, 1, resolve_device(device))
        return
    if launcher == "slurm":
        _adopt_slurm()
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
    mine = device_of_process(device)
    _join("nccl" if mine.type == "cuda" else "gloo")
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), mine)
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    # When another process has failed, the launcher ends this one, which waits for it.
    with signals_end_at_once():
        store, rank, world_size = next(rendezvous("env://", timeout=_STARTED_WITHIN))
        # NCCL first asks the store for something at the first exchange.
        store.set_timeout(_FINISHED_WITHIN)
        dist.init_process_group(
            backend, timeout=_FINISHED_WITHIN, store=store, rank=rank, world_size=world_size
        )


@contextlib.contextmanager
def others_present() -> Iterator[None]:
    """Around an exchange: that another process is gone becomes a message.

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
    """Rows of all processes, sorted by their number; every process gets all of them."""
    if world_size > 1:
        everyone: list[dict[int, Any]] = [{} for _ in range(world_size)]
        dist.all_gather_object(everyone, rows)
        rows = {number: row for part in everyone for number, row in part.items()}
    return [rows[number] for number in sorted(rows)]


def from_first(value: Any, world_size: int) -> Any:
    """What the first process gives, in every process; none goes on before it has given it.

    Raises:
        EnvironmentProblem: another process is gone.
    """
    given = [value]
    if world_size > 1:
        with others_present():
            dist.broadcast_object_list(given, src=0)
            dist.barrier()
    return given[0]


def started_by() -> Launcher:
    """Who started this process and its siblings, told from the environment.

    SLURM counts only inside `srun` with several tasks: a batch script sees the job's
    number of tasks too, but is one process.
    """
    if environment_number("WORLD_SIZE", 1) > 1:
        return "pytorch"
    if "RANK" not in os.environ and environment_number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return "slurm"
    return "none"


def own_share() -> tuple[int, int]:
    """Rank and number of the processes that share some work without talking to each other."""
    launcher = started_by()
    if launcher == "pytorch":
        return environment_number("RANK", 0), environment_number("WORLD_SIZE", 1)
    if launcher == "slurm":
        return environment_number("SLURM_PROCID", 0), environment_number("SLURM_STEP_NUM_TASKS", 1)
    return 0, 1


def device_of_process(device: str | torch.device | None = None) -> torch.device:
    """Where one of several processes on a machine computes.

    Args:
        device: a choice for all of them; None: each its own GPU, the CPU without any;
            "cuda": each its own GPU.

    Raises:
        EnvironmentProblem: fewer GPUs than processes, or a device that does not exist.
        ConfigError: a GPU by number, for several processes of this machine.
    """
    several = environment_number("LOCAL_WORLD_SIZE", 1)
    if str(device).startswith("cuda:") and several > 1:
        raise ConfigError(
            "device",
            found=f"{device} for {several} processes of this machine, which would all use it",
            expected="a GPU for each of them",
            remedy="leave the device out, or choose GPUs with CUDA_VISIBLE_DEVICES",
        )
    shared = device is None or str(device) == "auto"
    if str(device) == "cuda":
        shared = "LOCAL_RANK" in os.environ or _by_srun()
    if not shared or not torch.cuda.is_available():
        return resolve_device(device)
    visible = torch.cuda.device_count()
    number = environment_number("LOCAL_RANK", 0)
    if "LOCAL_RANK" not in os.environ and _by_srun():
        number = environment_number("SLURM_LOCALID", 0)
    if visible == 1 and _by_srun():
        number = 0  # srun shows each task its own GPU only (--gpus-per-task)
    if number >= visible:
        raise EnvironmentProblem(
            "processes",
            found=f"process {number} of this machine, which has {visible} GPUs",
            expected="at most one process per GPU",
            remedy="start fewer processes, or hide the GPUs with CUDA_VISIBLE_DEVICES=",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _by_srun() -> bool:
    """Whether `srun` itself started this process, not a torchrun in it; also once adopted."""
    names = ("RANK", "WORLD_SIZE")
    theirs = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    adopted = all(
        mine in os.environ and os.environ[mine] == os.environ.get(its)
        for mine, its in zip(names, theirs, strict=True)
    )
    return started_by() == "slurm" or adopted


def _adopt_slurm() -> None:
    """Give SLURM's variables the names that PyTorch reads."""
    environment = os.environ
    for ours, theirs in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),  # of this srun, where the job has more
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        if theirs in environment:
            environment[ours] = environment[theirs]
    environment.setdefault("MASTER_PORT", environment.get("PORT", "29500"))
    # Of this srun, which may use other machines than the first ones of its job.
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST")
    if "MASTER_ADDR" not in environment and nodes:
        environment["MASTER_ADDR"] = _first_host(nodes)


def _first_host(nodes: str) -> str:
    count = os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or "1"
    if int(count) == 1:
        return "127.0.0.1"
    try:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise EnvironmentProblem(
            "launcher slurm",
            found=f"`scontrol show hostnames {nodes}` failed ({error})",
            expected="the names of the machines of this job",
            remedy="set MASTER_ADDR to the first machine's name",
        ) from error
    return names[0]
