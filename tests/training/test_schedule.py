"""The rate per iteration, against the published code and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cgrseg.config.schema import ScheduleConfig
from cgrseg.training.optimizer import rate_factor


def test_rates_are_those_of_the_published_code(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "official.json").read_text())["lr_schedule"]
    assert len(rows) == 12
    schedule = ScheduleConfig()
    for iteration, base, head in rows:
        assert 1.2e-4 * rate_factor(iteration, schedule) == pytest.approx(base, rel=1e-9, abs=0)
        assert 1.2e-3 * rate_factor(iteration, schedule) == pytest.approx(head, rel=1e-9, abs=0)


def test_factor_by_hand() -> None:
    schedule = ScheduleConfig(max_iters=100, warmup_iters=10, warmup_ratio=0.1, power=2.0)
    assert rate_factor(0, schedule) == pytest.approx(0.1)
    # half way through the warm-up: 0.55 of (1 - 5/100)^2
    assert rate_factor(5, schedule) == pytest.approx(0.55 * 0.9025)
    assert rate_factor(50, schedule) == pytest.approx(0.25)
    assert rate_factor(100, schedule) == 0.0
    assert rate_factor(101, schedule) == 0.0


def test_without_warm_up_the_first_rate_is_the_full_one() -> None:
    assert rate_factor(0, ScheduleConfig(max_iters=20, warmup_iters=0)) == 1.0
