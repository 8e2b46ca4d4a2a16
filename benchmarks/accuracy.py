"""Accuracy on CamVid with equal images seen: CGRSeg-T plain, with one change at a time, others.

Every contestant trains from random weights on the 367 training images, through the package's own
trainer, and is scored on val (to choose by) and on test (to quote) at the labels' own size.

Two stages.  `screening`: half-size images (240x180), crops of 160x160, 1,500 iterations of 8: one
change at a time with seed 0, and what gains again with seeds 1 and 2.  `final`: full size
(480x360), crops of 256x256, 2,300 iterations of 8: plain, the best combination and other networks.

Averaging the weights does not touch the training: every run keeps both, and both are scored.

    python benchmarks/accuracy.py screening --data-root CAMVID --runs RUNS --jobs 2
    python benchmarks/accuracy.py screening --runs RUNS --table benchmarks/results/screening.md

The first goes on where it was stopped, also within a run; the second writes the table of what is
done, with a CSV of all runs, their curves and their logs.  SegFormer-B0 needs `transformers`,
YOLO26n `ultralytics`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgrseg.bench.machine import describe_machine
from cgrseg.config import load_config
from cgrseg.config.presets import PLUS
from cgrseg.config.schema import Config
from cgrseg.data.dataset import EvalDataset, with_measurements
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import Placement
from cgrseg.evaluation.loop import evaluate_model
from cgrseg.files import atomic_write_text, write_json
from cgrseg.training.checkpointing import read_training_checkpoint
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.module import build_model
from cgrseg.training.resuming import find_checkpoint
from cgrseg.training.run_log import LOG, METRICS, read_table
from cgrseg.training.runner import CONFIG, train_on

PRESET = "cgrseg-t_camvid"
COMMON = (
    "loss.initial_weight=0",
    "schedule.warmup_iters=100",
    "train.batch_size=8",
    "train.evaluate=false",
    "train.eval_interval=1000000",
    "train.checkpoint_interval=100",
    "train.log_interval=50",
    "train.ema_decay=0.99",
    "data.workers=0",
)
STAGES = {
    "screening": (
        "augment.scale=[240,180]",
        "augment.crop_size=[160,160]",
        "test.scale=[240,180]",
        "schedule.max_iters=1500",
        *COMMON,
    ),
    "final": ("schedule.max_iters=2300", *COMMON),
}
"""What differs from the preset for every contestant."""

RARE = ("pole", "sign_symbol", "fence", "pedestrian", "bicyclist")
"""Classes that cover less than 3 % of the labeled pixels each."""


@dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
        title: in the table.
        settings: what differs from the stage's settings.
    """

    title: str
    settings: tuple[str, ...] = ()


METHODS = {
    "plain": Method("CGRSeg-T, plain recipe"),
    "plus": Method("the recipe plus", tuple(f"{key}={value}" for key, value in PLUS.items())),
    "rate": Method("twice the learning rate", ("optimizer.lr=2e-3",)),
    "weights_auto": Method("class weights 1 / ln(1.02 + share)", ("loss.class_weights=auto",)),
    "weights_median": Method("class weights by median frequency", ("loss.class_weights=median",)),
    "lovasz": Method("Lovász-softmax term, 1", ("loss.lovasz_weight=1",)),
    "dice": Method("Dice term, 1", ("loss.dice_weight=1",)),
    "focal": Method("focal term, 1", ("loss.focal_weight=1",)),
    "ohem": Method(
        "hard pixels only (0.7, at least an eighth)",
        ("loss.ohem_threshold=0.7", "loss.ohem_min_pixels=3200"),
    ),
    "initial": Method("loss on the first prediction, 0.4", ("loss.initial_weight=0.4",)),
    "rare_crops": Method(
        "half of the crops around a class drawn evenly", ("augment.rare_class_crops=0.5",)
    ),
    "cosine": Method("cosine schedule", ("schedule.curve=cosine",)),
    "one_cycle": Method(
        "one-cycle schedule with twice the rate",
        ("schedule.curve=one_cycle", "optimizer.lr=2e-3", "schedule.warmup_iters=0"),
    ),
    "muon": Method("Muon for channel-mixing weights", ("optimizer.name=muon",)),
    "ssa": Method("the SSA head", ("model.head=ssa",)),
    "progressive": Method(
        "crops and scale growing from half", ("augment.progressive=[0.5,0.75,1]",)
    ),
    "average_last": Method(
        "mean of the last quarter (see averaged weights)",
        ("train.ema_decay=null", "train.average_last=0.25"),
    ),
    "weak_color": Method(
        "color operations with probability 0.2", ("augment.photometric.probability=0.2",)
    ),
    "narrow_scale": Method("scale from 0.75 to 1.5", ("augment.ratio_range=[0.75,1.5]",)),
    "classmix": Method("ClassMix for half of the samples", ("augment.classmix=0.5",)),
    "cutmix": Method("CutMix for half of the samples", ("augment.cutmix=0.5",)),
    "copy_paste": Method("copy-paste of rare classes for half", ("augment.copy_paste=0.5",)),
    "mosaic": Method("mosaics for a quarter", ("augment.mosaic=0.25",)),
    "blur_noise_jpeg": Method(
        "blur, noise, JPEG, each for a fifth",
        ("augment.blur=0.2", "augment.noise=0.2", "augment.jpeg=0.2"),
    ),
    "segformer_b0": Method("SegFormer-B0 (Hugging Face), same settings"),
    "yolo26n_sem": Method(
        "YOLO26n semantic (Ultralytics), same settings, its second head at 0.4",
        ("loss.initial_weight=0.4",),
    ),
}
RUN_COLUMNS = (
    "method",
    "seed",
    "iterations",
    "weights",
    "mIoU_val",
    "mIoU_test",
    "mAcc_test",
    "aAcc_test",
)


