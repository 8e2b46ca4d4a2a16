"""Overlays, legends and the letters in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.visual.overlay import (
    _percent,
    class_shares,
    draw_text,
    overlay,
    shorten,
    text_mask,
    with_legend,
)

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ("wall", "sky", "tree")


def test_blend_by_hand() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    labels = np.array([[0, 0], [1, 255]], np.uint8)
    found = overlay(image, labels, PALETTE, opacity=0.25, outline=False)
    assert found[0, 0].tolist() == [125, 75, 75]  # 0.75 x 100 + 0.25 x (200, 0, 0)
    assert found[1, 0].tolist() == [75, 125, 75]
    assert found[1, 1].tolist() == [100, 100, 100]  # ignored: the image as it is
    assert image.min() == image.max() == 100  # the input is not touched


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, 100), (1.0, 200)])
def test_opacity_limits(opacity: float, expected: int) -> None:
    image = np.full((3, 3, 3), 100, np.uint8)
    found = overlay(image, np.zeros((3, 3), np.uint8), [(200, 200, 200)], opacity)
    assert (found == expected).all()


def test_outline_darkens_only_borders_between_known_regions() -> None:
    image = np.full((6, 9, 3), 100, np.uint8)
    labels = np.zeros((6, 9), np.uint8)
    labels[:, 3:] = 1
    labels[:, 6:] = 255
    plain = overlay(image, labels, PALETTE, outline=False)
    lined = overlay(image, labels, PALETTE, outline=True)
    changed = (plain != lined).any(axis=2)
    expected = np.zeros((6, 9), bool)
    expected[:, 3] = True  # first column of class 1; none at the ignored region
    np.testing.assert_array_equal(changed, expected)
    assert lined[0, 3].sum() < plain[0, 3].sum()


def test_outline_is_thicker_in_large_pictures() -> None:
    labels = np.zeros((1100, 1100), np.uint8)
    labels[:, 550:] = 1
    image = np.zeros((1100, 1100, 3), np.uint8)
    plain = overlay(image, labels, PALETTE, outline=False)
    lined = overlay(image, labels, PALETTE, outline=True)
    assert (plain != lined).any(axis=2)[500].sum() == 3  # 1100 / 360, rounded


@pytest.mark.parametrize(
    ("image", "labels", "opacity", "said"),
    [
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), 0.5, "labels of shape"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 0.5, "image of shape"),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.uint8), 0.5, "image of shape"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), 1.5, "opacity"),
    ],
)
def test_misfits_are_refused(
    image: np.ndarray, labels: np.ndarray, opacity: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        overlay(image, labels, PALETTE, opacity)


def test_class_shares_by_hand() -> None:
    labels = np.array([[0, 0, 2], [255, 2, 2]], np.uint8)
    np.testing.assert_allclose(class_shares(labels, 4), [0.4, 0, 0.6, 0])
    assert class_shares(np.full((2, 2), 255, np.uint8), 3).sum() == 0


def _swatch_rows(canvas: np.ndarray, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows of the legend in which a class's exact colour occurs."""
    return np.nonzero((canvas[:, width:] == colour).all(axis=2).any(axis=1))[0]


def test_legend_lists_what_occurs_largest_first_and_keeps_the_picture() -> None:
    labels = np.full((200, 100), 2, np.uint8)
    labels[:20] = 0
    picture = np.random.default_rng(0).integers(0, 255, (200, 100, 3)).astype(np.uint8)
    canvas = with_legend(picture, labels, CLASSES, PALETTE)
    np.testing.assert_array_equal(canvas[:200, :100], picture)
    tree, wall = (_swatch_rows(canvas, 100, PALETTE[k]) for k in (2, 0))
    assert len(tree) >= 8 and len(wall) >= 8
    assert tree.max() < wall.min()  # 90 % stands above 10 %
    assert len(_swatch_rows(canvas, 100, PALETTE[1])) == 0


@pytest.mark.parametrize("size", [(37, 501), (8, 8), (501, 37), (600, 800)])
def test_legend_of_many_classes_fits_every_picture(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 150, size).astype(np.uint8)
    names = [f"class number {k}" for k in range(150)]
    palette = rng.integers(60, 200, (150, 3)).astype(np.uint8)
    canvas = with_legend(np.zeros((*size, 3), np.uint8), labels, names, palette)
    assert canvas.shape[0] >= size[0] and canvas.shape[1] > size[1]
    packed = canvas[:, size[1] :].astype(np.int64) @ [65536, 256, 1]
    colours, counts = np.unique(packed, return_counts=True)
    found = dict(zip(colours.tolist(), counts.tolist(), strict=True))
    for k in np.unique(labels):
        assert found.get(int(palette[k].astype(np.int64) @ [65536, 256, 1]), 0) >= 100
    assert (canvas[:, -3:] == 255).all()  # nothing runs over the right edge


def test_letters_grow_with_the_picture() -> None:
    def ink(side: int) -> int:
        labels = np.zeros((side, side), np.uint8)
        canvas = with_legend(np.zeros((side, side, 3), np.uint8), labels, CLASSES, PALETTE)
        return canvas.shape[1] - side

    assert ink(2000) > 3 * ink(500)
    assert ink(16) == ink(500)  # never below 13 pixels


def test_legend_without_any_class_says_so() -> None:
    picture = np.zeros((50, 50, 3), np.uint8)
    canvas = with_legend(picture, np.full((50, 50), 255, np.uint8), CLASSES, PALETTE)
    assert (canvas[:, 50:] < 100).any()  # letters are there


def test_short_palette_is_refused() -> None:
    with pytest.raises(ValueError, match="3 colors for 4 classes"):
        with_legend(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8), "abcd", PALETTE)


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.0995, "10 %"), (0.0994, "9.9 %"), (0.0005, "0.1 %"), (0.0004, "< 0.1 %")],
)
def test_percent_rounding(share: float, text: str) -> None:
    assert _percent(share) == text


def test_text_has_one_baseline_and_grows() -> None:
    small, large = text_mask("Hxg", 14), text_mask("Hxg", 28)
    assert small.shape[0] == text_mask("a", 14).shape[0] == 19
    assert 1.7 < large.shape[1] / small.shape[1] < 2.3
    bottom = [np.nonzero(text_mask(letter, 40).max(axis=1))[0].max() for letter in "HEx"]
    assert max(bottom) - min(bottom) <= 1
    below = np.nonzero(text_mask("g", 40).max(axis=1))[0].max()
    assert below > bottom[0] + 4


def test_every_alphabet_and_missing_letters_give_ink_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    for text in ("Straße", "дерево", "δέντρο", "樹", "a\nb"):
        assert text_mask(text, 20).max() > 100
    assert len(recwarn) == 0
    assert text_mask("", 20).shape[0] == text_mask("a", 20).shape[0]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30), st.integers(-50, 60), st.integers(-30, 60))
def test_text_anywhere_stays_on_the_picture(text: str, left: int, top: int) -> None:
    picture = np.full((40, 50, 3), 255, np.uint8)
    end = draw_text(picture, text, left, top, 13)
    assert end - left == text_mask(text, 13).shape[1]
    assert picture.shape == (40, 50, 3)


def test_shortened_text_fits_and_keeps_its_start() -> None:
    full = "a very long class name indeed"
    cut = shorten(full, 14, 90)
    assert text_mask(cut, 14).shape[1] <= 90
    assert cut.endswith("…") and full.startswith(cut[:-1]) and len(cut) > 5
    assert shorten("short", 14, 90) == "short"
