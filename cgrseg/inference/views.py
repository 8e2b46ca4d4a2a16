"""One look of the network at an image: one scale, one direction, whole or in windows.

A view knows how the image becomes network inputs, and gives rows of logits together with
the taps (:mod:`cgrseg.inference.taps`) that lead from them to output pixels.  Windows are
run when the first output row that needs them is asked for, and forgotten after the last:
memory depends on the width of an image, not on its area.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.config.schema import TestConfig
from cgrseg.data.eval_transform import EvalTransform
from cgrseg.data.geometry import round_up
from cgrseg.inference.backends import Backend
from cgrseg.inference.taps import Taps, averaged_windows, bilinear, window_starts
from cgrseg.variants import NETWORK_STRIDE

Image = NDArray[np.uint8]

# Windows that go through a GPU together; a CPU gains nothing from more than one.
_WINDOWS_ON_GPU = 8


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


def views_of(backend: Backend, image: Image, config: TestConfig) -> Iterator[View]:
    """All views whose results are averaged: every ratio, each plain and (if asked) mirrored.

    Args:
        backend: runs the network.
        image: uint8 RGB (H, W, 3).
        config: scale, mode, ratios and flip.
    """
    original = (image.shape[0], image.shape[1])
    for ratio in config.ratios:
        transform = EvalTransform(at_ratio(config, ratio, image))
        resized = transform.resize(image)
        for flipped in (False, True) if config.flip else (False,):
            directed = resized[:, ::-1] if flipped else resized
            if config.mode == "slide":
                yield SlidingView(backend, transform, directed, original, config, flipped)
            else:
                padded = padded_size(resized.shape[:2], config)
                tensor = transform.normalize(np.ascontiguousarray(directed))
                logits = backend.logits(network_input(tensor, padded))[0]
                yield WholeView(logits, padded, resized.shape[:2], original, flipped)


def at_ratio(config: TestConfig, ratio: float, image: Image) -> TestConfig:
    """The settings that resize an image by another ratio.

    As published, both sides of the scale are multiplied and cut to whole pixels; at
    native resolution the scale is the image's own size.
    """
    if ratio == 1:
        return config
    scale = config.scale
    resize = config.resize
    if resize == "none":
        height, width = image.shape[:2]
        scale = (max(height, width), min(height, width))
        resize = "keep_ratio"
    scaled = (max(1, int(scale[0] * ratio)), max(1, int(scale[1] * ratio)))
    return config.model_copy(update={"scale": scaled, "resize": resize})


def padded_size(resized: tuple[int, ...], config: TestConfig) -> tuple[int, int]:
    """Height and width that the network gets for a resized image of this height, width."""
    height, width = (round_up(round_up(side, config.divisor), NETWORK_STRIDE) for side in resized)
    return height, width


def network_size(image: Image, config: TestConfig) -> tuple[int, int]:
    """Height and width that the network gets for an image in mode 'whole', at ratio 1."""
    size = EvalTransform(config).size_for((image.shape[0], image.shape[1]))
    return padded_size(size, config)


@dataclass(frozen=True)
class NetworkInput:
    """An image ready for the network, in mode 'whole' at ratio 1.

    Attributes:
        tensor: float32 (1, 3, H, W), normalised and padded.
        resized: height and width without the padding.
    """

    tensor: Tensor
    resized: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the network gets."""
        return (self.tensor.shape[2], self.tensor.shape[3])

    @classmethod
    def of(cls, image: Image, config: TestConfig) -> NetworkInput:
        """Resize, normalize and pad an image, uint8 RGB (H, W, 3)."""
        transform = EvalTransform(config)
        resized = transform.resize(image)
        tensor = network_input(transform.normalize(resized), padded_size(resized.shape[:2], config))
        return cls(tensor, (resized.shape[0], resized.shape[1]))


