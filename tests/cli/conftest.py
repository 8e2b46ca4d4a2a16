"""A run that is as small as a real one can be: a few scenes, two iterations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cgrseg.cli.main import app
from cgrseg.data.synthetic import write_dataset

Run = Callable[..., Result]

SMALL = [
    "model.context_blocks=1",
    "augment.scale=[64, 64]",
    "augment.crop_size=[64, 64]",
    "train.batch_size=2",
    "train.eval_interval=2",
    "schedule.max_iters=2",
    "schedule.warmup_iters=0",
    "data.workers=0",
    "train.precision=fp32",
    "train.channels_last=false",
]


@pytest.fixture(scope="session")
def run() -> Run:
    """Call the command line in this process; gives exit_code, stdout, stderr."""

    def call(*arguments: str | Path) -> Result:
        return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
            app, [str(argument) for argument in arguments]
        )

    return call


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embedded data: 4 scenes that train, 2 that are held out."""
    return write_dataset(
        tmp_path_factory.mktemp("scenes") / "data", train=4, val=2, size=(64, 64), workers=1
    )


@pytest.fixture(scope="session")
def trained(run: Run, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of two iterations."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--data-root", scenes, "--work-dir", folder, "--device", "cpu"]
    result = run("train", "cgrseg-t_synthetic", *SMALL, *options)
    assert result.exit_code == 0, result.output
    return folder
