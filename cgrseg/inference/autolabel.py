"""Automatic labels: a network labels images, and pixels of low confidence are ignored.

The result is a dataset folder, `data.extra` of a training.  The thresholds are one confidence, one
per class, or the one that keeps a share of each class, as in class-balanced self-training (Zou et
al., ECCV 2018): without it, the frequent classes would crowd out the rare ones.

`OUT/predictions` keeps labels and confidences of all pixels, so other thresholds need no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import Address
from cgrseg.class_names import CLASS_LIST, MAX_CLASSES, class_list_text, read_class_list
from cgrseg.data.convert.image_names import place_image
from cgrseg.data.label_files import label_note, read_label, write_label_png
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import CGRSegError, ConfigError, DataError, option
from cgrseg.files import atomic_write_text, write_json
from cgrseg.inference.confidence import STEPS, lowest_level
from cgrseg.inference.image_sources import FoundImage, find_images
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.records import is_made_by
from cgrseg.inference.results import predict_folder
from cgrseg.locks import locking
from cgrseg.progress import shown_progress
from cgrseg.provenance import settings_digest

REPORT = "autolabel.json"
IGNORED = 255
_PREDICTIONS = "predictions"
_LEVELS = 256


@dataclass(frozen=True)
class ClassCount:
    """What was kept of one class.

    Attributes:
        name: name of the class.
        threshold: lowest confidence of a kept pixel; None: above every confidence.
        predicted: number of pixels that the network gave the class.
        kept: number of those that are labels.
        images: number of images with a kept pixel.
    """

    name: str
    threshold: float | None
    predicted: int
    kept: int
    images: int

    @property
    def share(self) -> float:
        """Share of the predicted pixels that were kept, 0..1."""
        return self.kept / max(self.predicted, 1)


@dataclass
class AutolabelReport:
    """Outcome of :func:`autolabel`.

    Attributes:
        classes: what was kept, per class, in images whose label file is ours.
        labeled: number of images with a label file of ours.
        empty: images without a confident pixel, which are left out of the dataset.
        own: label files of another program in the place of ours, which were left alone.
        failed: files that could not be used, each with its error.
    """

    classes: list[ClassCount] = field(default_factory=list)
    labeled: int = 0
    empty: list[Path | Address] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    failed: list[tuple[Path | Address, CGRSegError]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of all predicted pixels that were kept, 0..1."""
        return sum(c.kept for c in self.classes) / max(sum(c.predicted for c in self.classes), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "labeled_images": self.labeled,
            "share_kept": self.share,
            "empty_images": [str(path) for path in self.empty],
            "own_labels": [str(path) for path in self.own],
            "failed": {str(path): str(error) for path, error in self.failed},
            "classes": [{**vars(one), "share_kept": one.share} for one in self.classes],
        }


