"""Views of an image: one scale, one direction, whole or in sliding windows.

A view makes the network's inputs from the image and gives rows of logits for decoding.  Windows run
when the first output row that needs them is asked for, and are dropped after the last: memory
depends on the width of an image, not on its area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cgrseg.config.schema import TestConfig
from cgrseg.data import color
from cgrseg.data.geometry import Image, Size, resize_image, round_up, scaled_size
from cgrseg.errors import EnvironmentProblem
from cgrseg.inference.backends import Backend, Logits, joined, run_network
from cgrseg.inference.decode import Taps, View, WholeView, bilinear
from cgrseg.surroundings import missing_memory
from cgrseg.variants import NETWORK_STRIDE

if TYPE_CHECKING:
    from torch import Tensor

Input = NDArray[np.float32]

# Minimum bytes per pixel: uint8 and float32 RGB, and the first features.
_INPUT_BYTES = 40


class EvalTransform:
    """Resize and normalize as published: bilinearly in 8 bits; :func:`network_input` pads.

    The Pascal Context recipe resizes twice instead of padding: within the scale, then each side up
    to the next multiple.

    Args:
        config: scale, resize mode and divisor.
    """

    def __init__(self, config: TestConfig) -> None:
        self.config = config

    def size_for(self, size: Size) -> Size:
        """Height, width that an image of this height, width is resized to, before padding."""
        if self.config.resize == "none":
            return size
        height, width = scaled_size(size, self.config.scale)
        if self.config.resize == "keep_ratio_divisible":
            return round_up(height, self.config.divisor), round_up(width, self.config.divisor)
        return height, width

    def resize(self, image: Image) -> Image:
        """Resize an image (H, W, C) as configured, without padding.

        Raises:
            EnvironmentProblem: memory is too small for the result.
        """
        size: Size = (image.shape[0], image.shape[1])
        if self.config.resize == "keep_ratio_divisible":
            # Two steps, as published: the second one samples the first one's result.
            image = resize_image(image, scaled_size(size, self.config.scale))
        target = self.size_for(size)
        error = missing_memory(target[0] * target[1] * _INPUT_BYTES)
        if error is not None:
            raise EnvironmentProblem(
                f"an image of {size[0]}x{size[1]}",
                found=f"{error}: it is resized to {target[0]}x{target[1]}",
                expected="room for the network's input and its first features",
                remedy="set a smaller test.scale (and test.ratios), or close other programs",
            )
        return resize_image(image, target)

    def normalize(self, image: Image) -> Input:
        """An image (H, W, C) to float32 (C, H, W), see :func:`cgrseg.data.color.normalize`."""
        return color.normalize(image, self.config.image_channels)


def views_of(backend: Backend, image: Image, config: TestConfig) -> Iterator[View]:
    """All views whose results are averaged: every ratio, plain and (with flip) mirrored.

    Args:
        backend: runs the network.
        image: (H, W, C), as :func:`cgrseg.data.channels.read_pixels` gives it.
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
                pixels = transform.normalize(np.ascontiguousarray(directed))
                logits = run_network(backend, network_input(pixels, padded))[0]
                yield WholeView(logits, padded, resized.shape[:2], original, flipped)


def at_ratio(config: TestConfig, ratio: float, image: Image) -> TestConfig:
    """Settings that resize an image by another ratio.

    As published, both sides of the scale are multiplied and truncated to whole pixels; at native
    resolution the scale is the image's own size.
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
    """Height and width of the network's input for a resized image."""
    height, width = (round_up(round_up(side, config.divisor), NETWORK_STRIDE) for side in resized)
    return height, width


def network_size(image: Image, config: TestConfig) -> tuple[int, int]:
    """Height and width of the network's input in mode 'whole' at ratio 1."""
    size = EvalTransform(config).size_for((image.shape[0], image.shape[1]))
    return padded_size(size, config)


