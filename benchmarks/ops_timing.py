"""What the benchmarks of `cgrseg.ops` share: taking turns, medians, the machine's name.

The contestants run one after another within every round, so whatever else the machine does
hits all of them; a ratio is taken within each round, and the median over the rounds reported
with its quartiles.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cgrseg.files import write_json

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.thread_time,
}


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Options that both benchmarks take."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arguments.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    arguments.add_argument("--rounds", type=int, default=rounds, help="turns of each contestant")
    arguments.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: time of the calling thread only, for --threads 1 on a busy machine",
    )
    arguments.add_argument("--json", type=Path, help="also write the figures to this file")
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Apply the options; refuse a clock that would not see the other threads' work."""
    if arguments.clock == "processor" and arguments.threads != 1:
        raise SystemExit("--clock processor sees one thread only: add --threads 1")
    torch.set_num_threads(arguments.threads)


def take_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, clock: str
) -> dict[str, list[float]]:
    """Seconds of every run, by contestant; one untimed run each comes first."""
    read = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            start = read()
            run()
            times[name].append(read() - start)
    return times


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def compare(times: Mapping[str, list[float]], plain: str) -> dict[str, dict[str, float]]:
    """Milliseconds and speed-up over the plain contestant, each with its quartiles."""
    rows = {}
    for name, values in times.items():
        low, middle, high = (1000 * value for value in spread(values))
        ratios = [base / value for base, value in zip(times[plain], values, strict=True)]
        slow, ratio, fast = spread(ratios)
        rows[name] = {
            "milliseconds": middle,
            "milliseconds_quartiles": [low, high],
            "times_faster": ratio,
            "times_faster_quartiles": [slow, fast],
        }
    return rows


def cells(row: Mapping[str, Any]) -> str:
    """Two cells of a markdown table."""
    low, high = row["milliseconds_quartiles"]
    slow, fast = row["times_faster_quartiles"]
    return (
        f"{row['milliseconds']:.1f} ({low:.1f} to {high:.1f}) | "
        f"{row['times_faster']:.1f} ({slow:.1f} to {fast:.1f})"
    )


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and how the figures came about."""
    return {
        "machine": f"{os.cpu_count()} cores {platform.machine().replace('_', '-')}",
        "threads": arguments.threads,
        "clock": arguments.clock,
        "rounds": arguments.rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def say(line: str) -> None:
    """Print one line at once: a long run shows what it has."""
    print(line, flush=True)


def introduce(about: Mapping[str, Any]) -> None:
    """Print what :func:`machine` found."""
    say(
        f"{about['machine']}, {about['threads']} threads, {about['clock']} time, "
        f"{about['rounds']} rounds; Python {about['python']}, PyTorch {about['torch']}, "
        f"NumPy {about['numpy']}, OpenCV {about['opencv']}\n"
    )


def keep(figures: dict[str, Any], path: Path | None) -> None:
    """Write the figures where asked to."""
    if path is not None:
        write_json(path, figures)
