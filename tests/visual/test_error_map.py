"""Error maps."""

from __future__ import annotations

import numpy as np
import pytest

from cgrseg.visual.overlay import IGNORED_COLOR, RIGHT_COLOR, WRONG_COLOR, error_map


def test_error_map_by_hand() -> None:
    label = np.array([[0, 1, 255], [2, 2, 255]], np.uint8)
    prediction = np.array([[0, 0, 1], [2, 1, 255]], np.int64)
    found = error_map(label, prediction)
    expected = [
        [RIGHT_COLOR, WRONG_COLOR, IGNORED_COLOR],
        [RIGHT_COLOR, WRONG_COLOR, IGNORED_COLOR],
    ]
    np.testing.assert_array_equal(found, expected)


def test_error_map_with_another_ignore_index() -> None:
    label, prediction = np.array([[0, 1]], np.uint8), np.array([[1, 1]], np.uint8)
    found = error_map(label, prediction, ignore_index=0)
    np.testing.assert_array_equal(found, [[IGNORED_COLOR, RIGHT_COLOR]])


def test_error_map_over_an_image_is_a_blend_with_its_grey() -> None:
    label = np.zeros((1, 1), np.uint8)
    image = np.full((1, 1, 3), 100, np.uint8)
    found = error_map(label, label, image=image, opacity=0.5)
    np.testing.assert_allclose(found[0, 0], (100 + np.array(RIGHT_COLOR)) / 2, atol=1)


def test_colours_of_the_error_map_differ_in_lightness() -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    lightness = sorted(
        float(weights @ np.array(c)) for c in (RIGHT_COLOR, WRONG_COLOR, IGNORED_COLOR)
    )
    assert lightness[1] - lightness[0] > 15 and lightness[2] - lightness[1] > 60


def test_error_map_of_different_sizes_is_refused() -> None:
    label = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="size"):
        error_map(label, np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="size"):
        error_map(label, label, image=np.zeros((3, 2, 3), np.uint8))
