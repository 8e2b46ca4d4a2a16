"""SIGKILL at random moments: the resumed run ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from cgrseg.training.run_log import read_table
from tests.training.processes import run, start, train_by_script
from tests.training.small_run import differing, small_config, write_dataset

SHARED_MEMORY = Path("/dev/shm")


def iterations_of(folder: Path) -> int:
    """Iterations that a run has logged."""
    rows = read_table(folder / "metrics.csv")
    return int(rows[-1]["iteration"]) if rows else 0


def saved_iteration(folder: Path) -> int:
    """Iteration of the checkpoint that a run goes on from; 0 before the first."""
    for name in ("latest.pth", "previous.pth"):
        if (folder / name).is_file():
            found = torch.load(folder / name, weights_only=True, mmap=True)
            return int(found["meta"]["iteration"])
    return 0


def wait_for(what: Callable[[], bool], process: BaseProcess) -> None:
    """Wait until something can be seen of a run, which must not end before."""
    deadline = time.monotonic() + 300
    while not what():
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def half_written(folder: Path) -> set[str]:
    """Checkpoints that are being written beside their target, or were when a run was killed."""
    names = os.listdir(folder)
    return {name for name in names if ".pth." in name and name.endswith(".partial")}


def halt_while_writing(process: BaseProcess, folder: Path, leftovers: set[str]) -> None:
    """Halt a run in the middle of writing a checkpoint: it cannot finish before it is killed."""
    assert process.pid is not None
    while True:
        wait_for(lambda: bool(half_written(folder) - leftovers), process)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.05)
        if half_written(folder) - leftovers:
            return
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_like_the_one_left_alone(kills: int, tmp_path: Path) -> None:
    """Each kill waits for what the run has done, so that slow and fast machines see all.

    Every second one comes while a checkpoint is written, the others a random part of an
    iteration after one was finished, or at a random moment of the start.
    """
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{SHARED_MEMORY} is no other file system than the runs' folder")
    root = write_dataset(tmp_path / "data")
    arguments = {}
    for name in ("alone", "killed"):
        config = small_config(
            root,
            tmp_path / name,
            augment__crop_size=[32, 32],
            data__workers=1,
            # no kill lets a run get further than two or three iterations
            schedule__max_iters=4 + 2 * kills,
            train__checkpoint_interval=1,
        )
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config.model_dump(mode="json")))
        arguments[name] = (str(file), "--auto-resume", "--device", "cpu")
    # Temporary files go to another file system than the run folder.
    elsewhere = {"TMPDIR": str(SHARED_MEMORY)}
    alone = start(train_by_script, *arguments["alone"], log=tmp_path / "alone.log", **elsewhere)
    wait_for(lambda: iterations_of(tmp_path / "alone") >= 1, alone)
    begun = time.monotonic()
    wait_for(lambda: iterations_of(tmp_path / "alone") >= 2 + 2 * kills, alone)
    one_iteration = (time.monotonic() - begun) / (1 + 2 * kills)
    alone.join(timeout=300)
    assert alone.exitcode == 0, (tmp_path / "alone.log").read_text()

    folder = tmp_path / "killed"
    folder.mkdir()
    draw = random.Random(20)
    moments: list[tuple[int, str]] = []
    for number in range(kills):
        before, leftovers = iterations_of(folder), half_written(folder)
        process = start(
            train_by_script, *arguments["killed"], log=tmp_path / "killed.log", **elsewhere
        )
        if number % 2 == 0:
            halt_while_writing(process, folder, leftovers)
        elif draw.random() < 0.3:
            time.sleep(draw.uniform(0.0, 3.0) * one_iteration)
        else:
            wait_for(lambda: iterations_of(folder) > before, process)  # noqa: B023
            time.sleep(draw.uniform(0.0, 1.0) * one_iteration)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "killed.log").read_text()
        when = "while writing" if half_written(folder) - leftovers else "between writes"
        moments.append((saved_iteration(folder), when))
    print(f"killed at (iteration of the last checkpoint, moment): {moments}")
    assert len(moments) == kills
    assert any(when == "while writing" for _, when in moments)

    run(train_by_script, *arguments["killed"], log=tmp_path / "killed.log", **elsewhere)
    assert differing(folder / "latest.pth", tmp_path / "alone" / "latest.pth") == []
    assert not list(folder.glob(".*.partial"))
