"""Error maps and grids."""

from __future__ import annotations

import numpy as np
import pytest

from cgrseg.visual.gallery import (
    IGNORED_COLOUR,
    RIGHT_COLOUR,
    WRONG_COLOUR,
    error_map,
    fit,
    picture_grid,
)


def _flat(colour: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_error_map_by_hand() -> None:
    label = np.array([[0, 1, 255], [2, 2, 255]], np.uint8)
    prediction = np.array([[0, 0, 1], [2, 1, 255]], np.int64)
    found = error_map(label, prediction)
    expected = [
        [RIGHT_COLOUR, WRONG_COLOUR, IGNORED_COLOUR],
        [RIGHT_COLOUR, WRONG_COLOUR, IGNORED_COLOUR],
    ]
    np.testing.assert_array_equal(found, expected)


def test_error_map_with_another_ignore_index() -> None:
    label, prediction = np.array([[0, 1]], np.uint8), np.array([[1, 1]], np.uint8)
    found = error_map(label, prediction, ignore_index=0)
    np.testing.assert_array_equal(found, [[IGNORED_COLOUR, RIGHT_COLOUR]])


def test_error_map_over_an_image_is_a_blend_with_its_grey() -> None:
    label = np.zeros((1, 1), np.uint8)
    image = np.full((1, 1, 3), 100, np.uint8)
    found = error_map(label, label, image=image, opacity=0.5)
    np.testing.assert_allclose(found[0, 0], (100 + np.array(RIGHT_COLOUR)) / 2, atol=1)


def test_colours_of_the_error_map_differ_in_lightness() -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    lightness = sorted(
        float(weights @ np.array(c)) for c in (RIGHT_COLOUR, WRONG_COLOUR, IGNORED_COLOUR)
    )
    assert lightness[1] - lightness[0] > 15 and lightness[2] - lightness[1] > 60


def test_error_map_of_different_sizes_is_refused() -> None:
    label = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="size"):
        error_map(label, np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="size"):
        error_map(label, label, image=np.zeros((3, 2, 3), np.uint8))


def test_fit_keeps_the_aspect_and_centres() -> None:
    found = fit(_flat((9, 9, 9), 10, 20), 40, 40)
    dark = (found == 9).all(axis=2)
    assert dark.sum() == 40 * 20
    np.testing.assert_array_equal(np.nonzero(dark.any(axis=1))[0], np.arange(10, 30))


def test_fit_never_invents_colours_when_enlarging() -> None:
    labels = np.array([[(1, 2, 3), (200, 100, 0)]], np.uint8)
    colours = {tuple(c) for c in fit(labels, 64, 32).reshape(-1, 3)}
    assert colours == {(1, 2, 3), (200, 100, 0)}


def test_grid_places_pictures_in_order() -> None:
    red, green, blue, grey = (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)
    grid = picture_grid(
        [[_flat(red, 32, 64), _flat(green, 32, 64)], [_flat(blue, 64, 64), _flat(grey, 8, 64)]],
        cell_width=64,
    )
    centres = {}
    for name, colour in (("red", red), ("green", green), ("blue", blue), ("grey", grey)):
        rows, columns = np.nonzero((grid == colour).all(axis=2))
        centres[name] = (rows.mean(), columns.mean())
        assert np.ptp(columns) == 63
    assert centres["red"][0] == centres["green"][0] < centres["blue"][0] == centres["grey"][0]
    assert centres["red"][1] == centres["blue"][1] < centres["green"][1] == centres["grey"][1]


def test_titles_and_captions_add_lines_of_text() -> None:
    picture = _flat((255, 255, 255), 40, 60)
    plain = picture_grid([[picture]], cell_width=64)
    assert (plain == 255).all()
    dressed = picture_grid([[picture]], titles=["label"], captions=["a.jpg"], cell_width=64)
    assert dressed.shape[0] > plain.shape[0] and dressed.shape[1] == plain.shape[1]
    inked = np.nonzero((dressed < 128).any(axis=(1, 2)))[0]
    assert inked.min() < dressed.shape[0] // 3 and inked.max() > 2 * dressed.shape[0] // 3


def test_extreme_shapes_stay_in_their_cells() -> None:
    grid = picture_grid([[_flat((1, 1, 1), 1000, 2), _flat((2, 2, 2), 2, 1000)]], cell_width=100)
    assert grid.shape[0] <= 2 * 100 + 40


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([], {}),
        ([[]], {}),
        ([[np.zeros((4, 4, 3), np.uint8)], []], {}),
        ([[np.zeros((4, 4, 3), np.uint8)]], {"titles": ["a", "b"]}),
        ([[np.zeros((4, 4, 3), np.uint8)]], {"captions": ["a", "b"]}),
        ([[np.zeros((4, 4, 3), np.uint8)]], {"cell_width": 4}),
    ],
)
def test_ragged_grids_are_refused(rows: list[list[np.ndarray]], options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        picture_grid(rows, **options)  # type: ignore[arg-type]
