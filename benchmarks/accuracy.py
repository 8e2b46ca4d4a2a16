"""Accuracy on CamVid under one small protocol: CGRSeg-T plain, with one change at a time, others.

Every contestant trains from random weights on the 367 training images at half size (240x180,
crops of 160x160, 8 images a step) for the same number of iterations with the same optimiser,
through the package's own trainer, once per seed, and is scored on test at the labels' own size.
A budget for two cores: after 120 iterations, or 240, no network is done learning.  What is compared
is how far each gets, not how far it could get.

Averaging the weights does not touch the training: every run keeps both, and both are scored.

    python benchmarks/accuracy.py --data-root CAMVID --runs RUNS
    python benchmarks/accuracy.py --runs RUNS --table benchmarks/results/accuracy_runs.md

The first runs what has no result yet (in child processes, seed by seed, so that a table can be
made at any time); the second writes the table, a CSV of all runs, their curves (also as a picture)
and their logs.
SegFormer-B0 needs `transformers`, and is left out where that is missing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cgrseg.config import load_config
from cgrseg.config.schema import Config
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import Placement
from cgrseg.evaluation.loop import evaluate_model
from cgrseg.files import atomic_write_text, write_json
from cgrseg.training.checkpointing import read_training_checkpoint
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.module import build_model
from cgrseg.training.run_log import LOG, METRICS, read_table
from cgrseg.training.runner import train_on
from cgrseg.visual.plots import new_chart, save_figure

PRESET = "cgrseg-t_camvid"
PROTOCOL = (
    "augment.scale=[240,180]",
    "augment.crop_size=[160,160]",
    "test.scale=[240,180]",
    "loss.initial_weight=0",
    "schedule.max_iters=120",
    "schedule.warmup_iters=12",
    "train.batch_size=8",
    "train.evaluate=false",
    "train.eval_interval=1000000",
    "train.log_interval=10",
    "train.ema_decay=0.97",
    "data.workers=0",
)
"""What differs from the preset for every contestant."""


@dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
        title: in the table.
        settings: what differs from the protocol.
        base: the method that it differs from by one change; none: it is one.
    """

    title: str
    settings: tuple[str, ...] = ()
    base: str | None = "plain"


LONGER = ("schedule.max_iters=240", "schedule.warmup_iters=24")
INITIAL = ("loss.initial_weight=0.4",)
RARE_CROPS = ("augment.rare_class_crops=0.5",)
METHODS = {
    "plain": Method("CGRSeg-T, plain recipe", base=None),
    "initial": Method("+ loss on the first prediction, 0.4", INITIAL),
    "rare_crops": Method("+ half of the crops around a class drawn evenly", RARE_CROPS),
    "geometric": Method("+ geometry-true attention bias", ("model.attention_bias=geometric",)),
    "segformer_b0": Method("SegFormer-B0 (Hugging Face), same settings"),
    "valid": Method("+ loss averaged over labelled pixels", ("loss.average=valid",)),
    "longer": Method("+ twice the iterations: 240", LONGER),
    "longer_rare_crops": Method(
        "240 iterations + half of the crops around a class drawn evenly",
        LONGER + RARE_CROPS,
        "longer",
    ),
    "longer_initial": Method(
        "240 iterations + loss on the first prediction, 0.4", LONGER + INITIAL, "longer"
    ),
}
RUN_COLUMNS = (
    "method",
    "seed",
    "iterations",
    "mIoU_last",
    "mIoU_averaged",
    "mAcc_averaged",
    "aAcc_averaged",
    "train_seconds",
    "processor_seconds",
    "settings",
)


