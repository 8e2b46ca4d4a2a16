"""Progress in plain lines: rate and time left, with and without work that was done before."""

from __future__ import annotations

import itertools
import time

import pytest

from cgrseg import progress
from cgrseg.progress import shown_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later; every call prints a line."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)


def lines(capsys: pytest.CaptureFixture[str], *calls: tuple[int, int], unit: str) -> list[str]:
    with shown_progress("work", unit=unit) as show:
        assert show is not None
        for call in calls:
            show(*call)
    return capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("clock")
def test_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    # The clock is read three times a call: the first rate is of one second, the second of four.
    assert lines(capsys, (1, 21), (5, 21), unit="images") == [
        "work: 1/21 images, 1.0 images/s, left 0:20",
        "work: 5/21 images, 1.2 images/s, left 0:13",
    ]


@pytest.mark.usefixtures("clock")
def test_what_was_done_before_is_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, (901, 1000), (904, 1000), unit="MB") == [
        "work: 901/1000 MB, 1.0 MB/s, left 1:39",
        "work: 904/1000 MB, 1.0 MB/s, left 1:36",
    ]


@pytest.mark.usefixtures("clock")
def test_an_unknown_total_and_an_end_that_is_told_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert lines(capsys, (1, 0), unit="MB") == ["work: 1/? MB, 1.0 MB/s, left ?"]
    assert len(lines(capsys, (3, 3), (3, 3), unit="MB")) == 1


def test_only_the_end_is_printed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines(capsys, *((k, 50) for k in range(1, 51)), unit="images")
    assert len(shown) == 1 and shown[0].startswith("work: 50/50 images")
    assert float(shown[0].split()[3]) > 100  # all fifty count
