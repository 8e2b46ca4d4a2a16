"""Spoil labels of CamVid on purpose, rank all labels by suspicion, count the spoiled ones on top.

Of the 367 training images, 30 get a wrong label: 10 are shifted, in 10 two classes are swapped, in
10 a region is missing (it gets the class around it).  Two networks (CGRSeg-T from random weights,
240x180 pixels) each train on one half of the images, spoiled labels included, and judge the other
half, so that no network judges a label that it has seen.  `--whole` trains one network on all
images instead, which then judges the labels that it was trained on.

    python benchmarks/rank_spoiled.py --data-root CAMVID --work WORK

Nothing below CAMVID is changed: WORK gets a copy.  A second run keeps finished networks.
"""

from __future__ import annotations

import argparse
import json
import shutil
from argparse import RawDescriptionHelpFormatter as RawText
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import cgrseg
from cgrseg.config import load_config
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.data.pairs import find_pairs
from cgrseg.datasets import get_spec
from cgrseg.evaluation.ranking import RankedLabel, rank_labels
from cgrseg.inference import Predictor

Labels = NDArray[np.uint8]
SPEC = get_spec("camvid")
SETTINGS = (
    "augment.scale=[240,180]",
    "augment.crop_size=[128,128]",
    "test.scale=[240,180]",
    "schedule.warmup_iters=50",
    "train.batch_size=8",
    "train.evaluate=false",
    "train.eval_interval=1000000",
    "train.checkpoint_interval=100",
    "data.workers=0",
)


def shifted(labels: Labels, random: np.random.Generator) -> Labels:
    """Labels moved by 20 to 40 pixels along each axis; the edge is repeated."""
    height, width = labels.shape
    down, right = random.integers(20, 41, 2) * random.choice([-1, 1], 2)
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return labels[rows[:, None], columns]


def swapped(labels: Labels, random: np.random.Generator) -> Labels:
    """Two classes exchanged, each of at least 3 % of the pixels."""
    counts = np.bincount(labels.ravel(), minlength=256)[: SPEC.num_classes]
    first, second = random.choice(np.flatnonzero(counts >= 0.03 * labels.size), 2, replace=False)
    table = np.arange(256, dtype=np.uint8)
    table[[first, second]] = second, first
    return table[labels]


def missing(labels: Labels, random: np.random.Generator) -> Labels:
    """One connected region of 1 % to 20 % of the pixels gets the class that surrounds it."""
    regions = []
    for k in range(SPEC.num_classes):
        count, numbers, stats, _ = cv2.connectedComponentsWithStats((labels == k).astype(np.uint8))
        share = stats[:, cv2.CC_STAT_AREA] / labels.size
        regions += [numbers == n for n in range(1, count) if 0.01 <= share[n] <= 0.2]
    region = regions[random.integers(len(regions))]
    around = cv2.dilate(region.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~region
    neighbors = labels[around]
    neighbors = neighbors[neighbors < SPEC.num_classes]
    return np.where(region, np.uint8(np.bincount(neighbors).argmax()), labels)


KINDS = {"shifted": shifted, "swapped": swapped, "missing": missing}


def spoil(data_root: Path, work: Path, seed: int, each: int) -> dict[str, str]:
    """Copy the training images and labels into two halves and spoil labels.

    Returns:
        Kind of damage by stem.
    """
    random = np.random.default_rng(seed)
    stems = sorted(path.stem for path in (data_root / "images" / "train").glob("*.jpg"))
    order = [stems[k] for k in random.permutation(len(stems))]
    kinds = dict(zip(order, [kind for kind in KINDS for _ in range(each)], strict=False))
    half = {stem: "ab"[k % 2] for k, stem in enumerate(random.permutation(stems))}
    for stem in stems:
        source = data_root / "annotations" / "train" / f"{stem}.png"
        labels = read_label(source)
        if stem in kinds:
            labels = KINDS[kinds[stem]](labels, random)
        for root in (work / half[stem], work / "whole"):
            for folder in ("images", "annotations"):
                (root / folder / "train").mkdir(parents=True, exist_ok=True)
            shutil.copy(data_root / "images" / "train" / f"{stem}.jpg", root / "images" / "train")
            write_label_png(root / "annotations" / "train" / source.name, labels, SPEC.palette)
    (work / "spoiled.json").write_text(json.dumps(kinds, indent=1))
    return kinds


def train(root: Path, run: Path, iterations: int, seed: int) -> Path:
    """The checkpoint of a network trained on one folder; an earlier one is kept."""
    checkpoint = run / "latest.pth"
    if not (run / "finished").exists():
        shutil.rmtree(run, ignore_errors=True)
        places = [f"data.root={root}", f"work_dir={run}", f"train.seed={seed}"]
        steps = [f"schedule.max_iters={iterations}"]
        cgrseg.train(load_config("cgrseg-t_camvid", [*places, *steps, *SETTINGS]))
        (run / "finished").touch()
    return checkpoint


def rank(checkpoint: Path, root: Path) -> list[RankedLabel]:
    """The ranking of the images of one folder by a network."""
    predictor = Predictor.from_pretrained(checkpoint)
    ranking, problems = rank_labels(predictor, SPEC, find_pairs(SPEC, root, "train"))
    if problems:
        raise problems[0].error
    return ranking


def report(ranking: list[RankedLabel], kinds: dict[str, str], first: int) -> str:
    """How many spoiled labels are on top, by kind of damage."""
    top = sorted(ranking, key=lambda one: -one.suspicion)[:first]
    found = Counter(kinds[one.pair.stem] for one in top if one.pair.stem in kinds)
    each = ", ".join(f"{found[kind]} {kind}" for kind in KINDS)
    return (
        f"{found.total()} of {len(kinds)} spoiled labels among the first {len(top)} of "
        f"{len(ranking)}: {each}"
    )


def main() -> None:
    """Spoil, train, rank and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawText)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="spoiled labels of each kind")
    parser.add_argument("--first", type=int, default=40)
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    kinds = spoil(args.data_root, args.work, args.seed, args.each)
    ranking = []
    for trained, judged in [("whole", "whole")] if args.whole else [("a", "b"), ("b", "a")]:
        run = args.work / f"run_{trained}"
        checkpoint = train(args.work / trained, run, args.iterations, args.seed)
        ranking += rank(checkpoint, args.work / judged)
    print(report(ranking, kinds, args.first))


if __name__ == "__main__":
    main()
