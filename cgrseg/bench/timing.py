"""Timing several subjects at the same work so that they can be compared.

Machines drift: clocks change, other programs start and end.  So subjects take turns, round by
round and in a new order each time, and ratios are taken within a round.  In its turn each does
its work twice without a pause, and the second time counts, as for one image after another: during
the first the threads of the subject before still spin, and its own come to their cores.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.bench.subjects import Setting, Subject, predict
from cgrseg.deploy.verify import sample_images

Clock = Literal["wall", "processor"]
CLOCKS: dict[Clock, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}
"""Clocks that durations are read from."""

Work = Literal["network", "labels", "image"]
WORKS: dict[Work, str] = {
    "network": "input tensor to logits",
    "labels": "input tensor to label map",
    "image": "image to label map",
}
"""Parts of prediction that are timed."""


@dataclass(frozen=True)
class Spread:
    """Distribution of durations in seconds, or of ratios.

    Attributes:
        median: median of all rounds.
        low: first quartile.
        high: third quartile.
        best: minimum.
        rounds: number of rounds.
    """

    median: float
    low: float
    high: float
    best: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Distribution of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, min(values), len(values))


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster, round by round."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def stopwatch(
    work: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """A function that does the work twice and returns the seconds of the second time."""

    def run() -> float:
        work()
        wait_for(device)
        start = clock()
        work()
        wait_for(device)
        return clock() - start

    return run


def subject_stopwatch(
    subject: Subject, work: Work, batch: int, setting: Setting, clock: Clock
) -> Callable[[], float]:
    """Stopwatch of a subject at work on sample images."""
    images = sample_images(batch, setting.size)
    return stopwatch(work_of(subject, work, images, setting.device), setting.device, CLOCKS[clock])


def work_of(
    subject: Subject, work: Work, images: NDArray[np.uint8], device: torch.device
) -> Callable[[], object]:
    """The work as a function, done as :class:`cgrseg.Predictor` does it."""
    tensors = subject.prepared(images, device)

    def run() -> object:
        if work == "image":
            return predict(subject, images, device)
        with torch.inference_mode():
            return subject.logits(tensors) if work == "network" else subject.label(tensors)

    return run


def take_turns(
    stopwatches: Mapping[str, Callable[[], float]], *, rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Time everything once per round, in a shuffled order.

    Args:
        stopwatches: name to function that does the work and returns seconds.
        rounds: number of rounds, at least 1.
        seed: seed of the order.

    Returns:
        Seconds per round, rounds in the same order for every name.
    """
    order = list(stopwatches)
    shuffle = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in stopwatches}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(stopwatches[name]())
    return taken


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all queued work; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
