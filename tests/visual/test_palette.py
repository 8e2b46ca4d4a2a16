"""Palettes and painted label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cgrseg.datasets.spec import distinct_colors
from cgrseg.visual.overlay import as_palette, colorize

PALETTE = [(10, 20, 30), (200, 100, 50)]


def test_colorize_by_hand() -> None:
    labels = np.array([[0, 1], [255, 2]], np.uint8)
    expected = [[(10, 20, 30), (200, 100, 50)], [(1, 2, 3), (1, 2, 3)]]
    np.testing.assert_array_equal(colorize(labels, PALETTE, (1, 2, 3)), expected)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.integers(0, 100),
    ),
    st.integers(1, 20),
)
def test_colorize_looks_every_pixel_up(labels: np.ndarray, count: int) -> None:
    palette = distinct_colors(count)
    painted = colorize(labels, palette, (7, 8, 9))
    for position, value in np.ndenumerate(labels):
        expected = palette[value] if value < count else (7, 8, 9)
        assert tuple(painted[position]) == tuple(expected)


def test_negative_ids_are_ignored_not_wrapped() -> None:
    painted = colorize(np.array([[-1, 1]], np.int32), PALETTE)
    np.testing.assert_array_equal(painted, [[(0, 0, 0), (200, 100, 50)]])


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_labels_that_are_no_label_map_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected integers"):
        colorize(labels, PALETTE)


@pytest.mark.parametrize("palette", [[], [(1, 2)], [(0, 0, 256)], [(0, 0, -1)], [1, 2, 3]])
def test_malformed_palettes_are_refused(palette: Any) -> None:
    with pytest.raises(ValueError, match="palette"):
        as_palette(palette)
