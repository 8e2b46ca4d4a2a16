"""Boundary IoU: how well outlines are met, whatever the size of the objects.

From "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (Cheng et
al., CVPR 2021): only pixels within a distance d of the outline of their own region are
compared, d being 2 % of the image's diagonal.  As in the authors' code, distance is
that of a square (d erosions by 3x3) and the image's border counts as outline.

What is ours: counts are summed per class over the set before dividing, as for mIoU;
ignored pixels are stamped into the prediction too, so that they make the same outline
in both, and are not counted.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cgrseg.evaluation.metrics import Counts, Scores, mean_of_defined

#: Share of the image's diagonal that the band along an outline is wide.
DIAGONAL_SHARE = 0.02


def boundary_distance(height: int, width: int, share: float = DIAGONAL_SHARE) -> int:
    """Width in pixels, at least 1, of the band along outlines."""
    return max(1, round(share * float(np.hypot(height, width))))


def boundary_mask(labels: NDArray[np.integer], distance: int) -> NDArray[np.bool_]:
    """Pixels that have another id, or the image's end, within `distance`.

    Args:
        labels: ids (H, W), 0..32767.
        distance: pixels, in the sense of a square around the pixel.

    One minimum and one maximum filter serve all classes at once: a pixel lies inside
    its region exactly where the square around it holds one id.
    """
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
    per-class scores (K,) in 0..1, not a number for classes without any outline.
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

    @staticmethod
    def mean(scores: Scores) -> float:
        """Mean over the classes that have an outline in labels or predictions."""
        return mean_of_defined(scores)
