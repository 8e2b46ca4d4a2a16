"""Run-length encoded masks as in COCO annotations.

A mask is read column by column; runs alternate between outside and inside,
starting outside.  The runs come as a list of numbers, or as a string: six bits a
character (ASCII 48..111), the lowest five hold the value, the sixth says that more
follow, the top value bit of the last one is the sign, and from the fourth run on
each is stored as the difference to the run two before it.  Format: COCO's
`maskApi.c`, written by P. Dollar and T.-Y. Lin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Seven characters hold 34 bits and a sign: more than any image has pixels.
_MOST_BITS = 35


def decode_counts(text: str) -> list[int]:
    """The runs that a compressed string stands for.

    Raises:
        ValueError: a character outside the alphabet, or a string that breaks off.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} is not part of a run-length string")
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > _MOST_BITS:
            raise ValueError("the run-length string holds a number that no image reaches")
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = shift = 0
    if shift:
        raise ValueError("the run-length string breaks off in the middle of a number")
    return counts


def decode_mask(counts: str | bytes | Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask that runs stand for.

    Args:
        counts: a compressed string, or the runs themselves.
        height: rows.
        width: columns.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: runs that are negative or do not add up to height x width.
    """
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs: Any = decode_counts(counts) if isinstance(counts, str) else counts
    lengths = np.asarray(runs)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError("runs must be a list of whole numbers, none of them negative")
    # In Python's numbers: a sum of 64 bits can wrap around to the number of pixels.
    covered = sum(lengths.tolist())
    if covered != height * width:
        raise ValueError(
            f"the runs cover {covered} pixels, the mask has {height * width} ({width}x{height})"
        )
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T
