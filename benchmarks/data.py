"""Training images per second and core: crop-first against the plain order, stage by stage.

Four ways to make the same training sample from a JPEG and its label PNG:

- `published steps`: the plain order with the published code's own arithmetic (Pillow for
  labels, NumPy in float32 for colours and normalisation, `numpy.unique` for the crop rule);
- `plain order`: `augment.crop_first=false`, the same order with the package's steps;
- `crop first`: the default;
- `reduced decode`: crop first with `augment.reduced_decode=true` (an opt-in, since it
  smooths differently).

Run `python benchmarks/data.py`; it draws its own 2048x1536 scenes.  What is measured is
processor time of one thread, so other load on the machine disturbs little, and the four
ways take turns on each sample, so what does disturb hits all alike.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cgrseg.config.schema import AugmentConfig, PhotometricConfig
from cgrseg.data.color import MEAN, STD, distort_colors
from cgrseg.data.dataset import TrainDataset
from cgrseg.data.geometry import (
    Window,
    resize_image,
    resize_image_window,
    resize_label,
    scaled_size,
)
from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.sampling import sample_generator
from cgrseg.data.synthetic import write_dataset
from cgrseg.data.train_transform import flip
from cgrseg.datasets import get_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.files import atomic_write_text, write_json

PUBLISHED, PLAIN, CROP_FIRST, REDUCED = (
    "published steps",
    "plain order",
    "crop first",
    "reduced decode",
)
STAGES = (
    "read label",
    "check ids",
    "resize label, choose crop",
    "read image",
    "resize image",
    "flip",
    "colours",
    "normalise, pad",
)
RECIPES = {
    "ADE20K recipe, scale (2048, 512)": (2048, 512),
    "native resolution, scale (2048, 1536)": (2048, 1536),
}
Sample = tuple[NDArray[np.float32], NDArray[np.int64]]
T = TypeVar("T")


class Clock:
    """Processor time of this thread, per stage, in seconds."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.samples = 0

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        """Do the work of a stage and add its time."""
        start = time.thread_time()
        result = work()
        self.spent[stage] += time.thread_time() - start
        return result

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.spent.values())


def package_sample(clock: Clock, dataset: TrainDataset, pair: Pair, position: int) -> Sample:
    """What `TrainDataset` does, with a clock around each stage."""
    config, transform = dataset.augment, dataset.transform
    rng = sample_generator(dataset.seed, position)
    label_path = pair.label
    assert label_path is not None
    raw = clock("read label", lambda: read_label(label_path))
    labels, lookup = clock("check ids", lambda: dataset.checked(raw, label_path))
    plan = clock("resize label, choose crop", lambda: transform.plan(labels, rng, lookup))
    reduce = dataset.reduction(pair, labels, plan)
    image = clock("read image", lambda: read_image(pair.image, reduce=reduce))
    if config.crop_first:
        image = clock("resize image", lambda: resize_image_window(image, plan.size, plan.window))
    else:
        image = clock("resize image", lambda: plan.window.of(resize_image(image, plan.size)))
    ids = plan.labels
    if rng.random() < config.flip:
        image, ids = clock(
            "flip", lambda: (flip(image, horizontal=True), flip(ids, horizontal=True))
        )
    image = clock("colours", lambda: distort_colors(image, config.photometric, rng))
    return clock("normalise, pad", lambda: transform.finish(image, ids))


