"""Charts inside the page: scales, thinning, bars."""

from __future__ import annotations

import html
import itertools
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.html import macro
from cgrseg.reporting.charts import (
    line_chart,
    reliability_chart,
    thin_out,
    tick_text,
    ticks,
)

bar, difference_bar = (macro("parts.html", name) for name in ("bar", "difference_bar"))


def _series(markup: str) -> list[dict[str, Any]]:
    found = re.search(r'data-series="([^"]*)"', markup)
    assert found is not None
    series: list[dict[str, Any]] = json.loads(html.unescape(found.group(1)))
    return series


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 2.3, [0, 0.5, 1.0, 1.5, 2.0, 2.5]),
        (0.0, 160_000.0, [0, 50_000, 100_000, 150_000, 200_000]),
        (5.0, 5.0, [5.0, 5.2, 5.4, 5.6, 5.8, 6.0]),
    ],
)
def test_ticks_by_hand(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_cover_the_range_evenly(low: float, width: float) -> None:
    found = ticks(low, low + width)
    slack = 1e-6 * (abs(low) + width)
    assert found[0] <= low + slack and found[-1] >= low + width - slack
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) <= slack


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (160_000, "160k"),
        (2500, "2500"),
        (0.0012, "0.0012"),
        (2e-4, "2e-4"),
        (0, "0"),
        (-0.5, "-0.5"),
    ],
)
def test_tick_text(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_short_curves_are_kept_and_long_ones_averaged() -> None:
    assert thin_out(([1, 2], [3, 4])) == ([1, 2], [3, 4], 1)
    xs, ys, group = thin_out((list(range(1000)), [2.0 * k for k in range(1000)]))
    assert group == 3 and len(xs) == 334
    assert xs[:2] == [1.0, 4.0] and ys[:2] == [2.0, 8.0]
    assert xs[-1] == 999.0  # the last group has one value


def test_line_chart_places_points_linearly() -> None:
    markup = line_chart("Loss", {"loss": ([0, 50, 100], [0.0, 1.0, 2.0])})
    (series,) = _series(markup)
    assert series["x"] == [0, 50, 100] and series["y"] == [0.0, 1.0, 2.0]
    px = series["px"]
    assert px[1] - px[0] == pytest.approx(px[2] - px[1]) and px[0] < px[2]
    found = re.search(r'<polyline class="line s0" points="([^"]+)"', markup)
    assert found is not None
    rows = [float(point.split(",")[1]) for point in found.group(1).split()]
    assert rows[0] > rows[1] > rows[2]  # larger values stand higher
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=0.11)


def test_line_chart_of_shares_is_in_percent_and_names_its_lines() -> None:
    markup = line_chart("Score", {"mIoU": ([1], [0.5]), "a<b": ([1], [0.25])}, percents=True)
    assert [line["y"] for line in _series(markup)] == [[50.0], [25.0]]
    assert "a&lt;b" in markup and "a<b" not in markup


def test_line_chart_says_when_it_averages_and_skips_empty_series() -> None:
    long = (list(range(900)), [1.0] * 900)
    assert "mean of 3 logged values" in line_chart("Loss", {"loss": long, "none": ([], [])})
    assert line_chart("Loss", {"none": ([], [])}) == ""


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9, allow_nan=False)),
        min_size=1,
        max_size=40,
    )
)
def test_any_curve_stays_inside_the_chart_and_is_valid_xml(points: list[tuple[int, float]]) -> None:
    ordered = sorted(points)
    markup = line_chart("t", {"v": ([x for x, _ in ordered], [y for _, y in ordered])})
    tree = ElementTree.fromstring(markup.replace("<small>", "").replace("</small>", ""))
    for circle in tree.iter("circle"):
        assert 51 <= float(circle.attrib["cx"]) <= 509
        assert 11 <= float(circle.attrib["cy"]) <= 217


def test_bars_by_hand() -> None:
    assert "width:25.00%" in bar(0.25) and ">25.0<" in bar(0.25)
    assert "left:50.00%" in bar(0.25, mark=0.5)
    assert "does not occur" in bar(None) and "width" not in bar(None)
    gain, loss = difference_bar(0.02, 0.04), difference_bar(-0.02, 0.04)
    assert "left:50.00%;width:25.00%" in gain and "+2.0" in gain and "gain" in gain
    assert "left:25.00%;width:25.00%" in loss and "-2.0" in loss and "loss" in loss
    assert "undefined" in difference_bar(None, 1.0)


def test_reliability_columns_by_hand() -> None:
    bins: list[dict[str, Any]] = [
        {"pixels": 0, "confidence": None, "accuracy": None},
        {"pixels": 1500, "confidence": 0.75, "accuracy": 0.5},
    ]
    markup = reliability_chart(bins)
    assert markup.count("<rect") == 1
    assert 'height="100.0"' in markup  # half of the 200 units
    assert "confidence 75.0 %, right 50.0 %, 1,500 pixels" in markup
    assert reliability_chart([]) == ""


def test_a_single_point_has_a_single_tick() -> None:
    chart = line_chart("Score", {"mIoU": ([900.0], [0.5])}, percents=True)
    below = [text for y, text in re.findall(r'<text x="[^"]*" y="([^"]*)"[^>]*>([^<]*)<', chart)]
    assert below.count("900") == 1
    assert not any("." in text for text in below if text.startswith("89") or text[:3] == "900")
