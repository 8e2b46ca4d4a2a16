"""Decoding: from logits to a label map at the image's own size, without full-size logits.

Everything between the network's logits and the label map is linear and acts on rows and columns
separately: upsampling to the network's input, averaging overlapping windows, cropping the padding,
resizing to the image's own size, mirroring.  So each output row is a weighted sum of a few rows of
logits, its *taps*, and likewise each column: ``output = rows @ logits @ columns.T``.  From the
taps, any rectangle of the output is computed alone.

A single whole view takes the exact fused path (:func:`cgrseg.ops.array_argmax.array_argmax`).
Anything else is resized row by row; several views average their softmax, and the best class is
kept.  All this is NumPy: logits on a GPU are decoded there (:mod:`cgrseg.inference.device_decode`).

Coordinates are those of ``torch.nn.functional.interpolate(mode="bilinear",
align_corners=False)``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import DataError
from cgrseg.ops.array_argmax import array_argmax, array_topk, label_type
from cgrseg.ops.resize_plan import bilinear_taps, tidy_taps
from cgrseg.ops.resized_rows import (
    STRIP,
    Floats,
    classes_last,
    exponentials,
    in_threads,
    resized_rows,
    spans,
)

Size = tuple[int, int]
Confidence = bool | Literal["coarse"]
"""Whether to give the probability of the class.  "coarse": for mean values, of the image at an
eighth of its size where that is faster, since a softmax of every pixel takes a third of the time.
"""

_COARSE = 8


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

    def tidy(self) -> Taps:
        """The same mapping with as few taps as possible."""
        return Taps(*tidy_taps(self.index, self.weight))


def bilinear(source: int, target: int) -> Taps:
    """Taps of a bilinear resize of `source` positions to `target`."""
    return Taps(*bilinear_taps(source, target))


class View(Protocol):
    """Logits of one view, and the way from them to output pixels.

    Attributes:
        num_classes: K.
    """

    num_classes: int

    @property
    def rows(self) -> Taps:
        """Taps from rows of logits to output rows."""
        ...

    @property
    def columns(self) -> Taps:
        """Taps from columns of logits to output columns."""
        ...

    def logit_rows(self, rows: NDArray[np.int64]) -> Any:
        """Some rows of logits.

        Args:
            rows: ascending.  Rows above the first one are never asked for again.

        Returns:
            (K, number of rows, columns of logits): an array, or a tensor on a GPU.
        """
        ...


class WholeView:
    """Logits of the whole image.

    Args:
        logits: (K, h, w), an array, or a tensor on a GPU.
        padded: height and width of the network's input.
        kept: height and width of the resized image, without padding.
        original: height and width of the image.
        flipped: whether the network saw the mirrored image.
    """

    def __init__(
        self,
        logits: Any,
        padded: tuple[int, int],
        kept: tuple[int, int],
        original: tuple[int, int],
        flipped: bool = False,
    ) -> None:
        self.logits = logits
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

    def logit_rows(self, rows: NDArray[np.int64]) -> Any:
        """See :class:`View`."""
        return self.logits[:, rows]


@dataclass(frozen=True)
class Segmentation:
    """A label map at the image's own size.

    Attributes:
        labels: class ids (H, W), uint8 up to 256 classes, else int16.
        confidence: probability of that class, float32 (H, W) or coarser, in 0..1; None unless asked
            for.
    """

    labels: NDArray[np.integer]
    confidence: NDArray[np.float32] | None = None


def decode(views: Sequence[View], size: Size, confidence: Confidence = False) -> Segmentation:
    """Average the views and take the best class of every pixel.

    Args:
        views: at least one, all of the same network and image, with arrays of logits.
        size: height and width of the image.
        confidence: also give the (averaged) probability of the class; see :data:`Confidence`.

    Raises:
        DataError: the network gave NaN or infinite values.
    """
    first = views[0]
    if len(views) == 1 and isinstance(first, WholeView):
        return _fused(first, size, confidence)
    return _row_by_row(views, size, confidence)


def _fused(view: WholeView, size: Size, confidence: Confidence) -> Segmentation:
    if confidence == "coarse":
        coarse = (max(1, size[0] // _COARSE), max(1, size[1] // _COARSE))
        found = _fused(view, coarse, True)
        return replace(_fused(view, size, False), confidence=found.confidence)
    if confidence:
        labels, best = array_topk(view.logits, size, 1, input_size=view.padded, crop=view.kept)
        return Segmentation(labels[0], best[0].astype(np.float32, copy=False))
    return Segmentation(array_argmax(view.logits, size, input_size=view.padded, crop=view.kept))


def _row_by_row(views: Sequence[View], size: Size, confidence: Confidence) -> Segmentation:
    classes = views[0].num_classes
    labels: NDArray[np.integer] = np.empty(size, dtype=label_type(classes))
    probability = np.empty(size, dtype=np.float32) if confidence else None
    # The softmax of a single view does not change which class wins.
    plain = len(views) == 1 and not confidence
    columns = [view.columns.tidy() for view in views]
    for top in range(0, size[0], STRIP):
        strips = [_Strip.of(view, top) for view in views]

        def work(span: slice, top: int = top, strips: Sequence[_Strip] = strips) -> None:
            parts = [
                strip.rows(Taps(each.index[span], each.weight[span]))
                for strip, each in zip(strips, columns, strict=True)
            ]
            for row, values in enumerate(zip(*parts, strict=True), start=top):
                total = values[0] if plain else _softmax(values[0])
                for value in values[1:]:
                    total += _softmax(value)
                winners = total.argmax(axis=1)
                labels[row, span] = winners
                if probability is not None:
                    best = np.take_along_axis(total, winners[:, None], 1)[:, 0]
                    probability[row, span] = best / len(views)

        in_threads(work, spans(size[1], classes))
    return Segmentation(labels, probability)


@dataclass(frozen=True)
class _Strip:
    """The rows of logits that a strip of output rows uses.

    Attributes:
        values: float32 (rows of logits, columns, K).
        taps: from these rows to the output rows.
    """

    values: Floats
    taps: Taps

    @classmethod
    def of(cls, view: View, top: int) -> _Strip:
        """The strip that begins with output row `top`."""
        index, weight = view.rows.index[top : top + STRIP], view.rows.weight[top : top + STRIP]
        used = np.unique(index[weight > 0])
        logits = view.logit_rows(used)
        if not np.isfinite(logits).all():
            raise DataError(
                "network",
                found="some of its outputs are NaN or infinite",
                expected="finite logits",
                remedy="check the weights, and the precision (fp16 overflows where bf16 does not)",
            )
        places = np.minimum(np.searchsorted(used, index), len(used) - 1)
        values = classes_last(logits.astype(np.float32, copy=False))
        return cls(values, Taps(places, weight).tidy())

    def rows(self, columns: Taps) -> Iterator[Floats]:
        """Resized rows, (columns, K) each."""
        rows = (self.taps.index, self.taps.weight)
        return resized_rows(self.values, rows, (columns.index, columns.weight))


def _softmax(values: Floats) -> Floats:
    """Softmax over the classes of (columns, K), in place."""
    exponentials(values, values.max(axis=1, keepdims=True))
    values /= values.sum(axis=1, keepdims=True)
    return values
