"""Confidence intervals and paired tests of mIoU, by bootstrap over images.

A test set is a sample of images.  Weighting its images at random, many times, and computing mIoU
with each set of weights shows how much mIoU would vary with other images.  The weights of a draw
are positive and sum to the number of images, uniformly over all such weights (Bayesian bootstrap:
Rubin, Annals of Statistics 1981); the interval holds the middle of the draws.  Only the counts per
image and class are needed, so no image is predicted again.  Two runs on the same images are
compared on the *same* draws, which removes what is easy or hard for both.

Whole images drawn with replacement (Efron) do not fit: a class that occurs in one image of the set
is missing from a third of the draws, and their means are over other classes.  With rare classes of
low IoU, most draws then score higher than the set itself, and the interval may not even hold the
score.  Positive weights keep every class in every draw.  No bootstrap can tell the spread of a
class that occurs in one image only: for it there is none, and a test on n images never claims a
smaller probability than n tosses of a coin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError

DRAWS = 1000
_IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class Interval:
    """A value in 0..1 and the range that holds it with the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class PairedDifference:
    """mIoU of B minus mIoU of A on the same images.

    Attributes:
        interval: interval of the difference.
        p_value: two-sided share of draws on the other side of zero.
        per_class: difference of IoU per class (K,).
        per_class_p: p-value per class (K,), at least 2 / 2**n for a class that occurs in n images;
            NaN where undefined.
    """

    interval: Interval
    p_value: float
    per_class: NDArray[np.float64]
    per_class_p: NDArray[np.float64]


def _weights(images: int, draws: int, seed: tuple[int, int]) -> NDArray[np.float64]:
    """Weight of each image in each draw: (draws, images), rows sum to `images`."""
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    weights = generator.standard_exponential((draws, images))
    return np.asarray(weights * (images / weights.sum(axis=1, keepdims=True)))


def _iou_of_draws(
    counts: NDArray[np.integer], draws: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """IoU per draw and class, in blocks of draws: (block, K)."""
    images, _, classes = counts.shape
    for start, block in _blocks(draws, images):
        weights = _weights(images, block, (seed, start))
        totals = np.zeros((block, 3 * classes))
        for first in range(0, images, _IMAGES_AT_ONCE):
            part = counts[first : first + _IMAGES_AT_ONCE].reshape(-1, 3 * classes)
            totals += weights[:, first : first + _IMAGES_AT_ONCE] @ part.astype(np.float64)
        hit, predicted, labeled = totals.reshape(block, 3, classes).transpose(1, 0, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            yield hit / (predicted + labeled - hit)


def _blocks(draws: int, images: int) -> Iterator[tuple[int, int]]:
    # About 64 MiB of weights at once, whatever the number of images.
    size = max(1, min(draws, (1 << 23) // max(images, 1)))
    for start in range(0, draws, size):
        yield start, min(size, draws - start)


def _mean_iou(per_class: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = ~np.isnan(per_class)
    return np.asarray(np.nansum(per_class, axis=1) / np.maximum(defined.sum(axis=1), 1))


def _total_iou(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    hit, predicted, labeled = counts.astype(np.int64).sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(hit / (predicted + labeled - hit))


def _check(counts: NDArray[np.integer]) -> None:
    if counts.ndim != 3 or counts.shape[1] != 3 or counts.shape[0] == 0:
        raise DataError(
            "bootstrap",
            found=f"counts of shape {counts.shape}",
            expected="(images, 3, classes) with at least one image",
            remedy="evaluate at least one image first",
        )


def miou_interval(
    counts: NDArray[np.integer], *, confidence: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Interval of mIoU over images.

    Args:
        counts: number of pixels per image, kind and class (N, 3, K); kinds are hit, predicted,
            labeled.
        confidence: share of the draws in the interval, 0..1.
        draws: number of random sets of weights.
        seed: seed of the draws.

    Raises:
        DataError: no images, or another shape.
    """
    _check(counts)
    values = np.concatenate([_mean_iou(block) for block in _iou_of_draws(counts, draws, seed)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    value = float(_mean_iou(_total_iou(counts)[None])[0])
    return Interval(value, float(low), float(high), confidence)


def paired_difference(
    counts_a: NDArray[np.integer],
    counts_b: NDArray[np.integer],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> PairedDifference:
    """Compare two runs on the same images in the same order.

    Args:
        counts_a: counts of run A (N, 3, K), as in :func:`miou_interval`.
        counts_b: counts of run B, same shape.
        confidence: share of the draws in the interval, 0..1.
        draws: number of random sets of weights.
        seed: seed of the draws.

    Raises:
        DataError: shapes differ or are empty.
    """
    _check(counts_a)
    if counts_a.shape != counts_b.shape:
        raise DataError(
            "comparison of two runs",
            found=f"counts of shapes {counts_a.shape} and {counts_b.shape}",
            expected="the same images and the same classes",
            remedy="evaluate both on the same split and class list",
        )
    means: list[NDArray[np.float64]] = []
    below = np.zeros(counts_a.shape[2])
    above = np.zeros(counts_a.shape[2])
    defined = np.zeros(counts_a.shape[2])
    pairs = zip(
        _iou_of_draws(counts_a, draws, seed), _iou_of_draws(counts_b, draws, seed), strict=True
    )
    for block_a, block_b in pairs:
        means.append(_mean_iou(block_b) - _mean_iou(block_a))
        change = block_b - block_a
        below += (change <= 0).sum(axis=0)
        above += (change >= 0).sum(axis=0)
        defined += (~np.isnan(change)).sum(axis=0)
    values = np.concatenate(means)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    iou_a, iou_b = _total_iou(counts_a), _total_iou(counts_b)
    value = float(_mean_iou(iou_b[None])[0] - _mean_iou(iou_a[None])[0])
    # One is added so that no finite number of draws claims a probability of zero.
    p_value = min(1.0, 2 * (min((values <= 0).sum(), (values >= 0).sum()) + 1) / (draws + 1))
    # A few images prove little, however often they are drawn: n of them that all agree are as
    # likely by chance as a coin that falls n times on the same side.
    labeled = int((counts_a[:, 2].sum(axis=1) > 0).sum())
    p_value = max(p_value, min(1.0, 2.0 ** (1 - labeled)))
    with np.errstate(divide="ignore", invalid="ignore"):
        per_class_p = np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (defined + 1))
    # One image cannot show more than a coin tossed once: it falls the same way every time.
    occurs = ((counts_a[:, 1:] + counts_b[:, 1:]).sum(axis=1) > 0).sum(axis=0)
    per_class_p = np.maximum(per_class_p, np.minimum(1.0, 2.0 ** (1 - occurs.astype(np.float64))))
    per_class_p[defined == 0] = np.nan
    return PairedDifference(
        Interval(value, float(low), float(high), confidence),
        float(p_value),
        iou_b - iou_a,
        per_class_p,
    )
