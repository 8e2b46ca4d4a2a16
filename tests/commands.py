"""Commands in processes of their own without the seconds of their imports, and tiny inputs.

As in :mod:`tests.training.processes`, whose server has imported everything: what is done to such
a process (a signal, a kill) is as real as to one from a shell.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np

from tests.training import processes
from tests.training.small_run import write_dataset

SMALL = [
    "model.context_blocks=1",
    "augment.scale=[64,64]",
    "augment.crop_size=[64,64]",
    "test.resize=none",
    "train.batch_size=2",
    "train.log_interval=1",
    "train.checkpoint_interval=2",
    "train.precision=fp32",
    "train.channels_last=false",
    "schedule.max_iters=4",
    "schedule.warmup_iters=0",
    "data.workers=1",
]


def run_command(*arguments: str) -> None:
    """What `cgrseg ARGUMENTS` does, from its main function to the end of the process."""
    from cgrseg.__main__ import main

    # Tests that a shell started in the background are born with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["cgrseg", *arguments]
    while "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
        time.sleep(0.001)
    if "KEPT" in os.environ:
        keep_lock(Path(os.environ["KEPT"]))
    try:
        main()
    finally:
        atexit._run_exitfuncs()


def keep_lock(kept: Path) -> None:
    """Let this process give the lock of a folder back once `ended` exists beside the folder."""
    from cgrseg import locks

    let_go = locks._let_go

    def late(held: locks._Held, folder: Path) -> None:
        while folder == kept and not (kept.parent / "ended").exists():
            time.sleep(0.001)
        let_go(held, folder)

    locks._let_go = late


def start(*arguments: str | Path, log: Path, **environment: str) -> BaseProcess:
    """Start a command; what it prints goes to `log`.

    With GATE in the environment it begins as soon as a file of that name exists; for KEPT see
    :func:`keep_lock`.
    """
    return processes.start(run_command, *map(str, arguments), log=log, **environment)


def run(*arguments: str | Path, log: Path, status: int = 0, **environment: str) -> str:
    """Run a command to its end; its output."""
    return processes.finish(start(*arguments, log=log, **environment), log, status)


def write_inputs(folder: Path) -> Path:
    """A dataset, color masks with two tables of colors, images, a clip and a trained checkpoint."""
    root = write_dataset(folder / "data")
    images, masks = folder / "images", folder / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        label = np.zeros((64, 64), np.uint8)
        label[20 + number % 20 :] = 1
        colors = np.array([[10, 20, 30], [200, 30, 40]], np.uint8)[label]
        cv2.imwrite(str(masks / f"{number}.png"), colors[..., ::-1])
        cv2.imwrite(str(images / f"{number}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
    (folder / "one.txt").write_text("sky 10 20 30\nroad 200 30 40\n")
    (folder / "two.txt").write_text("road 200 30 40\nsky 10 20 30\n")
    writer = cv2.VideoWriter(
        str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (64, 64)
    )
    for _ in range(12):
        writer.write(rng.integers(0, 255, (64, 64, 3), np.uint8))
    writer.release()
    run(*train(root, folder / "trained", "train.evaluate=false"), log=folder / "train.log")
    return folder


def train(root: Path, work_dir: Path, *more: str) -> list[str]:
    """Arguments of a small training."""
    options = ["--device", "cpu", "--work-dir", str(work_dir)]
    return ["train", "cgrseg-t_custom", f"data.root={root}", *options, *SMALL, *more]


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(*folders: Path) -> list[str]:
    """Hidden files and folders below folders: what is not finished, and locks."""
    return [str(path) for folder in folders for path in folder.rglob(".*")]


def children_of(process: int) -> list[int]:
    """Processes whose parent is this one (Linux)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[1]) == process:
                found.append(int(entry))
    return found
