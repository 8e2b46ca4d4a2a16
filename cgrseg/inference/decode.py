"""Decoding: from logits to a label map at the image's own size, without full-size logits.

Everything between the network's logits and the label map is linear and acts on rows and columns
separately: upsampling to the network's input, averaging overlapping windows, cropping the padding,
resizing to the image's own size, mirroring.  So each output row is a weighted sum of a few rows of
logits, its *taps*, and likewise each column: ``output = rows @ logits @ columns.T``.  From the
taps, any rectangle of the output is computed alone.

A single whole view takes the exact fused path (:func:`cgrseg.ops.upsample_argmax`).  Anything else
is decoded tile by tile: a tile's logits are two small matrix products per view, several views
average their softmax, and the best class is kept.

Coordinates are those of ``torch.nn.functional.interpolate(mode="bilinear",
align_corners=False)``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.errors import DataError
from cgrseg.ops import upsample_argmax, upsample_confidence
from cgrseg.ops.resize_plan import bilinear_taps
from cgrseg.ops.windows import products_are_exact

Size = tuple[int, int]

# Elements of one decoded tile (classes x rows x columns): fits the cache of a CPU; a GPU needs
# longer launches.
_TILE_CPU = 1 << 20
_TILE_GPU = 1 << 26
_ROWS_CPU = 32
_ROWS_GPU = 128
# The fused path gives 8-byte ids; beyond this many pixels tiles need less memory.
_FUSED_PIXELS = 1 << 24


@dataclass(frozen=True)
class Taps:
    """Inputs of every output position along one axis, and their weights.

    Attributes:
        index: input positions, int64 (outputs, taps).
        weight: weights, float64 (outputs, taps), at least 0, summing to 1; spare taps have
            weight 0.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)

    def crop(self, length: int) -> Taps:
        """Keep the first `length` outputs."""
        return Taps(self.index[:length], self.weight[:length])

    def mirrored(self) -> Taps:
        """Outputs in reverse order, to undo a flip of the image."""
        return Taps(self.index[::-1], self.weight[::-1])

    def after(self, inner: Taps) -> Taps:
        """This mapping applied to the outputs of `inner`."""
        index = inner.index[self.index].reshape(len(self), -1)
        weight = (self.weight[:, :, None] * inner.weight[self.index]).reshape(len(self), -1)
        return Taps(index, weight)

    def part(self, start: int, stop: int) -> TapMatrix:
        """The mapping for outputs `start` to `stop`, over the inputs that they use."""
        index, weight = self.index[start:stop], self.weight[start:stop]
        inputs = np.unique(index[weight > 0])
        places = np.minimum(np.searchsorted(inputs, index), len(inputs) - 1)
        matrix = np.zeros((stop - start, len(inputs)))
        np.add.at(matrix, (np.arange(stop - start)[:, None], places), weight)
        return TapMatrix(torch.from_numpy(inputs), torch.from_numpy(matrix.astype(np.float32)))


