"""The way from logits to output pixels, one axis at a time, as weighted taps.

Everything that the test path does between the network's logits and the label map is
linear and acts on rows and columns separately: upsampling to the network's input,
averaging overlapping windows (how many windows cover a pixel is a product of a row count
and a column count), cropping the padding, resizing to the image's own size, mirroring.
So each output row is a weighted sum of a few rows of logits, its *taps*, and likewise each
column: ``output = rows @ logits @ columns.T``.  Knowing the taps, any rectangle of the
output is computed alone, and the full-size logits never exist.

Coordinates are those of ``torch.nn.functional.interpolate(mode="bilinear",
align_corners=False)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.ops.resize_plan import bilinear_taps


@dataclass(frozen=True)
class Taps:
    """For every output position, which inputs it mixes and how much of each.

    Attributes:
        index: input positions, int64 (outputs, taps).
        weight: their shares, float64 (outputs, taps), at least 0, summing to 1; spare taps
            have weight 0.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)

    def crop(self, length: int) -> Taps:
        """Keep the first `length` outputs."""
        return Taps(self.index[:length], self.weight[:length])

    def mirrored(self) -> Taps:
        """Outputs in reverse order: undoes a flip of the image."""
        return Taps(self.index[::-1], self.weight[::-1])

    def after(self, inner: Taps) -> Taps:
        """This mapping applied to the outputs of `inner`."""
        index = inner.index[self.index].reshape(len(self), -1)
        weight = (self.weight[:, :, None] * inner.weight[self.index]).reshape(len(self), -1)
        return Taps(index, weight)

    def part(self, start: int, stop: int) -> TapMatrix:
        """The mapping for outputs `start` to `stop`, over the inputs they use only."""
        index, weight = self.index[start:stop], self.weight[start:stop]
        inputs = np.unique(index[weight > 0])
        places = np.minimum(np.searchsorted(inputs, index), len(inputs) - 1)
        matrix = np.zeros((stop - start, len(inputs)))
        np.add.at(matrix, (np.arange(stop - start)[:, None], places), weight)
        return TapMatrix(torch.from_numpy(inputs), torch.from_numpy(matrix.astype(np.float32)))


@dataclass(frozen=True)
class TapMatrix:
    """Some outputs as a small dense matrix over the inputs that they use.

    Attributes:
        inputs: int64 (used,), ascending.
        matrix: float32 (outputs, used).
    """

    inputs: Tensor
    matrix: Tensor

    def to(self, device: torch.device) -> TapMatrix:
        """The same on another device."""
        return TapMatrix(self.inputs.to(device), self.matrix.to(device))


def bilinear(source: int, target: int) -> Taps:
    """Taps of a bilinear resize of `source` positions to `target`."""
    return Taps(*bilinear_taps(source, target))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of sliding windows along one axis.

    As published: steps of `stride`, the last window pulled back so that it ends at the
    border; a length below the window's gives one window.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(step * stride + window, length) - window, 0) for step in range(count)]


def averaged_windows(
    length: int, window: int, starts: Sequence[int], inner: Taps, cells: int
) -> Taps:
    """Taps of the average of overlapping windows along one axis.

    Args:
        length: positions along the axis.
        window: positions of each window (at most `length`).
        starts: first position of each window; together they cover the axis.
        inner: from one window's cells of logits to its positions (at least `window`).
        cells: cells of logits of one window.

    Returns:
        Taps over all windows' cells, window after window.
    """
    first = np.asarray(starts, dtype=np.int64)
    positions = np.arange(length)
    covered = (positions[:, None] >= first) & (positions[:, None] < first + window)
    counts = covered.sum(axis=1)
    deepest = int(counts.max())
    taps = inner.index.shape[1]
    index = np.zeros((length, deepest, taps), dtype=np.int64)
    weight = np.zeros((length, deepest, taps))
    # Windows that cover a position are consecutive: the k-th of them is `lowest + k`.
    lowest = covered.argmax(axis=1)
    for layer in range(deepest):
        there = layer < counts
        window_number = (lowest + layer)[there]
        local = positions[there] - first[window_number]
        index[there, layer] = inner.index[local] + window_number[:, None] * cells
        weight[there, layer] = inner.weight[local] / counts[there][:, None]
    return Taps(index.reshape(length, -1), weight.reshape(length, -1))
