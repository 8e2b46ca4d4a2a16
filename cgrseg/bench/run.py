"""The measurement of `cgrseg bench`: every subject and every work, side by side."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.bench.machine import Machine, Peaks, describe_machine, measure_peaks
from cgrseg.bench.random_weights import boundary_share
from cgrseg.bench.subject_process import (
    Memory,
    SubjectProcess,
    measure_memory,
    memory_is_known,
    write_network,
)
from cgrseg.bench.subjects import Setting, Subject, make_subject
from cgrseg.bench.timing import (
    CLOCKS,
    WORKS,
    Clock,
    Spread,
    Work,
    ratios,
    subject_stopwatch,
    take_turns,
)
from cgrseg.deploy.verify import as_input, sample_images
from cgrseg.errors import check_choice
from cgrseg.models import CGRSeg

_LOG = logging.getLogger("cgrseg.bench")

BASELINE = "plain"
"""The subject that all ratios compare with."""


@dataclass(frozen=True)
class Row:
    """One subject at one kind of work.

    Attributes:
        variant: variant of the network.
        work: part of prediction that is timed.
        batch: batch size.
        subject: name of the subject.
        seconds: duration per batch.
        ratio: times faster than the plain path, round by round.
    """

    variant: str
    work: Work
    batch: int
    subject: str
    seconds: Spread
    ratio: Spread

    @property
    def images_per_second(self) -> float:
        """Throughput at the median duration."""
        return self.batch / self.seconds.median


@dataclass(frozen=True)
class Agreement:
    """Comparison of a subject's results with the plain path's on the same input.

    Attributes:
        variant: variant of the network.
        subject: name of the subject.
        equal_labels: share of pixels with the same label.
        logits_error: norm of the difference over the norm.
        preparation: how the subject was prepared.
    """

    variant: str
    subject: str
    equal_labels: float
    logits_error: float
    preparation: str


@dataclass
class BenchResult:
    """All measurements.

    Attributes:
        machine: the machine.
        size: height and width in pixels.
        num_classes: K.
        weights: origin of the weights, in words.
        clock: clock that durations are read from.
        apart: whether every subject was timed in a process of its own.
        rows: durations and ratios.
        agreements: comparisons of results.
        memory: memory by variant and subject.
        boundary_share: by variant, share of the cells between four logits whose best classes are
            not the same: those cost the fused decoding arithmetic.
        peaks: peaks of the device; None: not measured.
    """

    machine: Machine
    size: tuple[int, int]
    num_classes: int
    weights: str
    clock: Clock = "wall"
    apart: bool = False
    rows: list[Row] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    memory: dict[str, dict[str, Memory]] = field(default_factory=dict)
    boundary_share: dict[str, float] = field(default_factory=dict)
    peaks: Peaks | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        table = asdict(self)
        for row, stored in zip(self.rows, table["rows"], strict=True):
            stored["images_per_second"] = row.images_per_second
            if row.work == "image":
                stored["work"] = "photo"  # its name in the JSON of all versions
        for variant, subjects in self.memory.items():
            for subject, memory in subjects.items():
                table["memory"][variant][subject]["grown"] = memory.grown
        return table


def run_bench(
    models: Sequence[CGRSeg],
    subjects: Sequence[str],
    *,
    size: tuple[int, int] = (512, 512),
    batches: Sequence[int] = (1,),
    works: Sequence[str] = ("network", "labels"),
    rounds: int = 15,
    clock: str = "wall",
    apart: bool = False,
    device: torch.device | None = None,
    folder: Path | None = None,
    memory: bool = True,
    peaks: bool = False,
    weights: str = "drawn at random",
    trust_code: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> BenchResult:
    """Measure subjects and compare them with the plain path, which is always among them.

    Args:
        models: networks in eval mode with equal numbers of classes.
        subjects: names that :func:`~cgrseg.bench.subjects.make_subject` knows.
        size: height and width in pixels, multiples of 32.
        batches: batch sizes.
        works: parts of prediction that are timed, keys of :data:`~cgrseg.bench.timing.WORKS`.
        rounds: number of rounds; in each, every subject does its work twice, and the second time
            counts.
        clock: "wall", or "processor": time on the processor, which is meaningful with a single
            thread and on a machine that others use too.
        apart: time every subject in a process of its own, so that none shares threads or
            settings of memory with another; only subjects of the package can.
        device: where to run; None: the CPU.
        folder: folder of compiled networks; None: the user's cache.
        memory: measure the memory of each subject, in a process of its own.
        peaks: measure the device's matrix products and copies.
        weights: origin of the models' weights, for the report.
        trust_code: run the machine code of compiled packages.
        tell: called with a line of text before each part.

    Raises:
        ConfigError: an unknown subject, work or clock.
        EnvironmentProblem: a package that a subject needs is missing.
    """
    device = device if device is not None else torch.device("cpu")
    if "photo" in works:
        _LOG.warning("the work 'photo' is now called 'image'")
    renamed = ["image" if work == "photo" else work for work in works]
    kinds = [check_choice("--works", work, WORKS) for work in renamed]
    clock = check_choice("--clock", clock, CLOCKS)
    names = [BASELINE, *(name for name in dict.fromkeys(subjects) if name != BASELINE)]
    result = BenchResult(
        describe_machine(device), size, models[0].num_classes, weights, clock, apart
    )
    if peaks:
        tell("peaks of the device")
        result.peaks = measure_peaks(device)
    setting = Setting(size, device, folder, tuple(batches), trust_code=trust_code)
    for model in models:
        built: dict[str, Subject] = {}
        for name in names:
            tell(f"{model.variant}: preparing {name}")
            built[name] = make_subject(name, model, setting)
        _compare(result, model.variant, built, sample_images(batches[0], size), device)
        with contextlib.ExitStack() as ends:
            if apart:
                built.clear()  # each gets a process of its own now
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                others = _in_processes(names, model, setting, ends)
            for batch, work in itertools.product(batches, kinds):
                tell(f"{model.variant}: {WORKS[work]}, {batch} at once")
                watches: dict[str, Callable[[], float]]
                if apart:
                    watches = {
                        name: functools.partial(other.seconds, work, batch, clock)
                        for name, other in others.items()
                    }
                else:
                    watches = {
                        name: subject_stopwatch(subject, work, batch, setting, clock)
                        for name, subject in built.items()
                    }
                taken = take_turns(watches, rounds=rounds)
                plain = taken[BASELINE]
                result.rows += [
                    Row(model.variant, work, batch, name, Spread.of(own), ratios(plain, own))
                    for name, own in taken.items()
                ]
        if memory and not memory_is_known(device):
            tell(f"{model.variant}: memory is not measured, this system does not tell it")
        elif memory:
            tell(f"{model.variant}: memory")
            alone = replace(setting, batches=(1,), warm_up=False)
            result.memory[model.variant] = {
                name: measure_memory(name, model, alone) for name in names
            }
    return result


def _in_processes(
    names: Sequence[str], model: CGRSeg, setting: Setting, ends: contextlib.ExitStack
) -> dict[str, SubjectProcess]:
    """Start every subject in a process, which ends with the stack."""
    weights = Path(ends.enter_context(tempfile.TemporaryDirectory())) / "model.pt"
    write_network(model, weights)
    others = {name: ends.enter_context(SubjectProcess(name, weights, setting)) for name in names}
    for other in others.values():
        other.wait()  # all are timed on a machine where none is still starting
    return others


def _compare(
    result: BenchResult,
    variant: str,
    subjects: dict[str, Subject],
    images: NDArray[np.uint8],
    device: torch.device,
) -> None:
    """Compare the logits and labels of every subject with the plain path's."""
    with torch.inference_mode():
        exact = subjects[BASELINE].logits(as_input(images).to(device)).float()
        labels = subjects[BASELINE].decode(exact)
        result.boundary_share[variant] = boundary_share(exact)
        for name, subject in subjects.items():
            if subject.peer:
                continue  # another network answers another question
            logits = subject.logits(subject.prepared(images, device))
            if logits.shape != exact.shape:
                continue  # a file that gives label maps
            error = (logits.float() - exact).norm() / exact.norm()
            equal = float((subject.decode(logits) == labels).mean())
            result.agreements.append(
                Agreement(variant, name, equal, float(error), subject.preparation)
            )
