"""Run-length masks and polygons against answers computed by hand and by definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cgrseg.data.convert.shapes import decode_counts, decode_mask, fill_circle, fill_polygon


def runs_of(mask):
    """Runs of a mask, column by column, straight from the definition."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


def compress(runs):
    """The string form, written from the format's description."""
    text = ""
    for k, run in enumerate(runs):
        value = run - runs[k - 2] if k > 2 else run
        while True:
            bits = value & 0x1F
            value >>= 5
            done = value == (-1 if bits & 0x10 else 0)
            text += chr(48 + (bits if done else bits | 0x20))
            if done:
                break
    return text


def test_a_mask_by_hand():
    # Columns first: one pixel outside, two inside, three outside.
    mask = decode_mask([1, 2, 3], height=3, width=2)
    assert mask.tolist() == [[False, False], [True, False], [True, False]]


def test_a_string_that_the_reference_implementation_wrote():
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:4] = True
    expected[0, 4] = True
    assert decode_counts("522000OO2") == [5, 2, 2, 2, 2, 2, 1, 1, 3]
    assert np.array_equal(decode_mask("522000OO2", 4, 5), expected)
    assert np.array_equal(decode_mask(b"522000OO2", 4, 5), expected)


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_both_forms_come_back_as_they_were(mask):
    runs = runs_of(mask)
    assert np.array_equal(decode_mask(runs, *mask.shape), mask)
    assert np.array_equal(decode_mask(compress(runs), *mask.shape), mask)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_strings_hold_runs_of_any_length(runs):
    assert decode_counts(compress(runs)) == runs


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ([3, 2], "cover 5 pixels, the mask has 6"),
        ([-1, 7], "none of them negative"),
        ([1.5, 4.5], "whole numbers"),
        ("52~", "not part"),
        ("5R", "breaks off"),
    ],
)
def test_damaged_runs_are_refused(counts, complaint):
    with pytest.raises(ValueError, match=complaint):
        decode_mask(counts, 2, 3)


def test_a_square_is_as_many_pixels_as_its_sides_say():
    mask = fill_polygon(np.array([(1, 1), (6, 1), (6, 4), (1, 4)]), height=6, width=8)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 1:6] = True
    assert np.array_equal(mask, expected)


def test_a_triangle_by_hand():
    # Centre (c + 0.5, r + 0.5) lies inside x + y < 4 when c + r + 1 < 4.
    mask = fill_polygon(np.array([(0, 0), (4, 0), (0, 4)]), height=4, width=4)
    assert mask.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_what_crosses_itself_follows_the_even_odd_rule():
    outer = [(0, 0), (9, 0), (9, 9), (0, 9), (0, 0)]
    inner = [(3, 3), (6, 3), (6, 6), (3, 6), (3, 3)]
    mask = fill_polygon(np.array([*outer, *inner]), height=9, width=9)
    expected = np.ones((9, 9), bool)
    expected[3:6, 3:6] = False
    assert np.array_equal(mask, expected)


def inside_by_definition(points, x, y):
    """Parity of the edges that a ray from (x, y) to the left crosses."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (y0 <= y < y1) or (y1 <= y < y0):
            crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return crossings % 2 == 1


# Quarters and eighths keep every crossing away from the reach of rounding.
coordinates = st.integers(-40, 160).map(lambda k: k / 8 + 1 / 64)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_any_polygon_is_what_the_definition_says(points):
    corners = np.array(points)
    mask = fill_polygon(corners, height=13, width=17)
    for row in range(13):
        for column in range(17):
            x, y = column + 0.5, row + 0.5
            assert mask[row, column] == inside_by_definition(corners, x, y)


@given(st.tuples(st.integers(1, 15), st.integers(1, 11)))
def test_neighbours_neither_overlap_nor_leave_a_gap(middle):
    """A rectangle cut in two along any zigzag is covered exactly once."""
    seam = [(8.0, 0.0), middle, (5.0, 12.0)]
    left = fill_polygon(np.array([(0, 0), *seam, (0, 12)]), height=12, width=16)
    right = fill_polygon(np.array([(16, 0), *seam, (16, 12)]), height=12, width=16)
    assert np.array_equal(left ^ right, np.ones((12, 16), bool))


@pytest.mark.parametrize("points", [[(0, 0), (1, 1)], [(0, 0), (1, np.nan), (2, 2)], [1, 2, 3]])
def test_what_is_no_polygon_is_refused(points):
    with pytest.raises(ValueError, match="polygon"):
        fill_polygon(np.array(points, float), 4, 4)


def test_a_circle_by_hand():
    # Around a pixel's centre with radius 1: the pixel and its four neighbours.
    mask = fill_circle((2.5, 1.5), (3.5, 1.5), height=4, width=5)
    expected = np.zeros((4, 5), bool)
    expected[1, 1:4] = expected[0, 2] = expected[2, 2] = True
    assert np.array_equal(mask, expected)
