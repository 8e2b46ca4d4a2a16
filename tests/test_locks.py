"""One writer at a time in a folder, whoever comes when and however the first one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cgrseg import locks
from cgrseg.errors import EnvironmentProblem
from cgrseg.files import atomic_write_text, partial_folder
from cgrseg.locks import NAME, output_lock
from cgrseg.processes import Terminated, ending_by_signals, is_first_process, job_name

# Takes the lock of a folder, says so, and holds it until its input ends.
HOLD = """
import sys
from cgrseg import locks
from cgrseg.errors import EnvironmentProblem
from cgrseg.locks import output_lock
if "hurry" in sys.argv:
    locks._WRITTEN_WITHIN = 0.5
try:
    with output_lock(sys.argv[1], share=sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except EnvironmentProblem as error:
    print("refused", error, flush=True)
    sys.exit(2)
"""
JOB = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "one"}


def start(
    folder: Path, share: str = "", environment: Mapping[str, str] | None = None, mode: str = ""
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), share, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split(" ")[0].strip()


def end(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.returncode


def test_the_second_is_told_who_writes_and_the_folder_stays_clean(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    holder = start(folder)
    assert answer(holder) == "held"
    with pytest.raises(EnvironmentProblem) as caught, output_lock(folder):
        raise AssertionError("not reached")
    for part in (str(folder), f"process {holder.pid}", "another command", "what to do: wait"):
        assert part in str(caught.value)
    assert os.listdir(folder) == [NAME]
    assert end(holder) == 0
    # Nothing was written, so nothing is left: neither the lock nor the folders.
    assert not folder.parent.exists()
    with output_lock(folder):
        (folder / "file").touch()
    assert os.listdir(folder) == ["file"]


def test_a_dead_process_hinders_nobody(tmp_path: Path) -> None:
    holder = start(tmp_path)
    assert answer(holder) == "held"
    holder.kill()
    holder.wait()
    assert os.listdir(tmp_path) == [NAME]
    # A process that has the number of the dead one makes no difference either.
    known = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps({**known, "process": os.getpid()}))
    with output_lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_of_many_at_the_same_moment_one_comes_in(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        several = [start(folder) for _ in range(4)]
        assert sorted(answer(process) for process in several) == ["held", *["refused"] * 3]
        assert sorted(end(process) for process in several) == [0, 2, 2, 2]


def test_a_job_shares_its_lock_and_no_other_comes_in(tmp_path: Path) -> None:
    first, second = (start(tmp_path, environment=JOB) for _ in range(2))
    assert [answer(first), answer(second)] == ["held", "held"]
    other = start(tmp_path, environment={**JOB, "TORCHELASTIC_RUN_ID": "other"}, mode="hurry")
    assert answer(other) == "refused" and end(other) == 2
    assert end(first) == 0
    with pytest.raises(EnvironmentProblem, match="another command"), output_lock(tmp_path):
        raise AssertionError("not reached")
    late = start(tmp_path, environment=JOB)
    assert answer(late) == "held"
    assert [end(second), end(late)] == [0, 0]
    assert os.listdir(tmp_path) == []


def test_a_job_waits_for_its_name_in_the_file_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / NAME
    path.write_text(json.dumps({"process": 1, "job": "a killed one"}))
    # The first process of the job, between taking the file and writing its name.
    with path.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        fellow = start(tmp_path, environment=JOB)
        time.sleep(1)
        locks._write(stream.fileno(), job_name())
        fcntl.flock(stream, fcntl.LOCK_SH)
        assert answer(fellow) == "held"
        assert end(fellow) == 0


def test_a_signal_while_the_lock_is_taken_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*places: object, **named: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(locks, "remove_leftovers", signalled)
    with pytest.raises(Terminated), ending_by_signals(), output_lock(tmp_path / "new" / "out"):
        raise AssertionError("not reached")
    assert os.listdir(tmp_path) == [] and not locks._HELD


def test_variables_of_a_launcher_that_hold_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "")
    with output_lock(tmp_path):
        assert is_first_process()
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(EnvironmentProblem, match="unset WORLD_SIZE"), output_lock(tmp_path):
        raise AssertionError("not reached")
    assert is_first_process()  # it prints the message


@pytest.mark.parametrize("name", ["loop", "loop/below"])
def test_an_output_folder_that_leads_back_to_itself_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(EnvironmentProblem, match="folder"), output_lock(tmp_path / name):
        raise AssertionError("not reached")


def test_shares_without_a_launcher_share_their_lock(tmp_path: Path) -> None:
    first, second = (start(tmp_path, "share of 2") for _ in range(2))
    assert [answer(first), answer(second)] == ["held", "held"]
    other = start(tmp_path, "share of 3", mode="hurry")
    assert answer(other) == "refused"
    assert [end(first), end(second), end(other)] == [0, 0, 2]


def test_one_thread_may_enter_again_and_another_may_not(tmp_path: Path) -> None:
    refused = []

    def enter() -> None:
        try:
            with output_lock(tmp_path):
                pass
        except EnvironmentProblem as error:
            refused.append(str(error))

    with output_lock(tmp_path):
        with output_lock(tmp_path / "." / "sub" / ".."):
            pass
        assert (tmp_path / NAME).exists()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom cgrseg.locks import output_lock\n"
        "with output_lock(sys.argv[1]):\n    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())  # it runs, so what happens after a fork has happened
        process.kill()
        process.wait()
        try:
            with output_lock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path: Path) -> None:
    kept = ["best.pth", ".best.pth.abcdefgh.partial", ".other", "cgrseg.partial"]
    gone = [".best.pth.abcdefgh.cgrseg.partial", ".clip.abcdefgh.cgrseg.partial.mp4"]
    inner = tmp_path / "labels"
    taken = tmp_path / "taken"
    for folder in (tmp_path, inner, taken):
        folder.mkdir(exist_ok=True)
        for name in (*kept, *gone):
            (folder / name).write_text("")
        (folder / ".exporting.abcdefgh.cgrseg.partial").mkdir()
        (folder / ".exporting.abcdefgh.cgrseg.partial" / "half").write_text("")
    holder = start(taken)
    assert answer(holder) == "held"
    for name in gone:
        (taken / name).write_text("")  # somebody writes there now
    with output_lock(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, NAME, "labels", "taken"])
        assert len(os.listdir(inner)) == 7
    with output_lock(tmp_path, below=True):
        assert sorted(os.listdir(inner)) == sorted(kept)
    assert set(gone) < set(os.listdir(taken))
    end(holder)


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_a_lock_that_is_no_file_is_told(kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    if kind == "link":
        victim.write_text("precious")
    if kind in ("link", "dangling"):
        (tmp_path / NAME).symlink_to(victim)
    elif kind == "folder":
        (tmp_path / NAME).mkdir()
    else:
        os.mkfifo(tmp_path / NAME)
    with pytest.raises(EnvironmentProblem, match="remove it"), output_lock(tmp_path):
        raise AssertionError("not reached")
    assert victim.exists() == (kind == "link")
    assert not victim.exists() or victim.read_text() == "precious"


def test_a_folder_that_is_renamed_or_removed_gets_no_second_life(tmp_path: Path) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    with output_lock(folder):
        atomic_write_text(folder / "a" / "file", "text")
        folder.rename(moved)
        with pytest.raises(EnvironmentProblem, match="renamed or removed"):
            atomic_write_text(folder / "a" / "file", "text")
        folder.mkdir()
        with pytest.raises(EnvironmentProblem, match="renamed or removed"):
            atomic_write_text(folder / "file", "text")
    assert os.listdir(folder) == []
    assert (moved / "a" / "file").read_text() == "text" and os.listdir(moved) == ["a"]


def test_partial_folders_go_with_their_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), partial_folder(tmp_path, "exporting") as folder:
        (folder / "half").write_text("")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
