"""Attention biases for any input size, resized once per size and cached.

EfficientFormerV2 adds a learned bias to its attention: one value per head and per
offset (|dy|, |dx|) between a query cell and a key cell.  CGRSeg's table belongs to
a 512x512 input.  For another size the published code builds the whole
(queries x keys) matrix and resizes it, as if it were an image, with bicubic
interpolation (`mmseg/models/backbones/efficientformer_v2.py`).  On non-square
inputs that mixes up rows, but published weights expect it.

Resizing at every forward pass takes a fifth of the time of a prediction on a CPU.  Here the result
is cached per size in eval mode.

The form `attention_bias="geometric"` resizes ImageNet's table itself, linearly and by one factor
for both axes: the short side of the map spans the table, as 224 pixels did on ImageNet.  Offsets
beyond the table's edge (on the long side only) take the value at the edge.  Equal offsets get equal
biases at any size; at the table's own size (7x7 cells at stride 32) they are exactly ImageNet's.
In the published form, equal offsets get different biases on a non-square map, and the 512-pixel
table starts from zeros, not from ImageNet.

Legend: A heads, R table cells per side, H x W cells of keys, Q queries, K keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.models.layers import is_recorded

# Limit per attention module.  Few sizes follow each other (buckets, scales of one image).
# Biases beyond the limit are computed again, so that memory stays bounded.
_MAX_CACHED_BYTES = 24 * 1024 * 1024


def offset_index(cells: int, query_stride: int = 1) -> Tensor:
    """Index of the offset (|dy|, |dx|) for every pair of query and key.

    Args:
        cells: R, cells per side of the square grid of keys.
        query_stride: queries sit on every `query_stride`-th cell.

    Returns:
        (Q, K) int64 with values in [0, R * R): `|dy| * R + |dx|`, which is the order
        in which the published code numbers offsets as it first meets them.
    """
    keys = torch.arange(cells)
    queries = torch.arange(0, cells, query_stride)
    distance = (queries[:, None] - keys[None, :]).abs()  # (R', R)
    index = distance[:, None, :, None] * cells + distance[None, :, None, :]  # (R', R', R, R)
    return index.reshape(len(queries) ** 2, cells**2)


class KeptBias:
    """Cache of the biases of one attention module, per size, in eval mode.

    Not a module, and not in the state dict.  The cache is valid while the *values* of the table are
    equal, compared at every use: a version counter misses writes through `.data` (weight averaging
    swaps weights this way), and an address is reused after a move.  The comparison reads a few
    kilobytes; on a GPU the host waits for it once per attention, except in compiled networks.

    Threads may share a network: the cache is replaced as a whole, never changed in place.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, dict[tuple[int, int], Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles start with an empty cache of their own.
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._kept = None

    @staticmethod
    def keeps(table: Tensor, queries: int, keys: int) -> bool:
        """Whether biases of this size fit into the cache."""
        return table.shape[0] * queries * keys * table.element_size() <= _MAX_CACHED_BYTES

    @property
    def cached_bytes(self) -> int:
        """Size of the cached biases in bytes."""
        return 0 if self._kept is None else sum(bias.nbytes for bias in self._kept[1].values())

    def _of_size(
        self,
        table: nn.Parameter,
        size: tuple[int, int],
        compute: Callable[[Tensor], Tensor],
        training: bool,
    ) -> Tensor:
        """`compute(table)`, cached by size while the values of the table stay the same."""
        if is_recorded() or (table.is_cuda and torch.cuda.is_current_stream_capturing()):
            # In a graph: always computed from the given table.
            return compute(table)
        if training or (torch.is_grad_enabled() and table.requires_grad):
            return compute(table)
        kept = self._kept
        if kept is None or not _same(kept[0], table):
            with torch.inference_mode(False), torch.no_grad():
                kept = (table.detach().clone(), {})
        bias = kept[1].get(size)
        if bias is None:
            # Outside inference mode, so that the cached tensor is usable in any mode.
            with torch.inference_mode(False), torch.no_grad():
                bias = compute(kept[0])
            others = kept[1]
            if sum(other.nbytes for other in others.values()) + bias.nbytes > _MAX_CACHED_BYTES:
                others = {}
            if bias.nbytes <= _MAX_CACHED_BYTES:
                self._kept = (kept[0], {**others, size: bias})
        return bias


class AttentionBias(KeptBias):
    """The published form: the matrix of all pairs, resized as if it were an image."""

    def __call__(
        self, table: nn.Parameter, index: Tensor, queries: int, keys: int, training: bool
    ) -> Tensor:
        """Biases for a grid of any size.

        Args:
            table: (A, offsets), the learned values.
            index: (Q0, K0), from :func:`offset_index`.
            queries: Q, number of queries of the input.
            keys: K, number of keys of the input.
            training: whether the attention module is in training mode.

        Returns:
            (A, Q, K) in the table's dtype.
        """
        return self._of_size(
            table,
            (queries, keys),
            lambda values: _resize(values[:, index], queries, keys),
            training,
        )


class GeometricBias(KeptBias):
    """Biases by true offsets, cached per size in eval mode.

    Args:
        query_stride: queries sit on every `query_stride`-th cell of the keys.
    """

    def __init__(self, query_stride: int = 1) -> None:
        super().__init__()
        self.query_stride = query_stride

    def __getstate__(self) -> dict[str, int]:
        return {"query_stride": self.query_stride}

    def __setstate__(self, state: dict[str, int]) -> None:
        super().__setstate__({})
        self.query_stride = state["query_stride"]

    def __call__(self, table: nn.Parameter, height: int, width: int, training: bool) -> Tensor:
        """Biases for a map of any size.

        Args:
            table: (A, R * R), the learned values, `|dy| * R + |dx|`.
            height: H of the keys.
            width: W of the keys.
            training: whether the attention module is in training mode.

        Returns:
            (A, Q, K) in the table's dtype.
        """
        return self._of_size(
            table, (height, width), lambda values: self.some(values, height, width), training
        )

    def some(
        self, table: Tensor, height: int, width: int, part: tuple[int, int] | None = None
    ) -> Tensor:
        """Biases (A, q, K) of the queries in the range `part` (start, stop); None: all queries."""
        offsets = resized_offsets(table, height, width).flatten(1)  # (A, H * W)
        return offsets[:, pair_index(height, width, self.query_stride, part, table.device)]


def resized_offsets(table: Tensor, height: int, width: int) -> Tensor:
    """Biases of all offsets of a map.

    Args:
        table: (A, R * R), order `|dy| * R + |dx|`.
        height: H, rows of the map.
        width: W, columns.

    Returns:
        (A, H, W): the bias of the offset (|dy|, |dx|) at that index.
    """
    cells = math.isqrt(int(table.shape[1]))
    steps = max(1, min(height, width) - 1)
    values = table.unflatten(1, (cells, cells))
    for axis, length in ((1, height), (2, width)):
        # Integers, created on the device of the table: a copy would make the host wait.
        place = torch.arange(length, device=table.device) * (cells - 1)
        place = place.clamp(max=(cells - 1) * steps)  # in `steps`-ths of a cell
        low = place // steps
        high = (low + 1).clamp(max=cells - 1)
        share = (place - low * steps).to(table) / steps
        share = share[:, None] if axis == 1 else share
        # Not a matrix product: automatic mixed precision would round it.
        values = torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
    return values


def pair_index(
    height: int,
    width: int,
    query_stride: int,
    part: tuple[int, int] | None,
    device: torch.device,
) -> Tensor:
    """Offset index `|dy| * W + |dx|` of every pair of query and key.

    Args:
        height: H of the keys.
        width: W of the keys.
        query_stride: queries sit on every `query_stride`-th cell.
        part: range of queries (start, stop); None: all queries.
        device: device of the result.

    Returns:
        (q, K) int64.
    """
    columns = -(-width // query_stride)
    start, stop = part or (0, -(-height // query_stride) * columns)
    query = torch.arange(start, stop, device=device)
    down = query // columns * query_stride
    across = query % columns * query_stride
    down = (down[:, None] - torch.arange(height, device=device)).abs()  # (q, H)
    across = (across[:, None] - torch.arange(width, device=device)).abs()  # (q, W)
    return (down[:, :, None] * width + across[:, None, :]).flatten(1)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and bool(torch.equal(one, other))


def _resize(bias: Tensor, queries: int, keys: int) -> Tensor:
    """Bicubic resize of a (A, Q0, K0) matrix to (A, queries, keys); a copy at its own size."""
    if not is_recorded() and bias.shape[1:] == (queries, keys):
        return bias
    # Half precision has no bicubic kernel on every device, and would lose digits.
    resized = F.interpolate(bias[None].float(), size=(queries, keys), mode="bicubic")[0]
    return resized.to(bias.dtype)
