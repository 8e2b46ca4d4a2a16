"""Metrics against answers worked out by hand, and against the published code's output."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.errors import DataError
from cgrseg.evaluation.metrics import ConfusionMatrix, SegmentationScores, count_pairs

# Three classes in use of four; 255 is ignored.  Read off by eye:
#   class 0: 3 labelled, 2 predicted, 2 hit;  class 1: 3, 4, 2;  class 2: 1, 1, 0;
#   class 3 is predicted once and never labelled... on an ignored pixel, so it is absent.
LABEL = torch.tensor([[0, 0, 0, 255], [1, 1, 1, 2]])
PREDICTION = torch.tensor([[0, 0, 1, 3], [1, 1, 2, 1]])


def scores() -> SegmentationScores:
    matrix = ConfusionMatrix(4)
    matrix.update(PREDICTION, LABEL)
    return SegmentationScores.from_matrix(matrix.compute())


def test_the_matrix_counts_each_pair_once() -> None:
    expected = torch.tensor([[2, 1, 0, 0], [0, 2, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert torch.equal(count_pairs(PREDICTION, LABEL, 4, 255), expected)


def test_every_score_by_hand() -> None:
    found = scores()
    nan = float("nan")
    assert found.pixel_accuracy == 4 / 7
    np.testing.assert_allclose(found.iou, [2 / 3, 2 / 5, 0, nan], rtol=1e-12)
    np.testing.assert_allclose(found.accuracy, [2 / 3, 2 / 3, 0, nan], rtol=1e-12)
    np.testing.assert_allclose(found.dice, [4 / 5, 4 / 7, 0, nan], rtol=1e-12)
    np.testing.assert_allclose(found.precision, [1, 1 / 2, 0, nan], rtol=1e-12)
    np.testing.assert_allclose(found.recall, found.accuracy)
    # precision 0 and recall 0 leave nothing to average: undefined, as published
    np.testing.assert_allclose(found.fscore, [4 / 5, 4 / 7, nan, nan], rtol=1e-12)
    np.testing.assert_allclose(found.frequency, [3 / 7, 3 / 7, 1 / 7, 0], rtol=1e-12)


def test_means_skip_absent_classes() -> None:
    summary = scores().summary()
    assert summary["mIoU"] == pytest.approx((2 / 3 + 2 / 5 + 0) / 3, abs=1e-12)
    assert summary["mAcc"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3, abs=1e-12)
    assert summary["mDice"] == pytest.approx((4 / 5 + 4 / 7 + 0) / 3, abs=1e-12)
    assert summary["mFscore"] == pytest.approx((4 / 5 + 4 / 7) / 2, abs=1e-12)
    assert summary["mPrecision"] == pytest.approx((1 + 1 / 2 + 0) / 3, abs=1e-12)
    assert summary["fwIoU"] == pytest.approx(3 / 7 * 2 / 3 + 3 / 7 * 2 / 5, abs=1e-12)


def test_a_class_only_in_predictions_costs_iou_but_has_no_accuracy() -> None:
    found = SegmentationScores.from_matrix(np.array([[3, 1], [0, 0]]))
    assert found.iou.tolist() == [0.75, 0.0]
    assert found.dice[1] == 0.0
    assert math.isnan(found.accuracy[1]) and math.isnan(found.fscore[1])
    assert found.mean_iou == 0.375
    assert found.mean_accuracy == 0.75


def test_nothing_labelled_gives_no_score_rather_than_zero() -> None:
    found = SegmentationScores.from_matrix(np.zeros((3, 3), dtype=np.int64))
    assert all(math.isnan(value) for value in found.summary().values())


def test_published_metrics(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "official.json").read_text())["metrics_12_classes"]
    maps = np.load(golden_dir / "official.npz")
    matrix = ConfusionMatrix(12)
    for prediction, label in zip(maps["metrics_pred"], maps["metrics_label"], strict=True):
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(label))
    found = SegmentationScores.from_matrix(matrix.compute())
    assert found.pixel_accuracy == pytest.approx(golden["aAcc"], abs=1e-6)
    per_class = found.per_class()
    for name in ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall"):
        expected = np.array(golden[name], dtype=float)
        np.testing.assert_allclose(per_class[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_counts_stay_exact_where_float32_would_not() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts += torch.tensor([[1 << 40, 0], [0, 0]])
    matrix.update(torch.tensor([[0]]), torch.tensor([[0]]))
    assert int(matrix.compute()[0, 0]) == (1 << 40) + 1
    assert matrix.latest.tolist() == [[1, 0], [0, 0]]


def test_ids_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"label.*\n.*ids 0 to 2, or 255"):
        count_pairs(torch.tensor([[0, 1]]), torch.tensor([[0, 3]]), 3, 255)
    with pytest.raises(DataError, match="prediction"):
        count_pairs(torch.tensor([[0, 7]]), torch.tensor([[0, 1]]), 3, 255)
    with pytest.raises(DataError, match="same height and width"):
        count_pairs(torch.zeros(2, 2), torch.zeros(2, 3), 3, 255)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_counts_agree_with_looking_at_each_pixel(
    classes: int, height: int, width: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, (height, width))
    label[generator.random(label.shape) < 0.2] = 255
    prediction = generator.integers(0, classes, (height, width)).astype(np.uint8)
    expected = np.zeros((classes, classes), dtype=np.int64)
    for row, column in zip(label.ravel(), prediction.ravel(), strict=True):
        if row != 255:
            expected[row, column] += 1
    found = count_pairs(torch.from_numpy(prediction), torch.from_numpy(label), classes, 255)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[5, 1], [0, 3]], ""),
        ([[5, 1], [0, 0]], "one class is labeled"),
        ([[7, 0], [0, 0]], "one class is labeled"),
        ([[0, 0], [0, 0]], "no class is labeled"),
    ],
)
def test_scores_of_a_single_class_are_called_worthless(matrix, said):
    scores = SegmentationScores.from_matrix(np.array(matrix))
    assert scores.caution.startswith(said)
    assert bool(scores.caution) == bool(said)
