"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

import pytest

from cgrseg import files
from cgrseg.errors import EnvironmentProblem
from cgrseg.files import atomic_write, atomic_write_text, make_folder, write_json


def test_replaces_the_old_file_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "a" / "file.txt"
    atomic_write_text(target, "old")
    with atomic_write(target) as stream:
        stream.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["file.txt"]


def test_an_error_of_the_block_leaves_the_old_file_and_passes_through(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(target) as stream:
        stream.write(b"half")
        (tmp_path / "missing").read_bytes()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def full_device(descriptor: int, mode: str) -> IO[bytes]:
    """A stream to a device that is always full, in place of the one asked for."""
    os.close(descriptor)
    return open(os.open("/dev/full", os.O_WRONLY), mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    # A real full device behind the descriptor that the partial file would have.
    monkeypatch.setattr(os, "fdopen", full_device)
    with (
        pytest.raises(EnvironmentProblem, match="the disk is full") as caught,
        atomic_write(target) as stream,
    ):
        stream.write(b"x" * 10_000_000)
    assert str(target) in str(caught.value)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_folder_in_the_way_and_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="a folder of that name"):
        atomic_write_text(tmp_path / "folder", "text")
    with pytest.raises(EnvironmentProblem, match="a file"):
        make_folder(tmp_path / "file" / "inside")


def test_permissions_are_those_of_ordinary_files(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_reasons_that_are_not_in_the_table_are_passed_on() -> None:
    problem = files.writing_problem("name", OSError(errno.EIO, "Input/output error"))
    assert "Input/output error" in str(problem)


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()
