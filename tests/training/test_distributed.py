"""Several processes compute what one computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cgrseg.training.tables import read_table
from tests.training.small_run import weights_of, write_dataset

SCRIPT = Path(__file__).with_name("frozen_run.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(command: list[str]) -> None:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900, env=ENVIRONMENT
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("iterations", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_two_processes_with_two_images_are_one_with_four(iterations: int, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    run([sys.executable, str(SCRIPT), str(data), str(tmp_path / "one"), "4", str(iterations)])
    run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(SCRIPT),
            str(data),
            str(tmp_path / "two"),
            "2",
            str(iterations),
        ]
    )
    one, two = (read_table(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == len(two) == iterations
    losses = [float(row["loss"]) for row in one]
    assert len(set(losses)) == iterations
    assert [float(row["loss"]) for row in two] == pytest.approx(losses, rel=1e-6)
    single = weights_of(tmp_path / "one" / "latest.pth")
    double = weights_of(tmp_path / "two" / "latest.pth")
    assert single.keys() == double.keys()
    for name, value in single.items():
        assert torch.allclose(value, double[name], rtol=1e-6, atol=1e-6), name
