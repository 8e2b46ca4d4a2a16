"""Rectangles of output pixels and the few low-resolution logits that they depend on.

The two axis plans of a resize (:mod:`cgrseg.ops.resize_plan`) cut the output into rectangles,
here *cells*: the outputs of one row group and one column group, all of them weighted sums of the
same small window of low-resolution positions.  :class:`Windows` fetches such windows for any
selection of cells, interpolates them, and writes the answers back, so that a caller can work on
as many cells at a time as fit into the processor's cache.

Legend: N batch, K classes, h x w low-resolution size, H x W output size, m cells at hand,
R x S places of a cell, Y x X taps of its window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cgrseg.ops.resize_plan import AxisPlan, axis_plan

# 2 MB of float32: a chunk and its result stay within the second-level caches of current
# processors.  A GPU wants long launches instead.
_CHUNK_ELEMENTS_CPU = 1 << 19
_CHUNK_ELEMENTS_CUDA = 1 << 24


def tensor_plan(
    source: int,
    target: int,
    *,
    between: int | None = None,
    kept: int | None = None,
    device: torch.device | str = "cpu",
) -> AxisPlan[Tensor]:
    """:func:`~cgrseg.ops.resize_plan.axis_plan` as tensors on a device, cached as well."""
    return _cached_tensor_plan(source, target, between, kept, str(device))


@lru_cache(maxsize=256)
def _cached_tensor_plan(
    source: int, target: int, between: int | None, kept: int | None, device: str
) -> AxisPlan[Tensor]:
    plan = axis_plan(source, target, between=between, kept=kept)

    def to_tensor(array: np.ndarray) -> Tensor:
        # The cache outlives an inference-mode block, so its tensors must not be bound to one.
        with torch.inference_mode(mode=False):
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            if tensor.is_floating_point() and torch.device(device).type == "mps":
                tensor = tensor.float()  # Apple's GPUs have no float64
            return tensor.to(device)

    names = [field.name for field in fields(plan) if field.name != "length"]
    return AxisPlan(plan.length, **{name: to_tensor(getattr(plan, name)) for name in names})


@dataclass(frozen=True)
class Cells:
    """A selection of m cells.

    Attributes:
        image: int64 (m,) which image of the batch.
        row: int64 (m,) row group.
        column: int64 (m,) column group.
    """

    image: Tensor
    row: Tensor
    column: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: slice | Tensor) -> Cells:
        return Cells(self.image[which], self.row[which], self.column[which])


class Windows:
    """Low-resolution logits seen through the cells of a resize.

    Args:
        logits: float32 or float64 (N, K, h, w), any strides; computation happens in its dtype.
        rows: plan of the vertical axis.
        columns: plan of the horizontal axis.

    Attributes:
        positions: (N * h * w, K) the logits, position by position.
    """

    def __init__(self, logits: Tensor, rows: AxisPlan[Tensor], columns: AxisPlan[Tensor]) -> None:
        batch, classes, height, width = logits.shape
        self.rows, self.columns = rows, columns
        self.batch, self.classes = batch, classes
        self._height, self._width = height, width
        # One position's classes side by side: a window is then a few contiguous rows.
        self.positions = logits.permute(0, 2, 3, 1).reshape(-1, classes).contiguous()
        self._row_weights = rows.group_weights.to(logits.dtype)
        self._column_weights = columns.group_weights.to(logits.dtype)
        self.device = logits.device

    @property
    def size(self) -> tuple[int, int]:
        """Output height and width."""
        return self.rows.length, self.columns.length

    @property
    def places(self) -> tuple[int, int]:
        """Output rows and columns that a cell has room for."""
        return self.rows.group_outputs.shape[1], self.columns.group_outputs.shape[1]

    @property
    def taps(self) -> int:
        """Low-resolution positions in a window."""
        return self.rows.group_taps.shape[1] * self.columns.group_taps.shape[1]

    def all_numbers(self) -> Tensor:
        """Numbers of all G cells, image by image, row by row: int64 (G,)."""
        count = self.batch * len(self.rows.group_taps) * len(self.columns.group_taps)
        return torch.arange(count, device=self.device)

    def cells(self, which: Tensor) -> Cells:
        """The cells of some numbers (m,)."""
        rows, columns = len(self.rows.group_taps), len(self.columns.group_taps)
        row = which // columns
        return Cells(row // rows, row % rows, which % columns)

    def all_cells(self) -> Cells:
        """Every cell, in the order of their numbers."""
        return self.cells(self.all_numbers())

    def chunks(self, count: int, elements_per_cell: int, times: int = 1) -> Iterator[slice]:
        """Slices over ``count`` cells that keep a chunk within the working size.

        On a processor the working size is multiplied by ``times``, for callers with many small
        operations per chunk.
        """
        on_cpu = self.device.type == "cpu"
        budget = times * _CHUNK_ELEMENTS_CPU if on_cpu else _CHUNK_ELEMENTS_CUDA
        step = max(budget // max(elements_per_cell, 1), 1)
        return (slice(start, start + step) for start in range(0, count, step))

    def nodes(self, cells: Cells) -> Tensor:
        """Flat low-resolution position of every tap: int64 (m, Y * X)."""
        row = self.rows.group_taps[cells.row] + (cells.image * self._height)[:, None]
        column = self.columns.group_taps[cells.column]
        return (row[:, :, None] * self._width + column[:, None, :]).flatten(1)

    def all_nodes(self) -> Tensor:
        """:meth:`nodes` of all G cells: int64 (G, Y * X)."""
        image = torch.arange(self.batch, device=self.device)[:, None, None] * self._height
        row = (image + self.rows.group_taps) * self._width  # (N, rows, Y)
        nodes = row[:, :, None, :, None] + self.columns.group_taps[:, None, :]
        return nodes.view(-1, self.taps)

    def gather(self, nodes: Tensor) -> Tensor:
        """Logits of all classes at the given positions: (m, Y * X, K)."""
        found = self.positions.index_select(0, nodes.reshape(-1))
        return found.view(*nodes.shape, self.classes)

    def gather_some(self, nodes: Tensor, classes: Tensor) -> Tensor:
        """Logits of a few classes chosen per cell.

        Args:
            nodes: int64 (m, Y * X) positions of the cells' windows.
            classes: integers (n, m).

        Returns:
            (Y * X, n, m), as :meth:`interpolate_some` takes them.
        """
        index = nodes.t()[:, None] * self.classes + classes
        # Not `take`, which Apple's GPUs lack.
        return self.positions.view(-1).index_select(0, index.flatten()).view(index.shape)

    def interpolate_all(self, cells: Cells) -> Tensor:
        """Full-size logits of all classes in the given cells: (m, R, S, K)."""
        values = self.gather(self.nodes(cells))
        values = values.view(len(cells), *self._window_shape, -1)  # (m, Y, X, K)
        row_weights = self._row_weights[cells.row][..., None, None]  # (m, R, Y, 1, 1)
        tall = _weighted_sum(
            [part[:, None] for part in values.unbind(1)], row_weights.unbind(2)
        )  # (m, R, X, K)
        column_weights = self._column_weights[cells.column][:, None, :, :, None]  # (m,1,S,X,1)
        return _weighted_sum(
            [part[:, :, None] for part in tall.unbind(2)], column_weights.unbind(3)
        )

    def interpolate_some(self, cells: Cells, values: Tensor) -> Tensor:
        """Full-size values of a few classes chosen per cell.

        Args:
            cells: the m cells.
            values: (Y * X, n, m) logits of the n classes chosen for each cell.

        Returns:
            (R, S, n, m).
        """
        values = values.view(*self._window_shape, *values.shape[1:])  # (Y, X, n, m)
        row_weights = self._row_weights[cells.row].permute(1, 2, 0).contiguous()  # (R, Y, m)
        tall = _weighted_sum(
            [part[None] for part in values.unbind(0)],
            [weight[:, None, None] for weight in row_weights.unbind(1)],
        )  # (R, X, n, m)
        column_weights = self._column_weights[cells.column].permute(1, 2, 0).contiguous()
        return _weighted_sum(
            [part[:, None] for part in tall.unbind(1)],
            [weight[None, :, None] for weight in column_weights.unbind(1)],
        )

    def blocks(self, labels: Tensor) -> Tensor:
        """Room for a label per place of every cell, filled with one label per cell.

        Args:
            labels: integers (G,), one for each of the G cells of :meth:`all_cells`.

        Returns:
            (G, R, S), in the smallest of uint8, int16 and int32 that holds K classes.
        """
        smallest = next(
            (t for t in (torch.uint8, torch.int16) if self.classes <= torch.iinfo(t).max + 1),
            torch.int32,
        )
        return labels.to(smallest)[:, None, None].repeat(1, *self.places)

    def assemble(self, blocks: Tensor) -> Tensor:
        """Blocks (G, R, S) of all cells side by side, without repeats: (N, H, W), same type."""
        rows, columns = len(self.rows.group_taps), len(self.columns.group_taps)
        grid = blocks.view(self.batch, rows, columns, *self.places).transpose(2, 3)
        padded = grid.reshape(self.batch, rows * self.places[0], columns * self.places[1])
        tall = padded.index_select(1, self.rows.place_of)
        if self.device.type == "cpu":  # NumPy picks columns several times faster
            return torch.from_numpy(tall.numpy().take(self.columns.place_of.numpy(), axis=2))
        return tall.index_select(2, self.columns.place_of)

    def scatter_back(self, cells: Cells, values: Tensor, scale: Tensor, into: Tensor) -> None:
        """Add the adjoint of :meth:`interpolate_all` to low-resolution positions.

        Args:
            cells: the m cells.
            values: (m, R, S, K) what each full-size place sends back; not changed.
            scale: (m, R, S) factor of each place; 0 for the places that repeat another.
            into: (N * h * w, K), added to in place.
        """
        rows = self._row_weights[cells.row].transpose(1, 2)  # (m, Y, R)
        columns = self._column_weights[cells.column].transpose(1, 2)  # (m, X, S)
        along = scale[:, None] * columns[:, :, None, :]  # (m, X, R, S)
        weights = (rows[:, :, None, :, None] * along[:, None]).flatten(3).flatten(1, 2)
        values = values.flatten(1, 2)  # (m, R * S, K)
        if products_are_exact(values):
            sent = torch.bmm(weights, values)  # (m, Y * X, K)
        else:
            sent = torch.stack(
                [(values * weight[..., None]).sum(1) for weight in weights.unbind(1)], dim=1
            )
        into.index_add_(0, self.nodes(cells).flatten(), sent.flatten(0, 1))

    def real(self, cells: Cells) -> Tensor:
        """Which places are outputs of their own, not repeats: bool (m, R, S)."""
        row, column = (
            torch.cat([outputs[:, :1] >= 0, outputs[:, 1:] != outputs[:, :-1]], dim=1)
            for outputs in (
                self.rows.group_outputs[cells.row],
                self.columns.group_outputs[cells.column],
            )
        )
        return row[:, :, None] & column[:, None, :]

    def targets(self, cells: Cells) -> Tensor:
        """Flat output index of every place of the given cells: int64 (m, R, S).

        A place beyond a cell's last row or column repeats it, with the same value.
        """
        height, width = self.size
        row = self.rows.group_outputs[cells.row] + (cells.image * height)[:, None]
        column = self.columns.group_outputs[cells.column]
        return row[:, :, None] * width + column[:, None, :]

    @property
    def _window_shape(self) -> tuple[int, int]:
        return self.rows.group_taps.shape[1], self.columns.group_taps.shape[1]


def products_are_exact(values: Tensor) -> bool:
    """Whether matrix products keep the precision of ``values``.

    ``torch.set_float32_matmul_precision`` and its newer counterparts per backend may have
    traded it for speed; PyTorch refuses to tell (an error) when several were used.
    """
    if values.dtype == torch.float64:
        return True
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False


def best_class(values: Tensor) -> Tensor:
    """Index of the largest value along the last axis, the first among equals: int64 (...,).

    NumPy's ``argmax`` is vectorised where PyTorch's, on a processor, goes value by value.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.asarray(values.numpy().argmax(axis=-1)))
    return values.max(dim=-1).indices


def where_true(flags: Tensor) -> Tensor:
    """Positions at which booleans (n,) are true, in rising order: int64.

    NumPy's `flatnonzero` is four times faster than PyTorch's `nonzero` on a processor.
    """
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().squeeze(1)


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of ``parts`` times ``weights``, broadcast; the weights sum to 1 over the parts."""
    if len(parts) == 2:
        return torch.lerp(parts[0], parts[1], weights[1])
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.addcmul_(part, weight)
    return total
