"""Colour distortion and normalisation, by hand and against the published float arithmetic."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.config.schema import PhotometricConfig
from cgrseg.data.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    distort_colors,
    linear_table,
    normalize,
    rotate_hue,
)


def pixels(*values: tuple[int, int, int]) -> np.ndarray:
    return np.array([values], dtype=np.uint8)


def test_brightness_by_hand() -> None:
    image = pixels((0, 100, 250))
    assert adjust_brightness(image, 10.7).tolist() == [[[10, 110, 255]]]  # the fraction is cut
    assert adjust_brightness(image, -20.5).tolist() == [[[0, 79, 229]]]


def test_contrast_by_hand() -> None:
    assert adjust_contrast(pixels((3, 101, 200)), 1.5).tolist() == [[[4, 151, 255]]]
    assert adjust_contrast(pixels((3, 101, 200)), 0.5).tolist() == [[[1, 50, 100]]]


def test_saturation_by_hand() -> None:
    # Pure red has saturation 255; half of it, 127 (cut), leaves 255 - 127 of the others.
    assert adjust_saturation(pixels((255, 0, 0)), 0.5).tolist() == [[[255, 128, 128]]]
    # Grey has none, so nothing changes.
    assert adjust_saturation(pixels((90, 90, 90)), 1.5).tolist() == [[[90, 90, 90]]]


def test_hue_by_hand() -> None:
    # A third of the circle, 60 of 180: red to green, green to blue, blue to red.
    image = pixels((255, 0, 0), (0, 255, 0), (0, 0, 255), (7, 7, 7))
    expected = [[[0, 255, 0], [0, 0, 255], [255, 0, 0], [7, 7, 7]]]
    assert rotate_hue(image, 60).tolist() == expected
    assert rotate_hue(image, 60 - 180).tolist() == expected


def test_hue_agrees_with_colorsys() -> None:
    image = pixels((200, 120, 40))
    hue, saturation, value = colorsys.rgb_to_hsv(200 / 255, 120 / 255, 40 / 255)
    turned = colorsys.hsv_to_rgb(hue + 18 / 180, saturation, value)
    got = rotate_hue(image, 18)[0, 0]
    assert np.abs(got - 255 * np.array(turned)).max() <= 3  # hue in steps of two degrees


@settings(deadline=None)
@given(factor=st.floats(0.0, 3.0), offset=st.floats(-300, 300))
def test_tables_equal_the_published_float_arithmetic(factor: float, offset: float) -> None:
    values = np.arange(256, dtype=np.uint8)
    published = np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)
    assert np.array_equal(linear_table(factor, offset), published)


def test_saturation_and_hue_equal_the_published_arithmetic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    more = hsv.copy()
    more[..., 1] = np.clip(hsv[..., 1].astype(np.float32) * 1.3, 0, 255).astype(np.uint8)
    assert np.array_equal(adjust_saturation(image, 1.3), cv2.cvtColor(more, cv2.COLOR_HSV2RGB))
    turned = hsv.copy()
    turned[..., 0] = (hsv[..., 0].astype(int) - 11) % 180
    assert np.array_equal(rotate_hue(image, -11), cv2.cvtColor(turned, cv2.COLOR_HSV2RGB))


class Scripted:
    """A generator whose draws are given: random() from a list, uniform() at its upper end."""

    def __init__(self, *chances: float) -> None:
        self.chances = list(chances)

    def random(self) -> float:
        return self.chances.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return high

    def integers(self, low: int, high: int) -> int:
        return high - 1


def test_order_with_contrast_first() -> None:
    image = pixels((200, 120, 40))
    rng = Scripted(0.1, 0.1, 0.1, 0.1, 0.1)  # brightness, contrast first, contrast, colour, hue
    got = distort_colors(image, PhotometricConfig(), rng)  # type: ignore[arg-type]
    steps = adjust_contrast(adjust_brightness(image, 32.0), 1.5)
    assert np.array_equal(got, rotate_hue(adjust_saturation(steps, 1.5), 17))
    assert rng.chances == []


def test_order_with_contrast_last() -> None:
    image = pixels((200, 120, 40))
    rng = Scripted(0.9, 0.9, 0.1, 0.9, 0.1)  # no brightness, contrast last, colour, no hue, it
    got = distort_colors(image, PhotometricConfig(), rng)  # type: ignore[arg-type]
    assert np.array_equal(got, adjust_contrast(adjust_saturation(image, 1.5), 1.5))
    assert rng.chances == []


def test_each_step_happens_half_of_the_time() -> None:
    counts = {"brightness": 0, "contrast": 0, "hue": 0}
    only = {
        "brightness": PhotometricConfig(contrast=(1, 1), saturation=(1, 1), hue=0),
        "contrast": PhotometricConfig(brightness=0, saturation=(1, 1), hue=0),
        "hue": PhotometricConfig(brightness=0, contrast=(1, 1), saturation=(1, 1)),
    }
    image = pixels((255, 0, 0), (120, 120, 120))  # survives the way through HSV unchanged
    for name, config in only.items():
        for position in range(400):
            rng = np.random.default_rng(position)
            counts[name] += not np.array_equal(distort_colors(image, config, rng), image)
    # 400 fair throws: 200 with a deviation of 10; a hue shift of 0 (1 in 36) goes unseen.
    assert 160 < counts["brightness"] < 240
    assert 160 < counts["contrast"] < 240
    assert 155 < counts["hue"] < 235


def test_probability_zero_is_off() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    config = PhotometricConfig(probability=0)
    assert np.array_equal(distort_colors(image, config, np.random.default_rng(0)), image)


def test_normalise_by_hand() -> None:
    got = normalize(pixels((0, 0, 0), (255, 128, 64)))
    assert got.shape == (3, 1, 2)
    assert got.dtype == np.float32
    assert got[:, 0, 0] == pytest.approx([-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375])
    assert got[:, 0, 1] == pytest.approx(
        [(255 - 123.675) / 58.395, (128 - 116.28) / 57.12, (64 - 103.53) / 57.375]
    )


def test_normalise_takes_views() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    view = image[2:7, ::-1][:, 3:9]
    assert np.array_equal(normalize(view), normalize(np.ascontiguousarray(view)))
