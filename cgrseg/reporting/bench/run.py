"""The measurement behind `cgrseg bench`: every subject, every amount of work, side by side."""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgrseg.models import CGRSeg
from cgrseg.reporting.bench.apart import Apart
from cgrseg.reporting.bench.handover import write_network
from cgrseg.reporting.bench.machine import Machine, Peaks, describe_machine, measure_peaks
from cgrseg.reporting.bench.memory import Memory, measure_memory, memory_is_known
from cgrseg.reporting.bench.subjects import Setting, Subject, as_input, make_subject
from cgrseg.reporting.bench.timing import Clock, Spread, ratios, take_turns
from cgrseg.reporting.bench.work import WORKS, Work, sample_photos, stopwatches

BASELINE = "plain"
"""What all ratios are taken to."""


@dataclass(frozen=True)
class Row:
    """One subject doing one amount of work.

    Attributes:
        variant: of the network.
        work: which part is timed.
        batch: images at once.
        subject: the way of predicting.
        seconds: per batch.
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
        """At the median."""
        return self.batch / self.seconds.median


@dataclass(frozen=True)
class Agreement:
    """How a subject's results compare with the plain path's on the same input.

    Attributes:
        variant: of the network.
        subject: the way of predicting.
        equal_labels: share of pixels with the same label.
        logits_error: norm of the difference over the norm; None for a foreign network.
        preparation: how the subject got ready.
    """

    variant: str
    subject: str
    equal_labels: float
    logits_error: float
    preparation: str


@dataclass
class BenchResult:
    """All that was measured.

    Attributes:
        machine: where.
        size: height and width in pixels.
        num_classes: K.
        weights: which weights, in words.
        clock: that durations are read from.
        apart: every subject was timed in a process of its own.
        rows: durations and ratios.
        agreements: of results.
        memory: per variant and subject.
        boundary_share: per variant, of cells between four logits that do not share their best
            class: those cost the fused decoding arithmetic.
        peaks: of the device; None when not asked for.
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
    works: Sequence[Work] = ("network", "labels"),
    rounds: int = 15,
    clock: Clock = "wall",
    apart: bool = False,
    device: torch.device | None = None,
    folder: Path | None = None,
    memory: bool = True,
    peaks: bool = False,
    weights: str = "drawn at random",
    trust_code: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> BenchResult:
    """Measure subjects against the plain path, which is always among them.

    Args:
        models: networks in eval mode with equal numbers of classes.
        subjects: names known to :func:`~cgrseg.reporting.bench.subjects.make_subject`.
        size: height and width in pixels, multiples of 32.
        batches: images at once.
        works: what is timed.
        rounds: in each of which every subject does its work twice; the second time counts.
        clock: "wall", or "processor" for the time that this process had the processor, which
            is meaningful with a single thread and on a machine that others use too.
        apart: time every subject in a process of its own, so that none shares threads or
            settings of memory with another; subjects of :func:`register` cannot.
        device: where to run; None: the CPU.
        folder: of compiled networks; None: the user's cache.
        memory: measure it, each subject in a process of its own.
        peaks: measure the device's matrix products and copies.
        weights: which weights the models have, for the report.
        trust_code: run the machine code of compiled packages.
        tell: gets a line before each part.

    Raises:
        ConfigError: an unknown subject.
        EnvironmentProblem: a package that a subject needs is missing.
    """
    device = device if device is not None else torch.device("cpu")
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
        _compare(result, model.variant, built, as_input(sample_photos(batches[0], size)).to(device))
        with contextlib.ExitStack() as ends:
            if apart:
                built.clear()  # each gets a process of its own now
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                others = _in_processes(names, model, setting, ends)
            for batch, work in itertools.product(batches, works):
                tell(f"{model.variant}: {WORKS[work]}, {batch} at once")
                ways: Mapping[str, Callable[[], float]]
                if apart:
                    ways = {
                        name: functools.partial(other.seconds, work, batch, clock)
                        for name, other in others.items()
                    }
                else:
                    ways = stopwatches(built, work, batch, setting, clock)
                taken = take_turns(ways, rounds=rounds)
                plain = taken[BASELINE]
                result.rows += [
                    Row(model.variant, work, batch, name, Spread.of(own), ratios(plain, own))
                    for name, own in taken.items()
                ]
        if memory and not memory_is_known(device):
            tell(f"{model.variant}: memory is not measured, this system does not tell it")
        elif memory:
            tell(f"{model.variant}: memory")
            result.memory[model.variant] = {
                name: measure_memory(
                    name, model, size, device=device, folder=folder, trust_code=trust_code
                )
                for name in names
            }
    return result


