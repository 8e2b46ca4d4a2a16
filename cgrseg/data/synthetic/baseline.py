"""How far color alone goes: a per-pixel classifier that sees nothing else.

It is the yardstick beside a network trained on the procedural scenes: these are made
so that color says little, and a score far above this one is owed to shape, texture
and place.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cgrseg.data.synthetic.classes import IGNORE_RAW, SYNTHETIC_CLASSES
from cgrseg.errors import DataError

ImageLabel = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


class ColorClassifier:
    """Bayes' rule on a three-dimensional histogram of RGB.

    Every bin of colors gets the class with the best score
    `P(color | class) * P(class) ** prior`, estimated from the training pixels with
    additive smoothing.

    Args:
        num_classes: number of classes, without the ignored one.
        bins: bins per channel.
        prior: 1 for the most accurate pixels (frequent classes win), 0 for all classes
            alike, which serves mIoU better when color says little.
        smoothing: pixels added to each bin, so that unseen colors follow the prior.
    """

    def __init__(
        self, num_classes: int, *, bins: int = 16, prior: float = 0.5, smoothing: float = 1.0
    ) -> None:
        self.num_classes = num_classes
        self.bins = bins
        self.prior = prior
        self.smoothing = smoothing
        self._counts = np.zeros((num_classes, bins**3), np.int64)

    def _bin(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        cell = image.astype(np.int64) * self.bins // 256
        return (cell[..., 0] * self.bins + cell[..., 1]) * self.bins + cell[..., 2]

    def fit(self, pairs: Iterable[ImageLabel]) -> ColorClassifier:
        """Count the colors of every class.

        Args:
            pairs: image RGB uint8 (H, W, 3) with raw label uint8 (H, W): 0 for ignored
                pixels, k for class k - 1.

        Raises:
            DataError: when no pixel is labeled, or a label exceeds the class count.
        """
        for image, label in pairs:
            if int(label.max(initial=0)) > self.num_classes:
                raise DataError(
                    "color classifier",
                    found=f"label {int(label.max())}",
                    expected=f"0 (ignored) to {self.num_classes}",
                    remedy="give labels in ADE20K's encoding",
                )
            known = label != IGNORE_RAW
            joint = (label[known].astype(np.int64) - 1) * self.bins**3 + self._bin(image)[known]
            counts = np.bincount(joint, minlength=self._counts.size)
            self._counts += counts.reshape(self._counts.shape)
        if not self._counts.any():
            raise DataError(
                "color classifier",
                found="no labeled pixel",
                expected="at least one image with labels",
                remedy="give it the training scenes",
            )
        return self

    def predict(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Raw labels uint8 (H, W), k for class k - 1, of an RGB uint8 image (H, W, 3)."""
        totals = self._counts.sum(axis=1, keepdims=True)
        smoothed = self._counts + self.smoothing
        likelihood = np.log(smoothed / smoothed.sum(axis=1, keepdims=True))
        share = np.maximum(totals, 1e-9) / totals.sum()
        score = np.where(totals > 0, likelihood + self.prior * np.log(share), -np.inf)
        best = score.argmax(axis=0).astype(np.uint8) + np.uint8(1)
        return np.asarray(best[self._bin(image)], np.uint8)


def color_baseline(
    train_pairs: Iterable[ImageLabel],
    val_pairs: Iterable[ImageLabel],
    *,
    num_classes: int = len(SYNTHETIC_CLASSES),
    bins: int = 16,
) -> float:
    """Score on `val_pairs` (mIoU, 0..1) the best color classifier fitted on `train_pairs`.

    Three weights of the class prior (0, 0.5 and 1) are tried and the best result is
    given, so that the yardstick is not a weak one by choice.

    Args:
        train_pairs: image RGB uint8 (H, W, 3) with raw label uint8 (H, W) in ADE20K's
            encoding.
        val_pairs: the same, held out.
        num_classes: number of classes, without the ignored one.
        bins: bins per color channel.

    Raises:
        DataError: when either set has no labeled pixel.
    """
    classifier = ColorClassifier(num_classes, bins=bins).fit(train_pairs)
    held_out = list(val_pairs)
    return max(_mean_iou(classifier, held_out, prior) for prior in (0.0, 0.5, 1.0))


def _mean_iou(classifier: ColorClassifier, pairs: list[ImageLabel], prior: float) -> float:
    """Mean over the classes that occur in label or prediction of their IoU (0..1)."""
    classifier.prior = prior
    n = classifier.num_classes
    confusion = np.zeros((n, n), np.int64)
    for image, label in pairs:
        known = label != IGNORE_RAW
        joint = (label[known].astype(np.int64) - 1) * n + classifier.predict(image)[known] - 1
        confusion += np.bincount(joint, minlength=n * n).reshape(n, n)
    if not confusion.any():
        raise DataError(
            "color classifier",
            found="no labeled pixel to score",
            expected="at least one held-out image with labels",
            remedy="give it the validation scenes",
        )
    hit = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hit
    occurs = union > 0
    return float((hit[occurs] / union[occurs]).mean())
