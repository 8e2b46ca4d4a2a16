"""Regions of a label map that are probably wrong, found by confident disagreement of a network.

After confident learning (Northcutt et al., 2021, arXiv 1911.00068): a class is predicted with
confidence where its probability reaches the mean probability that it has where it is labeled.  What
differs: pixels are gathered by connected regions; a pixel counts the more, the less its label gets
of what this class usually gets; and a confusion that the network makes in other images too counts
for less than one that it makes here only.

Legend: K classes, H, W height and width of an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER = 0.012
"""Half the width of the strips that are not counted, relative to the shorter side of the image."""

USUAL_RATE = 0.001
"""Rate of a confusion in other images that halves its suspicion, see :func:`discounted`."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class SuspectRegion:
    """A connected region of one label where the network is sure of one other class.

    Attributes:
        given: class id of the label map.
        predicted: class id of the network.
        pixels: number of pixels.
        suspicion: mean suspicion of these pixels, 0..1.
        box: left, top, width and height in pixels.
        outlines: closed outer and inner borders, each int32 (points, 2) of x, y.
    """

    given: int
    predicted: int
    pixels: int
    suspicion: float
    box: tuple[int, int, int, int]
    outlines: tuple[NDArray[np.int32], ...] = ()


class ClassConfidence:
    """Mean probability of each class over the pixels that are labeled as it.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.pixels = np.zeros(num_classes, np.int64)
        self._sums = np.zeros(num_classes)

    def add(self, labels: NDArray[np.integer], given: Floats) -> None:
        """Count an image.

        Args:
            labels: (H, W); ids of 0..K-1 are counted, others are ignored.
            given: (H, W), probability of the labeled class, 0..1.
        """
        count = len(self.pixels)
        known = labels < count
        ids = labels[known].astype(np.int64)
        self.pixels += np.bincount(ids, minlength=count)
        self._sums += np.bincount(ids, weights=given[known], minlength=count)

    def means(self) -> Floats:
        """Float64 (K,) in 0..1; 1 for a class that is never labeled."""
        return np.where(self.pixels > 0, self._sums / np.maximum(self.pixels, 1), 1.0)


def pixel_suspicion(
    labels: NDArray[np.integer],
    prediction: NDArray[np.integer],
    confidence: Floats,
    given: Floats,
    means: Floats,
) -> NDArray[np.float32]:
    """Suspicion of each pixel that its label is wrong.

    It is 0 where the label is ignored, where label and prediction agree, and where the
    confidence stays below the mean of the predicted class.  Elsewhere it is
    `confidence * (1 - given / mean of the labeled class)`, at least 0.

    Args:
        labels: (H, W); ids of K and more are ignored.
        prediction: (H, W) class ids.
        confidence: (H, W), probability of the predicted class, 0..1.
        given: (H, W), probability of the labeled class, 0..1.
        means: (K,) of :class:`ClassConfidence`.

    Returns:
        (H, W) in 0..1.
    """
    known = labels < len(means)
    sure = known & (labels != prediction) & (confidence >= means[prediction])
    usual = np.maximum(means[np.where(known, labels, 0)], 1e-6)
    return np.where(sure, confidence * np.clip(1 - given / usual, 0, 1), 0).astype(np.float32)


def suspect_regions(
    suspicion: NDArray[np.float32], labels: NDArray[np.integer], prediction: NDArray[np.integer]
) -> list[SuspectRegion]:
    """Connected regions of one label and one prediction with pixels of suspicion above 0.

    Strips along borders are not counted: a region must hold a square whose side is twice
    :data:`BORDER` of the image's shorter side plus one pixel, and what such squares do not cover is
    cut off (morphological opening).

    Args:
        suspicion: (H, W) of :func:`pixel_suspicion`.
        labels: (H, W).
        prediction: (H, W).
    """
    radius = max(1, round(BORDER * min(labels.shape)))
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    suspected = suspicion > 0
    pairs = np.where(suspected, labels.astype(np.int32) * 65536 + prediction, -1)
    found = []
    for pair in np.unique(pairs[suspected]):
        mask = cv2.morphologyEx((pairs == pair).astype(np.uint8), cv2.MORPH_OPEN, square)
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for number in range(1, count):
            left, top, width, height, pixels = (int(value) for value in stats[number])
            inside = (slice(top, top + height), slice(left, left + width))
            region = numbers[inside] == number
            outlines, _ = cv2.findContours(
                region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
            )
            found.append(
                SuspectRegion(
                    given=int(pair) // 65536,
                    predicted=int(pair) % 65536,
                    pixels=pixels,
                    suspicion=float(suspicion[inside][region].mean()),
                    box=(left, top, width, height),
                    outlines=tuple(np.asarray(line[:, 0], np.int32) for line in outlines),
                )
            )
    return found


def discounted(
    regions: Sequence[Sequence[SuspectRegion]], labeled: NDArray[np.integer]
) -> list[list[SuspectRegion]]:
    """Reduce the suspicion of confusions that the network makes in other images too.

    The rate of a pair (given class, predicted class) is the sum of its suspicion over all pixels
    of the other images, divided by the number of pixels that are labeled as the given class.  The
    suspicion is divided by `1 + rate / USUAL_RATE`.

    Args:
        regions: suspect regions of each image.
        labeled: (K,), number of pixels of each class in all images.

    Returns:
        The same regions; in each image those of the largest sum of suspicion first.
    """
    sums = [_sums_of_pairs(own) for own in regions]
    total: Counter[tuple[int, int]] = Counter()
    for of_image in sums:
        total.update(of_image)
    found = []
    for own, of_image in zip(regions, sums, strict=True):
        weighed = []
        for one in own:
            pair = (one.given, one.predicted)
            rate = max(0.0, total[pair] - of_image[pair]) / int(labeled[one.given])
            weighed.append(replace(one, suspicion=one.suspicion / (1 + rate / USUAL_RATE)))
        found.append(sorted(weighed, key=lambda one: -one.pixels * one.suspicion))
    return found


def _sums_of_pairs(regions: Sequence[SuspectRegion]) -> Counter[tuple[int, int]]:
    """Sum of suspicion over the pixels, by given and predicted class."""
    found: Counter[tuple[int, int]] = Counter()
    for one in regions:
        found[one.given, one.predicted] += one.pixels * one.suspicion  # type: ignore[assignment]
    return found
