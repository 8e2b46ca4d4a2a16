"""Labels from low-resolution logits on a CPU, in NumPy: the method of :mod:`cgrseg.ops.argmax`.

One thread finds the few places where classes meet; resizing all classes is shared out over the
CPU threads of the process.  Nothing here needs PyTorch.

Legend: K classes, h x w low-resolution size, H x W output size, m cells at hand, R x S places of a
cell, Y x X taps of its window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError
from cgrseg.ops.resize_plan import AxisPlan, axis_plan
from cgrseg.ops.resized_rows import (
    BLOCK,
    STRIP,
    Floats,
    classes_last,
    exponentials,
    in_threads,
    resized_rows,
    spans,
)

Size = tuple[int, int]
Method = Literal["auto", "boundary", "dense"]
# Candidate counts up to which a cell is interpolated class by class; above, all classes are.
BUCKETS = (2, 4, 8, 16)
# Shares of the dense path's work above which looking for candidates, and interpolating those
# found, no longer pay; and how many cells are looked at to foresee it.
SCAN_SHARE = 0.25
CANDIDATE_SHARE = 0.3
SAMPLE = 64


def label_type(classes: int) -> type[np.integer[Any]]:
    """The smallest of uint8, int16 and int32 that holds the ids of some classes."""
    return np.uint8 if classes <= 256 else np.int16 if classes <= 1 << 15 else np.int32


def array_argmax(
    logits: Floats,
    size: Size,
    *,
    input_size: Size | None = None,
    crop: Size | None = None,
    method: Method = "auto",
) -> NDArray[np.integer[Any]]:
    """Best class per pixel of the bilinearly resized logits of one image.

    Args:
        logits: (K, h, w) float32 or float64, any strides; all values finite.
        size: (H, W) of the result.
        input_size: as for :func:`~cgrseg.ops.upsample_argmax`.
        crop: as for :func:`~cgrseg.ops.upsample_argmax`.
        method: as for :func:`~cgrseg.ops.upsample_argmax`.

    Returns:
        (H, W) in :func:`label_type`; among equal classes the smallest index.

    Raises:
        DataError: a shape that does not fit, or a logit that is NaN or infinite.
    """
    grid, rows, columns = _open(logits, size, input_size, crop)
    if method != "dense":
        labels = _boundary(grid, rows, columns, always=method == "boundary")
        if labels is not None:
            return labels
    labels = np.empty(size, label_type(grid.shape[2]))

    def decide(row: int, span: slice, values: Floats) -> None:
        labels[row, span] = values.argmax(axis=1)

    _for_all_rows(grid, rows, columns, decide)
    return labels


def array_topk(
    logits: Floats, size: Size, k: int, *, input_size: Size | None = None, crop: Size | None = None
) -> tuple[NDArray[np.integer[Any]], Floats]:
    """The `k` best classes per pixel of one image, best first, and their softmax probabilities.

    Args:
        logits: (K, h, w), as for :func:`array_argmax`.
        size: (H, W) of the result.
        k: 1 to K.  For k = 1 the first of exactly equal classes is the best.
        input_size: as for :func:`array_argmax`.
        crop: as for :func:`array_argmax`.

    Returns:
        labels (k, H, W) in :func:`label_type`, and probabilities (k, H, W) in the dtype of the
        logits.

    Raises:
        DataError: as for :func:`array_argmax`.
    """
    grid, rows, columns = _open(logits, size, input_size, crop)
    labels = np.empty((k, *size), label_type(grid.shape[2]))
    probabilities = np.empty((k, *size), grid.dtype)

    def decide(row: int, span: slice, values: Floats) -> None:
        if k == 1:
            found = values.argmax(axis=1)[:, None]
        else:
            found = np.argpartition(values, -k, axis=1)[:, -k:]
            order = np.argsort(-np.take_along_axis(values, found, 1), axis=1, kind="stable")
            found = np.take_along_axis(found, order, 1)
        best = np.take_along_axis(values, found, 1)
        labels[:, row, span] = found.T
        total = exponentials(values, best[:, :1]).sum(axis=1, keepdims=True)
        probabilities[:, row, span] = (np.exp(best - best[:, :1]) / total).T

    _for_all_rows(grid, rows, columns, decide)
    return labels, probabilities


def _for_all_rows(
    grid: Floats,
    rows: AxisPlan[NDArray[Any]],
    columns: AxisPlan[NDArray[Any]],
    decide: Callable[[int, slice, Floats], None],
) -> None:
    """Call `decide(row, columns, values)` for every output row and span of columns."""

    def work(item: tuple[int, slice]) -> None:
        top, span = item
        strip = slice(top, top + STRIP)
        values = resized_rows(
            grid,
            (rows.taps[strip], rows.weights[strip]),
            (columns.taps[span], columns.weights[span]),
        )
        for row, here in enumerate(values, start=top):
            decide(row, span, here)

    tops = range(0, rows.length, STRIP)
    in_threads(work, [(top, span) for top in tops for span in spans(columns.length, grid.shape[2])])


def _boundary(
    grid: Floats,
    rows: AxisPlan[NDArray[Any]],
    columns: AxisPlan[NDArray[Any]],
    *,
    always: bool,
) -> NDArray[np.integer[Any]] | None:
    """Fill cells whose window has one winner; decide the others among their candidates.

    Args:
        grid: (h, w, K) logits.
        rows: plan of the vertical axis.
        columns: plan of the horizontal axis.
        always: do so even where resizing all classes is expected to be faster.

    Returns:
        Labels (H, W); None where resizing all classes is expected to be faster.
    """
    classes = grid.shape[2]
    winners = grid.argmax(axis=2)
    seen = winners[rows.group_taps][:, :, columns.group_taps]  # (rows, Y, columns, X)
    first = seen[:, 0, :, 0]
    mixed = np.flatnonzero((seen != first[:, None, :, None]).any(axis=(1, 3)))
    cells = _Cells(grid, rows, columns, winners, mixed)
    if not always and not _few_candidates(cells):
        return None
    labels = first.astype(label_type(classes))
    for axis, plan in enumerate((rows, columns)):
        labels = labels.take(plan.place_of // plan.group_outputs.shape[1], axis=axis)
    counts, candidates = cells.candidates(np.arange(len(mixed)))
    starts = counts.cumsum() - counts
    lower = 1
    for upper in BUCKETS:
        bucket = np.flatnonzero((counts > lower) & (counts <= upper))
        lower = upper
        for which in _chunks(bucket, cells.places * upper):
            # Padded with the cell's first candidate.
            rank = np.arange(upper)[:, None]
            table = candidates[starts[which] + np.where(rank < counts[which], rank, 0)]
            cells.decide(which, table, labels)
    bucket = np.flatnonzero(counts > lower)
    for which in _chunks(bucket, cells.places * classes):
        cells.decide_all(which, labels)
    return labels


class _Cells:
    """The m cells whose windows have several winners.

    Args:
        grid: (h, w, K) logits.
        rows: plan of the vertical axis.
        columns: plan of the horizontal axis.
        winners: best class of every position, (h, w).
        mixed: numbers of the cells, row by row.

    Attributes:
        taps: Y, X.
        nodes: positions of the windows, (Y * X, m).
        seen: best class at each of them.
        places: outputs of a cell, R * S.
    """

    def __init__(
        self,
        grid: Floats,
        rows: AxisPlan[NDArray[Any]],
        columns: AxisPlan[NDArray[Any]],
        winners: NDArray[np.intp],
        mixed: NDArray[np.intp],
    ) -> None:
        self.grid, self.rows, self.columns = grid, rows, columns
        self.positions = grid.reshape(-1, grid.shape[2])
        self.row, self.column = np.divmod(mixed, len(columns.group_taps))
        row_taps = rows.group_taps.T.take(self.row, axis=1) * grid.shape[1]  # (Y, m)
        column_taps = columns.group_taps.T.take(self.column, axis=1)  # (X, m)
        self.taps = len(row_taps), len(column_taps)
        nodes = row_taps[:, None] + column_taps
        self.nodes = nodes.reshape(self.taps[0] * self.taps[1], len(mixed))
        self.seen = winners.ravel()[self.nodes]
        self.places = rows.group_outputs.shape[1] * columns.group_outputs.shape[1]

    def __len__(self) -> int:
        return len(self.row)

    def candidates(
        self, which: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.integer[Any]]]:
        """Which classes can win somewhere in some cells.

        Returns:
            Their number in each cell, at least 2; and the classes, cell after cell, in rising
            order.
        """
        taps, classes = len(self.nodes), self.positions.shape[1]
        counts, found = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
        for part in _chunks(which, taps * classes):
            nodes, seen = self.nodes[:, part], self.seen[:, part]
            # Mean of the winners at each position of the window: (taps, cells).
            mean = self.positions.ravel()[nodes[:, None] * classes + seen].mean(axis=1)
            possible = np.zeros((len(part), classes), np.bool_)
            for tap in range(taps):
                possible |= self.positions[nodes[tap]] >= mean[tap][:, None]  # ties included
            # So are the winners, but for the rounding of their mean.
            possible[np.arange(len(part)), seen] = True
            counts.append(np.count_nonzero(possible, axis=1))
            found.append(np.flatnonzero(possible) % classes)
        return np.concatenate(counts), np.concatenate(found)

    def decide(
        self, which: NDArray[np.intp], table: NDArray[np.integer[Any]], labels: NDArray[Any]
    ) -> None:
        """Write the best of n candidates into every place of some cells.

        Args:
            which: the cells, m of them.
            table: classes (n, m), in rising order.
            labels: (H, W), written to.
        """
        index = self.nodes[:, None, which] * self.positions.shape[1] + table
        values = self.positions.ravel()[index].reshape(*self.taps, *table.shape)  # (Y, X, n, m)
        weights = self._weights(which)
        names = table.astype(labels.dtype)
        if len(table) == 2:  # the sign of the difference decides: half the work
            difference = _interpolate(values[:, :, 1] - values[:, :, 0], *weights)
            best = np.where(difference > 0, names[1], names[0])
        else:
            best = np.broadcast_to(names[0], (*(len(each) for each in weights), len(which)))
            leader = _interpolate(values[:, :, 0], *weights)
            for candidate in range(1, len(table)):
                challenger = _interpolate(values[:, :, candidate], *weights)
                best = np.where(challenger > leader, names[candidate], best)
                np.maximum(leader, challenger, out=leader)
        self._write(which, best, labels)

    def decide_all(self, which: NDArray[np.intp], labels: NDArray[Any]) -> None:
        """Write the best of all classes into every place of some cells."""
        values = self.positions[self.nodes[:, which]]
        values = values.reshape(*self.taps, *values.shape[1:])  # (Y, X, m, K)
        rows, columns = (each[..., None] for each in self._weights(which))
        self._write(which, _interpolate(values, rows, columns).argmax(axis=3), labels)

    def _weights(self, which: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Weights of the rows (R, Y, m) and columns (S, X, m) of some cells."""
        rows = self.rows.group_weights.transpose(1, 2, 0).take(self.row[which], axis=2)
        columns = self.columns.group_weights.transpose(1, 2, 0).take(self.column[which], axis=2)
        return rows.astype(self.grid.dtype), columns.astype(self.grid.dtype)

    def _write(
        self, which: NDArray[np.intp], found: NDArray[np.integer[Any]], labels: NDArray[Any]
    ) -> None:
        """Write labels (R, S, m) into every place of some cells."""
        # Places beyond a cell's last row or column repeat it, with the same label.
        target = self.rows.group_outputs.T.take(self.row[which], axis=1)[:, None] * labels.shape[1]
        target = target + self.columns.group_outputs.T.take(self.column[which], axis=1)
        labels.reshape(-1)[target] = found


