"""Trainings in processes of their own, without the seconds that their imports take.

A server process imports everything once; each training is forked from it.  What the tests
do to such a process (kill it, signal it, join it with another) is as real as to one that
was started from a shell, which `tests/test_tools_train.py` does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "cgrseg.training.train_script",
        "lightning.pytorch.loggers",
        "torch.utils.tensorboard",
        "rich.console",
        "tests.training.small_run",
    ]
)


def start(
    function: Callable[..., Any], *arguments: Any, log: Path, **environment: str
) -> BaseProcess:
    """Run a function of a module in a process; what it prints goes to `log`."""
    process = CONTEXT.Process(target=_run, args=(log, environment, function, arguments))
    process.start()
    return process


def finish(process: BaseProcess, log: Path, status: int = 0) -> str:
    """Wait for the end of a process; fail with its output unless `status` comes back."""
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
        process.join()
    text = log.read_text() if log.is_file() else ""
    assert process.exitcode == status, f"exit status {process.exitcode}\n{text}"
    return text


def run(function: Callable[..., Any], *arguments: Any, log: Path, **environment: str) -> str:
    """Run a function in a process to its end; its output."""
    return finish(start(function, *arguments, log=log, **environment), log)


def start_group(
    count: int, function: Callable[..., Any], *arguments: Any, folder: Path
) -> list[tuple[BaseProcess, Path]]:
    """Start processes as `torchrun` would; each with the file that it prints to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = []
    for rank in range(count):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
        log = folder / f"process{rank}.log"
        group.append((start(function, *arguments, log=log, **environment), log))
    return group


def run_group(
    count: int, function: Callable[..., Any], *arguments: Any, folder: Path, status: int = 0
) -> list[str]:
    """Run processes as `torchrun` would to their end; the outputs."""
    group = start_group(count, function, *arguments, folder=folder)
    return [finish(process, log, status) for process, log in group]


def train_by_script(*arguments: str) -> int:
    """What `tools/train.py` does, in this process; for the functions above."""
    from cgrseg.training.train_script import main

    return main(arguments)


def run_script(script: Path, folder: Path, *arguments: str) -> None:
    """What `python SCRIPT ARGUMENTS` does in a folder; for the functions above."""
    os.chdir(folder)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def _run(
    log: Path, environment: dict[str, str], function: Callable[..., Any], arguments: Any
) -> None:
    import torch

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # found anew, where TMPDIR says now
    # Loaders are forked from their training, as usual: they end when it does.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