class SegFormerB0(nn.Module):
    """Hugging Face's SegFormer-B0 from random weights, with what the trainer asks of a network."""

    variant = "segformer_b0"
    context_blocks = None

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        import transformers

        library: Any = transformers  # typed loosely: it is not installed everywhere
        settings = library.SegformerConfig(num_labels=len(spec.classes))  # its defaults are B0
        self.network = library.SegformerForSemanticSegmentation(settings)
        self.num_classes = len(spec.classes)
        self.classes, self.palette = spec.classes, spec.palette

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K, H/4, W/4)."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def settings_of(method: str, seed: int, data_root: str, work_dir: str) -> list[str]:
    """The run as `key=value` settings over the preset."""
    return [
        f"data.root={data_root}",
        f"work_dir={work_dir}",
        f"train.seed={seed}",
        *PROTOCOL,
        *METHODS[method].settings,
    ]


def run_one(method: str, seed: int, data_root: str, folder: Path) -> None:
    """Train and score one contestant with one seed; leave `result.json` in its folder."""
    config: Config = load_config(PRESET, settings_of(method, seed, data_root, str(folder)))
    placement = Placement("cpu")
    spec = resolve_spec(config.data)
    torch.manual_seed(seed)
    model: Any = SegFormerB0(spec) if method == "segformer_b0" else None
    if model is None:
        model = build_model(config, spec)
    else:
        model = model.to(memory_format=torch.channels_last)
    wall, processor = time.perf_counter(), time.process_time()
    outcome = train_on(DatasetSource(config, placement), config, placement, model=model)
    seconds = time.perf_counter() - wall, time.process_time() - processor
    if outcome.stopped_by is not None:
        raise SystemExit(f"{folder} was stopped after {outcome.iterations} iterations: no result")
    state = read_training_checkpoint(outcome.latest)
    scores: dict[str, Any] = {}
    weights = {"last": state["training"]["state_dict"], "averaged": state["state_dict"]}
    for name, values in weights.items():
        model.load_state_dict(values)
        dataset: Any = EvalDataset(spec, find_pairs(spec, config.data.root, "test"))
        found = evaluate_model(
            model, dataset, config.test, classes=spec.classes, precision="bf16", batch_size=8
        ).scores
        scores[name] = {
            **{key: found.summary()[key] for key in ("mIoU", "mAcc", "aAcc")},
            "IoU": [float(value) for value in found.iou],
        }
    for path in folder.glob("*.pth"):  # hundreds of megabytes that nobody reads again
        path.unlink()
    write_json(
        folder / "result.json",
        {
            "method": method,
            "seed": seed,
            "iterations": outcome.iterations,
            "parameters": sum(value.numel() for value in model.parameters()),
            "train_seconds": seconds[0],
            "train_processor_seconds": seconds[1],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "scores": scores,
        },
    )


def run_all(methods: list[str], seeds: list[int], data_root: str, runs: Path) -> None:
    """Run what has no result yet, seed by seed, each in a process of its own."""
    for seed in seeds:
        for method in methods:
            folder = runs / f"{method}_seed{seed}"
            if (folder / "result.json").is_file():
                continue
            if method == "segformer_b0" and importlib.util.find_spec("transformers") is None:
                print("segformer_b0 left out: transformers is not installed", flush=True)
                continue
            print(f"{method}, seed {seed}", flush=True)
            if folder.exists():  # of a run that was stopped: its log would go on
                shutil.rmtree(folder)
            command = [sys.executable, __file__, "--data-root", data_root, "--runs", str(runs)]
            subprocess.run([*command, "--one", method, str(seed)], check=True)
            found = json.loads((folder / "result.json").read_text())
            print(
                "  test mIoU "
                + ", ".join(
                    f"{100 * found['scores'][name]['mIoU']:.2f} ({name})"
                    for name in ("last", "averaged")
                )
                + f"; {found['train_seconds']:.0f} s, processor "
                f"{found['train_processor_seconds']:.0f} s",
                flush=True,
            )