class Other(nn.Module):
    """A network of another package, from random weights, with what the trainer asks of one."""

    context_blocks, head, in_channels = None, "", 3

    def __init__(self, variant: str, spec: DatasetSpec) -> None:
        super().__init__()
        self.variant = variant
        self.num_classes = len(spec.classes)
        self.classes, self.palette = spec.classes, spec.palette


class SegFormerB0(Other):
    """Hugging Face's SegFormer-B0."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__("segformer_b0", spec)
        import transformers

        library: Any = transformers  # typed loosely: it is not installed everywhere
        settings = library.SegformerConfig(num_labels=self.num_classes)  # its defaults are B0
        self.network = library.SegformerForSemanticSegmentation(settings)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K, H/4, W/4)."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


class YoloSemantic(Other):
    """Ultralytics' YOLO26n for the semantic task, with its second head on stride 16."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__("yolo26n_sem", spec)
        from ultralytics.nn.tasks import SemanticSegmentationModel

        network: Any = SemanticSegmentationModel
        self.network = network("yolo26n-sem.yaml", ch=3, nc=self.num_classes, verbose=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K, H/8, W/8)."""
        return self.forward_with_initial(x)[0]

    def forward_with_initial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads."""
        found = self.network(x)
        return found if self.training else (found, found)


OTHERS: dict[str, Callable[[DatasetSpec], Other]] = {
    "segformer_b0": SegFormerB0,
    "yolo26n_sem": YoloSemantic,
}


def settings_of(stage: str, method: str, seed: int, data_root: str, work_dir: str) -> list[str]:
    """The run as `key=value` settings over the preset."""
    return [
        f"data.root={data_root}",
        f"work_dir={work_dir}",
        f"train.seed={seed}",
        *STAGES[stage],
        *METHODS[method].settings,
    ]


def run_one(stage: str, method: str, seed: int, data_root: str, folder: Path) -> None:
    """Train and score one contestant with one seed; leave `result.json` in its folder."""
    settings = settings_of(stage, method, seed, data_root, str(folder))
    config: Config = with_measurements(load_config(PRESET, settings))
    placement = Placement("cpu")
    spec = resolve_spec(config.data)
    torch.manual_seed(seed)
    make = OTHERS.get(method)
    model: Any = build_model(config, spec) if make is None else make(spec)
    model = model.to(memory_format=torch.channels_last)
    processor = time.process_time()
    checkpoint = find_checkpoint(folder, None, True)
    source = DatasetSource(config, placement)
    outcome = train_on(source, config, placement, checkpoint, model=model)
    if outcome.stopped_by is not None:
        raise SystemExit(f"{folder} was stopped after {outcome.iterations} iterations: no result")
    state = read_training_checkpoint(outcome.latest)
    scores: dict[str, Any] = {}
    weights = {"last": state["training"]["state_dict"], "averaged": state["state_dict"]}
    for name, values in weights.items():
        model.load_state_dict(values)
        for split in ("val", "test"):
            dataset: Any = EvalDataset(spec, find_pairs(spec, config.data.root, split))
            found = evaluate_model(
                model, dataset, config.test, classes=spec.classes, precision="fp32", batch_size=8
            ).scores
            scores.setdefault(name, {})[split] = {
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
            "settings": [*STAGES[stage], *METHODS[method].settings],
            "classes": list(spec.classes),
            "parameters": sum(value.numel() for value in model.parameters()),
            "processor_seconds_of_last_part": time.process_time() - processor,
            "machine": str(describe_machine(torch.device("cpu"))),
            "scores": scores,
        },
    )


