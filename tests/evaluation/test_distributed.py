"""Several processes: who does what, where, and what is said when one of them fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgrseg.config import load_config
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.data.resolve import resolve_spec
from cgrseg.devices import device_of_process
from cgrseg.distributed import joined_processes, set_torchrun_variables
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.models import CGRSeg
from cgrseg.processes import this_process
from tests.golden_weights import set_golden_weights
from tests.training.small_run import write_dataset

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")

PROGRAM = """
import json, os, socket, sys
import torch
torch.set_num_threads(1)
from cgrseg.evaluation.eval_script import main

for count, arguments in json.loads(sys.argv[1]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            if count > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            status = main(arguments)
            sys.stdout.flush()
            os._exit(status)
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    print("statuses", [os.waitstatus_to_exitcode(status) for status in ended], flush=True)
"""


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in (*VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "launcher", "share"),
    [
        ({}, "none", (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, "pytorch", (2, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "none", (0, 1)),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"},
            "slurm",
            (1, 3),
        ),
        # A batch script sees the number of tasks of the job, and is one process: all is its own.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "none", (0, 1)),
        # torchrun inside of srun, one per machine.
        (
            {
                "RANK": "5",
                "WORLD_SIZE": "8",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            "pytorch",
            (5, 8),
        ),
    ],
)
def test_the_environment_tells_who_does_what(
    values: dict[str, str],
    launcher: str,
    share: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_environment(monkeypatch, **values)
    process = this_process()
    assert process.launcher == launcher and (process.rank, process.world_size) == share


def test_a_world_size_without_a_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every process would do the share of the first one.
    set_environment(monkeypatch, WORLD_SIZE="2")
    with pytest.raises(EnvironmentProblem, match="2 processes, but no variable RANK"):
        this_process()


@pytest.mark.parametrize(
    ("values", "visible", "expected"),
    [
        ({"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}, 4, "cuda:2"),
        ({}, 4, "cuda:0"),
        ({"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "3"}, 4, "cuda:3"),
        # srun --gpus-per-task shows each task one GPU, its own.
        ({"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "3"}, 1, "cuda:0"),
        # The same once PyTorch has its variables.
        (
            {
                **{"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "3"},
                **{"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3"},
            },
            1,
            "cuda:0",
        ),
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    values: dict[str, str], visible: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    set_environment(monkeypatch, **values)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert str(device_of_process()) == expected
    assert chosen == [int(expected[-1])]
    if len(values) > 2:
        assert str(device_of_process("cuda")) == expected
    assert str(device_of_process("cpu")) == "cpu"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, RANK="2", WORLD_SIZE="3", LOCAL_RANK="2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EnvironmentProblem, match="process 2 of this machine, which has 2 GPUs"):
        device_of_process()
    # torchrun inside of srun: that the job has several tasks does not make one GPU enough.
    values = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "4"}
    set_environment(monkeypatch, RANK="1", LOCAL_RANK="1", **values)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentProblem, match="process 1 of this machine, which has 1 GPUs"):
        device_of_process()


def test_one_gpu_by_number_is_no_choice_for_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_environment(monkeypatch, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="cuda:0 for 2 processes of this machine"):
        device_of_process("cuda:0")


def test_processes_wait_for_the_slowest_for_days(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    set_environment(
        monkeypatch, RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    with joined_processes("pytorch", "cpu"):
        group: Any = torch.distributed.group.WORLD
        waits = group._get_backend(torch.device("cpu")).options._timeout
        torch.distributed.barrier()
    assert waits.days >= 1


@pytest.mark.parametrize(
    ("machines", "expected"), [("1", "127.0.0.1"), ("2", "node7")], ids=["one", "two"]
)
def test_the_first_machine_is_that_of_the_step_and_not_of_the_job(
    machines: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_STEP_NUM_TASKS="2")
    for name, value in {
        "SLURM_NODELIST": "node[1-8]",
        "SLURM_NNODES": "8",
        "SLURM_STEP_NODELIST": "node[7-8]",
        "SLURM_STEP_NUM_NODES": machines,
    }.items():
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    monkeypatch.setattr(os, "environ", environment)
    set_torchrun_variables()
    assert environment["MASTER_ADDR"] == expected and environment["WORLD_SIZE"] == "2"
    assert environment["LOCAL_WORLD_SIZE"] == ("2" if machines == "1" else "1")
    assert this_process().launcher == "slurm"
    assert this_process().local_world_size == int(environment["LOCAL_WORLD_SIZE"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_one_two_and_three_processes_and_one_that_fails(repository: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    labels = sorted((root / "annotations" / "val").iterdir())
    assert len(labels) >= 2
    broken = tmp_path / "broken"
    (broken / "annotations").mkdir(parents=True)
    for name in ("images", "classes.txt", "annotations/train"):
        if (root / name).exists():
            (broken / name).symlink_to(root / name)
    (broken / "annotations" / "val").mkdir()
    for number, label in enumerate(labels):
        ids = read_label(label)
        if number == 1:
            ids = np.full_like(ids, 77)
        write_label_png(broken / "annotations" / "val" / label.name, ids, [(0, 0, 0)])
    spec = resolve_spec(load_config("cgrseg-t_custom", {"data.root": str(root)}).data)
    model = CGRSeg("cgrseg_t", spec.num_classes, classes=spec.classes, palette=spec.palette)
    set_golden_weights(model)
    model.save_pretrained(tmp_path / "weights")

    def command(data: Path, name: str) -> list[str]:
        return [
            *("cgrseg-t_custom", str(tmp_path / "weights"), "--device", "cpu"),
            *("--eval", "mIoU", "mBoundaryIoU", "ECE", "--work-dir", str(tmp_path / name)),
            *("--cfg-options", f"data.root={data}", "data.workers=0", "test.resize=none"),
        ]

    jobs = [(count, command(root, str(count))) for count in (1, 2, 3)]
    (tmp_path / "file" / "evaluation.json").mkdir(parents=True)  # where the results should be
    finished = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM),
            json.dumps([*jobs, (2, command(broken, "broken")), (2, command(root, "file"))]),
        ],
        cwd=repository,
        env={**{k: v for k, v in os.environ.items() if k not in VARIABLES}, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    statuses = [line for line in finished.stdout.splitlines() if line.startswith("statuses")]
    assert statuses[:3] == ["statuses [0]", "statuses [0, 0]", "statuses [0, 0, 0]"]
    written = {
        count: (tmp_path / f"{count}" / "evaluation.json").read_text() for count in (1, 2, 3)
    }
    assert written[1] == written[2] == written[3]
    rows = json.loads(written[1])["per_image"]
    assert len({row["image"] for row in rows}) == len(rows) == len(labels)
    # The second process has the broken label, and says so; the first one ends without a trace.
    assert statuses[3] == "statuses [2, 2]"
    assert "[process 1] error: " in finished.stderr and "77" in finished.stderr
    assert labels[1].stem in finished.stderr
    assert "another process of this evaluation ended" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "broken" / "evaluation.json").exists()
    # Results that cannot be written end both, and neither waits for the other.
    assert statuses[4] == "statuses [2, 2]"
    assert "the first process could not write the results: " in finished.stderr