def _in_processes(
    names: Sequence[str], model: CGRSeg, setting: Setting, ends: contextlib.ExitStack
) -> dict[str, Apart]:
    """Start every subject in a process, which ends with the stack."""
    weights = Path(ends.enter_context(tempfile.TemporaryDirectory())) / "model.pt"
    write_network(model, weights)
    others = {name: ends.enter_context(Apart(name, weights, setting)) for name in names}
    for other in others.values():
        other.wait()  # all are timed on a machine where none is still starting
    return others


def spread_weights(model: CGRSeg, seed: int = 0) -> CGRSeg:
    """Give a fresh network weights as varied as trained ones.

    Freshly made, layer scales are so small that most of the network adds nothing, which
    would make every comparison of results look too good.  Equal seeds give equal weights, so
    that their compiled form is found again.
    """
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            leaf = name.rpartition(".")[2]
            if leaf in ("running_mean", "bias"):
                value.normal_(0, 0.1, generator=draws)
            elif leaf == "running_var" or (leaf == "weight" and value.ndim != 4):
                value.uniform_(0.5, 1.5, generator=draws)  # of norms
            elif leaf == "gamma" or leaf.startswith("layer_scale_"):
                value.uniform_(0.05, 0.2, generator=draws)
            elif leaf == "attention_biases_seg":
                value.normal_(0, 1, generator=draws)
            elif leaf == "weight":
                value.normal_(0, 0.7 / value[0].numel() ** 0.5, generator=draws)
    _let_classes_meet(model.eval())
    return model


def _let_classes_meet(model: CGRSeg) -> None:
    """Bring the classes of drawn weights closer until label maps are as varied as real ones.

    One class could win everywhere, and nothing would be left to decode.  So the classifier's
    bias takes away half, then three quarters and so on of what the classes differ by on the
    average over a picture, until at least a tenth of the cells lie between two of them.
    """
    picture = as_input(sample_photos(1, (512, 512))).to(next(model.parameters()).device)
    bias = model.get_parameter("decode_head.conv_seg.bias")
    with torch.inference_mode():
        logits = model(picture)
        offset = logits.mean(dim=(2, 3), keepdim=True)
        taken = next(
            (t for t in (0.0, 0.5, 0.75, 0.875) if _boundary_share(logits - t * offset) >= 0.1), 1.0
        )
    with torch.no_grad():
        # Rounded, so that it does not depend on the order in which numbers were added up.
        bias.sub_((taken * offset.flatten() * 256).round() / 256)


def _boundary_share(logits: Tensor) -> float:
    """Share of the cells between four positions that do not agree about the best class."""
    winners = logits.argmax(dim=1)
    corners = torch.stack(
        [winners[:, i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)]
    )
    return float((corners != corners[0]).any(0).float().mean())


def _compare(
    result: BenchResult, variant: str, subjects: dict[str, Subject], tensors: Tensor
) -> None:
    """Note how much every subject's logits and labels agree with the plain path's."""
    with torch.inference_mode():
        exact = subjects[BASELINE].logits(tensors).float()
        labels = subjects[BASELINE].decode(exact)
        result.boundary_share[variant] = _boundary_share(exact)
        for name, subject in subjects.items():
            logits = subject.logits(tensors)
            if logits.shape != exact.shape:
                continue  # a foreign network answers another question
            error = (logits.float() - exact).norm() / exact.norm()
            equal = float((subject.decode(logits) == labels).mean())
            result.agreements.append(
                Agreement(variant, name, equal, float(error), subject.preparation)
            )