@dataclass(frozen=True)
class TapMatrix:
    """A dense matrix for some outputs over the inputs that they use.

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


class View(Protocol):
    """Logits of one view, and the way from them to output pixels.

    Attributes:
        device: device of the logits.
        num_classes: K.
    """

    device: torch.device
    num_classes: int

    @property
    def rows(self) -> Taps:
        """Taps from rows of logits to output rows."""
        ...

    @property
    def columns(self) -> Taps:
        """Taps from columns of logits to output columns."""
        ...

    def logit_rows(self, rows: Tensor) -> Tensor:
        """Some rows of logits.

        Args:
            rows: int64, ascending.  Rows above the first one are never asked for again.

        Returns:
            (K, number of rows, columns of logits).
        """
        ...


class WholeView:
    """Logits of the whole image.

    Args:
        logits: (K, h, w).
        padded: height and width of the network's input.
        kept: height and width of the resized image, without padding.
        original: height and width of the image.
        flipped: whether the network saw the mirrored image.
    """

    def __init__(
        self,
        logits: Tensor,
        padded: tuple[int, int],
        kept: tuple[int, int],
        original: tuple[int, int],
        flipped: bool = False,
    ) -> None:
        self.logits = logits
        self.device = logits.device
        self.num_classes = len(logits)
        self.padded = padded
        self.kept = kept
        self.original = original
        self.flipped = flipped

    # The fused decoding of a single view needs no taps.
    @functools.cached_property
    def rows(self) -> Taps:
        """See :class:`View`."""
        return self._taps(0)

    @functools.cached_property
    def columns(self) -> Taps:
        """See :class:`View`."""
        return self._taps(1).mirrored() if self.flipped else self._taps(1)

    def _taps(self, axis: int) -> Taps:
        kept = self.kept[axis]
        to_input = bilinear(self.logits.shape[1 + axis], self.padded[axis])
        return bilinear(kept, self.original[axis]).after(to_input.crop(kept))

    def logit_rows(self, rows: Tensor) -> Tensor:
        """See :class:`View`."""
        return self.logits[:, rows]


@dataclass(frozen=True)
class Segmentation:
    """A label map at the image's own size.

    Attributes:
        labels: class ids (H, W), uint8 up to 256 classes, else int16.
        confidence: probability of that class, float32 (H, W) in 0..1; None unless asked for.
    """

    labels: NDArray[np.integer]
    confidence: NDArray[np.float32] | None = None


def decode(views: Sequence[View], size: Size, confidence: bool = False) -> Segmentation:
    """Average the views and take the best class of every pixel.

    Args:
        views: at least one, all of the same network and image.
        size: height and width of the image.
        confidence: also give the (averaged) probability of the class.

    Raises:
        DataError: the network gave NaN or infinite values.
    """
    first = views[0]
    if len(views) == 1 and isinstance(first, WholeView) and size[0] * size[1] <= _FUSED_PIXELS:
        return _fused(first, size, confidence)
    return _tiled(views, size, confidence)


def _fused(view: WholeView, size: Size, confidence: bool) -> Segmentation:
    logits = view.logits[None]
    small = torch.uint8 if len(view.logits) <= 256 else torch.int16
    if confidence:
        labels, best = upsample_confidence(logits, size, input_size=view.padded, crop=view.kept)
        return Segmentation(labels[0].to(small).cpu().numpy(), best[0].float().cpu().numpy())
    labels = upsample_argmax(logits, size, input_size=view.padded, crop=view.kept)
    return Segmentation(labels[0].to(small).cpu().numpy())


def _tiled(views: Sequence[View], size: Size, confidence: bool) -> Segmentation:
    classes = views[0].num_classes
    labels: NDArray[np.integer] = np.empty(size, dtype=np.uint8 if classes <= 256 else np.int16)
    probability = np.empty(size, dtype=np.float32) if confidence else None
    # The softmax of a single view does not change which class wins.
    softmax = len(views) > 1 or confidence
    for rows, columns, values in decoded_tiles(views, size, softmax=softmax):
        best, winners = values.max(dim=1)
        labels[rows, columns] = winners.cpu().numpy()
        if probability is not None:
            probability[rows, columns] = best.cpu().numpy()
    return Segmentation(labels, probability)


def decoded_tiles(
    views: Sequence[View], size: Size, *, softmax: bool = True
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rectangles of the output that together cover it, for code under `torch.inference_mode`.

    Args:
        views: at least one, all of the same network and image.
        size: height and width of the image.
        softmax: give probabilities, averaged over the views; else logits of a single view.

    Yields:
        Rows, columns, and float32 (rows, K, columns) on the device of the views.

    Raises:
        DataError: the network gave NaN or infinite values.
    """
    height, width = size
    device, classes = views[0].device, views[0].num_classes
    on_cpu = device.type == "cpu"
    tile_rows = min(height, _ROWS_CPU if on_cpu else _ROWS_GPU)
    tile_columns = max(8, (_TILE_CPU if on_cpu else _TILE_GPU) // (classes * tile_rows))
    spans = [(left, min(left + tile_columns, width)) for left in range(0, width, tile_columns)]
    columns = [[view.columns.part(*span).to(device) for span in spans] for view in views]
    for top in range(0, height, tile_rows):
        bottom = min(top + tile_rows, height)
        rows = [view.rows.part(top, bottom).to(device) for view in views]
        strips = [_strip(view, part) for view, part in zip(views, rows, strict=True)]
        for number, (left, right) in enumerate(spans):
            tiles = (
                _tile(strip, part, of_view[number])
                for strip, part, of_view in zip(strips, rows, columns, strict=True)
            )
            values = _mean_probability(tiles, len(views)) if softmax else next(tiles)
            yield slice(top, bottom), slice(left, right), values


def _strip(view: View, rows: TapMatrix) -> Tensor:
    """The rows of logits that some output rows use: float32 (rows used, K, columns)."""
    logits = view.logit_rows(rows.inputs)
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
