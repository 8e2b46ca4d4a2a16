"""Color distortion of 8-bit images, and normalization.

As published (mmsegmentation 0.27, `PhotoMetricDistortion` and mmcv's `imnormalize`): every step
goes back to 8 bits by clipping and truncation.  A step maps each of 256 values to one of 256, so
it is applied as a table, with the same result to the bit.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.config.schema import PhotometricConfig

Image = NDArray[np.uint8]

MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's RGB values, 0..255."""

STD = (58.395, 57.12, 57.375)
"""Standard deviation of ImageNet's RGB values, 0..255."""

_VALUES = np.arange(256, dtype=np.float32)
_KEEP = np.arange(256, dtype=np.uint8)
_NORMALIZED: tuple[NDArray[np.float32], ...] = tuple(
    (_VALUES - np.float32(mean)) * np.float32(1.0 / std)
    for mean, std in zip(MEAN, STD, strict=True)
)


def linear_table(factor: float = 1.0, offset: float = 0.0) -> Image:
    """Table (256,) of `value * factor + offset`, clipped to 0..255 and truncated."""
    values = _VALUES * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


def adjust_brightness(image: Image, offset: float) -> Image:
    """Add `offset` gray levels to (H, W, 3)."""
    return _look_up(image, linear_table(offset=offset))


def adjust_contrast(image: Image, factor: float) -> Image:
    """Multiply (H, W, 3) by `factor`."""
    return _look_up(image, linear_table(factor=factor))


def adjust_saturation(image: Image, factor: float) -> Image:
    """Multiply the saturation of an RGB image by `factor`."""
    return _in_hsv(image, _KEEP, linear_table(factor=factor))


def rotate_hue(image: Image, shift: int) -> Image:
    """Shift the hue of an RGB image by `shift` of OpenCV's 180 steps."""
    return _in_hsv(image, ((np.arange(256) + shift) % 180).astype(np.uint8), _KEEP)


def distort_colors(image: Image, config: PhotometricConfig, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue, each with the configured probability.

    Contrast comes either right after brightness or last, with equal chances.  The hue
    shift is a whole number from -hue to hue - 1, as published.

    Args:
        image: RGB (H, W, 3).
        config: ranges and the probability of each step.
        rng: random generator.
    """
    chance = config.probability
    if chance == 0:
        return image
    if rng.random() < chance:
        image = adjust_brightness(image, rng.uniform(-config.brightness, config.brightness))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < chance:
        image = adjust_contrast(image, rng.uniform(*config.contrast))
    if rng.random() < chance:
        image = adjust_saturation(image, rng.uniform(*config.saturation))
    if rng.random() < chance and config.hue > 0:
        image = rotate_hue(image, int(rng.integers(-config.hue, config.hue)))
    if not contrast_first and rng.random() < chance:
        image = adjust_contrast(image, rng.uniform(*config.contrast))
    return image


def normalize(image: Image) -> NDArray[np.float32]:
    """Subtract the mean, divide by the deviation.

    Args:
        image: RGB (H, W, 3), 0..255.

    Returns:
        (3, H, W), C-contiguous.
    """
    planes = np.empty((3, *image.shape[:2]), dtype=np.float32)
    for plane, values, table in zip(planes, cv2.split(image), _NORMALIZED, strict=True):
        cv2.LUT(values, table, dst=plane)
    return planes


def _look_up(image: Image, table: Image) -> Image:
    return np.asarray(cv2.LUT(image, table), dtype=np.uint8)


def _in_hsv(image: Image, hue: Image, saturation: Image) -> Image:
    """Apply one table to the hue and one to the saturation of an RGB image."""
    table = np.stack([hue, saturation, _KEEP], axis=-1)[None]
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)