@locking(lambda given: given["out"], below=True)
def autolabel(
    predictor: Predictor,
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    confidence: float | Sequence[float] = 0.9,
    keep: float | Sequence[float | None] | None = None,
    overwrite: bool = False,
    batch_size: int = 1,
    checkpoint: str | Path | None = None,
    show: bool = False,
) -> AutolabelReport:
    """Write a dataset of predicted label maps whose uncertain pixels are ignored.

    `out` gets `images/` (hard links), `annotations/` (class ids; 255 is ignored), `classes.txt`,
    `autolabel.json` (the report) and `predictions/`.  A repeated call goes on where it stopped.
    Label files that another program wrote, such as corrected ones, are never replaced.

    Args:
        predictor: labels the images.
        inputs: files, folders and glob patterns.
        out: folder of the dataset.
        confidence: lowest confidence of a label, 0..1; one, or one per class.  It is raised to
            the next step of :mod:`cgrseg.inference.confidence`.
        keep: share 0..1 of the pixels of each class to keep, the most confident ones; one, or one
            per class (None: no share).  At least this share is kept, more where many pixels lie
            in the last step.  `confidence` holds as well.
        overwrite: replace label maps of other thresholds or of another network.
        batch_size: maximum number of images of equal size per batch.
        checkpoint: source of the network, recorded in `predictions/prediction.json`.
        show: show progress and the time left on standard error.

    Raises:
        ConfigError: a network of more than 255 classes, or one that gives label maps only.
        DataError: no images; `out` holds another dataset, or labels of other thresholds, of
            another network or of other images, and `overwrite` is not set.
        EnvironmentProblem: a result cannot be written.
    """
    out = Path(out)
    inputs = inputs if isinstance(inputs, (str, Path)) else list(inputs)
    classes = predictor.classes
    _check_classes(classes, out)
    channels = predictor.test.image_channels
    given = find_images(inputs, leave_out=[out], channels=channels)
    images = {image.path: image for image in given}
    folder = out / _PREDICTIONS
    with shown_progress("predicting", show) as progress:
        predicted = predict_folder(
            predictor,
            inputs,
            folder,
            overlays=False,
            overwrite=overwrite and not is_made_by(predictor, checkpoint, folder),
            batch_size=batch_size,
            checkpoint=checkpoint,
            progress=progress,
            confidence=True,
            leave_out=[out],
        )
    report = AutolabelReport(failed=predicted.failed)
    done = set(predicted.done) | set(predicted.kept)
    usable = [image for path, image in images.items() if path in done]
    counts = np.zeros((len(classes), _LEVELS), dtype=np.int64)

    def count(image: FoundImage) -> NDArray[np.int64]:
        labels, levels = _stored(folder, image)
        pairs = labels.astype(np.intp).ravel() * _LEVELS + levels.ravel()
        return np.bincount(pairs, minlength=counts.size).reshape(counts.shape)

    with shown_progress("counting", show) as progress:
        for found in run_parallel(count, usable, threads=True, progress=progress):
            counts += found
    lowest = threshold_levels(counts, confidence, keep)
    writer = _Writer(out, predictor, lowest, overwrite)
    writer.refuse_other_labels(usable)
    if usable:
        atomic_write_text(out / CLASS_LIST, class_list_text(classes))
    pixels, occurs = np.zeros((2, len(classes)), np.int64), np.zeros(len(classes), np.int64)
    with shown_progress("labeling", show) as progress:
        results = run_parallel(writer.write, usable, threads=True, progress=progress)
        for image, written in zip(usable, results, strict=True):
            if written is None:
                report.own.append(writer.target(image))
                continue
            pixels += written
            occurs += written[1] > 0
            if not written[1].any():
                report.empty.append(image.path)
    report.labeled = len(usable) - len(report.empty) - len(report.own)
    bounds = [*STEPS.tolist(), None]
    report.classes = [
        ClassCount(
            name,
            threshold=bounds[lowest[k]],
            predicted=int(pixels[0, k]),
            kept=int(pixels[1, k]),
            images=int(occurs[k]),
        )
        for k, name in enumerate(classes)
    ]
    write_json(out / REPORT, report.to_dict())
    return report


def threshold_levels(
    counts: NDArray[np.int64],
    confidence: float | Sequence[float],
    keep: float | Sequence[float | None] | None,
) -> NDArray[np.int64]:
    """Lowest kept level of each class.

    Args:
        counts: pixels per class and level, (K, 256).
        confidence: lowest confidence, 0..1; one, or one per class.
        keep: share to keep, 0..1; one, or one per class; None: no share.

    Returns:
        Levels (K,); `len(STEPS)` keeps nothing.
    """
    every = len(counts)
    least = [confidence] * every if isinstance(confidence, (int, float)) else list(confidence)
    shares = [keep] * every if keep is None or isinstance(keep, (int, float)) else list(keep)
    lowest = np.array([lowest_level(value) for value in least], dtype=np.int64)
    for k, share in enumerate(shares):
        if share is None:
            continue
        above = counts[k, ::-1].cumsum()[::-1]  # pixels of this level or a higher one
        needed = math.ceil(share * int(above[0]) - 1e-6)
        if needed == 0:  # a class without pixels keeps its threshold
            lowest[k] = max(lowest[k], 0 if share else len(STEPS))
            continue
        lowest[k] = max(lowest[k], np.flatnonzero(above >= needed)[-1])
    return lowest


