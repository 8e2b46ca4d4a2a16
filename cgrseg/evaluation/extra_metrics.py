"""Boundary IoU and expected calibration error, which cost time of their own.

Boundary IoU measures outlines, whatever the size of the objects.  From "Boundary IoU: Improving
Object-Centric Image Segmentation Evaluation" (Cheng et al., CVPR 2021): only pixels within a
distance d of the outline of their own region are compared, d being 2 % of the image diagonal.  As
in the authors' code, distance is that of a square (d erosions by 3x3), and the image border counts
as outline.  What is ours: counts are summed per class over the set before dividing, as for mIoU;
ignored pixels are stamped into the prediction too, so that they make the same outline in both, and
are not counted.

Expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; 15
bins as there): pixels are sorted into bins of equal width by the probability of the best class; the
error is the mean over bins, weighted by their pixels, of the distance between the mean confidence
of a bin and its share of right pixels.  Confidences are summed as integers (units of 2**-24), so
that the result depends on neither the order of images nor the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cgrseg.evaluation.metrics import Counts, Scores

DIAGONAL_SHARE = 0.02
"""Width of the band along an outline, as a share of the image diagonal."""
BINS = 15
_UNIT = 1 << 24
_PIXELS_AT_ONCE = 1 << 22


def boundary_distance(height: int, width: int, share: float = DIAGONAL_SHARE) -> int:
    """Width of the band along outlines in pixels, at least 1."""
    return max(1, round(share * float(np.hypot(height, width))))


def boundary_mask(labels: NDArray[np.integer], distance: int) -> NDArray[np.bool_]:
    """Pixels with another id, or the image border, within `distance`.

    Args:
        labels: ids (H, W), 0..32767.
        distance: half the side of a square around the pixel, in pixels.
    """
    # One minimum and one maximum filter serve all classes: a pixel lies inside its region exactly
    # where the square around it holds one id.
    ids = np.ascontiguousarray(labels, dtype=np.int16)
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": (-1, -1, -1, -1)}
    lowest = cv2.erode(ids, kernel, **outside)  # type: ignore[call-overload]
    highest = cv2.dilate(ids, kernel, **outside)  # type: ignore[call-overload]
    return np.asarray(lowest != highest)


def boundary_counts(
    prediction: NDArray[np.integer],
    label: NDArray[np.integer],
    num_classes: int,
    ignore_index: int = 255,
) -> Counts:
    """Pixels along outlines, per class: int64 (3, K) of hit, predicted, labeled.

    Args:
        prediction: class ids (H, W).
        label: class ids or `ignore_index` (H, W).
        num_classes: number of classes K.
        ignore_index: label value that is not counted.
    """
    ignored = label == ignore_index
    # A value that no class uses keeps ignored regions apart from every class.
    truth = np.where(ignored, num_classes, label).astype(np.int16)
    guess = np.where(ignored, num_classes, prediction).astype(np.int16)
    distance = boundary_distance(*label.shape)
    near_truth = boundary_mask(truth, distance) & ~ignored
    near_guess = boundary_mask(guess, distance) & ~ignored
    hit = near_truth & near_guess & (truth == guess)
    return np.stack(
        [
            np.bincount(ids[chosen], minlength=num_classes)[:num_classes]
            for ids, chosen in ((truth, hit), (guess, near_guess), (truth, near_truth))
        ]
    ).astype(np.int64)


def boundary_scores(counts: Tensor) -> Scores:
    """Boundary IoU per class (K,) of summed counts int64 (3, K), see :func:`boundary_counts`."""
    hit, predicted, labeled = counts.cpu().numpy().astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(hit / (predicted + labeled - hit))


class BoundaryIoU(Metric):
    """Boundary IoU of a whole set from integer counts; summed over processes.

    `update(prediction, label)` takes one image's ids (H, W); `compute()` returns
    scores per class (K,) in 0..1, NaN for classes without any outline.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state(
            "counts", default=torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: NDArray[np.integer], label: NDArray[np.integer]) -> None:
        """Add one image."""
        found = boundary_counts(prediction, label, self.num_classes, self.ignore_index)
        self.counts += torch.from_numpy(found).to(self.counts.device)

    def compute(self) -> Scores:
        """Per class (K,)."""
        return boundary_scores(self.counts)


@dataclass(frozen=True)
class Calibration:
    """Reliability of confidences.

    Attributes:
        error: expected calibration error, 0 (calibrated) to 1; NaN without pixels.
        pixels: number of pixels per bin.
        confidence: mean confidence per bin, NaN for empty bins.
        accuracy: share of right pixels per bin, NaN for empty bins.
    """

    error: float
    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @classmethod
    def from_counts(cls, counts: Tensor) -> Calibration:
        """Calibration from the counts of ``CalibrationError``, int64 (3, bins)."""
        pixels, right, units = counts.cpu().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            confidence = units / _UNIT / pixels
            accuracy = right / pixels
        filled = pixels > 0
        gaps = np.abs(confidence - accuracy)[filled] * pixels[filled]
        error = float(gaps.sum() / pixels.sum()) if filled.any() else float("nan")
        return cls(error, pixels, confidence, accuracy)


class CalibrationError(Metric):
    """Counts per bin of confidence; summed over processes."""

    full_state_update = False
    counts: Tensor

    def __init__(self, ignore_index: int = 255, bins: int = BINS, **options: Any) -> None:
        super().__init__(**options)
        self.ignore_index = ignore_index
        self.bins = bins
        # Rows: pixels, right pixels, sum of confidences in units of 2**-24.
        self.add_state(
            "counts", default=torch.zeros(3, bins, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: Tensor, confidence: Tensor, label: Tensor) -> None:
        """Add one image.

        Args:
            prediction: class ids (H, W).
            confidence: probability 0..1 of the predicted class (H, W), float.
            label: class ids or the ignore index (H, W).
        """
        rows = max(1, _PIXELS_AT_ONCE // label.shape[1])
        for top in range(0, label.shape[0], rows):
            part = slice(top, top + rows)
            kept = label[part] != self.ignore_index
            right = (prediction[part] == label[part])[kept]
            units = (confidence[part][kept].double() * _UNIT).round().long().clamp(0, _UNIT)
            # A confidence on an edge belongs to the bin below it, as in Guo et al.
            bins = ((units * self.bins - 1).clamp(min=0) // _UNIT).clamp(max=self.bins - 1)
            added = torch.stack(
                [
                    torch.bincount(bins, minlength=self.bins),
                    torch.bincount(bins[right], minlength=self.bins),
                    torch.zeros(self.bins, dtype=torch.int64, device=bins.device).scatter_add_(
                        0, bins, units
                    ),
                ]
            )
            self.counts += added.to(self.counts.device)

    def compute(self) -> Tensor:
        """int64 (3, bins): pixels, right pixels, confidences in units of 2**-24."""
        return self.counts
