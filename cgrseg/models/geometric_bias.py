"""Attention biases that know rows from columns, from ImageNet's own table.

EfficientFormerV2's bias is a table over offsets (|dy|, |dx|) between query and key.  CGRSeg's
published code makes a matrix of all pairs out of it and resizes that as if it were a picture
(:mod:`cgrseg.models.attention_bias`): on a map of 16x22 cells the row of a query in the matrix
is then no longer the offset's row, and equal offsets get different biases.  Nor can it begin
with what ImageNet taught: its 512-pixel table starts from zeros.

Here the table itself is resized, linearly and by one factor for both axes: the short side of
the map spans the table, as 224 pixels did on ImageNet, and a step to the right is worth as
much as a step down.  Offsets beyond the table's edge, which only the long side has, take the
edge's value.  Equal offsets get equal biases at any size, and at the table's own size (7x7
cells at stride 32) they are ImageNet's, exactly.

Legend: A heads, R table cells per side, H x W cells of keys, Q queries, K keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cgrseg.models.attention_bias import KeptBias


class GeometricBias(KeptBias):
    """Biases by true offsets, kept per size in eval mode.

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
            training: whether the module that asks is in training mode.

        Returns:
            (A, Q, K) in the table's dtype.
        """
        return self._of_size(
            table, (height, width), lambda values: self.some(values, height, width), training
        )

    def some(
        self, table: Tensor, height: int, width: int, part: tuple[int, int] | None = None
    ) -> Tensor:
        """Biases (A, q, K) of the queries of one part (start, stop); none: of all."""
        offsets = resized_offsets(table, height, width).flatten(1)  # (A, H * W)
        return offsets[:, pair_index(height, width, self.query_stride, part, table.device)]


def resized_offsets(table: Tensor, height: int, width: int) -> Tensor:
    """Bias of every offset that a map has.

    Args:
        table: (A, R * R), order `|dy| * R + |dx|`.
        height: H, rows of the map.
        width: W, columns.

    Returns:
        (A, H, W): of offset (|dy|, |dx|), for both from 0.
    """
    cells = math.isqrt(int(table.shape[1]))
    steps = max(1, min(height, width) - 1)
    values = table.unflatten(1, (cells, cells))
    for axis, length in ((1, height), (2, width)):
        # Whole numbers, made where the table is: moving them there would make the processor wait.
        place = torch.arange(length, device=table.device) * (cells - 1)
        place = place.clamp(max=(cells - 1) * steps)  # in `steps`-ths of a cell
        low = place // steps
        high = (low + 1).clamp(max=cells - 1)
        share = (place - low * steps).to(table) / steps
        share = share[:, None] if axis == 1 else share
        # No matrix product: automatic mixed precision would round it.
        values = torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
    return values


def pair_index(
    height: int,
    width: int,
    query_stride: int,
    part: tuple[int, int] | None,
    device: torch.device,
) -> Tensor:
    """Number of the offset, `|dy| * W + |dx|`, of every query and key.

    Args:
        height: H of the keys.
        width: W of the keys.
        query_stride: queries sit on every `query_stride`-th cell.
        part: queries from, to (exclusive); none: all.
        device: where to.

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
