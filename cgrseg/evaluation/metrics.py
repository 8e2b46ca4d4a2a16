"""Segmentation metrics from exact counts.

All scores come from one confusion matrix of integers, summed over the whole set (and over
processes) before any division: papers quote this, not the mean of per-image scores.

Conventions are those of the published evaluation (mmsegmentation 0.27,
``mmseg/core/evaluation/metrics.py``): a class that occurs neither in labels nor in
predictions has no score and is skipped by the means; a class that only predictions
contain has IoU 0, Dice 0 and precision 0 but no accuracy, recall or F-score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cgrseg.errors import DataError

#: Pixels counted at once: bounds the temporary 8-byte indices to about 32 MiB.
_CHUNK = 1 << 22

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]


def count_pairs(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count how often each class was predicted where each class was labeled.

    Args:
        prediction: class ids 0..num_classes-1, any integer type, any shape.
        label: class ids or `ignore_index`, same shape.
        num_classes: number of classes K.
        ignore_index: label value that is not counted.

    Returns:
        int64 (K, K): row = labeled class, column = predicted class.

    Raises:
        DataError: shapes differ, or an id lies outside 0..K-1.
    """
    if prediction.shape != label.shape:
        raise DataError(
            "metrics",
            found=f"prediction of shape {tuple(prediction.shape)}, "
            f"label of shape {tuple(label.shape)}",
            expected="the same height and width",
            remedy="check that the label file belongs to this image",
        )
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=label.device)
    flat_prediction, flat_label = prediction.reshape(-1), label.reshape(-1)
    for start in range(0, flat_label.numel(), _CHUNK):
        part_label = flat_label[start : start + _CHUNK].long()
        part_prediction = flat_prediction[start : start + _CHUNK].to(part_label.device).long()
        kept = part_label != ignore_index
        part_label, part_prediction = part_label[kept], part_prediction[kept]
        _check_range("label", part_label, num_classes, ignore_index)
        _check_range("prediction", part_prediction, num_classes, None)
        counts += torch.bincount(
            part_label * num_classes + part_prediction, minlength=num_classes * num_classes
        )
    return counts.view(num_classes, num_classes)


def _check_range(what: str, values: Tensor, num_classes: int, ignore_index: int | None) -> None:
    if values.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < 0 or high >= num_classes:
        ignored = "" if ignore_index is None else f", or {ignore_index} for 'ignore'"
        raise DataError(
            f"metrics: {what}",
            found=f"class ids from {low} to {high}",
            expected=f"ids 0 to {num_classes - 1}{ignored}",
            remedy="check the class list and the label rule of the dataset",
        )


class ConfusionMatrix(Metric):
    """Confusion matrix of a whole set, in 64-bit integers; summed over processes.

    Args:
        num_classes: number of classes K.
        ignore_index: label value that is not counted.

    `update(prediction, label)` takes integer tensors of equal shape; `compute()`
    returns int64 (K, K), row = labeled class, column = predicted class; `latest` holds
    the counts of the last update alone (one image's, when updated image by image).
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.latest = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=self.latest.clone(), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add the pixels of one or more label maps."""
        self.latest = count_pairs(prediction, label, self.num_classes, self.ignore_index)
        self.counts += self.latest.to(self.counts.device)

    def compute(self) -> Tensor:
        """int64 (K, K): row = labeled class, column = predicted class."""
        return self.counts


@dataclass(frozen=True, repr=False)
class SegmentationScores:
    """Scores in 0..1, per class and in the mean; NaN where undefined.

    Attributes:
        pixel_accuracy: share of labeled pixels that are right (aAcc).
        iou: per class, intersection over union (K,).
        accuracy: per class, share of its labeled pixels that are right (K,).
        dice: per class, 2 * intersection / (predicted + labeled) (K,).
        fscore: per class, harmonic mean of precision and recall (K,); equal to dice
            except that it is undefined where a class is only predicted or only labeled
            without a hit.
        precision: per class, share of its predicted pixels that are right (K,).
        recall: per class, as `accuracy` (K,).
        frequency: per class, share of the labeled pixels (K,).
    """

    pixel_accuracy: float
    iou: Scores
    accuracy: Scores
    dice: Scores
    fscore: Scores
    precision: Scores
    recall: Scores
    frequency: Scores

    def __repr__(self) -> str:
        """The means in percent; `summary()` and the arrays have the rest."""
        means = self.summary()
        shown = ", ".join(f"{name} {100 * means[name]:.2f} %" for name in ("mIoU", "mAcc", "aAcc"))
        return f"SegmentationScores({shown}, {len(self.iou)} classes)"

    @classmethod
    def from_matrix(cls, matrix: Tensor | Counts) -> SegmentationScores:
        """Scores of a confusion matrix (K, K), row = label, column = prediction."""
        counts = matrix.cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
        return cls.from_counts(counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1))

    @classmethod
    def from_counts(
        cls, intersection: Counts, predicted: Counts, labeled: Counts
    ) -> SegmentationScores:
        """Scores of three vectors of pixel counts (K,)."""
        hit = np.asarray(intersection, dtype=np.float64)
        of_prediction = np.asarray(predicted, dtype=np.float64)
        of_label = np.asarray(labeled, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = hit / of_prediction
            recall = hit / of_label
            return cls(
                pixel_accuracy=float(hit.sum() / of_label.sum()),
                iou=hit / (of_prediction + of_label - hit),
                accuracy=recall,
                dice=2 * hit / (of_prediction + of_label),
                fscore=2 * precision * recall / (precision + recall),
                precision=precision,
                recall=recall,
                frequency=of_label / of_label.sum(),
            )

    @property
    def caution(self) -> str:
        """Warning when fewer than two classes are labeled; else empty."""
        labeled = int(np.count_nonzero(self.frequency > 0))
        if labeled >= 2:
            return ""
        what = "one class" if labeled else "no class"
        return f"{what} is labeled: these scores do not show whether the network separates classes"

    @property
    def mean_iou(self) -> float:
        """Mean IoU (mIoU) over the classes that occur in labels or predictions."""
        return mean_of_defined(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy (mAcc) over the classes that occur in labels."""
        return mean_of_defined(self.accuracy)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU averaged with the share of labeled pixels as weight (fwIoU)."""
        occurs = self.frequency > 0
        if not occurs.any():
            return float("nan")
        return float((self.frequency[occurs] * self.iou[occurs]).sum())

    def summary(self) -> dict[str, float]:
        """The scalar scores by their usual names."""
        return {
            "aAcc": self.pixel_accuracy,
            "mIoU": self.mean_iou,
            "mAcc": self.mean_accuracy,
            "mDice": mean_of_defined(self.dice),
            "mFscore": mean_of_defined(self.fscore),
            "mPrecision": mean_of_defined(self.precision),
            "mRecall": mean_of_defined(self.recall),
            "fwIoU": self.frequency_weighted_iou,
        }

    def per_class(self) -> dict[str, Scores]:
        """The per-class scores by their usual names, each (K,)."""
        return {
            "IoU": self.iou,
            "Acc": self.accuracy,
            "Dice": self.dice,
            "Fscore": self.fscore,
            "Precision": self.precision,
            "Recall": self.recall,
            "Frequency": self.frequency,
        }


def mean_of_defined(values: Scores) -> float:
    """Mean of the entries that are numbers; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
