"""SIGKILL at random moments: the resumed run ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cgrseg.training.checkpointing import read_training_checkpoint
from tests.training.small_run import differing, small_config, write_dataset

SHARED_MEMORY = Path("/dev/shm")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_like_the_one_left_alone(
    kills: int, tmp_path: Path, repository: Path
) -> None:
    root = write_dataset(tmp_path / "data")
    # A checkpoint after every iteration, so that many kills come while one is written.
    options = {
        "schedule__max_iters": 4 + 3 * kills,
        "train__checkpoint_interval": 1,
        "data__workers": 1,
    }
    folders = {}
    for name in ("alone", "killed"):
        config = small_config(root, tmp_path / name, **options)
        folders[name] = tmp_path / f"{name}.json"
        folders[name].write_text(json.dumps(config.model_dump(mode="json")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if SHARED_MEMORY.is_dir():
        # Temporary files go to another file system than the run's folder.
        environment["TMPDIR"] = str(SHARED_MEMORY)
        assert SHARED_MEMORY.stat().st_dev != tmp_path.stat().st_dev

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                str(repository / "tools" / "train.py"),
                str(folders[name]),
                "--auto-resume",
                "--device",
                "cpu",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    alone = start("alone")
    text, _ = alone.communicate(timeout=900)
    assert alone.returncode == 0, text

    latest = tmp_path / "killed" / "latest.pth"
    draw = random.Random(20)
    moments: list[tuple[int, str]] = []
    while len(moments) < kills:
        process = start("killed")
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("training "):
                break
        # Some die before their first iteration, most during the second or third.
        time.sleep(draw.uniform(0.0, 6.0))
        writing = bool(list((tmp_path / "killed").glob(".*.partial")))
        process.send_signal(signal.SIGKILL)
        code = process.wait(timeout=60)
        process.stdout.close()
        if code != -signal.SIGKILL:
            break  # it was finished before the signal came
        iteration = read_training_checkpoint(latest)["meta"]["iteration"] if latest.is_file() else 0
        moments.append((iteration, "while writing" if writing else "between writes"))
    print(f"killed at (last checkpoint, moment): {moments}")
    assert len(moments) >= min(2, kills)

    last = start("killed")
    text, _ = last.communicate(timeout=900)
    assert last.returncode == 0, text
    assert differing(latest, tmp_path / "alone" / "latest.pth") == []
    assert not list((tmp_path / "killed").glob(".*.partial"))
