"""A training step: ours beside the plain one, images a second and memory, in one run.

The plain step is what the recipe says, word by word, as PyTorch offers it: eager float32,
logits resized to full size and kept, AdamW without fusing.  Ours takes the loss that never
makes those logits (`cgrseg.ops`), the fused AdamW and, as asked for, channels-last memory,
bfloat16 and `torch.compile`.  All train the same network on the same synthetic batch (random
pixels, a tenth ignored; loading is measured by `benchmarks/data.py`).

Time: the contestants take turns, each step ending with the device done; the stages in further
rounds, each stage ending so.  Memory: each in a process of its own, how far the peak of a step
lies above network, optimiser and batch.

    python benchmarks/training.py                                     # T, 512x512, batch 4
    python benchmarks/training.py --device cuda --models cgrseg_t cgrseg_b cgrseg_l \
        --batch 16 --contestants plain fused bf16 compiled compiled-bf16
    python benchmarks/training.py --curve benchmarks/results/training_curve.csv

`--loop`: instead, the whole training loop on images on disk: `cgrseg.train` (Lightning's loop with
loader, log and callbacks), eager and compiled, beside the published step in a plain loop with the
same loader.  Each contestant is a process, and the processes take turns.  Memory is the peak of
the process, loader processes not included.

    python benchmarks/training.py --loop --data-root data/ade/ADEChallengeData2016

`--curve`: instead, 100 iterations of each contestant on the same batches of real images
(`--data-root`), whose losses must be those of the plain step but for noise; the noise is the
plain step's own under another order of summation (`plain, channels-last`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from ops_timing import check, keep, machine, parser, say, spread
from torch import Tensor

from cgrseg.config import load_config
from cgrseg.config.schema import LossConfig, OptimizerConfig, ScheduleConfig
from cgrseg.cpus import prepare_openmp
from cgrseg.devices import Placement
from cgrseg.files import atomic_write_text
from cgrseg.models import create_model, efficientformer_v2, layers, pyramid
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.losses import SegmentationLoss
from cgrseg.training.optimizer import parameter_groups, rate_factor
from cgrseg.training.runner import train_on

STAGES = ("forward", "loss", "backward", "optimizer")
STAGE_ROUNDS = 3


@dataclass(frozen=True)
class Contestant:
    """How a step is done."""

    fused: bool = True
    channels_last: bool = True
    precision: str = "fp32"
    compiled: bool = False


CONTESTANTS: dict[str, Contestant] = {
    "plain": Contestant(fused=False, channels_last=False),
    "plain-channels-last": Contestant(fused=False),
    "fused": Contestant(channels_last=False),
    "fused-channels-last": Contestant(),
    "bf16": Contestant(precision="bf16"),
    "compiled": Contestant(compiled=True),
    "compiled-bf16": Contestant(precision="bf16", compiled=True),
}
DEFAULT = ("plain", "fused", "fused-channels-last", "bf16")
LOOPS: dict[str, dict[str, Any]] = {
    "published": {},
    "eager": {},
    "compiled": {"train.compile": True},
}


class Step:
    """One contestant: a network in training, and what belongs to it.

    Args:
        contestant: how.
        name: variant of the network.
        classes: K.
        device: where.
        rates: optimiser settings; none: the published ones.
    """

    def __init__(
        self,
        contestant: Contestant,
        name: str,
        classes: int,
        device: torch.device,
        rates: OptimizerConfig | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.how, self.device = contestant, device
        self.model = create_model(name, classes).to(device).train()
        if contestant.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: Callable[[Tensor], Tensor] = (
            torch.compile(self.model) if contestant.compiled else self.model
        )
        self.loss = SegmentationLoss(LossConfig(), classes)
        rates = rates or OptimizerConfig()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, rates),
            lr=rates.lr,
            betas=rates.betas,
            fused=contestant.fused or None,  # None: PyTorch's own choice
        )

    def timed(self, image: Tensor, label: Tensor) -> float:
        """Seconds of a step, its stages following each other as they do in training."""
        begun = self._now()
        self(image, label)
        return self._now() - begun

    def __call__(
        self, image: Tensor, label: Tensor, stages: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        """Take a step; the loss, and the seconds of each stage if they are asked for."""
        now = self._now if stages else time.perf_counter
        marks = [now()]
        if self.how.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with contextlib.ExitStack() as how:
            if self.how.precision == "bf16":
                how.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            if not self.how.fused:
                for module in (layers, efficientformer_v2, pyramid):  # a mock keeps its arguments
                    how.enter_context(patch.object(module, "recomputes", lambda x: False))
            logits = self.network(image)
        marks.append(now())
        loss = self.loss(logits, label)["loss"] if self.how.fused else plain_loss(logits, label)
        marks.append(now())
        loss.backward()
        marks.append(now())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.append(now())
        took = [end - begin for begin, end in itertools.pairwise(marks)]
        return loss.detach(), dict(zip(STAGES, took, strict=True))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def plain_loss(logits: Tensor, label: Tensor) -> Tensor:
    """The published loss from full-size logits."""
    logits = F.interpolate(
        logits.float(), size=label.shape[1:], mode="bilinear", align_corners=False
    )
    return F.cross_entropy(logits, label, ignore_index=255, reduction="none").mean()


def make_batch(images: int, size: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random pixels and labels, a tenth ignored."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, 3, size, size, generator=generator)
    label = torch.randint(0, classes, (images, size, size), generator=generator)
    label[:, : size // 10] = 255
    return image.to(device), label.to(device)


def print_peak(name: str, model: str, options: argparse.Namespace) -> None:
    """Print by how many bytes a step raises the peak of this process (or of its GPU)."""
    device = torch.device(options.device)
    step = Step(CONTESTANTS[name], model, options.classes, device)
    step(*make_batch(2, 64, options.classes, device))  # moments of the optimiser, kernels
    batch = make_batch(options.batch, options.size, options.classes, device)
    if device.type == "cuda":
        step(*batch)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(*batch)
        grown = torch.cuda.max_memory_allocated(device) - before
    else:
        before = _peak()
        step(*batch)
        grown = _peak() - before
    print(json.dumps(grown))


def peak_elsewhere(name: str, model: str, options: argparse.Namespace) -> int:
    """The same, in a fresh process."""
    command = [sys.executable, __file__, "--peak-of", name, model]
    for option in ("batch", "size", "threads", "classes", "device"):
        command += [f"--{option}", str(getattr(options, option))]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(found.stdout.strip().splitlines()[-1]))


def compare(model: str, peaks: dict[str, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all contestants with one network, print a table as it grows."""
    names = options.contestants
    device = torch.device(options.device)
    batch = make_batch(options.batch, options.size, options.classes, device)
    steps = {name: Step(CONTESTANTS[name], model, options.classes, device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:  # kernels chosen, networks compiled, moments there
        steps[name](*batch)
    for _ in range(options.rounds):
        for name in names:
            times[name].append(steps[name].timed(*batch))
    for _ in range(STAGE_ROUNDS):
        for name in names:
            parts[name].append(steps[name](*batch, stages=True)[1])
    say(
        f"\n{model}, {options.size}x{options.size}, batch {options.batch}, "
        f"{options.classes} classes, {options.device}\n"
    )
    say(
        "| step | images/s | times plain (quartiles) | extra peak, MB | "
        + " | ".join(f"{stage}, ms" for stage in STAGES)
        + " |"
    )
    say("|---|---|---|---|" + "---|" * len(STAGES))
    rows = []
    for name in names:
        totals = times[name]
        ratios = [base / total for base, total in zip(times[names[0]], totals, strict=True)]
        low, ratio, high = spread(ratios)
        stages = {
            stage: 1000 * statistics.median(row[stage] for row in parts[name]) for stage in STAGES
        }
        row = {
            "model": model,
            "step": name,
            "images_per_second": options.batch / statistics.median(totals),
            "times_plain": ratio,
            "times_plain_quartiles": [low, high],
            "extra_peak_bytes": peaks.get(name),
            "milliseconds": stages,
        }
        rows.append(row)
        memory = f"{peaks[name] / 1e6:.0f}" if name in peaks else "-"
        say(
            f"| {name} | {row['images_per_second']:.2f} | {ratio:.2f} ({low:.2f} to {high:.2f}) | "
            f"{memory} | " + " | ".join(f"{stages[stage]:.0f}" for stage in STAGES) + " |"
        )
    return rows


def loss_curves(options: argparse.Namespace) -> None:
    """Train every contestant from equal weights on equal batches; write their losses."""
    config = load_config(
        "cgrseg-t_camvid",
        [
            f"data.root={options.data_root}",
            "data.workers=0",
            "train.evaluate=false",
            f"train.batch_size={options.batch}",
            f"augment.crop_size=[{options.size},{options.size}]",
            f"schedule.max_iters={options.iterations}",
            "schedule.warmup_iters=10",
        ],
    )
    source = DatasetSource(config, Placement("cpu"))
    classes, device = source.spec.num_classes, torch.device(options.device)
    schedule: ScheduleConfig = config.schedule
    steps = {
        name: Step(CONTESTANTS[name], config.model.name, classes, device, config.optimizer)
        for name in options.contestants
    }
    losses: dict[str, list[float]] = {name: [] for name in steps}
    stream = iter(source.batches(0))
    for iteration in range(options.iterations):
        batch = next(stream)
        for name, step in steps.items():
            for group in step.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate_factor(iteration, schedule)
            torch.manual_seed(iteration)  # the same dropout for all
            loss, _ = step(batch["image"].to(device), batch["label"].to(device))
            losses[name].append(float(loss))
    say("| step | mean loss of the last 20 | mean distance to plain's loss |\n|---|---|---|")
    for name, values in losses.items():
        distance = statistics.mean(
            abs(one - other) for one, other in zip(values, losses["plain"], strict=True)
        )
        say(f"| {name} | {statistics.mean(values[-20:]):.6f} | {distance:.6f} |")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["iteration", *losses])
    rows = zip(*losses.values(), strict=True)
    table.writerows([number, *(f"{v:.5f}" for v in row)] for number, row in enumerate(rows, 1))
    atomic_write_text(options.curve, text.getvalue())


class TurnsSource(DatasetSource):
    """The data of a run; a batch is handed over only when it is this process's turn.

    A line `n` on standard input is a turn of n steps.  The answer is a line of JSON: seconds of
    each step (from one batch handed over to the next), seconds spent waiting for data, peak memory.
    """

    def batches(self, start: int) -> Any:
        """See :class:`DatasetSource`."""
        return _InTurns(super().batches(start))


class _InTurns:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        stream = iter(self.loader)
        yield next(stream)
        while line := sys.stdin.readline():
            marks, waits = [time.perf_counter()], []
            for _ in range(int(line)):
                asked = time.perf_counter()
                batch = next(stream)
                waits.append(time.perf_counter() - asked)
                yield batch  # until the next batch is asked for: one step
                marks.append(time.perf_counter())
            seconds = [after - before for before, after in itertools.pairwise(marks)]
            answer = {"seconds": seconds, "waits": waits, "peak": _peak()}
            print(json.dumps(answer), file=sys.__stdout__, flush=True)
        os._exit(0)  # the parent has ended


def _peak() -> int:
    """Peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def take_part(name: str, options: argparse.Namespace) -> None:
    """Train as one contestant of `--loop` until the parent ends."""
    config = load_config(
        f"{options.models[0].replace('_', '-')}_ade20k_160k",
        {
            "model.pretrained": None,
            "data.root": options.data_root,
            "data.check": False,
            "train.batch_size": options.batch,
            "augment.crop_size": [options.size, options.size],
            "train.evaluate": False,
            "work_dir": str(Path(options.folder) / name),
            **LOOPS[name],
        },
    )
    place = Placement("cpu")
    source = TurnsSource(config, place)
    sys.stdout = sys.stderr  # standard output carries the answers
    if name != "published":
        train_on(source, config, place)
        return
    step = Step(
        CONTESTANTS["plain"],
        config.model.name,
        source.spec.num_classes,
        place.torch_device,
        config.optimizer,
    )
    for batch in source.batches(0):
        step(batch["image"], batch["label"])


def compare_loops(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let whole training loops take turns, and print a table."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in options.loop}
    running: dict[str, subprocess.Popen[str]] = {}

    def turn(name: str) -> dict[str, Any]:
        process = running[name]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{options.steps}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} ended: see its messages above")
        answer: dict[str, Any] = json.loads(line)
        print(name, *(f"{s:.2f} s" for s in answer["seconds"]), file=sys.stderr, flush=True)
        return answer

    environment = dict(os.environ)
    prepare_openmp(environment)  # as the command line does
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        for name in options.loop:
            command = [sys.executable, __file__, "--take-part", name, "--folder", folder]
            command += ["--models", options.models[0]]
            for option in ("batch", "size", "threads", "data_root"):
                command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
            running[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            ends.callback(running[name].wait)
            ends.callback(running[name].kill)  # SIGTERM would be answered with a checkpoint
        for name in running:  # kernels chosen, networks compiled, moments there
            turn(name)
        for _ in range(options.rounds):
            for name in running:
                turns[name].append(turn(name))
    say(
        "| loop | images/s | times published (range) | waiting for data, ms a step "
        "| peak memory, MB | times published |\n|---|---|---|---|---|---|"
    )
    rows: list[dict[str, Any]] = []
    seconds = {
        name: [statistics.median(turn["seconds"]) for turn in own] for name, own in turns.items()
    }
    for name, own in turns.items():
        ratios = [
            base / ours for base, ours in zip(seconds["published"], seconds[name], strict=True)
        ]
        row = {
            "loop": name,
            "images_per_second": options.batch / statistics.median(seconds[name]),
            "times_published": statistics.median(ratios),
            "times_published_range": [min(ratios), max(ratios)],
            "wait_ms": 1000 * statistics.median(wait for turn in own for wait in turn["waits"]),
            "peak_bytes": own[-1]["peak"],
        }
        rows.append(row)
        peak, base_peak = row["peak_bytes"], rows[0]["peak_bytes"]
        say(
            f"| {name} | {row['images_per_second']:.2f} | {row['times_published']:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {row['wait_ms']:.1f} "
            f"| {peak / 1e6:.0f} | {peak / base_peak:.2f} |"
        )
    return rows


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__.split("\n\n")[0], rounds=5)
    arguments.add_argument("--models", nargs="+", default=["cgrseg_t"])
    arguments.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(DEFAULT))
    arguments.add_argument("--batch", type=int, default=4, help="images a step")
    arguments.add_argument("--size", type=int, default=512, help="side in pixels")
    arguments.add_argument("--classes", type=int, default=150)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--no-memory", dest="memory", action="store_false")
    arguments.add_argument("--curve", type=Path, help="compare loss curves, and write them here")
    arguments.add_argument("--iterations", type=int, default=100, help="of --curve")
    arguments.add_argument("--data-root", default="data/camvid", help="for --curve and --loop")
    arguments.add_argument(
        "--loop", nargs="*", choices=LOOPS, help="compare training loops, published first"
    )
    arguments.add_argument("--steps", type=int, default=2, help="of a turn of --loop")
    arguments.add_argument("--take-part", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", help=argparse.SUPPRESS)
    arguments.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    check(options)
    if options.peak_of:
        name, model = options.peak_of
        print_peak(name, model, options)
        return
    if options.take_part:
        take_part(options.take_part, options)
        return
    if options.clock != "wall":
        raise SystemExit("--clock: a step is timed by the clock on the wall alone")
    if options.curve and options.json:
        raise SystemExit("--json keeps times; the curves go to the file of --curve alone")
    if options.contestants[0] != "plain":
        raise SystemExit("--contestants begins with plain, which the others are compared with")
    about = machine(options)
    if options.device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name(options.device)
    say(", ".join(f"{name} {value}" for name, value in about.items()))
    if options.curve:
        loss_curves(options)
        return
    if options.loop is not None:
        options.loop = options.loop or list(LOOPS)
        if options.loop[0] != "published":
            raise SystemExit("--loop begins with published, which the others are compared with")
        keep({"machine": about, "rows": compare_loops(options)}, options.json)
        return
    # Memory first, while this process is small: a child's peak starts from its parent's.
    peaks: dict[str, dict[str, int]] = {model: {} for model in options.models}
    if options.memory:
        for model, name in itertools.product(options.models, options.contestants):
            peaks[model][name] = peak_elsewhere(name, model, options)
    rows = [row for model in options.models for row in compare(model, peaks[model], options)]
    keep(
        {"machine": about, "batch": options.batch, "size": options.size, "rows": rows}, options.json
    )


if __name__ == "__main__":
    main()