def finished(runs: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results by method and seed, in the order of `METHODS`."""
    found = {}
    for path in runs.glob("*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["method"], result["seed"]] = result
    order = list(METHODS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def write_table(runs: Path, path: Path) -> None:
    """Write means and spread beside `path` as CSVs of runs and curves, with every log.

    The base of a contestant is what it differs from by one change: the plain recipe, or that with
    twice the iterations.  Differences are taken seed by seed: a change counts where its mean is
    larger than its spread.
    """
    results = finished(runs)
    lines = [
        "| contestant | seeds | mIoU | minus its base | mIoU, averaged weights | minus the last |",
        "|---|---|---|---|---|---|",
    ]
    for method, about in METHODS.items():
        seeds = [seed for name, seed in results if name == method]
        if not seeds:
            continue
        last = {seed: _score(results[method, seed], "last") for seed in seeds}
        averaged = {seed: _score(results[method, seed], "averaged") for seed in seeds}
        base = about.base
        shared = [seed for seed in seeds if base is not None and (base, seed) in results]
        columns = [
            list(last.values()),
            [last[seed] - _score(results[str(base), seed], "last") for seed in shared],
            list(averaged.values()),
            [averaged[seed] - last[seed] for seed in seeds],
        ]
        cells = [about.title, " ".join(map(str, seeds)), *map(_mean_and_spread, columns)]
        lines.append("| " + " | ".join(cells) + " |")
    atomic_write_text(path, "\n".join(lines) + "\n")
    rows, curves = io.StringIO(), io.StringIO()
    of_runs, of_curves = (csv.writer(text, lineterminator="\n") for text in (rows, curves))
    of_runs.writerow(RUN_COLUMNS)
    of_curves.writerow(["method", "seed", "iteration", "loss"])
    for (method, seed), result in results.items():
        averaged = result["scores"]["averaged"]
        of_runs.writerow(
            [
                method,
                seed,
                result["iterations"],
                *(f"{_score(result, kind):.2f}" for kind in ("last", "averaged")),
                *(f"{100 * averaged[name]:.2f}" for name in ("mAcc", "aAcc")),
                *(f"{result[n]:.0f}" for n in ("train_seconds", "train_processor_seconds")),
                " ".join((*PROTOCOL, *METHODS[method].settings)),
            ]
        )
        folder = runs / f"{method}_seed{seed}"
        for row in read_table(folder / METRICS):
            of_curves.writerow([method, seed, row["iteration"], row["loss"]])
        log = (folder / LOG).read_text(encoding="utf-8")
        logs = path.with_suffix("") / f"{method}_seed{seed}.log"
        logs.parent.mkdir(exist_ok=True)
        atomic_write_text(logs, log)
    save_figure(_mean_curves(runs, list(results)), path.with_name(f"{path.stem}_curves.png"))
    atomic_write_text(path.with_suffix(".csv"), rows.getvalue())
    atomic_write_text(path.with_name(f"{path.stem}_curves.csv"), curves.getvalue())


def _mean_curves(runs: Path, done: list[tuple[str, int]]) -> Figure:
    """Loss of every method over its iterations, mean of its seeds.

    Without the one whose loss is averaged in another way, and therefore not comparable.
    """
    losses: dict[int, dict[str, list[float]]] = {}
    for method, seed in done:
        if method == "valid":
            continue
        for row in read_table(runs / f"{method}_seed{seed}" / METRICS):
            at = losses.setdefault(int(row["iteration"]), {})
            at.setdefault(method, []).append(float(row["loss_ce"]))
    figure, axes = new_chart(8.0, 5.0, "Cross-entropy on CamVid, mean of the seeds")
    for method in dict.fromkeys(method for of in losses.values() for method in of):
        steps = [step for step in sorted(losses) if method in losses[step]]
        axes.plot(steps, [statistics.mean(losses[k][method]) for k in steps], label=method)
    axes.set_xlabel("iteration")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _score(result: dict[str, Any], kind: str) -> float:
    return 100 * float(result["scores"][kind]["mIoU"])


def _mean_and_spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f} (one seed)" if values else "-"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Run, or make the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default="data/camvid", help="folder of CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="write the table here instead of running")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table is not None:
        write_table(options.runs, options.table)
    elif options.one is not None:
        method, seed = options.one
        run_one(method, int(seed), options.data_root, options.runs / f"{method}_seed{seed}")
    else:
        run_all(options.methods, options.seeds, options.data_root, options.runs)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