@dataclass(frozen=True)
class NetworkInput:
    """An image ready for the network, in mode 'whole' at ratio 1.

    Attributes:
        array: float32 (1, C, H, W), normalized and padded.
        resized: height and width without the padding.
    """

    array: Input
    resized: tuple[int, int]

    @property
    def tensor(self) -> Tensor:
        """The array as a tensor on the CPU, which shares its memory."""
        import torch

        return torch.from_numpy(self.array)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return (self.array.shape[2], self.array.shape[3])

    @classmethod
    def of(cls, image: Image, config: TestConfig) -> NetworkInput:
        """Resize, normalize and pad an image (H, W, C)."""
        transform = EvalTransform(config)
        resized = transform.resize(image)
        array = network_input(transform.normalize(resized), padded_size(resized.shape[:2], config))
        return cls(array, (resized.shape[0], resized.shape[1]))


def network_input(image: Input, size: tuple[int, int]) -> Input:
    """Pad (C, h, w) with zeros at the right and the bottom to (1, C, *size).

    NumPy does it: PyTorch in a reading thread would start OpenMP threads for this thread too, and
    with more threads than cores OpenMP puts all of them to sleep between two layers.
    """
    height, width = image.shape[1:]
    if (height, width) == tuple(size):
        return image[None]
    padded = np.zeros((1, len(image), *size), np.float32)
    padded[0, :, :height, :width] = image
    return padded


def whole_views(
    backend: Backend, inputs: Sequence[NetworkInput], originals: Sequence[tuple[int, int]]
) -> list[WholeView]:
    """Plain views of several images in one forward pass.

    Args:
        backend: runs the network.
        inputs: images of equal :attr:`NetworkInput.size`.
        originals: height and width of each image.
    """
    batch = inputs[0].array if len(inputs) == 1 else np.concatenate([one.array for one in inputs])
    return [
        WholeView(logits, one.size, one.resized, original)
        for logits, one, original in zip(
            run_network(backend, batch), inputs, originals, strict=True
        )
    ]


class SlidingView:
    """Overlapping windows whose logits are averaged.

    Windows lie on the padded image as published (mmsegmentation 0.27,
    ``encoder_decoder.py``, slide_inference).  Any window size works: a window that is not a
    multiple of 32, or an image below the window's size, is padded and cropped again.
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
        self._rows_of_windows: dict[int, Logits] = {}

    def logit_rows(self, rows: NDArray[np.int64]) -> Logits:
        """See :class:`View`."""
        cells = self._cells[0]
        numbers = rows // cells
        first = int(numbers[0])
        for done in [number for number in self._rows_of_windows if number < first]:
            del self._rows_of_windows[done]
        parts = []
        for number in np.unique(numbers).tolist():
            if number not in self._rows_of_windows:
                self._rows_of_windows[number] = self._run_row(number)
            local = rows[numbers == number] - number * cells
            parts.append(self._rows_of_windows[number][:, local])
        return joined(parts, axis=1)

    def _run_row(self, number: int) -> Logits:
        """Logits of one row of windows side by side: (K, cells, windows * cells)."""
        top = self._starts[0][number]
        strip = self._resized[top : top + self._window[0]]
        at_once = windows_at_once(self._backend)
        found: list[Logits] = []
        for first in range(0, len(self._starts[1]), at_once):
            batch = []
            for left in self._starts[1][first : first + at_once]:
                pixels = np.ascontiguousarray(strip[:, left : left + self._window[1]])
                # A small window may lie entirely in the padding.
                empty = np.zeros((strip.shape[2], 0, 0), np.float32)
                normalized = self._transform.normalize(pixels) if pixels.size else empty
                batch.append(network_input(normalized, self._input))
            found.extend(run_network(self._backend, np.concatenate(batch)))
        return joined(found, axis=2)


def windows_at_once(backend: Backend) -> int:
    """Number of windows that go through the network together; a CPU gains nothing from several."""
    return 1 if backend.on_cpu else 8


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of sliding windows along one axis.

    As published: steps of `stride`, the last window moved back to end at the border; a length
    below the window's gives one window.
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