def published_sample(clock: Clock, dataset: TrainDataset, pair: Pair, position: int) -> Sample:
    """The plain order with the arithmetic of mmsegmentation 0.27, on the same random draws."""
    config = dataset.augment
    rng = sample_generator(dataset.seed, position)
    label_path = pair.label
    assert label_path is not None
    raw = clock("read label", lambda: np.array(Image.open(label_path)))
    labels = clock("check ids", lambda: _reduce_zero(raw))

    def choose() -> tuple[tuple[int, int], Window, NDArray[np.uint8]]:
        ratio = rng.uniform(*config.ratio_range)
        scale = (int(config.scale[0] * ratio), int(config.scale[1] * ratio))
        size = scaled_size((labels.shape[0], labels.shape[1]), scale)
        resized = resize_label(labels, size)
        window = _corner(size, config.crop_size, rng)
        if (window.height, window.width) != size:
            for _ in range(10):
                ids, counts = np.unique(window.of(resized), return_counts=True)
                counts = counts[ids != 255]
                if len(counts) > 1 and counts.max() / counts.sum() < config.max_class_share:
                    break
                window = _corner(size, config.crop_size, rng)
        return size, window, window.of(resized)

    size, window, ids = clock("resize label, choose crop", choose)
    image = clock("read image", lambda: read_image(pair.image))
    image = clock("resize image", lambda: window.of(resize_image(image, size)))
    if rng.random() < config.flip:
        image, ids = clock(
            "flip", lambda: (flip(image, horizontal=True), flip(ids, horizontal=True))
        )
    image = clock("colours", lambda: _published_colours(image, config.photometric, rng))
    return clock("normalise, pad", lambda: _published_finish(image, ids, config))


def _corner(size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator) -> Window:
    height, width = min(size[0], crop[0]), min(size[1], crop[1])
    top = int(rng.integers(0, size[0] - height + 1))
    return Window(top, int(rng.integers(0, size[1] - width + 1)), height, width)


def _reduce_zero(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    labels = raw.copy()
    labels[labels == 0] = 255
    labels = labels - 1
    labels[labels == 254] = 255
    return labels


def _converted(image: NDArray[np.uint8], factor: float, offset: float) -> NDArray[np.uint8]:
    return np.clip(image.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _published_colours(
    image: NDArray[np.uint8], config: PhotometricConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    if rng.random() < config.probability:
        image = _converted(image, 1, rng.uniform(-config.brightness, config.brightness))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < config.probability:
        image = _converted(image, rng.uniform(*config.contrast), 0)
    if rng.random() < config.probability:
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), dtype=np.uint8)
        hsv[..., 1] = _converted(hsv[..., 1], rng.uniform(*config.saturation), 0)
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)
    if rng.random() < config.probability:
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), dtype=np.uint8)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(rng.integers(-config.hue, config.hue))) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)
    if not contrast_first and rng.random() < config.probability:
        image = _converted(image, rng.uniform(*config.contrast), 0)
    return image


def _published_finish(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], config: AugmentConfig
) -> Sample:
    values = image.astype(np.float32)
    values = (values - np.array(MEAN, np.float32)) * np.array(1.0 / np.array(STD), np.float32)
    height, width = labels.shape
    below, beside = config.crop_size[0] - height, config.crop_size[1] - width
    values = np.pad(values, ((0, below), (0, beside), (0, 0)))
    ids = np.pad(labels, ((0, below), (0, beside)), constant_values=255)
    return np.ascontiguousarray(values.transpose(2, 0, 1)), ids.astype(np.int64)


def check_same(sample: Sample, expected: dict[str, Any], what: str, tolerance: float) -> None:
    """Stop when a way does not make the sample that it is said to make."""
    difference = float(np.abs(sample[0] - expected["image"].numpy()).max())
    if difference > tolerance or not np.array_equal(sample[1], expected["label"].numpy()):
        raise SystemExit(f"{what} makes another sample: images differ by {difference}")


def measure(
    spec: DatasetSpec, pairs: list[Pair], scale: tuple[int, int], samples: int
) -> dict[str, Clock]:
    """Make `samples` samples in each of the four ways, by turns."""
    settings = {
        PUBLISHED: AugmentConfig(scale=scale, crop_first=False),
        PLAIN: AugmentConfig(scale=scale, crop_first=False),
        CROP_FIRST: AugmentConfig(scale=scale),
        REDUCED: AugmentConfig(scale=scale, reduced_decode=True),
    }
    datasets = {way: TrainDataset(spec, pairs, config) for way, config in settings.items()}
    clocks = {way: Clock() for way in datasets}
    for position in range(-len(datasets), samples):
        for way, dataset in datasets.items():
            pair = pairs[position % len(pairs)]
            make = published_sample if way == PUBLISHED else package_sample
            # The first rounds warm up caches and check; their time is thrown away.
            warming = position < 0
            clock = Clock() if warming else clocks[way]
            sample = make(clock, dataset, pair, abs(position))
            clock.samples += 1
            if warming:
                expected = dataset[abs(position), position % len(pairs)]
                check_same(sample, dict(expected), way, 1e-5 if way == PUBLISHED else 0.0)
    return clocks


