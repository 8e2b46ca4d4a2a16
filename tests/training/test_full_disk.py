"""No room left, while a training runs: a message, and the checkpoint from before."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from cgrseg.config.schema import Config
from cgrseg.errors import EnvironmentProblem
from cgrseg.training.checkpointing import read_training_checkpoint
from cgrseg.training.failures import readable_failures
from cgrseg.training.journal import Journal, make_loggers
from cgrseg.training.runner import train
from tests.training.processes import finish, start
from tests.training.small_run import small_config, write_dataset

NO_MOUNT = 77
_NEW_USER, _NEW_MOUNTS, _READ_ONLY = 0x10000000, 0x00020000, 1  # of Linux's system calls


def small_disk(folder: Path, size: str, flags: int = 0) -> None:
    """Mount a file system in memory of a few bytes, seen by this process alone; or exit."""
    if not sys.platform.startswith("linux"):
        sys.exit(NO_MOUNT)
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNTS) != 0:
        sys.exit(NO_MOUNT)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError:
        sys.exit(NO_MOUNT)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, f"size={size}".encode()) != 0:
        sys.exit(NO_MOUNT)


def run_or_skip(function: object, *arguments: object, folder: Path) -> str:
    """Run in a process that has its own small disk; skip where none can be had."""
    log = folder / "output.log"
    process = start(function, *arguments, log=log)  # type: ignore[arg-type]
    process.join(timeout=600)
    if process.exitcode == NO_MOUNT:
        pytest.skip("this machine does not let a user mount a small file system")
    return finish(process, log)


def explained(config: Config) -> int:
    """Train; print the problem, then what is in the folder."""
    try:
        train(config, device="cpu")
    except EnvironmentProblem as error:
        print(f"problem: {error}")
    folder = Path(config.run_dir)
    print("files", sorted(path.name for path in folder.iterdir()))
    for path in sorted(folder.glob("*.pth")):
        print(path.name, read_training_checkpoint(path)["training"]["iteration"])
    return 0


def train_on_a_small_disk(root: Path, folder: Path) -> int:
    """Room for two checkpoints, and not for the third beside them."""
    small_disk(folder, "210m")
    return explained(
        small_config(
            root, folder / "run", augment__crop_size=[32, 32], train__checkpoint_interval=1
        )
    )


def test_a_training_on_a_full_disk(tmp_path: Path) -> None:
    root, folder = write_dataset(tmp_path / "data"), tmp_path / "disk"
    folder.mkdir()
    said = run_or_skip(train_on_a_small_disk, root, folder, folder=tmp_path)
    latest = folder / "run" / "latest.pth"
    assert f"problem: {latest}: the disk is full" in said
    assert "what to do: free some space, or choose another folder" in said
    assert "\nlatest.pth 2\nprevious.pth 1\n" in said
    assert ".partial" not in said and "Traceback" not in said


def train_where_nothing_can_be_written(root: Path, folder: Path) -> int:
    """The run folder would be on a file system that is read-only."""
    small_disk(folder, "64k", _READ_ONLY)
    try:
        train(small_config(root, folder / "run"), device="cpu")
    except EnvironmentProblem as error:
        print(f"problem: {error}")
    return 0


def test_a_read_only_folder_is_told_before_the_first_iteration(tmp_path: Path) -> None:
    root, folder = write_dataset(tmp_path / "data"), tmp_path / "disk"
    folder.mkdir()
    said = run_or_skip(train_where_nothing_can_be_written, root, folder, folder=tmp_path)
    assert f"problem: {folder / 'run'}: the file system is read-only" in said
    assert "choose a folder that can be written" in said
    assert "iteration" not in said and "Traceback" not in said


def train_with_small_files(root: Path, folder: Path) -> int:
    """Files of 20 MiB at most: the first checkpoint is too large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))
    return explained(
        small_config(root, folder, augment__crop_size=[32, 32], train__checkpoint_interval=1)
    )


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    said = run_or_skip(train_with_small_files, root, tmp_path / "run", folder=tmp_path)
    assert "latest.pth: the file would be larger than files may be here" in said
    assert "ulimit -f" in said
    assert ".pth" not in said.partition("files")[2] and "Traceback" not in said


def log_images_on_a_small_disk(folder: Path) -> int:
    """TensorBoard writes in a thread: the error arrives later, in the training."""
    small_disk(folder, "64k")
    config = Config()
    try:
        with readable_failures(config, "cpu", folder):
            loggers = make_loggers(config, folder, 0)
            journal = Journal(
                folder,
                start=0,
                end=10,
                loss_columns=["loss"],
                score_columns=["mIoU"],
                images_per_iteration=1,
                loggers=loggers,
            )
            noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
            for iteration in range(10):
                journal.log_images(iteration, {"noise": noise})
                loggers[0].save()
    except EnvironmentProblem as error:
        print(f"problem: {error}")
    return 0


def test_tensorboard_on_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    said = run_or_skip(log_images_on_a_small_disk, folder, folder=tmp_path)
    assert f"problem: {folder}: the disk is full" in said
    assert "Traceback" not in said


def train_with_little_shared_memory(root: Path, folder: Path) -> int:
    """Loader processes hand batches over in /dev/shm."""
    small_disk(Path("/dev/shm"), "64k")
    return explained(small_config(root, folder, data__workers=1))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm on this system")
def test_shared_memory_without_room(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    said = run_or_skip(train_with_little_shared_memory, root, tmp_path / "run", folder=tmp_path)
    assert "problem: loader processes: " in said
    assert "data.workers=0 needs no shared memory" in said