@dataclass(frozen=True)
class _Writer:
    """Writes the label maps of the dataset.

    Attributes:
        out: folder of the dataset.
        predictor: made the predictions.
        lowest: lowest kept level of each class, (K,).
        overwrite: replace label maps of other thresholds or predictions.
    """

    out: Path
    predictor: Predictor
    lowest: NDArray[np.int64]
    overwrite: bool

    def target(self, image: FoundImage) -> Path:
        """Label file of an image."""
        return self.out / "annotations" / f"{image.name}.png"

    def _note(self, image: FoundImage) -> str:
        """Note of a label file: digest of thresholds and prediction."""
        predicted = label_note(self.out / _PREDICTIONS / "labels" / f"{image.name}.png")
        return settings_digest([self.lowest.tolist(), predicted])

    def refuse_other_labels(self, images: Sequence[FoundImage]) -> None:
        """Stop before the first write where labels of other thresholds would be replaced."""
        if self.overwrite:
            return
        there = [image for image in images if self.target(image).is_file()]
        others = [i for i in there if label_note(self.target(i)) not in (None, self._note(i))]
        if others:
            raise DataError(
                self.target(others[0]),
                found=f"{len(others)} label maps of other thresholds or predictions",
                expected="an empty folder, or one with the same labels to go on with",
                remedy="choose another folder, or replace them with "
                f"{option('--overwrite')}: stored predictions of this network are used again, and "
                "label files that another program wrote are left alone",
            )

    def write(self, image: FoundImage) -> NDArray[np.int64] | None:
        """Write the label map of an image and place the image, unless no pixel is kept.

        Returns:
            Numbers of predicted and of kept pixels per class, (2, K); None: another program wrote
            the label file, which is left alone.
        """
        target, note = self.target(image), self._note(image)
        before = label_note(target) if target.is_file() else ""
        if before is None:
            return None
        labels, levels = _stored(self.out / _PREDICTIONS, image)
        kept = levels >= self.lowest[labels]
        chosen = (labels.ravel(), labels[kept])
        pixels = np.stack([np.bincount(each, minlength=len(self.lowest)) for each in chosen])
        placed = self.out / "images" / f"{image.name}{image.path.suffix}"
        if not pixels[1].any():
            for ours in (target, placed) if before else ():
                ours.unlink(missing_ok=True)
            return pixels
        source = image.path if isinstance(image.path, Path) else image.path.read("an image")
        place_image(source, placed, replace=self.overwrite)
        if before != note:
            ids = np.where(kept, labels, np.uint8(IGNORED))
            write_label_png(target, ids, self.predictor.palette, note=note)
        return pixels


def _stored(folder: Path, image: FoundImage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Predicted labels and levels of confidence of an image, (H, W) each."""
    labels, levels = (
        read_label(folder / part / f"{image.name}.png") for part in ("labels", "confidence")
    )
    return labels, levels


def _check_classes(classes: Sequence[str], out: Path) -> None:
    """Refuse classes that a dataset cannot hold, or that are not those of the folder."""
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            "CHECKPOINT",
            found=f"a network of {len(classes)} classes",
            expected=f"at most {MAX_CLASSES}: label maps have 8 bits, and {IGNORED} is ignored",
            remedy="use a network of fewer classes",
        )
    path = out / CLASS_LIST
    if path.is_file() and read_class_list(path) != tuple(classes):
        raise DataError(
            path,
            found="a dataset of other classes",
            expected="an empty folder, or one with the classes of the network",
            remedy="choose another folder",
        )
