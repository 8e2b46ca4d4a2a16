"""Charts as SVG inside the page: they take its colours and print sharply."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cgrseg.reporting.page import escape

Points = tuple[Sequence[float], Sequence[float]]

MOST_POINTS = 400
_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34


def line_chart(
    title: str, series: Mapping[str, Points], *, x_title: str = "iteration", percents: bool = False
) -> str:
    """Lines over a common x axis, with a read-out that follows the pointer.

    Args:
        title: over the chart.
        series: x and y values by name, finite numbers; long ones are averaged in groups so
            that at most 400 points are drawn, and the title says so.
        x_title: below the x axis.
        percents: y values are shares of 0..1, shown as percentages.

    Returns:
        HTML; empty without any points.
    """
    drawn = {name: thin_out(points) for name, points in series.items() if len(points[0])}
    if not drawn:
        return ""
    grouped = max(group for _, _, group in drawn.values())
    scale = 100.0 if percents else 1.0
    lines = {name: (xs, [y * scale for y in ys]) for name, (xs, ys, _) in drawn.items()}
    all_x = [x for xs, _ in lines.values() for x in xs]
    all_y = [y for _, ys in lines.values() for y in ys]
    x_low, x_high = min(all_x), max(all_x)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_ticks = ticks(min(0.0, min(all_y)), max(max(all_y), 1e-9))
    x_ticks = [tick for tick in ticks(x_low, x_high, 6) if x_low <= tick <= x_high]
    if len(set(all_x)) == 1:
        x_ticks = all_x[:1]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(_HEIGHT - _BOTTOM - up, 1)

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="{_LEFT - 7}" y="{y + 3.5}" text-anchor="end">{tick_text(tick)}</text>'
        )
    for tick in x_ticks:
        x, y = place(tick, y_low)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{tick_text(tick)}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 3}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    read_out: list[dict[str, Any]] = []
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        placed = [place(x, y) for x, y in zip(xs, ys, strict=True)]
        joined = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(f'<polyline class="line s{number % 8}" points="{joined}"/>')
        if len(placed) <= 30:
            parts += [
                f'<circle class="dot s{number % 8}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in placed
            ]
        values = [float(f"{y:.5g}") for y in ys]
        read_out.append({"name": name, "px": [x for x, _ in placed], "x": list(xs), "y": values})
    legend = "".join(
        f'<span class="key s{number % 8}">{escape(name)}</span>'
        for number, name in enumerate(lines)
    )
    note = f" <small>mean of {grouped} logged values each</small>" if grouped > 1 else ""
    data = escape(json.dumps(read_out, ensure_ascii=False, separators=(",", ":")))
    return (
        f'<div class="chart"><h3>{escape(title)}{note}</h3>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-series="{data}">{"".join(parts)}'
        f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/></svg>'
        f'<div class="legend">{legend if len(lines) > 1 else ""}</div></div>'
    )


def thin_out(points: Points) -> tuple[list[float], list[float], int]:
    """At most 400 points: means of groups of neighbours, with the size of a group."""
    xs, ys = list(points[0]), list(points[1])
    group = -(-len(xs) // MOST_POINTS)
    if group <= 1:
        return xs, ys, 1
    starts = range(0, len(xs), group)
    return (
        [sum(xs[s : s + group]) / len(xs[s : s + group]) for s in starts],
        [sum(ys[s : s + group]) / len(ys[s : s + group]) for s in starts],
        group,
    )


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


def bar(share: float | None, *, mark: float | None = None) -> str:
    """A horizontal bar for a share of 0..1 with its percentage; `mark` draws a thin line."""
    if share is None:
        return '<div class="bar none"><span>does not occur</span></div>'
    width = f"{100.0 * min(max(share, 0.0), 1.0):.2f}%"
    line = "" if mark is None else f'<b style="left:{100.0 * mark:.2f}%"></b>'
    return (
        f'<div class="bar"><i style="width:{width}"></i>{line}<span>{100 * share:.1f}</span></div>'
    )


def difference_bar(difference: float | None, largest: float) -> str:
    """A bar to the left (loss) or right (gain) of a middle line.

    Args:
        difference: of two shares, -1..1.
        largest: difference that fills a half.
    """
    if difference is None:
        return '<div class="bar none"><span>undefined</span></div>'
    width = 50.0 * min(abs(difference) / max(largest, 1e-9), 1.0)
    side = "gain" if difference >= 0 else "loss"
    left = 50.0 if difference >= 0 else 50.0 - width
    return (
        f'<div class="bar middle {side}"><i style="left:{left:.2f}%;width:{width:.2f}%"></i>'
        f"<span>{100.0 * difference:+.1f}</span></div>"
    )


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over confidence, one column per bin; the diagonal is perfect calibration.

    Args:
        bins: each with `pixels`, `confidence` and `accuracy` (0..1, None when empty), in
            order of confidence and of equal width.
    """
    if not bins:
        return ""
    side, low, top = 250, 40, 10
    step = (side - low - top) / len(bins)

    def y(share: float) -> float:
        return round(side - low - share * (side - low - top), 1)

    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts.append(
            f'<line class="grid" x1="{low}" x2="{side - top}" y1="{y(tick)}" y2="{y(tick)}"/>'
        )
        parts.append(
            f'<text x="{low - 6}" y="{y(tick) + 3.5}" text-anchor="end">{100 * tick:g}</text>'
        )
        x = low + tick * (side - low - top)
        parts.append(
            f'<text x="{x}" y="{side - low + 15}" text-anchor="middle">{100 * tick:g}</text>'
        )
    for number, entry in enumerate(bins):
        if not entry.get("pixels") or entry.get("accuracy") is None:
            continue
        share = float(entry["accuracy"])
        x = round(low + number * step, 1)
        said = (
            f"confidence {100 * float(entry['confidence']):.1f} %, right {100 * share:.1f} %, "
            f"{int(entry['pixels']):,} pixels"
        )
        parts.append(
            f'<rect class="column" x="{x}" y="{y(share)}" width="{max(step - 1, 1):.1f}" '
            f'height="{round(side - low - y(share), 1)}" data-tip="{escape(said)}"/>'
        )
    parts.append(f'<line class="diagonal" x1="{low}" y1="{y(0)}" x2="{side - top}" y2="{y(1)}"/>')
    middle = (low + side - top) / 2
    parts.append(f'<text x="{middle}" y="{side - 6}" text-anchor="middle">confidence, %</text>')
    return (
        '<div class="chart small"><h3>Share of right pixels by confidence, %</h3>'
        f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="reliability">'
        f"{''.join(parts)}</svg></div>"
    )
