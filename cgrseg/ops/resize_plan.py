"""One axis of a bilinear resize, written as a short list of weighted taps.

Bilinear resizing (``align_corners=False``) is linear and separable: along one axis every
output position is a weighted sum of a few input positions, its *taps*.  Two resizes after one
another, with a crop between them, are again such a sum, so the test path of the published code
(logits -> network input size -> padding cropped away -> size of the image) needs one
:class:`AxisPlan` per axis and never the tensors in between.

Coordinates follow ``torch.nn.functional.interpolate``: output ``i`` looks at
``(i + 0.5) * input / output - 0.5``, clamped to the first and last input position.  They are
computed in float64, where PyTorch's float32 kernels use float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")

# Places in a group at most.  Beyond this, cells outgrow the cache and sums over them lose digits.
_MOST_PLACES = 16


@dataclass(frozen=True)
class AxisPlan(Generic[Array]):
    """Taps of every output position of one axis, and the positions grouped by their taps.

    Arrays are NumPy's, or tensors on a device (:func:`cgrseg.ops.windows.tensor_plan`).

    Consecutive outputs that look at the same inputs form a group; a pair of groups (one per
    axis) is a rectangle of outputs that depends on one small window of inputs.

    Legend: P outputs, T taps, G groups, R places in a group.

    Attributes:
        length: number of outputs, P.
        taps: int64 (P, T) input position of each tap; unused taps repeat a used one.
        weights: float64 (P, T) weight of each tap, >= 0, summing to 1; unused taps have 0
            (tensors on Apple GPUs: float32, here and below).
        group_taps: int64 (G, T) inputs that the group's outputs look at, padded likewise.
        group_outputs: int64 (G, R) outputs of each group; short groups repeat their last one.
        group_weights: float64 (G, R, T) weights of those outputs, in the order of
            ``group_taps``.
        place_of: int64 (P,) where each output stands in ``group_outputs`` flattened.
    """

    length: int
    taps: Array
    weights: Array
    group_taps: Array
    group_outputs: Array
    group_weights: Array
    place_of: Array


def axis_plan(
    source: int, target: int, *, between: int | None = None, kept: int | None = None
) -> AxisPlan[NDArray[Any]]:
    """Plan of ``source -> target``, or of ``source -> between``, crop to ``kept``, ``-> target``.

    Plans are cached; treat their arrays as read-only.

    Args:
        source: number of inputs, at least 1.
        target: number of outputs, at least 1.
        between: size after the first of two resizes; ``None`` means a single resize.
        kept: how many of the ``between`` positions, counted from the first, survive the crop;
            ``None`` keeps all.
    """
    if between is None:
        between, kept = target, target
    return _cached_plan(source, between, between if kept is None else kept, target)


@lru_cache(maxsize=256)
def _cached_plan(source: int, between: int, kept: int, target: int) -> AxisPlan[NDArray[Any]]:
    indices, weights = bilinear_taps(source, between)
    if kept != between or target != between:
        outer_indices, outer_weights = bilinear_taps(kept, target)
        weights = (outer_weights[:, :, None] * weights[outer_indices]).reshape(target, -1)
        indices = indices[outer_indices].reshape(target, -1)
    indices, weights = tidy_taps(indices, weights)
    starts = _group_starts(indices, weights)
    return _assemble(indices, weights, starts)


def bilinear_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Two taps per output of one bilinear resize along one axis.

    Args:
        source: number of inputs, at least 1.
        target: number of outputs, at least 1.

    Returns:
        Input positions, int64 (target, 2), and their weights, float64 (target, 2), at least 0
        and summing to 1 per output.
    """
    center = (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5
    center = np.maximum(center, 0.0)
    if source == target:
        center = np.arange(target, dtype=np.float64)
    low = np.minimum(np.floor(center).astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    share = np.where(high > low, center - low, 0.0)
    return np.stack([low, high], 1), np.stack([1.0 - share, share], 1)


def tidy_taps(indices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal taps, drop those of weight 0, sort, and pad to the longest row."""
    order = np.argsort(indices, axis=1, kind="stable")
    indices = np.take_along_axis(indices, order, 1)
    weights = np.take_along_axis(weights, order, 1)
    for tap in range(1, indices.shape[1]):
        same = indices[:, tap] == indices[:, tap - 1]
        weights[:, tap] += np.where(same, weights[:, tap - 1], 0.0)
        weights[:, tap - 1] = np.where(same, 0.0, weights[:, tap - 1])
    order = np.argsort(weights <= 0.0, axis=1, kind="stable")  # used taps first, order kept
    indices = np.take_along_axis(indices, order, 1)
    weights = np.take_along_axis(weights, order, 1)
    used = weights > 0.0
    longest = int(used.sum(1).max())
    indices = np.where(used, indices, indices[:, :1])[:, :longest]
    weights = weights[:, :longest]
    return indices, weights / weights.sum(1, keepdims=True)


def _group_starts(indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """First output of each group, and one past the last output.

    A run of outputs joins the run before it when one's inputs contain the other's and the two
    fit into as many places as outputs fall between two inputs: fewer, fuller groups cost less
    than tight ones.  No group exceeds ``_MOST_PLACES``.
    """
    outputs = len(indices)
    span = max(int(indices.max() - indices.min()), 1)
    ceiling = min(-(-outputs // span), _MOST_PLACES)
    changes = np.flatnonzero((indices[1:] != indices[:-1]).any(1)) + 1
    bounds = np.concatenate([[0], changes, [outputs]])
    starts: list[int] = []
    held: frozenset[int] = frozenset()
    for first, last in pairwise(bounds.tolist()):
        inputs = frozenset(indices[first, weights[first] > 0.0].tolist())
        nested = held <= inputs or inputs <= held
        if not starts or not nested or last - starts[-1] > ceiling:
            held = inputs
            starts.extend(range(first, last, ceiling))
        else:
            held = held | inputs
    return np.asarray([*starts, outputs], dtype=np.int64)


def _assemble(
    indices: np.ndarray, weights: np.ndarray, starts: np.ndarray
) -> AxisPlan[NDArray[Any]]:
    """The plan of taps (P, T) and group boundaries (G + 1,)."""
    sizes = np.diff(starts)
    groups, places = len(sizes), int(sizes.max())
    outputs = np.minimum(starts[:-1, None] + np.arange(places), starts[1:, None] - 1)
    # The widest member's taps stand for the group: the others' are among them.
    used = (weights > 0.0).sum(1)
    widest = starts[:-1] + np.asarray([int(used[a:b].argmax()) for a, b in pairwise(starts)])
    group_taps = indices[widest]
    group_weights = np.zeros((groups, places, indices.shape[1]))
    member_taps, member_weights = indices[outputs], weights[outputs]
    filled = np.arange(indices.shape[1])[None, :] < used[widest][:, None]
    for tap in range(indices.shape[1]):
        matches = (member_taps == group_taps[:, None, tap, None]) & filled[:, None, tap, None]
        group_weights[:, :, tap] = (member_weights * matches).sum(2)
    group_of = np.repeat(np.arange(groups), sizes)
    place_of = group_of * places + np.arange(len(indices)) - starts[:-1][group_of]

    return AxisPlan(
        length=len(indices),
        taps=indices,
        weights=weights,
        group_taps=group_taps,
        group_outputs=outputs,
        group_weights=group_weights,
        place_of=place_of,
    )
