"""Order of unlabeled images: uncertain ones that are unlike those labeled or ranked before.

Greedy k-center selection (core-set; Sener and Savarese, 2018, arXiv 1708.00489).  What differs:
distances are multiplied by the uncertainty.

Legend: N unlabeled images, M labeled images, C features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LabelingOrder:
    """Which image to label first.

    Attributes:
        order: int64 (N,), positions of the images, the most useful first.
        distance: float64 (N,) by position: distance to the nearest labeled image, divided by the
            largest of these; all 1 without labeled images.
        score: float64 (N,) by position: uncertainty times the distance to the nearest image that
            is labeled or stands earlier in the order, on the same scale and at most 1.
    """

    order: NDArray[np.int64]
    distance: Floats
    score: Floats


def labeling_order(uncertainty: Floats, features: Floats, labeled: Floats) -> LabelingOrder:
    """Order images so that near-duplicates of an image that stands on top come late.

    Each place goes to the image whose uncertainty, times its distance to the nearest image that
    is labeled or has a place, is largest; of equal ones to the most uncertain.  Distances are
    Euclidean, over features that are standardized to deviation 1 over all images.

    Args:
        uncertainty: (N,) in 0..1.
        features: (N, C).
        labeled: (M, C); M may be 0.
    """
    count = len(uncertainty)
    rows = np.concatenate([features, labeled]).astype(np.float64)
    deviation = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    squares = (rows**2).sum(axis=1)

    def distances_to(row: int) -> Floats:
        found = squares[:count] + squares[row] - 2 * (rows[:count] @ rows[row])
        return np.sqrt(np.maximum(found, 0))

    nearest = np.full(count, np.inf)
    for row in range(count, len(rows)):
        nearest = np.minimum(nearest, distances_to(row))
    if len(labeled) > 0:
        scale = nearest.max() or 1.0
        nearest /= scale
    else:  # the most uncertain image is first; distances to it give the scale
        scale = distances_to(int(np.argmax(uncertainty))).max() or 1.0
        nearest[:] = 1
    distance = nearest.copy()
    order, score = np.empty(count, np.int64), np.zeros(count)
    waiting = np.ones(count, bool)
    for place in range(count):
        product = np.where(waiting, uncertainty * nearest, -1)
        equal = np.flatnonzero(product == product.max())
        chosen = int(equal[np.argmax(uncertainty[equal])])
        order[place], score[chosen] = chosen, product[chosen]
        waiting[chosen] = False
        nearest = np.minimum(nearest, distances_to(chosen) / scale)
    return LabelingOrder(order, distance, score)