def run_all(stage: str, methods: list[str], seeds: list[int], jobs: int, rest: list[str]) -> None:
    """Run what has no result yet, seed by seed, each in a process of its own."""
    runs = Path(rest[rest.index("--runs") + 1])

    def run(method: str, seed: int) -> None:
        folder = runs / stage / f"{method}_seed{seed}"
        if not (folder / "result.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, stage, *rest, "--one", method, str(seed)]
            with (folder / "output.txt").open("a") as output:
                status = subprocess.run(command, stdout=output, stderr=output, check=False)
            if status.returncode != 0:
                print(f"{folder}: status {status.returncode}, see output.txt", flush=True)
                return
        found = json.loads((folder / "result.json").read_text())
        val, test = (100 * found["scores"]["last"][split]["mIoU"] for split in ("val", "test"))
        print(f"{method}, seed {seed}: val {val:.2f}, test {test:.2f}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for seed in seeds:
            for method in methods:
                pool.submit(run, method, seed)


def finished(runs: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results by method and seed, in the order of `METHODS`."""
    found = {}
    for path in runs.glob("*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["method"], result["seed"]] = result
    order = list(METHODS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def write_table(runs: Path, path: Path) -> None:
    """Write means and spread, also by class; beside `path`, CSVs of runs and curves, and every log.

    Differences to the plain recipe are taken seed by seed: a change counts where its mean is
    larger than its spread.
    """
    results = finished(runs)
    lines = [
        "| contestant | seeds | val | minus plain | test | minus plain | rare classes, test "
        "| averaged weights, val | test |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method, about in METHODS.items():
        seeds = [seed for name, seed in results if name == method]
        if not seeds:
            continue
        cells = [about.title, " ".join(map(str, seeds))]
        for split in ("val", "test"):
            found = {seed: _score(results[method, seed], "last", split) for seed in seeds}
            against = [
                found[seed] - _score(results["plain", seed], "last", split)
                for seed in seeds
                if method != "plain" and ("plain", seed) in results
            ]
            cells += [_mean_and_spread(list(found.values())), _mean_and_spread(against)]
        cells.append(_mean_and_spread([_rare(results[method, seed]) for seed in seeds]))
        for split in ("val", "test"):
            averaged = [_score(results[method, seed], "averaged", split) for seed in seeds]
            cells.append(_mean_and_spread(averaged))
        lines.append("| " + " | ".join(cells) + " |")
    if results:
        lines += ["", *_per_class(results)]
    atomic_write_text(path, "\n".join(lines) + "\n")
    rows, curves = io.StringIO(), io.StringIO()
    of_runs, of_curves = (csv.writer(text, lineterminator="\n") for text in (rows, curves))
    of_curves.writerow(["method", "seed", "iteration", "loss"])
    for (method, seed), result in results.items():
        if not rows.getvalue():
            classes = [f"IoU_test_{name}" for name in result["classes"]]
            of_runs.writerow([*RUN_COLUMNS, *classes, "settings"])
        for weights, scores in result["scores"].items():
            test = scores["test"]
            of_runs.writerow(
                [
                    method,
                    seed,
                    result["iterations"],
                    weights,
                    *(f"{100 * scores[split]['mIoU']:.2f}" for split in ("val", "test")),
                    *(f"{100 * test[name]:.2f}" for name in ("mAcc", "aAcc")),
                    *(f"{100 * value:.2f}" for value in test["IoU"]),
                    " ".join(result["settings"]),
                ]
            )
        folder = runs / f"{method}_seed{seed}"
        for row in read_table(folder / METRICS):
            of_curves.writerow([method, seed, row["iteration"], row["loss"]])
        logs = path.with_suffix("") / f"{method}_seed{seed}.log"
        logs.parent.mkdir(exist_ok=True)
        log = (folder / LOG).read_text(encoding="utf-8")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for place, name in ((config["work_dir"], "RUN"), (config["data"]["root"], "CAMVID")):
            log = log.replace(place, name)
        atomic_write_text(logs, log)
    atomic_write_text(path.with_suffix(".csv"), rows.getvalue())
    atomic_write_text(path.with_name(f"{path.stem}_curves.csv"), curves.getvalue())


def _per_class(results: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """Table of the IoU on test by class; rare classes last."""
    classes = next(iter(results.values()))["classes"]
    order = [name for name in classes if name not in RARE] + list(RARE)
    names = [f"{name} (rare)" if name in RARE else name for name in order]
    lines = ["| contestant | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for method, about in METHODS.items():
        found = [_ious(result) for (name, _), result in results.items() if name == method]
        cells = [_mean_and_spread([100 * each[name] for each in found]) for name in order]
        if found:
            lines.append("| " + " | ".join([about.title, *cells]) + " |")
    return lines


def _ious(result: dict[str, Any]) -> dict[str, float]:
    """IoU on test by class, of the last weights."""
    return dict(zip(result["classes"], result["scores"]["last"]["test"]["IoU"], strict=True))


def _score(result: dict[str, Any], weights: str, split: str) -> float:
    return 100 * float(result["scores"][weights][split]["mIoU"])


def _rare(result: dict[str, Any]) -> float:
    """Mean IoU of :data:`RARE` on test."""
    found = _ious(result)
    return 100 * statistics.mean(found[name] for name in RARE)


def _mean_and_spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Run, or make the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data-root", default="data/camvid", help="folder of CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one core each")
    parser.add_argument("--table", type=Path, help="write the table here instead of running")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = options.runs / options.stage
    if options.table is not None:
        write_table(runs, options.table)
    elif options.one is not None:
        method, seed = options.one
        folder = runs / f"{method}_seed{seed}"
        run_one(options.stage, method, int(seed), options.data_root, folder)
    else:
        rest = ["--data-root", options.data_root, "--runs", str(options.runs)]
        run_all(options.stage, options.methods, options.seeds, options.jobs, rest)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
