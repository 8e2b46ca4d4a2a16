"""Sizes by hand, and cut-outs of a resize against the whole resize."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.data.geometry import (
    Window,
    nearest_table,
    resize_image,
    resize_image_window,
    resize_label,
    resize_label_window,
    round_up,
    scaled_size,
)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        # 512 / 300 = 1.70667: 420 * 1.70667 = 716.8, + 0.5 cut = 717
        ((300, 420), (2048, 512), (512, 717)),
        # the long side limits: 2048 / 3000 = 0.68267; 500 * 0.68267 = 341.33
        ((500, 3000), (2048, 512), (341, 2048)),
        # upright, scale given the other way round: 512 / 375 = 1.36533; 500 * 1.36533 = 682.67
        ((500, 375), (512, 2048), (683, 512)),
        # a square scale bounds the long side: 520 / 500 = 1.04; 375 * 1.04 = 390
        ((375, 500), (520, 520), (390, 520)),
        # exactly half rounds up: factor 0.5, 333 * 0.5 + 0.5 = 167
        ((1024, 333), (512, 512), (512, 167)),
        # never nothing: factor 2048 / 20000, 1 * 0.1024 + 0.5 = 0.6
        ((1, 20000), (2048, 512), (1, 2048)),
    ],
)
def test_scaled_size_by_hand(
    size: tuple[int, int], scale: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert scaled_size(size, scale) == expected


def test_round_up() -> None:
    assert [round_up(n, 32) for n in (1, 31, 32, 33, 717)] == [32, 32, 32, 64, 736]


def test_bilinear_by_hand() -> None:
    row = np.array([[[0] * 3, [100] * 3]], dtype=np.uint8)
    # Output centres lie at -0.25, 0.25, 0.75, 1.25 of the source's pixel centres.
    assert resize_image(row, (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]


def test_nearest_by_hand() -> None:
    labels = np.array([[1, 2, 3]], dtype=np.uint8)
    # Output column d reads source column floor(d * 3 / 5).
    assert resize_label(labels, (1, 5)).tolist() == [[1, 1, 2, 2, 3]]
    assert nearest_table(3, 5).tolist() == [0, 0, 1, 1, 2]


@st.composite
def resizes(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], Window]:
    """A source size, a size to resize it to, and a window in the result."""
    source, target, corner, extent = [], [], [], []
    for _ in range(2):
        before = draw(st.integers(1, 400))
        after = max(1, int(before * draw(st.floats(0.15, 4.5)) + 0.5))
        length = draw(st.integers(1, min(after, 96)))
        source.append(before)
        target.append(after)
        extent.append(length)
        corner.append(draw(st.integers(0, after - length)))
    window = Window(corner[0], corner[1], extent[0], extent[1])
    return (source[0], source[1]), (target[0], target[1]), window


@settings(max_examples=300, deadline=None)
@given(case=resizes(), seed=st.integers(0, 1000))
def test_label_window_is_identical_to_the_whole_resize(case, seed: int) -> None:
    source, target, window = case
    labels = np.random.default_rng(seed).integers(0, 256, source).astype(np.uint8)
    rows, columns = nearest_table(source[0], target[0]), nearest_table(source[1], target[1])
    got = resize_label_window(labels, rows, columns, window)
    assert np.array_equal(got, window.of(resize_label(labels, target)))


@settings(max_examples=400, deadline=None)
@given(case=resizes(), seed=st.integers(0, 1000))
def test_image_window_is_the_whole_resize_within_one_grey_level(case, seed: int) -> None:
    source, target, window = case
    # Black and white noise is the worst case: every neighbour differs by 255.
    noise = np.random.default_rng(seed).integers(0, 2, (*source, 3)).astype(np.uint8) * 255
    got = resize_image_window(noise, target, window)
    expected = window.of(resize_image(noise, target))
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_factors_close_to_one_are_not_taken_for_a_copy() -> None:
    # 5 source columns times 12 / 11 round to 5 output columns, which OpenCV would copy.
    row = np.arange(0, 220, 20, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    got = resize_image_window(row, (1, 12), Window(0, 1, 1, 1))
    # Sampled at 1.5 * 11 / 12 - 0.5 = 0.875, between 0 and 20.
    assert got[0, 0].tolist() == [17, 17, 17] or got[0, 0].tolist() == [18, 18, 18]


@pytest.mark.parametrize("size", [(256, 341), (512, 683), (768, 1024), (1024, 1365), (3072, 4096)])
def test_image_window_of_a_large_photo(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    photo = rng.integers(0, 256, (1536, 2048, 3), dtype=np.uint8)
    whole = resize_image(photo, size).astype(int)
    for _ in range(6):
        height, width = min(512, size[0]), min(512, size[1])
        top = int(rng.integers(0, size[0] - height + 1))
        left = int(rng.integers(0, size[1] - width + 1))
        window = Window(top, left, height, width)
        got = resize_image_window(photo, size, window)
        assert got.shape == (height, width, 3)
        expected = whole[top : top + height, left : left + width]
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_only_the_needed_part_is_read() -> None:
    photo = np.zeros((1000, 1000, 3), np.uint8)
    untouched = resize_image_window(photo, (2000, 2000), Window(1500, 1500, 64, 64))
    photo[:740, :740] = 255  # far from the window, whose source begins at pixel 750
    assert np.array_equal(
        resize_image_window(photo, (2000, 2000), Window(1500, 1500, 64, 64)), untouched
    )
    photo[755:760, 755:760] = 255
    assert resize_image_window(photo, (2000, 2000), Window(1500, 1500, 64, 64)).max() == 255
