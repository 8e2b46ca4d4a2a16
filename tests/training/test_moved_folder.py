"""A run folder that is renamed or removed under its training: a message and an end."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests import commands
from tests.training.processes import finish
from tests.training.small_run import write_dataset


@pytest.mark.parametrize("what", ["renamed", pytest.param("removed", marks=pytest.mark.slow)])
def test_the_run_ends_and_no_second_folder_is_made(what: str, tmp_path: Path) -> None:
    root, run, log = write_dataset(tmp_path / "data"), tmp_path / "run", tmp_path / "log"
    endless = ["schedule.max_iters=100000", "train.checkpoint_interval=5", "train.evaluate=false"]
    process = commands.start(*commands.train(root, run, *endless), log=log)
    while not (run / "latest.pth").exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    if what == "renamed":
        run.rename(tmp_path / "other")
    else:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)  # what was written between
    said = finish(process, log, status=2)
    assert f"error: {run}: the folder was renamed or removed" in said
    assert "Traceback" not in said
    assert not run.exists()
    if what == "renamed":
        assert (tmp_path / "other" / "latest.pth").is_file()
        assert commands.hidden(tmp_path / "other") == []
