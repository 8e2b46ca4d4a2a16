"""Train pipeline: from an image and its label map to one network input.

In order, as published (mmsegmentation 0.27): resize by a ratio of the base scale, random
crop that is drawn again while it is too uniform, flip, color distortion, normalize, pad.
Added operations on the image (:mod:`cgrseg.augmentations`) follow the color distortion.
All randomness comes from one explicit generator.

With `augment.crop_first` the crop is chosen first, on the label map, which nearest-neighbor tables
read at the few places needed; then only the cropped part of the image is resized.  The plain
order is the reference that this one is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.augmentations import OPERATIONS
from cgrseg.config.schema import AugmentConfig, ChannelsConfig
from cgrseg.data.color import (
    MEAN,
    distort_channels,
    distort_colors,
    gray_levels,
    normalize,
    stored_values,
)
from cgrseg.data.geometry import (
    Image,
    Size,
    Window,
    nearest_table,
    resize_image,
    resize_image_window,
    resize_label,
    resize_label_window,
    scaled_size,
)

Labels = NDArray[np.uint8]

CROP_RETRIES = 10
"""Maximum number of times that a uniform crop is drawn again; the last crop is kept."""

_GRID_STEP = 16
_CANDIDATES = 6


@dataclass(frozen=True)
class Plan:
    """Size and crop of a sample, chosen before its image is read.

    Attributes:
        size: height, width of the whole resized image.
        window: the crop inside it.
        labels: (h, w), the label map of the crop.
    """

    size: Size
    window: Window
    labels: Labels


class TrainTransform:
    """Random training samples: :meth:`plan`, :meth:`render`, :meth:`finish`.

    Args:
        config: the settings of the pipeline.
        ignore_index: training id of ignored pixels and of padding.
        channels: channels of the images, with mean and deviation; None: 8-bit RGB.
    """

    def __init__(
        self,
        config: AugmentConfig,
        ignore_index: int = 255,
        channels: ChannelsConfig | None = None,
    ) -> None:
        self.config = config
        self.ignore_index = ignore_index
        self.channels = channels

    def plan(self, labels: Labels, rng: np.random.Generator, lookup: Labels | None = None) -> Plan:
        """Choose size and crop of a sample from its label map.

        Args:
            labels: (H, W), training ids; with `lookup`, ids as stored.
            rng: the only source of randomness.
            lookup: training id of each stored id, (256,); only what a crop keeps is then
                looked up.  Not for `rare_class_crops`, which looks at the whole map.
        """
        ratio = 1.0 if self.config.colour_only else rng.uniform(*self.config.ratio_range)
        # Both sides of the scale are cut to whole pixels before they are used, as published.
        longer, shorter = (max(1, int(side * ratio)) for side in self.config.scale)
        size = scaled_size((labels.shape[0], labels.shape[1]), (longer, shorter))
        crop_first = self.config.crop_first
        rows, columns = map(nearest_table, labels.shape, size) if crop_first else (None, None)
        resized = labels if crop_first else resize_label(labels, size)

        def cut(window: Window) -> Labels:
            if rows is not None and columns is not None:
                crop = resize_label_window(labels, rows, columns, window)
            else:
                crop = window.of(resized)
            return crop if lookup is None else np.asarray(cv2.LUT(crop, lookup), np.uint8)

        return self._choose(labels, size, cut, rng)

    def render(self, image: Image, plan: Plan, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Carry out a plan.

        Args:
            image: (H, W, C); another resolution of the same image is fine.
            plan: from :meth:`plan` with the same generator.
            rng: continues where the plan left it.

        Returns:
            Image (h, w, C) and ids (h, w), not yet padded to the crop size.
        """
        if self.config.crop_first:
            image = resize_image_window(image, plan.size, plan.window)
        else:
            image = plan.window.of(resize_image(image, plan.size))
        labels = plan.labels
        if not self.config.colour_only:
            image, labels = self._turn(image, labels, rng)
        colors = self.config.photometric
        if self.channels is None:
            image = distort_colors(image, colors, rng)
        else:
            image = distort_channels(image, colors, rng, self.channels)
        return self._operate(image, rng), labels

    def finish(self, image: Image, labels: Labels) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Normalize, then pad at the right and the bottom to the crop size.

        The image is padded with 0 (the mean color), the labels with the ignore index.
        """
        height, width = labels.shape
        target = (max(self.config.crop_size[0], height), max(self.config.crop_size[1], width))
        pixels = normalize(image, self.channels)
        if (height, width) == target:
            return pixels, labels.astype(np.int64)
        padded = np.zeros((len(pixels), *target), dtype=np.float32)
        padded[:, :height, :width] = pixels
        ids = np.full(target, self.ignore_index, dtype=np.int64)
        ids[:height, :width] = labels
        return padded, ids

    def _choose(
        self,
        labels: Labels,
        size: Size,
        cut: Callable[[Window], Labels],
        rng: np.random.Generator,
    ) -> Plan:
        height, width = (min(*pair) for pair in zip(self.config.crop_size, size, strict=True))
        if self.config.colour_only:
            middle = Window((size[0] - height) // 2, (size[1] - width) // 2, height, width)
            return Plan(size, middle, cut(middle))
        window = self._draw(labels, size, (height, width), rng)
        crop = cut(window)
        # Where the crop is the whole image, drawing again would change nothing.
        if self.config.max_class_share < 1 and (height, width) != size:
            for _ in range(CROP_RETRIES):
                if is_varied(crop, self.config.max_class_share, self.ignore_index):
                    break
                window = self._draw(labels, size, (height, width), rng)
                crop = cut(window)
        return Plan(size, window, crop)

    def _draw(self, labels: Labels, size: Size, crop: Size, rng: np.random.Generator) -> Window:
        lowest, highest = (0, 0), (size[0] - crop[0], size[1] - crop[1])
        if self.config.rare_class_crops > 0 and rng.random() < self.config.rare_class_crops:
            pixel = draw_pixel_of_any_class(labels, self.ignore_index, rng)
            if pixel is not None:
                lowest, highest = _around(pixel, (labels.shape[0], labels.shape[1]), size, crop)
        top = int(rng.integers(lowest[0], highest[0] + 1))
        left = int(rng.integers(lowest[1], highest[1] + 1))
        return Window(top, left, *crop)

    def _turn(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        if rng.random() < self.config.flip:
            image, labels = flip(image, horizontal=True), flip(labels, horizontal=True)
        if self.config.vertical_flip > 0 and rng.random() < self.config.vertical_flip:
            image, labels = flip(image, horizontal=False), flip(labels, horizontal=False)
        if self.config.rotation > 0:
            degrees = rng.uniform(-self.config.rotation, self.config.rotation)
            mean = MEAN if self.channels is None else self.channels.mean or ()
            image, labels = rotate(image, labels, degrees, self.ignore_index, mean)
        return image, labels

    def _operate(self, image: Image, rng: np.random.Generator) -> Image:
        """Carry out the added operations that are drawn."""
        drawn = []
        for name, operation in OPERATIONS.items():
            chance = getattr(self.config, name)
            if chance > 0 and rng.random() < chance:
                amount = rng.uniform(*getattr(self.config, f"{name}_{operation.amount}"))
                drawn.append((operation, amount))
        if not drawn:
            return image
        levels = image if self.channels is None else gray_levels(image, self.channels)
        for operation, amount in drawn:
            levels = operation.compute(levels, amount, rng)
        return levels if self.channels is None else stored_values(levels, self.channels)


def class_counts(labels: Labels) -> NDArray[np.int64]:
    """Pixels per id 0..255 of (H, W); (256,)."""
    counts = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256])
    return np.asarray(counts).reshape(256).astype(np.int64)


def is_varied(labels: Labels, max_share: float, ignore_index: int) -> bool:
    """Whether two classes or more are labeled, each on less than `max_share` of labeled pixels.

    A histogram of all pixels would cost more than cutting the crop.  Counting one class is
    twenty times cheaper.  A thin grid tells the frequent classes, which are counted until the
    pixels that are left are too few for another class to reach the share.
    """
    labeled = labels.size - int(np.count_nonzero(labels == ignore_index))
    if labeled == 0:
        return False
    grid = np.bincount(labels[::_GRID_STEP, ::_GRID_STEP].ravel(), minlength=256)
    grid[ignore_index] = 0
    left = labeled
    for candidate in np.argsort(-grid, kind="stable")[:_CANDIDATES]:
        if candidate == ignore_index:
            continue
        pixels = int(np.count_nonzero(labels == candidate))
        if pixels == labeled or pixels / labeled >= max_share:
            return False
        left -= pixels
        if left / labeled < max_share and left < labeled:
            return True
    counts = class_counts(labels)
    counts[ignore_index] = 0
    return bool(counts.max() / labeled < max_share)


def draw_pixel_of_any_class(
    labels: Labels, ignore_index: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Row, column of a random pixel of a random class; None: nothing is labeled."""
    counts = class_counts(labels)
    counts[ignore_index] = 0
    present = np.flatnonzero(counts)
    if present.size == 0:
        return None
    chosen = rng.choice(present)
    pixels = np.flatnonzero(labels == chosen)
    row, column = divmod(int(pixels[rng.integers(pixels.size)]), labels.shape[1])
    return row, column