def _few_candidates(cells: _Cells) -> bool:
    """Whether looking for candidates pays, judged by a sample of the cells."""
    classes, taps = cells.positions.shape[1], len(cells.nodes)
    dense_work = cells.rows.length * cells.columns.length * classes
    if len(cells) * taps * classes > SCAN_SHARE * dense_work:
        return False
    if len(cells) <= SAMPLE:
        return True
    counts, _ = cells.candidates(np.arange(0, len(cells), len(cells) // SAMPLE))
    return float(counts.mean()) * cells.places * len(cells) <= CANDIDATE_SHARE * dense_work


def _interpolate(values: Floats, rows: Floats, columns: Floats) -> Floats:
    """Values (Y, X, m) of windows at the places (R, S, m) of their cells, m one or more axes.

    Args:
        values: of the windows' positions.
        rows: weights (R, Y, m).
        columns: weights (S, X, m).
    """
    tall = _weighted_sum(values, (rows[:, tap, None] for tap in range(rows.shape[1])))
    return _weighted_sum(
        (tall[:, None, tap] for tap in range(tall.shape[1])),
        (columns[:, tap] for tap in range(columns.shape[1])),
    )


def _weighted_sum(parts: Iterable[Floats], weights: Iterable[Floats]) -> Floats:
    """Sum of parts times weights, broadcast."""
    products = (part * weight for part, weight in zip(parts, weights, strict=True))
    total = next(products)
    for product in products:
        total += product
    return total


def _chunks(which: NDArray[np.intp], elements: int) -> Iterator[NDArray[np.intp]]:
    """Parts of some cells whose work, given per cell, stays in the cache."""
    step = max(1, BLOCK // max(elements, 1))
    return (which[start : start + step] for start in range(0, len(which), step))


def _open(
    logits: Floats, size: Size, input_size: Size | None, crop: Size | None
) -> tuple[Floats, AxisPlan[NDArray[Any]], AxisPlan[NDArray[Any]]]:
    """Check the arguments; the logits as (h, w, K), contiguous, and the plans of both axes."""
    check_sizes(size, input_size, crop)
    grid = classes_last(logits)
    require_finite(grid)
    rows, columns = (
        axis_plan(
            grid.shape[axis],
            size[axis],
            between=None if input_size is None else input_size[axis],
            kept=None if crop is None else crop[axis],
        )
        for axis in range(2)
    )
    return grid, rows, columns


def check_sizes(size: Size, input_size: Size | None, crop: Size | None) -> None:
    """Raise a DataError unless the sizes of a resize fit together."""
    for name, pair in (("size", size), ("input_size", input_size), ("crop", crop)):
        if pair is not None and (len(pair) != 2 or min(pair) < 1):
            raise DataError(
                "upsample",
                found=f"{name} = {tuple(pair)}",
                expected="(height, width), each at least 1",
                remedy=f"correct {name}",
            )
    if crop is None:
        return
    if input_size is None:
        raise DataError(
            "upsample",
            found=f"crop = {tuple(crop)} without input_size",
            expected="crop counts pixels of the resize to input_size",
            remedy="pass input_size, the size of the network's input, as well",
        )
    if crop[0] > input_size[0] or crop[1] > input_size[1]:
        raise DataError(
            "upsample",
            found=f"crop = {tuple(crop)} out of input_size = {tuple(input_size)}",
            expected="a crop no larger than what it is cut from",
            remedy="pass the size before padding as crop, the padded one as input_size",
        )


def require_finite(logits: Any) -> None:
    """Raise a DataError unless all logits, an array or a tensor, are finite."""
    # NaN and infinities survive a sum, so one fast pass clears all but overflowing sums.
    with np.errstate(over="ignore", invalid="ignore"):
        total = logits.sum()
    if bool(abs(total) < float("inf")):
        return
    finite = int((abs(logits) < float("inf")).sum())
    count = int(np.prod(logits.shape))
    if finite == count:
        return
    raise DataError(
        "upsample",
        found=f"{100 * (1 - finite / count):.3g} % of the logits are NaN or infinite",
        expected="finite logits",
        remedy="check the weights and the precision that produced them; to rule a class "
        "out, give it a low finite value such as -10000 instead of -inf",
    )