def network_input(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (3, h, w) with zeros at the right and the bottom to (1, 3, *size)."""
    return F.pad(image, (0, size[1] - image.shape[2], 0, size[0] - image.shape[1]))[None]


class WholeView:
    """The whole image at once.

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

    @classmethod
    def of_batch(
        cls, backend: Backend, inputs: Sequence[NetworkInput], originals: Sequence[tuple[int, int]]
    ) -> list[WholeView]:
        """Plain views of images, in one forward pass.

        Args:
            backend: runs the network.
            inputs: images of equal :attr:`NetworkInput.size`.
            originals: height and width of each image.
        """
        batch = torch.cat([one.tensor for one in inputs])
        return [
            cls(logits, one.size, one.resized, original)
            for logits, one, original in zip(backend.logits(batch), inputs, originals, strict=True)
        ]

    def logit_rows(self, rows: Tensor) -> Tensor:
        """See :class:`View`."""
        return self.logits[:, rows]


class SlidingView:
    """Overlapping windows whose logits are averaged.

    Windows lie on the padded image as published (mmsegmentation 0.27,
    ``encoder_decoder.py``, slide_inference).  Any window size works: a window that is no
    multiple of 32, or an image below the window's size, is padded for the network and
    cropped again.
    """

    def __init__(
        self,
        backend: Backend,
        transform: EvalTransform,
        resized: Image,
        original: tuple[int, int],
        config: TestConfig,
        flipped: bool,
    ) -> None:
        self._backend = backend
        self.device = backend.device
        self.num_classes = backend.num_classes
        self._transform = transform
        self._resized = resized
        padded = [round_up(side, config.divisor) for side in resized.shape[:2]]
        self._window = [min(pair) for pair in zip(config.crop_size, padded, strict=True)]
        self._starts = [
            window_starts(side, window, stride)
            for side, window, stride in zip(padded, self._window, config.stride, strict=True)
        ]
        self._input = (
            round_up(self._window[0], NETWORK_STRIDE),
            round_up(self._window[1], NETWORK_STRIDE),
        )
        self._cells = [side // 8 for side in self._input]
        self.rows, columns = (
            bilinear(kept, out).after(
                averaged_windows(side, window, starts, bilinear(cells, fed), cells).crop(kept)
            )
            for side, window, starts, fed, cells, kept, out in zip(
                padded,
                self._window,
                self._starts,
                self._input,
                self._cells,
                resized.shape[:2],
                original,
                strict=True,
            )
        )
        self.columns = columns.mirrored() if flipped else columns
        self._rows_of_windows: dict[int, Tensor] = {}

    def logit_rows(self, rows: Tensor) -> Tensor:
        """See :class:`View`."""
        cells = self._cells[0]
        numbers = rows // cells
        first = int(numbers[0])
        for done in [number for number in self._rows_of_windows if number < first]:
            del self._rows_of_windows[done]
        parts = []
        for number in torch.unique(numbers).tolist():
            if number not in self._rows_of_windows:
                self._rows_of_windows[number] = self._run_row(number)
            local = rows[numbers == number] - number * cells
            parts.append(self._rows_of_windows[number][:, local])
        return torch.cat(parts, dim=1)

    def _run_row(self, number: int) -> Tensor:
        """Logits of one row of windows side by side: (K, cells, windows * cells)."""
        top = self._starts[0][number]
        strip = self._resized[top : top + self._window[0]]
        at_once = 1 if self.device.type == "cpu" else _WINDOWS_ON_GPU
        found: list[Tensor] = []
        for first in range(0, len(self._starts[1]), at_once):
            batch = []
            for left in self._starts[1][first : first + at_once]:
                pixels = np.ascontiguousarray(strip[:, left : left + self._window[1]])
                # A small window may lie in the padding altogether.
                tensor = self._transform.normalize(pixels) if pixels.size else torch.zeros(3, 0, 0)
                batch.append(network_input(tensor, self._input))
            found.extend(self._backend.logits(torch.cat(batch)))
        return torch.cat(found, dim=2)
