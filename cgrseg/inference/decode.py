"""From views to a label map at the image's own size, without full-size logits.

A single whole view takes the exact fused path (:func:`cgrseg.ops.upsample_argmax`).
Everything else is decoded tile by tile: a tile's logits are two small matrix products
per view (:mod:`cgrseg.inference.taps`), several views average their softmax, the best
class is kept and the tile forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.errors import DataError
from cgrseg.inference.taps import TapMatrix
from cgrseg.inference.views import View, WholeView
from cgrseg.ops import upsample_argmax, upsample_confidence
from cgrseg.ops.windows import products_are_exact

Size = tuple[int, int]

# Numbers of one decoded tile (classes x rows x columns): fits the cache of a CPU; a GPU wants
# longer launches.
_TILE_CPU = 1 << 20
_TILE_GPU = 1 << 26
_ROWS_CPU = 32
_ROWS_GPU = 128
# The fused path answers in 8-byte ids; beyond this many pixels tiles need less memory.
_FUSED_PIXELS = 1 << 24


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
        size: height, width of the image.
        confidence: also give the (averaged) probability of that class.

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
        labels, sure = upsample_confidence(logits, size, input_size=view.padded, crop=view.kept)
        return Segmentation(labels[0].to(small).cpu().numpy(), sure[0].float().cpu().numpy())
    labels = upsample_argmax(logits, size, input_size=view.padded, crop=view.kept)
    return Segmentation(labels[0].to(small).cpu().numpy())


def _tiled(views: Sequence[View], size: Size, confidence: bool) -> Segmentation:
    height, width = size
    device, classes = views[0].device, views[0].num_classes
    labels: NDArray[np.integer] = np.empty(size, dtype=np.uint8 if classes <= 256 else np.int16)
    sure = np.empty(size, dtype=np.float32) if confidence else None
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
            # The softmax of a single view does not change which class wins.
            plain = len(views) == 1 and sure is None
            values = next(tiles) if plain else _mean_probability(tiles, len(views))
            best, winners = values.max(dim=1)
            labels[top:bottom, left:right] = winners.cpu().numpy()
            if sure is not None:
                sure[top:bottom, left:right] = best.cpu().numpy()
    return Segmentation(labels, sure)


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

    A process that trains, or whose user asked for fast products (TF32 on a GPU, bfloat16 on
    a CPU), would else interpolate with ten bits or fewer, and borders would move.
    """
    if products_are_exact(left):
        return left @ right
    return (left.double() @ right.double()).float()


def _mean_probability(tiles: Iterator[Tensor], count: int) -> Tensor:
    """Average of the views' softmax probabilities, each view's tile made only in its turn."""
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
