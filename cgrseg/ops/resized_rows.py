"""Bilinear resizing of logits row by row on a CPU, in NumPy, shared out over threads.

Full-size logits never exist: a thread resizes some rows and columns, one row after another, and
its caller reduces each row at once.

Legend: K classes, h x w low-resolution size, S output columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import cpu_threads

Floats = NDArray[np.floating[Any]]
Taps = tuple[NDArray[np.int64], Floats]
"""Inputs of every output along one axis and their weights, (outputs, taps) each."""

BLOCK = 1 << 17
"""Elements of a block of work: its arrays stay within the second-level cache."""

STRIP = 32
"""Output rows that one thread resizes one after another."""

_Item = TypeVar("_Item")


def resized_rows(strip: Floats, rows: Taps, columns: Taps) -> Iterator[Floats]:
    """Rows of resized logits, one after another.

    Args:
        strip: (h, w, K) logits, classes innermost.
        rows: taps of the wanted output rows.
        columns: taps of the wanted output columns, S of them.

    Yields:
        (S, K) of each output row, in one array that the next row overwrites.
    """
    wide: dict[int, Floats] = {}
    row = np.empty((len(columns[0]), strip.shape[2]), strip.dtype)
    part = np.empty_like(row)
    weights = columns[1].astype(strip.dtype)
    for index, weight in zip(rows[0].tolist(), rows[1].astype(strip.dtype), strict=True):
        used = [(one, share) for one, share in zip(index, weight, strict=True) if share > 0]
        # Few rows are needed at a time: those of the previous output and the next ones.
        wide = {one: wide[one] for one, _ in used if one in wide}
        for number, (one, share) in enumerate(used):
            if one not in wide:
                wide[one] = _columns_of(strip[one], columns[0], weights)
            np.multiply(wide[one], share, out=part if number else row)
            if number:
                np.add(row, part, out=row)
        yield row


def _columns_of(line: Floats, index: NDArray[np.int64], weights: Floats) -> Floats:
    """One row of logits (w, K), resized along the columns: (S, K)."""
    total = line.take(index[:, 0], axis=0)
    total *= weights[:, :1]
    for tap in range(1, index.shape[1]):
        part = line.take(index[:, tap], axis=0)
        part *= weights[:, tap : tap + 1]
        total += part
    return total


def exponentials(values: Floats, largest: Floats) -> Floats:
    """exp(values - largest), in place."""
    np.subtract(values, largest, out=values)
    return np.exp(values, out=values)


def spans(length: int, classes: int) -> list[slice]:
    """Spans of output columns that are resized together."""
    step = max(8, BLOCK // classes)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def in_threads(work: Callable[[_Item], object], items: Sequence[_Item]) -> None:
    """Do independent work on the CPU threads of the process."""
    threads = min(cpu_threads(), len(items))
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for _ in pool.map(work, items):
            pass


def classes_last(logits: Floats) -> Floats:
    """(K, h, w) as (h, w, K), contiguous, without a copy where it is so already."""
    classes, height, width = logits.shape
    if logits.flags.c_contiguous and height * width > 1:
        # Several times faster than NumPy's copy.
        turned: NDArray[Any] = cv2.transpose(logits.reshape(classes, -1))
        return turned.reshape(height, width, classes)
    return np.ascontiguousarray(logits.transpose(1, 2, 0))
