"""Added augmentations, off by default: one function and one table entry each.

An entry gives an augmentation its settings `augment.<name>` (:mod:`cgrseg.config.schema`) and its
place in the pipeline.  The settings are read without OpenCV, so functions import it when they run.

    H, W size of a crop   C channels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Levels: TypeAlias = NDArray[Any]
    """(H, W, C) in gray levels: uint8 RGB, or float32 of other channels, which may leave 0..255."""


@dataclass(frozen=True)
class ImageOperation:
    """A change of the pixels that leaves the labels alone, made after the color distortion.

    Attributes:
        compute: function of gray levels, the drawn amount and a random generator.
        description: what happens, for the setting of its probability.
        amount: name of the amount; the setting `augment.<name>_<amount>` is its range.
        default: default range, from which the amount is drawn uniformly.
        limits: lowest and highest accepted amount.
        amount_description: description of the range.
    """

    compute: Callable[[Levels, float, np.random.Generator], Levels]
    description: str
    amount: str
    default: tuple[float, float]
    limits: tuple[float, float]
    amount_description: str


def blur(levels: Levels, sigma: float, rng: np.random.Generator) -> Levels:
    """Gaussian blur of each channel with a standard deviation of `sigma` pixels."""
    import cv2

    return cv2.GaussianBlur(levels, (0, 0), sigma).reshape(levels.shape)


def add_noise(levels: Levels, std: float, rng: np.random.Generator) -> Levels:
    """Add independent Gaussian noise of `std` gray levels; uint8 is rounded and clipped."""
    import numpy as np

    noisy = rng.standard_normal(levels.shape, dtype=np.float32)
    noisy *= np.float32(std)
    noisy += levels
    if levels.dtype == np.uint8:
        return np.clip(np.rint(noisy, out=noisy), 0, 255, out=noisy).astype(np.uint8)
    return noisy


def compress_as_jpeg(levels: Levels, quality: float, rng: np.random.Generator) -> Levels:
    """Encode as JPEG of a quality from 1 to 100, and decode.

    RGB is compressed as a color image.  Each of other channels is compressed as a gray image,
    clipped to 0..255; what the compression changed is added to the unclipped values.
    """
    import cv2
    import numpy as np

    def coded(pixels: Levels) -> Levels:
        file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
        return np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED), np.uint8)

    if levels.dtype == np.uint8:
        return cv2.cvtColor(coded(cv2.cvtColor(levels, cv2.COLOR_RGB2BGR)), cv2.COLOR_BGR2RGB)
    before = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    after = np.dstack([coded(np.ascontiguousarray(plane)) for plane in np.moveaxis(before, 2, 0)])
    return levels + (after.astype(np.float32) - before)


OPERATIONS: dict[str, ImageOperation] = {
    "blur": ImageOperation(
        blur,
        "a Gaussian blur",
        "sigma",
        (0.5, 2.0),
        (0.1, 50),
        "Range of the standard deviation of the blur in pixels of the crop, drawn uniformly.",
    ),
    "noise": ImageOperation(
        add_noise,
        "Gaussian noise, independent in each pixel and channel",
        "std",
        (2.0, 10.0),
        (0, 255),
        "Range of the standard deviation of the noise in gray levels, drawn uniformly.",
    ),
    "jpeg": ImageOperation(
        compress_as_jpeg,
        "JPEG compression",
        "quality",
        (40, 95),
        (1, 100),
        "Range of the JPEG quality, drawn uniformly.",
    ),
}
