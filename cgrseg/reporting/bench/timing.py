"""Timing several ways of doing the same work so that they can be compared.

Machines drift: clocks change, neighbours come and go.  So the ways take turns, round by
round and in a new order each time, and ratios are taken within a round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


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


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every way once per round, in a shuffled order, after one untimed round.

    Args:
        ways: name to function without arguments.
        rounds: at least 1.
        device: whose queued work is waited for before the clock is read.
        seed: of the order.
        clock: gives seconds.

    Returns:
        Seconds per round, rounds in the same order for every way.
    """
    order = list(ways)
    shuffle = random.Random(seed)
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            wait_for(device)
            start = clock()
            ways[name]()
            wait_for(device)
            taken[name].append(clock() - start)
    return taken


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster, round by round."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])
