"""Charts of a report: scales, ticks and coordinates; `charts.html` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cgrseg.html import macro

Points = tuple[Sequence[float], Sequence[float]]
"""x and y values."""

MAX_POINTS = 400


class _Box(NamedTuple):
    """Size of a chart and the edges of its plotting area, in SVG units."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        return round(self.bottom - share * (self.bottom - self.top), 1)


_CURVES = _Box(width=520, height=250, left=52, right=508, top=12, bottom=216)
_RELIABILITY = _Box(width=250, height=250, left=40, right=240, top=10, bottom=210)


def line_chart(
    title: str, series: Mapping[str, Points], *, x_title: str = "iteration", percents: bool = False
) -> str:
    """Lines over a common x axis; the values at the pointer are shown.

    Args:
        title: above the chart.
        series: points by name, finite numbers. More than 400 points are averaged in groups, which
            the title says.
        x_title: below the x axis.
        percents: y values are shares of 0..1, shown as percentages.

    Returns:
        HTML; empty without any points.
    """
    drawn = {name: thin_out(points) for name, points in series.items() if len(points[0])}
    if not drawn:
        return ""
    scale = 100.0 if percents else 1.0
    lines = {name: (xs, [y * scale for y in ys]) for name, (xs, ys, _) in drawn.items()}
    all_x = [x for xs, _ in lines.values() for x in xs]
    all_y = [y for _, ys in lines.values() for y in ys]
    x_low, x_high = min(all_x), max(all_x)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
        x_ticks = all_x[:1]
    else:
        x_ticks = [tick for tick in ticks(x_low, x_high, 6) if x_low <= tick <= x_high]
    y_ticks = ticks(min(0.0, *all_y), max(*all_y, 1e-9))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_of(x: float) -> float:
        return round(_CURVES.x((x - x_low) / (x_high - x_low)), 1)

    def y_of(y: float) -> float:
        return _CURVES.y((y - y_low) / (y_high - y_low))

    return macro("charts.html", "line_chart")(
        title=title,
        x_title=x_title,
        group=max(group for _, _, group in drawn.values()),
        lines=[
            {"name": name, "points": [(x_of(x), y_of(y)) for x, y in zip(xs, ys, strict=True)]}
            for name, (xs, ys) in lines.items()
        ],
        readings=[
            {
                "name": name,
                "px": [x_of(x) for x in xs],
                "x": list(xs),
                "y": [float(f"{y:.5g}") for y in ys],
            }
            for name, (xs, ys) in lines.items()
        ],
        x_ticks=[(x_of(tick), tick_text(tick)) for tick in x_ticks],
        y_ticks=[(y_of(tick), tick_text(tick)) for tick in y_ticks],
        box=_CURVES,
    )


def thin_out(points: Points) -> tuple[list[float], list[float], int]:
    """At most 400 points: means of groups of neighbors, and the size of a group."""
    group = max(1, -(-len(points[0]) // MAX_POINTS))
    if group == 1:
        return list(points[0]), list(points[1]), 1
    xs, ys = (
        [sum(part) / len(part) for part in (v[s : s + group] for s in range(0, len(v), group))]
        for v in points
    )
    return xs, ys, group


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A short form: 160k for 160000, 1e-4 for 0.0001."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over confidence, one column per bin; the diagonal is perfect calibration.

    Args:
        bins: each with `pixels`, `confidence` and `accuracy` (0..1, None when empty), in
            order of confidence and of equal width.

    Returns:
        HTML; empty without any bins.
    """
    if not bins:
        return ""
    step = (_RELIABILITY.right - _RELIABILITY.left) / len(bins)
    columns = []
    for number, entry in enumerate(bins):
        if not entry.get("pixels") or entry.get("accuracy") is None:
            continue
        share = float(entry["accuracy"])
        top = _RELIABILITY.y(share)
        columns.append(
            {
                "x": round(_RELIABILITY.left + number * step, 1),
                "y": top,
                "width": f"{max(step - 1, 1):.1f}",
                "height": round(_RELIABILITY.bottom - top, 1),
                "tip": f"confidence {100 * float(entry['confidence']):.1f} %, "
                f"right {100 * share:.1f} %, {int(entry['pixels']):,} pixels",
            }
        )
    return macro("charts.html", "reliability_chart")(
        columns=columns,
        ticks=[
            (_RELIABILITY.x(share), _RELIABILITY.y(share), f"{100 * share:g}")
            for share in (0.0, 0.5, 1.0)
        ],
        box=_RELIABILITY,
    )
