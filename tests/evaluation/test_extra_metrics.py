"""Boundary IoU, calibration and the bootstrap, against answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.errors import DataError
from cgrseg.evaluation.bootstrap import miou_interval, paired_difference
from cgrseg.evaluation.extra_metrics import (
    BoundaryIoU,
    Calibration,
    CalibrationError,
    boundary_counts,
    boundary_distance,
    boundary_mask,
)
from cgrseg.evaluation.metrics import mean_of_defined


def test_distance_is_two_percent_of_the_diagonal() -> None:
    assert boundary_distance(300, 400) == 10  # diagonal 500
    assert boundary_distance(3, 4) == 1  # never less than a pixel


def test_outline_of_a_square_and_of_the_image() -> None:
    labels = np.zeros((7, 7), dtype=np.uint8)
    labels[2:5, 2:5] = 1
    expected = np.ones((7, 7), dtype=bool)
    expected[3, 3] = False  # the square's centre is the only pixel off every outline
    assert np.array_equal(boundary_mask(labels, 1), expected)


@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_mask_agrees_with_looking_at_each_square(
    height: int, width: int, distance: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint8)
    found = boundary_mask(labels, distance)
    for y in range(height):
        for x in range(width):
            inside = (
                y - distance >= 0
                and x - distance >= 0
                and y + distance < height
                and x + distance < width
            )
            square = labels[
                max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1
            ]
            assert found[y, x] == (not inside or bool((square != labels[y, x]).any()))


def test_boundary_counts_by_hand() -> None:
    # 6x6, class 1 fills columns 0..2 in the label and 0..3 in the prediction; d = 1.
    label = np.zeros((6, 6), dtype=np.uint8)
    label[:, :3] = 1
    prediction = np.zeros((6, 6), dtype=np.uint8)
    prediction[:, :4] = 1
    # Label, class 1: its 6x3 block minus the inner 4x1 column -> 14; class 0 likewise 14.
    # Prediction, class 1: 6x4 minus inner 4x2 -> 16; class 0: 6x2, all of it -> 12.
    # Hit, class 1: outline of both: columns 0 (6), 1 (rows 0 and 5), 2 (rows 0 and 5: inside
    # the predicted block elsewhere) -> 10.  Class 0: columns 4 (rows 0, 5) and 5 (6) -> 8.
    counts = boundary_counts(prediction, label, 2)
    assert counts.tolist() == [[8, 10], [12, 16], [14, 14]]
    metric = BoundaryIoU(2)
    metric.update(prediction, label)
    np.testing.assert_allclose(metric.compute(), [8 / 18, 10 / 20])
    assert mean_of_defined(metric.compute()) == pytest.approx((8 / 18 + 10 / 20) / 2)


def test_ignored_pixels_count_nowhere_and_equal_maps_score_one() -> None:
    label = np.random.default_rng(3).integers(0, 4, (20, 30)).astype(np.uint8)
    label[5:9, 5:9] = 255
    prediction = np.where(label == 255, 2, label)
    counts = boundary_counts(prediction, label, 5)
    assert np.array_equal(counts[0], counts[1]) and np.array_equal(counts[1], counts[2])
    assert counts[:, 4].tolist() == [0, 0, 0]
    metric = BoundaryIoU(5)
    metric.update(prediction, label)
    scores = metric.compute()
    assert scores[:4].tolist() == [1, 1, 1, 1] and np.isnan(scores[4])


def test_calibration_by_hand() -> None:
    # Ten bins: two pixels at 0.95 of which one is right; two at 0.25, none right; one ignored.
    metric = CalibrationError(bins=10)
    metric.update(
        torch.tensor([[0, 1, 2, 2, 0]]),
        torch.tensor([[0.95, 0.95, 0.25, 0.25, 0.6]]),
        torch.tensor([[0, 0, 1, 1, 255]]),
    )
    found = Calibration.from_counts(metric.compute())
    assert found.pixels.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 2]
    assert found.accuracy[9] == 0.5 and found.accuracy[2] == 0
    assert found.confidence[9] == pytest.approx(0.95, abs=1e-6)
    assert found.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.25, abs=1e-6)


def test_certain_and_right_is_calibrated() -> None:
    metric = CalibrationError()
    metric.update(torch.tensor([[1, 1]]), torch.ones(1, 2), torch.tensor([[1, 1]]))
    found = Calibration.from_counts(metric.compute())
    assert found.error == 0 and found.pixels[-1] == 2
    assert np.isnan(Calibration.from_counts(CalibrationError().compute()).error)


def test_calibration_does_not_depend_on_the_order_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        (
            torch.randint(0, 5, (40, 30), generator=generator),
            torch.rand(40, 30, generator=generator),
            torch.randint(0, 5, (40, 30), generator=generator),
        )
        for _ in range(6)
    ]
    forward, backward = CalibrationError(), CalibrationError()
    for image in images:
        forward.update(*image)
    for image in reversed(images):
        backward.update(*image)
    assert torch.equal(forward.counts, backward.counts)


def _image(hit: int, predicted: int, labelled: int) -> list[list[int]]:
    """One image with class 0 as given and class 1 always absent."""
    return [[hit, 0], [predicted, 0], [labelled, 0]]


def test_interval_of_equal_images_has_no_width() -> None:
    interval = miou_interval(np.array([_image(2, 3, 3)] * 5), draws=50)
    assert [interval.value, interval.low, interval.high] == pytest.approx([0.5] * 3, abs=1e-12)


def test_interval_of_two_images_by_hand() -> None:
    # Weights w and 2 - w: hit 10 w of 10 w + 10 (2 - w) pixels, so that IoU is w / 2, which
    # lies evenly between 0 and 1: the middle 95 % end at 2.5 % and 97.5 %.
    counts = np.array([_image(10, 10, 10), _image(0, 5, 5)])
    interval = miou_interval(counts, draws=20_000)
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.025, abs=0.005)
    assert interval.high == pytest.approx(0.975, abs=0.005)


def test_classes_of_single_images_do_not_push_the_interval_off_the_score() -> None:
    # Twenty images; class 0 has IoU 10 / 20 in each, and each image has a class of its own that
    # is never found: mIoU is 0.5 / 21.  Draws that leave images out would leave their classes
    # out as well, and score 0.5 / 14 or so: an interval without the score in it.
    counts = np.zeros((20, 3, 21), dtype=np.int64)
    counts[:, :, 0] = (10, 20, 10)
    counts[np.arange(20), 2, 1 + np.arange(20)] = 10
    interval = miou_interval(counts)
    assert interval.value == pytest.approx(0.5 / 21)
    assert interval.low == pytest.approx(interval.value, abs=1e-12)
    assert interval.high == pytest.approx(interval.value, abs=1e-12)


def test_one_image_is_no_evidence_for_a_class() -> None:
    # Class 0 is better in each of ten images, class 1 in the only one that has it.
    counts = np.zeros((10, 3, 2), dtype=np.int64)
    counts[:, :, 0] = (10, 20, 20)
    counts[0, :, 1] = (10, 20, 20)
    better = counts.copy()
    better[:, 0] += (better[:, 0] > 0) * 5
    found = paired_difference(counts, better)
    assert (found.per_class > 0).all()
    # Ten tosses of a coin that fall alike: 2 / 1024; one toss says nothing.
    assert found.per_class_p.tolist() == [2 / 1001, 1.0]


def test_interval_is_the_same_every_time_and_narrows_with_images() -> None:
    generator = np.random.default_rng(0)
    labelled = generator.integers(50, 100, (400, 4))
    hit = (labelled * generator.uniform(0.3, 0.9, labelled.shape)).astype(int)
    counts = np.stack([hit, labelled, labelled], axis=1)
    few, many = miou_interval(counts[:20]), miou_interval(counts)
    assert few == miou_interval(counts[:20])
    assert many.low < many.value < many.high
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    generator = np.random.default_rng(1)
    labelled = np.full((100, 3), 1000)
    hit_a = (labelled * generator.uniform(0.2, 0.9, (100, 1))).astype(int)
    hit_b = hit_a + 20  # always a little better
    run_a = np.stack([hit_a, labelled, labelled], axis=1)
    run_b = np.stack([hit_b, labelled, labelled], axis=1)
    interval_a, interval_b = miou_interval(run_a), miou_interval(run_b)
    assert interval_a.high > interval_b.low  # overlap
    difference = paired_difference(run_a, run_b)
    assert difference.interval.low > 0 and difference.p_value < 0.01
    assert (difference.per_class > 0).all() and (difference.per_class_p < 0.01).all()
    same = paired_difference(run_a, run_a)
    assert same.interval.value == 0 and same.p_value == 1.0


@pytest.mark.parametrize(("images", "least"), [(2, 0.5), (5, 2 / 2**5)])
def test_few_images_are_no_strong_evidence(images: int, least: float) -> None:
    counts = np.array([_image(5, 10, 10)] * images)
    better = np.array([_image(10, 10, 10)] * images)
    assert paired_difference(counts, better).p_value == pytest.approx(least)


def test_an_absent_class_has_no_difference() -> None:
    counts = np.array([_image(2, 3, 3)] * 4)
    found = paired_difference(counts, counts, draws=20)
    assert np.isnan(found.per_class[1]) and np.isnan(found.per_class_p[1])


def test_runs_on_different_images_are_not_compared() -> None:
    counts = np.array([_image(2, 3, 3)] * 4)
    with pytest.raises(DataError, match="same images"):
        paired_difference(counts, counts[:3])
    with pytest.raises(DataError, match="at least one image"):
        miou_interval(counts[:0])