def table(clocks: dict[str, Clock]) -> str:
    """Milliseconds per sample and stage, then images per second, as Markdown."""
    ways = list(clocks)
    lines = ["| ms per sample | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for stage in STAGES:
        cells = [f"{1000 * c.spent[stage] / c.samples:.2f}" for c in clocks.values()]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    totals = [f"{1000 * c.total / c.samples:.2f}" for c in clocks.values()]
    lines.append("| **all** | " + " | ".join(totals) + " |")
    rates = [f"{c.samples / c.total:.1f}" for c in clocks.values()]
    lines.append("| **images/s per core** | " + " | ".join(rates) + " |")
    for base in (PUBLISHED, PLAIN):
        gains = [f"{clocks[base].total / c.total:.2f}x" for c in clocks.values()]
        lines.append(f"| against {base} | " + " | ".join(gains) + " |")
    return "\n".join(lines)


def verdict(clocks: dict[str, Clock]) -> str:
    """What crop first brings against the plain order, the aim, and what bounds it."""
    plain, first = clocks[PLAIN], clocks[CROP_FIRST]
    gain = plain.total / first.total
    reading = 1000 * (first.spent["read label"] + first.spent["read image"]) / first.samples
    aim = "the aim of 1.4x is met" if gain >= 1.4 else "the aim of 1.4x is missed"
    return (
        f"Crop first is {gain:.2f}x the plain order: {aim}. Reading the two files takes "
        f"{reading:.1f} of its {1000 * first.total / first.samples:.1f} ms and costs the same in "
        "any order; only the resize, the check of ids and the choice of the crop become cheaper."
    )


def main() -> None:
    """Measure both recipes; print, and write Markdown and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=120, help="samples per way and recipe")
    parser.add_argument("--scenes", type=int, default=8, help="different images")
    parser.add_argument("--machine", default=f"{platform.machine()}", help="name for the report")
    parser.add_argument("--out", type=Path, help="report to write (.md; a .json goes beside it)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    spec = get_spec("synthetic")
    report = [
        "# Training images per second and core",
        "",
        f"Machine: {arguments.machine}. Python {platform.python_version()}, OpenCV "
        f"{cv2.__version__}, NumPy {np.__version__}. One thread, processor time, "
        f"{arguments.samples} samples each of {arguments.scenes} scenes of 2048x1536 pixels "
        "(JPEG of quality 92, label PNG).",
        "",
        f"Command: `python {shlex.join(sys.argv)}`",
    ]
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, train=arguments.scenes, val=1, size=(1536, 2048))
        pairs = find_pairs(spec, folder, "train")
        sizes = [pair.image.stat().st_size / 1e6 for pair in pairs]
        report[2] += f" JPEG files of {min(sizes):.1f} to {max(sizes):.1f} MB."
        for title, scale in RECIPES.items():
            clocks = measure(spec, pairs, scale, arguments.samples)
            report += ["", f"## {title}", "", table(clocks), "", verdict(clocks)]
            numbers[title] = {
                way: {
                    "images_per_second": clock.samples / clock.total,
                    "milliseconds": {s: 1e3 * clock.spent[s] / clock.samples for s in STAGES},
                }
                for way, clock in clocks.items()
            }
    text = "\n".join(report) + "\n"
    print(text)
    if arguments.out is not None:
        atomic_write_text(arguments.out, text)
        write_json(arguments.out.with_suffix(".json"), numbers)


if __name__ == "__main__":
    main()
