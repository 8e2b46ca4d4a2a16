"""Decoding in PyTorch, tile by tile: label maps on a GPU, and the scores of pixels on any device.

See :mod:`cgrseg.inference.decode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.errors import DataError
from cgrseg.inference.decode import Segmentation, Size, Taps, View, WholeView
from cgrseg.ops.argmax import argmax_on_device, topk_on_device
from cgrseg.ops.array_argmax import label_type
from cgrseg.ops.windows import products_are_exact

# Elements of one decoded tile (classes x rows x columns): fits the cache of a CPU; a GPU needs
# longer launches.
_TILE_CPU = 1 << 20
_TILE_GPU = 1 << 26
_ROWS_CPU = 32
_ROWS_GPU = 128
# The fused path gives 8-byte ids; beyond this many pixels tiles need less memory.
_FUSED_PIXELS = 1 << 24


@dataclass(frozen=True)
class TapMatrix:
    """A dense matrix for some outputs over the inputs that they use.

    Attributes:
        inputs: int64 (used,), ascending.
        matrix: float32 (outputs, used).
    """

    inputs: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, taps: Taps, start: int, stop: int) -> TapMatrix:
        """The mapping for outputs `start` to `stop`."""
        index, weight = taps.index[start:stop], taps.weight[start:stop]
        inputs = np.unique(index[weight > 0])
        places = np.minimum(np.searchsorted(inputs, index), len(inputs) - 1)
        matrix = np.zeros((stop - start, len(inputs)))
        np.add.at(matrix, (np.arange(stop - start)[:, None], places), weight)
        return cls(torch.from_numpy(inputs), torch.from_numpy(matrix.astype(np.float32)))

    def to(self, device: torch.device) -> TapMatrix:
        """The same on another device."""
        return TapMatrix(self.inputs.to(device), self.matrix.to(device))


def decode_on_device(
    views: Sequence[View], size: Size, device: torch.device, confidence: bool = False
) -> Segmentation:
    """:func:`~cgrseg.inference.decode.decode` of views whose logits are tensors.

    Args:
        views: at least one, all of the same network and image.
        size: height and width of the image.
        device: device of the logits.
        confidence: also give the (averaged) probability of the class.

    Raises:
        DataError: the network gave NaN or infinite values.
    """
    first = views[0]
    with torch.inference_mode():
        if len(views) == 1 and isinstance(first, WholeView) and size[0] * size[1] <= _FUSED_PIXELS:
            return _fused(first, size, confidence)
        return _tiled(views, size, device, confidence)


def _fused(view: WholeView, size: Size, confidence: bool) -> Segmentation:
    logits = view.logits[None]
    small = torch.uint8 if view.num_classes <= 256 else torch.int16
    padded, kept = view.padded, view.kept
    if confidence:
        labels, best = topk_on_device(logits, size, 1, input_size=padded, crop=kept)
        return Segmentation(labels[0, 0].to(small).cpu().numpy(), best[0, 0].float().cpu().numpy())
    labels = argmax_on_device(logits, size, input_size=padded, crop=kept)
    return Segmentation(labels[0].to(small).cpu().numpy())


def _tiled(
    views: Sequence[View], size: Size, device: torch.device, confidence: bool
) -> Segmentation:
    classes = views[0].num_classes
    labels: NDArray[np.integer] = np.empty(size, dtype=label_type(classes))
    probability = np.empty(size, dtype=np.float32) if confidence else None
    # The softmax of a single view does not change which class wins.
    softmax = len(views) > 1 or confidence
    for rows, columns, values in decoded_tiles(views, size, device, softmax=softmax):
        best, winners = values.max(dim=1)
        labels[rows, columns] = winners.cpu().numpy()
        if probability is not None:
            probability[rows, columns] = best.cpu().numpy()
    return Segmentation(labels, probability)


def decoded_tiles(
    views: Sequence[View], size: Size, device: torch.device, *, softmax: bool = True
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rectangles of the output that together cover it, for code under `torch.inference_mode`.

    Args:
        views: at least one, all of the same network and image.
        size: height and width of the image.
        device: device of the logits.
        softmax: give probabilities, averaged over the views; else logits of a single view.

    Yields:
        Rows, columns, and float32 (rows, K, columns) on the device.

    Raises:
        DataError: the network gave NaN or infinite values.
    """
    height, width = size
    classes = views[0].num_classes
    on_cpu = device.type == "cpu"
    tile_rows = min(height, _ROWS_CPU if on_cpu else _ROWS_GPU)
    tile_columns = max(8, (_TILE_CPU if on_cpu else _TILE_GPU) // (classes * tile_rows))
    spans = [(left, min(left + tile_columns, width)) for left in range(0, width, tile_columns)]
    columns = [[TapMatrix.of(view.columns, *span).to(device) for span in spans] for view in views]
    for top in range(0, height, tile_rows):
        bottom = min(top + tile_rows, height)
        rows = [TapMatrix.of(view.rows, top, bottom) for view in views]
        strips = [_strip(view, part) for view, part in zip(views, rows, strict=True)]
        rows = [part.to(device) for part in rows]
        for number, (left, right) in enumerate(spans):
            tiles = (
                _tile(strip, part, of_view[number])
                for strip, part, of_view in zip(strips, rows, columns, strict=True)
            )
            values = _mean_probability(tiles, len(views)) if softmax else next(tiles)
            yield slice(top, bottom), slice(left, right), values


def _strip(view: View, rows: TapMatrix) -> Tensor:
    """The rows of logits that some output rows use: float32 (rows used, K, columns)."""
    logits = torch.as_tensor(view.logit_rows(rows.inputs.numpy()))
    if not bool(torch.isfinite(logits).all()):
        raise DataError(
            "network",
            found="some of its outputs are NaN or infinite",
            expected="finite logits",
            remedy="check the weights, and the precision (fp16 overflows where bf16 does not)",
        )
    return logits.float().transpose(0, 1).contiguous()


def _tile(strip: Tensor, rows: TapMatrix, columns: TapMatrix) -> Tensor:
    """Logits of one rectangle of the output: float32 (rows, K, columns)."""
    across = _product(strip[:, :, columns.inputs], columns.matrix.T)  # (rows used, K, columns)
    # As one product of two matrices: batched ones over K are several times slower.
    return _product(rows.matrix, across.flatten(1)).view(-1, *across.shape[1:])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product of float32 tensors in float32.

    With fast products (TF32 on a GPU, bfloat16 on a CPU), which a training or the user may have
    enabled, interpolation would have ten bits or fewer, and borders would move.
    """
    if products_are_exact(left):
        return left @ right
    return (left.double() @ right.double()).float()


def _mean_probability(tiles: Iterator[Tensor], count: int) -> Tensor:
    """Average of the views' softmax probabilities; one tile is in memory at a time."""
    total = _softmax(next(tiles))
    for tile in tiles:
        total += _softmax(tile)
    return total.div_(count)


def _softmax(tile: Tensor) -> Tensor:
    """Softmax over the classes of (rows, K, columns), in place.

    `Tensor.softmax` over a middle dimension is several times slower on a CPU.
    """
    tile -= tile.amax(dim=1, keepdim=True)
    tile.exp_()
    return tile.div_(tile.sum(dim=1, keepdim=True))
