"""Palettes and painted label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cgrseg.visual.palette import as_palette, colorize, make_palette

PALETTE = [(10, 20, 30), (200, 100, 50)]


def test_longer_palettes_start_with_shorter_ones() -> None:
    full = make_palette(256)
    for count in (1, 8, 21, 150):
        np.testing.assert_array_equal(make_palette(count), full[:count])


@pytest.mark.parametrize(("count", "apart"), [(12, 0.09), (21, 0.09), (60, 0.07), (150, 0.045)])
def test_colours_are_distinct_and_readable(count: int, apart: float) -> None:
    from cgrseg.visual.palette import _oklab

    lab = _oklab(np.concatenate([make_palette(count), np.zeros((1, 3), np.uint8)]))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 9 * np.eye(count + 1)
    assert distance.min() > apart
    assert lab[:count, 0].min() > 0.33  # no colour is near the black of ignored pixels
    assert lab[:count, 0].max() < 0.95  # nor near white paper


def test_oklab_of_known_colours() -> None:
    """White, black and red as published with the definition of the space."""
    from cgrseg.visual.palette import _oklab

    found = _oklab(np.array([(255, 255, 255), (0, 0, 0), (255, 0, 0)], np.uint8))
    np.testing.assert_allclose(found[0], [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(found[1], [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[2], [0.62796, 0.22486, 0.12585], atol=1e-3)


@pytest.mark.parametrize("count", [0, -1, 257])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 256"):
        make_palette(count)


def test_make_palette_gives_a_copy() -> None:
    make_palette(3)[:] = 0
    assert make_palette(3).max() > 0


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
    palette = make_palette(count)
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
