"""Timing several ways of doing the same work so that they can be compared.

Machines drift: clocks change, neighbours come and go.  So the ways take turns, round by
round and in a new order each time, and ratios are taken within a round.  In its turn each does
its work twice without a pause, and the second time counts, as for a photo after another: during
the first the threads of the way before still spin, and its own come to their cores.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Clock = Literal["wall", "processor"]
CLOCKS: dict[Clock, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}
"""What durations are read from."""


@dataclass(frozen=True)
class Spread:
    """Durations in seconds, or ratios, summed up.

    Attributes:
        median: of all rounds.
        low: first quartile.
        high: third quartile.
        best: the smallest.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    best: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, min(values), len(values))


def stopwatch(
    work: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """The work as a function that does it twice and gives the seconds of the second time.

    Args:
        work: without arguments.
        device: whose queued work is waited for before the clock is read.
        clock: gives seconds.
    """

    def run() -> float:
        work()
        wait_for(device)
        start = clock()
        work()
        wait_for(device)
        return clock() - start

    return run


def take_turns(
    ways: Mapping[str, Callable[[], float]], *, rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Time every way once per round, in a shuffled order.

    Args:
        ways: name to what does the work and gives seconds, see :func:`stopwatch`.
        rounds: at least 1.
        seed: of the order.

    Returns:
        Seconds per round, rounds in the same order for every way.
    """
    order = list(ways)
    shuffle = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(ways[name]())
    return taken


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster, round by round."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])
