"""Label maps as regions, and back: by outlines, by masks and by run lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cgrseg.data.convert.regions import Polygon, decode_brush_runs, encode_brush_runs
from cgrseg.data.convert.shapes import (
    decode_counts,
    decode_mask,
    encode_counts,
    encode_runs,
    fill_polygon,
)
from cgrseg.data.convert.tracing import (
    EXACT_TOLERANCE,
    connected_regions,
    region_scores,
    trace_regions,
)

CLASSES = 3  # label 3 is ignored
LABEL_MAPS = st.builds(
    lambda labels, rows, columns: np.kron(labels, np.ones((rows, columns), np.uint8)),
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)),
    st.integers(1, 3),
    st.integers(1, 3),
)
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20))


def drawn(labels, regions, shape):
    """Label map that is painted from regions; pixels of no region keep 3."""
    found = np.full(labels.shape, CLASSES, np.uint8)
    for region in regions:
        mask = shape(region).mask(*labels.shape)
        assert (found[mask] == CLASSES).all()  # regions do not overlap
        found[mask] = region.value
    return found


@settings(deadline=None)
@given(LABEL_MAPS, st.sampled_from([0.0, 0.2, EXACT_TOLERANCE]))
def test_outlines_give_the_label_map_back(labels, tolerance):
    regions = trace_regions(labels, CLASSES, tolerance)
    for shape in (
        lambda each: Polygon([each.outline], each.holes),
        lambda each: Polygon([each.joined_outline()]),
    ):
        np.testing.assert_array_equal(drawn(labels, regions, shape), labels)


@settings(deadline=None)
@given(LABEL_MAPS, st.floats(0, 20))
def test_masks_and_counts_do_not_depend_on_the_tolerance(labels, tolerance):
    regions = trace_regions(labels, CLASSES, tolerance)
    found = np.full(labels.shape, CLASSES, np.uint8)
    for region in regions:
        rows, columns = region.mask.shape
        found[region.top : region.top + rows, region.left : region.left + columns][region.mask] = (
            region.value
        )
        assert len(region.outline) >= 3 and all(len(hole) >= 3 for hole in region.holes)
    np.testing.assert_array_equal(found, labels)


def test_a_larger_tolerance_drops_points_within_it():
    rows, columns = np.mgrid[:60, :60]
    labels = (np.hypot(rows - 30, columns - 30) < 22).astype(np.uint8)
    exact, coarse = (trace_regions(labels, 2, tolerance) for tolerance in (0, 1.5))
    for fine, few in zip(exact, coarse, strict=True):
        lines = zip((fine.outline, *fine.holes), (few.outline, *few.holes), strict=True)
        for all_points, kept in lines:
            assert len(kept) < len(all_points) or len(all_points) < 10
            start, end = kept, np.roll(kept, -1, axis=0)
            along = end - start
            step = ((all_points[:, None] - start) * along).sum(-1) / (along**2).sum(-1)
            nearest = start + np.clip(step, 0, 1)[..., None] * along
            assert np.hypot(*(all_points[:, None] - nearest).T).min(axis=0).max() <= 1.5


def test_neighbors_share_their_line_at_any_tolerance():
    generator = np.random.default_rng(0)
    labels = np.kron(generator.integers(0, 2, (5, 5)), np.ones((9, 7), int)).astype(np.uint8)
    corner = np.tril(np.ones((20, 20), bool))
    labels[10:30, 5:25][corner] = 2
    regions = trace_regions(labels, 3, 2.0)
    lines = [set(map(tuple, region.outline)) for region in regions]
    holes = {tuple(point) for region in regions for hole in region.holes for point in hole}
    for number, own in enumerate(lines):
        others = set().union(holes, *(line for k, line in enumerate(lines) if k != number))
        height, width = labels.shape
        inside = {(x, y) for x, y in own if 0 < x < width and 0 < y < height}
        assert inside <= others


@given(LABEL_MAPS)
def test_regions_are_numbered_by_their_first_pixels(labels):
    regions, values = connected_regions(labels, CLASSES)
    assert (regions[labels == CLASSES] == -1).all()
    first = [int(np.flatnonzero(regions == number)[0]) for number in range(len(values))]
    assert first == sorted(first)
    assert [int(labels.flat[place]) for place in first] == values.tolist()
    same = regions[:, 1:] == regions[:, :-1]
    np.testing.assert_array_equal(same, labels[:, 1:] == labels[:, :-1])


def test_scores_are_means_by_hand():
    labels = np.array([[0, 0, 1], [1, 3, 1]], np.uint8)
    confidence = np.array([[0.5, 1.0, 0.25], [0.75, 0.1, 0.75]], np.float32)
    assert region_scores(labels, confidence, 3).tolist() == [0.75, 0.5, 0.75]
    scores = [region.score for region in trace_regions(labels, 3, scores=[0.75, 0.5, 0.75])]
    assert scores == [0.75, 0.5, 0.75]
    assert [region.score for region in trace_regions(labels, 3, scores=[0.5])] == [None] * 3


@given(MASKS)
def test_run_lengths_give_the_mask_back(mask):
    height, width = mask.shape
    runs = encode_runs(mask.T.ravel())
    assert decode_counts(encode_counts(runs)) == runs
    np.testing.assert_array_equal(decode_mask(encode_counts(runs), height, width), mask)
    values = decode_brush_runs(encode_brush_runs(mask), mask.size * 4).reshape(height, width, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None] * np.uint8(255), 4, axis=2))


def test_brush_runs_longer_than_their_largest_size():
    mask = np.zeros((300, 300), bool)
    mask[299, 299] = True
    values = decode_brush_runs(encode_brush_runs(mask), mask.size * 4)
    np.testing.assert_array_equal(values.reshape(300, 300, 4)[..., 3] > 0, mask)


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(-9, 25)),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_fill_is_the_parity_of_crossings_to_the_left(points, height, width):
    """By the definition, edge by edge and pixel by pixel."""
    expected = np.zeros((height, width), bool)
    for row in range(height):
        for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
            (x0, y0), (x1, y1) = (start, end) if start[1] <= end[1] else (end, start)
            if y0 <= row + 0.5 < y1:
                crossing = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                expected[row] ^= np.arange(width) >= np.ceil(crossing - 0.5)
    np.testing.assert_array_equal(fill_polygon(points, height, width), expected)


def test_nothing_but_ignored_pixels_has_no_region():
    assert trace_regions(np.full((3, 4), 255, np.uint8), 3) == []


def test_a_hole_inside_a_hole_belongs_to_its_own_region():
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8] = 1
    labels[2:7, 2:7] = 0
    labels[4, 4] = 1
    outer, ring, gap, dot = trace_regions(labels, 2)
    assert [len(each.holes) for each in (outer, ring, gap, dot)] == [1, 1, 1, 0]
    assert dot.pixels == 1 and dot.outline.tolist() != []
    assert pytest.approx(dot.outline.mean(axis=0)) == [4.5, 4.5]
