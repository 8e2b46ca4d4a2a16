"""Checkpoints: written whole or not at all, the one before kept, plain types only."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cgrseg.errors import DataError, EnvironmentProblem, WeightsError
from cgrseg.training.checkpointing import (
    find_latest,
    read_training_checkpoint,
    to_plain,
    write_checkpoint,
)

OPTIMIZER = {"state": {}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]}


def checkpoint(value: float) -> dict[str, object]:
    return {
        "state_dict": {"weight": torch.full((3,), value)},
        "meta": {"iteration": int(value)},
        "training": {"iteration": int(value), "optimizer": OPTIMIZER},
    }


def test_plain_types_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "run" / "latest.pth"
    write_checkpoint(path, checkpoint(2.0))
    found = read_training_checkpoint(path)
    assert found["state_dict"]["weight"].tolist() == [2.0, 2.0, 2.0]
    assert found["training"] == {"iteration": 2, "optimizer": OPTIMIZER}
    assert [entry.name for entry in path.parent.iterdir()] == ["latest.pth"]


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    for value in (1.0, 2.0, 3.0):
        write_checkpoint(path, checkpoint(value), keep_previous=True)
    assert read_training_checkpoint(path)["meta"]["iteration"] == 3
    assert read_training_checkpoint(tmp_path / "previous.pth")["meta"]["iteration"] == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest.pth", "previous.pth"]


def test_a_file_system_without_hard_links_keeps_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "latest.pth"
    write_checkpoint(path, checkpoint(1.0), keep_previous=True)
    write_checkpoint(path, checkpoint(2.0), keep_previous=True)
    assert read_training_checkpoint(path)["meta"]["iteration"] == 2
    assert read_training_checkpoint(tmp_path / "previous.pth")["meta"]["iteration"] == 1


def test_other_types_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    write_checkpoint(path, checkpoint(1.0))
    with pytest.raises(TypeError, match=r"plain types only, not \w+Path"):
        write_checkpoint(path, {**checkpoint(2.0), "path": tmp_path})
    assert read_training_checkpoint(path)["meta"]["iteration"] == 1


def test_tensors_move_to_the_cpu_without_their_history() -> None:
    value = to_plain({"a": [torch.ones(2, requires_grad=True)]})["a"][0]
    assert not value.requires_grad and value.device.type == "cpu"


def test_a_full_disk_leaves_the_old_checkpoint_alone(tmp_path: Path) -> None:
    """On a real file system of 1 MiB that is really full."""
    script = """
import sys, torch
from pathlib import Path
from cgrseg.errors import EnvironmentProblem
from cgrseg.training.checkpointing import read_training_checkpoint, write_checkpoint
folder = Path(sys.argv[1])
def checkpoint(size, iteration):
    return {"state_dict": {"w": torch.zeros(size)}, "meta": {"iteration": iteration},
            "training": {"iteration": iteration, "optimizer": {"state": {}, "param_groups": []}}}
write_checkpoint(folder / "latest.pth", checkpoint(1000, 1), keep_previous=True)
try:
    write_checkpoint(folder / "latest.pth", checkpoint(1_000_000, 2), keep_previous=True)
except EnvironmentProblem as error:
    print(error)
print("kept", read_training_checkpoint(folder / "latest.pth")["meta"]["iteration"])
print("files", sorted(entry.name for entry in folder.iterdir()))
"""
    if shutil.which("unshare") is None:
        pytest.skip("a small file system of one's own needs Linux's unshare")
    command = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "$0" "$@"'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip(f"this machine allows no small file system: {result.stderr.strip()}")
    assert "the disk is full" in result.stdout
    assert "free some space" in result.stdout
    assert "kept 1" in result.stdout
    assert "files ['latest.pth']" in result.stdout


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(EnvironmentProblem, match="choose another folder"):
        write_checkpoint(blocked / "latest.pth", checkpoint(1.0))


def test_messages_of_files_that_cannot_be_resumed_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?i)no such file"):
        read_training_checkpoint(tmp_path / "latest.pth")
    whole = tmp_path / "whole.pth"
    write_checkpoint(whole, checkpoint(1.0))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"resume from previous\.pth"):
        read_training_checkpoint(broken)
    weights = tmp_path / "best.pth"
    write_checkpoint(weights, {"state_dict": {}, "meta": {}})
    with pytest.raises(WeightsError, match="load-from"):
        read_training_checkpoint(weights)
    evil = tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "meta": Path("x"), "training": {}}, evil)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_training_checkpoint(evil)


def test_the_newest_checkpoint_of_a_folder(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    (tmp_path / "previous.pth").touch()
    assert find_latest(tmp_path) == tmp_path / "previous.pth"
    (tmp_path / "latest.pth").touch()
    assert find_latest(tmp_path) == tmp_path / "latest.pth"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_whatever_call_finds_the_disk_full_the_old_checkpoints_stay(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems say so at the very end, when the file is synced."""
    path = tmp_path / "latest.pth"
    for value in (1.0, 2.0):
        write_checkpoint(path, checkpoint(value), keep_previous=True)

    def refuse(*_given: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(EnvironmentProblem, match="what to do"):
            write_checkpoint(path, checkpoint(3.0), keep_previous=True)
    assert read_training_checkpoint(path)["meta"]["iteration"] == 2
    assert read_training_checkpoint(tmp_path / "previous.pth")["meta"]["iteration"] == 1
    assert len(list(tmp_path.iterdir())) == 2