def _around(pixel: tuple[int, int], source: Size, size: Size, crop: Size) -> tuple[Size, Size]:
    """Lowest and highest top-left corners of crops that hold a pixel of the source."""
    corners = []
    for place, before, after, length in zip(pixel, source, size, crop, strict=True):
        resized = min(int((place + 0.5) * after / before), after - 1)
        corners.append((max(0, resized - length + 1), min(resized, after - length)))
    (top, last_top), (left, last_left) = corners
    return (top, left), (last_top, last_left)


def flip(array: NDArray[Any], *, horizontal: bool) -> NDArray[Any]:
    """Mirror (H, W) or (H, W, C), left to right or top to bottom."""
    return cv2.flip(array, 1 if horizontal else 0).reshape(array.shape)


def rotate(
    image: Image,
    labels: Labels,
    degrees: float,
    ignore_index: int,
    mean: Sequence[float] = MEAN,
) -> tuple[Image, Labels]:
    """Rotate image and labels about their center, counter-clockwise, keeping their size.

    Corners that come from outside get the mean of each channel and the ignore index.
    """
    height, width = labels.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)

    def turned(array: NDArray[Any], flags: int, outside: Sequence[float]) -> NDArray[Any]:
        if array.dtype != np.float32:
            outside = [round(value) for value in outside]
        return np.asarray(
            cv2.warpAffine(
                array,
                matrix,
                (width, height),
                flags=flags,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=tuple(outside),
            )
        )

    parts = [  # OpenCV takes border values of four channels at most
        turned(image[..., first : first + 4], cv2.INTER_LINEAR, mean[first : first + 4])
        for first in range(0, image.shape[2], 4)
    ]
    ids = turned(labels, cv2.INTER_NEAREST, (ignore_index,))
    return np.dstack(parts), np.asarray(ids, dtype=np.uint8)
