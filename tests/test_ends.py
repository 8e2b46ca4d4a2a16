"""SIGTERM, Ctrl-C and kill -9 at random moments of every command that writes.

After a signal nothing that is not finished is left, and the exit status says which one it was.
After a kill the next run removes what was left. Both end with the results of a run left alone,
and no worker process outlives its command.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cgrseg.evaluation.result import read_counts
from tests import commands
from tests.training.small_run import differing

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.write_inputs(tmp_path_factory.mktemp("inputs"))


def arguments_of(command: str, inputs: Path, out: Path) -> list[str | Path]:
    """A command that writes below `out`, and nowhere else."""
    best, cpu = inputs / "trained" / "latest.pth", ("--device", "cpu")
    if command == "train":
        return [*commands.train(inputs / "data", out), "--resume"]
    if command == "evaluate":
        return ["evaluate", best, f"work_dir={out}", "--out", out / "labels", *cpu]
    if command == "predict":
        return ["predict", best, inputs / "images", "--out", out, *cpu]
    if command == "compile":
        return ["predict", best, inputs / "images", "--out", out / "maps", "--compile", *cpu]
    if command == "video":
        return [
            "predict",
            best,
            inputs / "clip.avi",
            "--out",
            out / "clip.avi",
            "--overwrite",
            *cpu,
        ]
    if command == "export":
        target = out / "model.pt2"
        form = ["--format", "pt2", "--size", "64x64", "--overwrite"]
        return ["export", best, *form, "--out", target]
    workers = ["--workers", "2" if command == "convert in two processes" else "1"]
    folders = [inputs / "images", inputs / "masks", out]
    return ["data", "convert", "rgb", *folders, "--colors", inputs / "one.txt", *workers]


def same_results(command: str, one: Path, other: Path) -> bool:
    """Whether two runs have made the same; what tells times and places is left out."""
    if command == "train":
        return differing(one / "latest.pth", other / "latest.pth") == []
    if command == "evaluate":
        first, second = (read_counts(folder / "evaluation.npz") for folder in (one, other))
        if first[:2] != second[:2] or (first[2] != second[2]).any():
            return False
    if command == "export":  # a zip archive tells times
        sizes = [(folder / "model.pt2").stat().st_size for folder in (one, other)]
        return abs(sizes[0] - sizes[1]) < 100
    kinds = (".png", ".jpg", ".avi", ".txt")
    found = [
        {name: digest for name, digest in commands.contents(folder).items() if name.endswith(kinds)}
        for folder in (one, other)
    ]
    return found[0] == found[1] and bool(found[0])


def gone(processes: list[int], within: float = 10.0) -> bool:
    """Whether processes end, as those do whose parent has ended."""
    for _ in range(round(within / 0.05)):
        if not any(Path("/proc", str(process)).exists() for process in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes on Linux")
@pytest.mark.parametrize(
    ("command", "moments"),
    [
        ("predict", 1),
        ("convert", 1),
        *(
            pytest.param(command, 10, marks=SLOW)
            for command in ("train", "evaluate", "predict", "convert", "export", "video", "compile")
        ),
        pytest.param("convert in two processes", 2, marks=SLOW),
    ],
)
def test_a_signal_at_any_moment(command: str, moments: int, inputs: Path, tmp_path: Path) -> None:
    log, alone, out, temporary = (tmp_path / n for n in ("log", "alone", "out", "temporary"))
    cache = str(tmp_path / "cache")
    temporary.mkdir()
    places: dict[str, Any] = {"TMPDIR": str(temporary), "CGRSEG_CACHE": cache}
    begun = time.monotonic()
    commands.run(*arguments_of(command, inputs, alone), log=log, **places)
    duration = time.monotonic() - begun
    print(f"\n{command}, {duration:.1f} s alone; signal, moment, status:")
    draw = random.Random(7)
    rows: list[tuple[str, float, int]] = []
    for _ in range(moments):
        for number in SIGNALS:
            shutil.rmtree(temporary)
            temporary.mkdir()
            if draw.random() < 0.5:  # else it goes on with what the one before has left
                shutil.rmtree(out, ignore_errors=True)
                shutil.rmtree(cache, ignore_errors=True)
            process = commands.start(*arguments_of(command, inputs, out), log=log, **places)
            assert process.pid is not None
            moment = draw.uniform(0, duration)
            time.sleep(moment)
            children = commands.children_of(process.pid)
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(process.pid, number)
            process.join(timeout=300)
            code = process.exitcode
            assert code is not None, log.read_text()
            status = code if code >= 0 else 128 - code  # as a shell gives it
            rows.append((number.name, round(moment, 2), status))
            assert status in (128 + number, 0), (rows, log.read_text())
            # A C++ compiler, which PyTorch starts, ends when its file is compiled.
            assert gone(children, within=120 if command == "compile" else 10), (rows, children)
            if number != signal.SIGKILL:
                left = commands.hidden(*(p for p in (out, Path(cache)) if p.exists()))
                assert left == [] and os.listdir(temporary) == [], (rows, left)
            assert "Traceback" not in log.read_text(), (rows, log.read_text())
        commands.run(*arguments_of(command, inputs, out), log=log, **places)
        assert commands.hidden(*(p for p in (out, Path(cache)) if p.exists())) == []
        assert same_results(command, alone, out), rows
        print("  " + ", ".join(f"{n} {m:.2f} s {s}" for n, m, s in rows[-3:]), flush=True)
    if moments > 1:  # of a single moment each all may come after the end
        assert any(status for _, _, status in rows)


def started(command: list[str | Path], until: Callable[[], bool]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cgrseg", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not until():
        assert process.poll() is None
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("convert", signal.SIGTERM),
        *(
            pytest.param(command, number, marks=SLOW)
            for command in ("train", "evaluate", "predict", "export", "video")
            for number in (signal.SIGTERM, signal.SIGINT)
        ),
    ],
)
def test_a_real_process_ends_as_its_signal_says(
    command: str, number: signal.Signals, inputs: Path, tmp_path: Path
) -> None:
    """From a shell, signalled as soon as it has begun to write."""
    out = tmp_path / "out"
    process = started(arguments_of(command, inputs, out), out.exists)
    process.send_signal(number)
    assert process.wait(timeout=300) == 128 + number
    assert not out.exists() or commands.hidden(out) == []
