"""Gain of `cgrseg autolabel` on CamVid: 40 labeled images, the other 327 without their labels.

Per seed, 40 of the 367 training images are drawn.  "supervised" trains CGRSeg-T on them from
random weights.  It labels the other 327 images; "autolabel" trains on both, from random weights
too, with the same seed and the same number of iterations.  Both are scored on test.  Every step is
a command that a user could type.

    python benchmarks/autolabel.py --data-root CAMVID --runs RUNS
    python benchmarks/autolabel.py --runs RUNS --table

The first runs what has no result yet; the second prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PRESET = "cgrseg-t_camvid"
LABELED = 40
PROTOCOL = (
    "augment.scale=[160,120]",
    "augment.crop_size=[96,128]",
    "test.scale=[160,120]",
    "loss.initial_weight=0",
    "schedule.max_iters=400",
    "schedule.warmup_iters=40",
    "train.batch_size=8",
    "train.evaluate=false",
    "train.eval_interval=1000000",
    "train.precision=fp32",
    "data.workers=0",
)
"""What differs from the preset in every training."""
KEEP = "0.5"
"""`--keep` of the automatic labels."""
METHODS = ("supervised", "autolabel")


def make_folders(camvid: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """Links to the labeled images with the test split, and to the images that get no labels."""
    labeled, unlabeled = folder / "labeled", folder / "unlabeled"
    shutil.rmtree(labeled, ignore_errors=True)
    shutil.rmtree(unlabeled, ignore_errors=True)
    images = sorted((camvid / "images/train").iterdir())
    chosen = set(random.Random(seed).sample(images, LABELED))
    pairs = [("train", image) for image in sorted(chosen)]
    pairs += [("test", image) for image in sorted((camvid / "images/test").iterdir())]
    for split, image in pairs:
        label = camvid / "annotations" / split / f"{image.stem}.png"
        _link(image, labeled / "images" / split / image.name)
        _link(label, labeled / "annotations" / split / label.name)
    _link(camvid / "classes.txt", labeled / "classes.txt")
    for image in images:
        if image not in chosen:
            _link(image, unlabeled / image.name)
    return labeled, unlabeled


def run_seed(seed: int, camvid: Path, runs: Path) -> None:
    """Train and score both methods with one seed; leave `result.json`."""
    folder = (runs / f"seed{seed}").absolute()
    if (folder / "result.json").is_file():
        return
    labeled, unlabeled = make_folders(camvid.absolute(), folder, seed)
    common = [PRESET, f"data.root={labeled}", f"train.seed={seed}", *PROTOCOL]
    runs_of = {method: folder / method for method in METHODS}
    teacher, automatic = runs_of["supervised"] / "latest.pth", folder / "auto"
    cgrseg("train", *common, f"work_dir={runs_of['supervised']}", "--resume")
    cgrseg("autolabel", teacher, unlabeled, "--out", automatic, "--keep", KEEP)
    extra = f"data.extra={automatic}"
    cgrseg("train", *common, extra, f"work_dir={runs_of['autolabel']}", "--resume")
    scores = {}
    for method, run in runs_of.items():
        target = folder / f"{method}.json"
        cgrseg("evaluate", run / "latest.pth", "--split", "test", "--out", target)
        scores[method] = json.loads(target.read_text(encoding="utf-8"))
    report = json.loads((automatic / "autolabel.json").read_text(encoding="utf-8"))
    result = {"seed": seed, "scores": scores, "labels": report}
    (folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")


def cgrseg(*words: object) -> None:
    """Run a command."""
    line = list(map(str, words))
    print("cgrseg", *line, flush=True)
    subprocess.run([sys.executable, "-m", "cgrseg", *line], check=True)


def print_table(runs: Path) -> None:
    """Print mIoU on test in percent, per seed; and mean and standard deviation of the gain."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(runs.glob("seed*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["seed"]] = result
    print("| seed | supervised alone | with autolabel | gain |\n|---|---|---|---|")
    rows = []
    for seed, result in sorted(found.items()):
        one, other = (100 * float(result["scores"][name]["scores"]["mIoU"]) for name in METHODS)
        rows.append((one, other, other - one))
        print(f"| {seed} | {one:.2f} | {other:.2f} | {other - one:+.2f} |")
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))
        cells = [f"{statistics.mean(each):.2f} ± {statistics.stdev(each):.2f}" for each in columns]
        print(f"| mean ± standard deviation | {' | '.join(cells)} |")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, default="data/camvid", help="folder of CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print the table instead of running")
    options = parser.parse_args()
    if options.table:
        print_table(options.runs)
        return
    for seed in options.seeds:
        run_seed(seed, options.data_root, options.runs)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
