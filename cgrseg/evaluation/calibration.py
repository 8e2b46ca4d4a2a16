"""Expected calibration error: does a confidence of 80 % mean right 80 % of the time?

Pixels are sorted into bins of equal width by the probability of the class that won;
the error is the mean over bins, weighted by their pixels, of the distance between the
bin's mean confidence and its share of right pixels (Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017; 15 bins as there).

Confidences are summed as integers (units of 2**-24), so that the result depends on
neither the order of images nor the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

BINS = 15
_UNIT = 1 << 24
_PIXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Calibration:
    """Reliability of confidences.

    Attributes:
        error: expected calibration error, 0 (calibrated) to 1; not a number without pixels.
        pixels: pixels per bin.
        confidence: mean confidence per bin, not a number for empty bins.
        accuracy: share of right pixels per bin, not a number for empty bins.
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
    """Streamed counts per bin of confidence; summed over processes."""

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
