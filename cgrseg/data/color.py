"""Color distortion of 8-bit images, and normalization.

As published (mmsegmentation 0.27, `PhotoMetricDistortion` and mmcv's `imnormalize`): every step
goes back to 8 bits by clipping and truncation.  A step maps each of 256 values to one of 256, so
it is applied as a table, with the same result to the bit.

Images of other channels (`data.channels`) are distorted in float32 on a scale where every channel
has the mean and the deviation that RGB images have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.config.schema import ChannelsConfig, PhotometricConfig
from cgrseg.errors import ConfigError

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's RGB values, 0..255."""

STD = (58.395, 57.12, 57.375)
"""Standard deviation of ImageNet's RGB values, 0..255."""

_GRAY_MEAN, _GRAY_STD = (np.float32(np.mean(values)) for values in (MEAN, STD))
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
    for step, amount in _drawn(config, rng):
        image = _STEPS[step](image, amount)
    return image


def distort_channels(
    image: NDArray[Any],
    config: PhotometricConfig,
    rng: np.random.Generator,
    channels: ChannelsConfig,
) -> NDArray[Any]:
    """As :func:`distort_colors`, for images (H, W, C) of other channels.

    Brightness and contrast vary in all channels alike, saturation and hue in red, green and blue
    where the channels have them.

    Returns:
        Stored values, float32 (H, W, C); the image itself where nothing was drawn.
    """
    steps = _drawn(config, rng)
    if not steps:
        return image
    gray = gray_levels(image, channels)
    rgb = channels.rgb_indices
    for step, amount in steps:
        if step == "brightness":
            gray += np.float32(amount)
        elif step == "contrast":
            gray *= np.float32(amount)
        elif rgb is not None:
            gray[..., rgb] = _vary_in_hsv(gray[..., rgb], step, amount)
    return stored_values(gray, channels)


def gray_levels(image: NDArray[Any], channels: ChannelsConfig) -> Floats:
    """Stored values (H, W, C) on the scale where each channel has the moments of RGB images."""
    mean, std = mean_and_std(channels)
    return np.asarray((image.astype(np.float32) - mean) / std * _GRAY_STD + _GRAY_MEAN, np.float32)


def stored_values(gray: Floats, channels: ChannelsConfig) -> Floats:
    """The inverse of :func:`gray_levels`, in float32."""
    mean, std = mean_and_std(channels)
    return np.asarray((gray - _GRAY_MEAN) / _GRAY_STD * std + mean, np.float32)


def _drawn(config: PhotometricConfig, rng: np.random.Generator) -> list[tuple[str, float]]:
    """The steps that are made, in order, with their amounts."""
    chance, steps = config.probability, []
    if chance == 0:
        return []
    if rng.random() < chance:
        steps.append(("brightness", rng.uniform(-config.brightness, config.brightness)))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < chance:
        steps.append(("contrast", rng.uniform(*config.contrast)))
    if rng.random() < chance:
        steps.append(("saturation", rng.uniform(*config.saturation)))
    if rng.random() < chance and config.hue > 0:
        steps.append(("hue", int(rng.integers(-config.hue, config.hue))))
    if not contrast_first and rng.random() < chance:
        steps.append(("contrast", rng.uniform(*config.contrast)))
    return steps


def _vary_in_hsv(gray: Floats, step: str, amount: float) -> Floats:
    """Saturation or hue of gray levels (H, W, 3); values outside 0..255 keep their distance."""
    inside = np.clip(gray, 0, 255)
    hsv = cv2.cvtColor(inside / np.float32(255), cv2.COLOR_RGB2HSV)  # hue 0..360, others 0..1
    if step == "saturation":
        hsv[..., 1] = np.clip(hsv[..., 1] * amount, 0, 1)
    else:
        hsv[..., 0] = (hsv[..., 0] + 2 * amount) % 360
    changed = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32) * np.float32(255)
    return np.asarray(gray + (changed - inside), np.float32)


def normalize(image: NDArray[Any], channels: ChannelsConfig | None = None) -> Floats:
    """Subtract the mean, divide by the deviation.

    Args:
        image: RGB (H, W, 3), 0..255; or (H, W, C), stored values of the channels.
        channels: the channels, with mean and deviation; None: RGB, and ImageNet's.

    Returns:
        (C, H, W), C-contiguous; values that are not finite become 0.

    Raises:
        ConfigError: mean or deviation of the channels are not known.
    """
    if channels is not None:
        mean, std = mean_and_std(channels)
        stored = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
        scaled = (stored - mean[:, None, None]) * (1 / std)[:, None, None]
        return np.where(np.isfinite(scaled), scaled, np.float32(0))
    planes = np.empty((3, *image.shape[:2]), dtype=np.float32)
    for plane, values, table in zip(planes, cv2.split(image), _NORMALIZED, strict=True):
        cv2.LUT(values, table, dst=plane)
    return planes


def mean_and_std(channels: ChannelsConfig) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the stored values per channel, (C,) each.

    Raises:
        ConfigError: they are not known.
    """
    if channels.mean is None or channels.std is None:
        raise ConfigError(
            "data.channels.mean",
            found="no mean and deviation of the channels",
            expected="those of the training images, which a training measures",
            remedy="use a checkpoint of a training with these channels, or set both",
        )
    return np.array(channels.mean, np.float32), np.array(channels.std, np.float32)


def _look_up(image: Image, table: Image) -> Image:
    return np.asarray(cv2.LUT(image, table), dtype=np.uint8)


def _in_hsv(image: Image, hue: Image, saturation: Image) -> Image:
    """Apply one table to the hue and one to the saturation of an RGB image."""
    table = np.stack([hue, saturation, _KEEP], axis=-1)[None]
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


_STEPS: dict[str, Callable[[Image, Any], Image]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": rotate_hue,
}
