"""Thresholds of automatic labels, against answers by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cgrseg.data.label_files import read_label
from cgrseg.inference.autolabel import threshold_levels
from cgrseg.inference.confidence import STEPS, lowest_level, save_confidence


def level(confidence: float) -> int:
    """The level of a confidence that is a step."""
    return int(np.flatnonzero(np.isclose(STEPS, confidence, rtol=0, atol=1e-9))[0])


def test_a_confidence_between_two_steps_is_raised_to_the_next() -> None:
    assert lowest_level(0.9) == level(0.9) == 90
    assert lowest_level(0.903) == level(0.905)
    assert lowest_level(0) == 0
    assert lowest_level(1) == len(STEPS)


def test_stored_levels_are_those_of_their_confidences(tmp_path: Path) -> None:
    values = [[0.0, 0.5, 0.8999, 0.9], [0.95, 0.9974, 0.99999, 1.0]]
    save_confidence(tmp_path / "c.png", np.array(values, np.float32))
    stored = read_label(tmp_path / "c.png")
    expected = [[0, level(0.5), level(0.89), level(0.9)], [level(0.95), level(0.99725), 233, 233]]
    assert stored.tolist() == expected


def test_thresholds_by_hand() -> None:
    counts = np.zeros((4, 256), np.int64)
    counts[0, [10, 50, 70, 90]] = [1, 2, 3, 4]  # 10 pixels: 0.1, 0.5, 0.7, 0.9
    counts[1, [20, 233]] = [1, 9]
    counts[2, 95] = 1
    half = threshold_levels(counts, 0.0, 0.5)
    # Class 0: 4 pixels from 0.9 on are too few, 7 from 0.7 on are the fewest that are enough.
    # Class 1: 9 of 10 lie in the last level.  Class 3 has no pixels.
    assert half.tolist() == [70, 233, 95, 0]
    assert threshold_levels(counts, 0.0, 0.4).tolist() == [90, 233, 95, 0]
    assert threshold_levels(counts, 0.0, 1.0).tolist() == [10, 20, 95, 0]
    assert threshold_levels(counts, 0.0, 0.0).tolist() == [len(STEPS)] * 4
    assert threshold_levels(counts, 0.9, None).tolist() == [90] * 4
    # The confidence holds beside the share, and each class has its own.
    assert threshold_levels(counts, [0.8, 0.0, 0.8, 0.8], [0.5, None, 0.5, 0.5]).tolist() == [
        80, 0, 95, 80,
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.7, 0.9])
def test_the_share_is_kept_of_every_class(share: float) -> None:
    rng = np.random.default_rng(3)
    counts = np.zeros((5, 256), np.int64)
    counts[:, : len(STEPS)] = rng.integers(0, 1000, (5, len(STEPS)))
    lowest = threshold_levels(counts, 0.0, share)
    for k, first in enumerate(lowest):
        total = counts[k].sum()
        assert counts[k, first:].sum() >= share * total > counts[k, first + 1 :].sum()
