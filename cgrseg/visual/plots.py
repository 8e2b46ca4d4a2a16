"""Charts with matplotlib: curves of a training, classes, confusion, class frequencies.

Every function returns a :class:`matplotlib.figure.Figure` on the Agg canvas, made
through the object interface: no window, no global state, safe in threads.
:func:`save_figure` writes one atomically.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cgrseg.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#20242c"
FAINT = "#6d7480"
GRID = "#e4e7ec"
ACCENT = "#3977c0"
SERIES = ("#3977c0", "#e2772f", "#49a056", "#cd3e4e", "#8462b8", "#4db8c4", "#8c6248", "#d677ae")
CELLS_WITH_NUMBERS = 20


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 150) -> Path:
    """Write a figure as the suffix says (.png, .svg, .pdf), whole or not at all."""
    target = Path(path)
    with atomic_write(target) as stream:
        figure.savefig(stream, format=target.suffix.lstrip(".") or "png", dpi=dpi)
    return target


def figure_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def _figure(width: float, height: float) -> Figure:
    import cgrseg.matplotlib_import  # noqa: F401

    # isort: split
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _dress(
    axes: Axes,
    title: str,
    x_label: str = "",
    y_label: str = "",
    *,
    grid: Literal["x", "y"] = "y",
) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel(x_label, fontsize=9, color=FAINT)
    axes.set_ylabel(y_label, fontsize=9, color=FAINT)
    axes.tick_params(labelsize=8.5, colors=FAINT, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom" and grid == "y")
        spine.set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)


def series_of(
    rows: Sequence[Mapping[str, Any]], name: str, x: str = "iteration"
) -> tuple[list[float], list[float]]:
    """Points of one column that are finite numbers; rows may be text, as from a CSV file."""
    xs, ys = [], []
    for row in rows:
        here, value = _number(row.get(x)), _number(row.get(name))
        if here is not None and value is not None:
            xs.append(here)
            ys.append(value)
    return xs, ys


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def curve_panels(columns: Sequence[str]) -> dict[str, list[str]]:
    """Sort a run's columns into panels: losses, scores, learning rate, speed.

    Columns of another kind (memory, the iteration itself) are left out; empty panels too.
    """
    panels: dict[str, list[str]] = {"Loss": [], "Score": [], "Learning rate": [], "Images/s": []}
    for name in columns:
        plain = name.lower()
        if "loss" in plain:
            panels["Loss"].append(name)
        elif plain in ("rate", "lr", "learning_rate"):
            panels["Learning rate"].append(name)
        elif plain == "images_per_second":
            panels["Images/s"].append(name)
        elif plain in ("miou", "aacc", "macc", "mdice", "mfscore"):
            panels["Score"].append(name)
    return {title: names for title, names in panels.items() if names}


def training_curves(
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]] = (),
    *,
    title: str = "Training",
) -> Figure:
    """Loss, scores, learning rate and speed over iterations, each in a panel of its own.

    Args:
        rows: rows of `metrics.csv`, by column; needs `iteration`. Values may be text; empty
            ones are skipped.
        scores: rows of `scores.csv`, likewise.
        title: over the panels.
    """
    both = [*rows, *scores]
    columns = list(dict.fromkeys(name for row in both for name in row))
    panels = {
        panel: [name for name in names if series_of(both, name)[0]]
        for panel, names in curve_panels(columns).items()
    }
    panels = {panel: names for panel, names in panels.items() if names}
    count = max(1, len(panels))
    across = min(2, count)
    down = -(-count // across)
    figure = _figure(4.9 * across, 3.0 * down + 0.4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    if not panels:
        axes = figure.add_subplot(1, 1, 1)
        axes.axis("off")
        axes.text(0.5, 0.5, "no rows were logged", ha="center", va="center", color=FAINT)
        return figure
    for number, (panel, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(down, across, number)
        _dress(axes, panel, "iteration")
        for colour, name in zip(_colours(len(names)), names, strict=True):
            xs, ys = series_of(both, name)
            points = "o" if len(xs) < 30 else None
            axes.plot(xs, ys, color=colour, linewidth=1.7, marker=points, markersize=3, label=name)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        axes.margins(x=0.02)
        if panel != "Score":
            axes.set_ylim(bottom=0)
    return figure


def _colours(count: int) -> list[str]:
    return [SERIES[k % len(SERIES)] for k in range(count)]


def class_bars(
    classes: Sequence[str],
    values: npt.ArrayLike,
    *,
    title: str = "IoU per class",
    palette: npt.ArrayLike | None = None,
) -> Figure:
    """Bars of one score per class, best on top, with the mean as a line.

    Args:
        classes: names (K).
        values: scores in 0..1 (K); not a number where a class does not occur (listed last).
        title: over the chart.
        palette: RGB 0..255 per class for the bars (K, 3); none: one colour.

    Raises:
        ValueError: when the counts differ.
    """
    scores = np.asarray(values, np.float64)
    if scores.shape != (len(classes),):
        raise ValueError(f"{scores.shape} values for {len(classes)} classes")
    order = np.argsort(np.where(np.isnan(scores), -1.0, scores), kind="stable")
    figure = _figure(7.4, max(2.0, 0.9 + 0.235 * len(classes)))
    axes = figure.add_subplot(1, 1, 1)
    _dress(axes, title, grid="x")
    shown = np.nan_to_num(scores[order])
    colours: Any = ACCENT
    if palette is not None:
        colours = np.asarray(palette, np.float64)[order] / 255.0
    axes.barh(np.arange(len(order)), shown, color=colours, height=0.72)
    axes.set_yticks(np.arange(len(order)), [classes[k] for k in order], fontsize=8.5, color=INK)
    for row, k in enumerate(order):
        text = "does not occur" if np.isnan(scores[k]) else f"{100 * scores[k]:.1f}"
        axes.text(shown[row] + 0.008, row, text, va="center", fontsize=8, color=FAINT)
    if not np.isnan(scores).all():
        mean = float(np.nanmean(scores))
        axes.axvline(mean, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(
            f"mean {100 * mean:.1f}",
            (mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    axes.set_xlim(0, 1.0)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{p}" for p in range(0, 101, 20)])
    axes.set_ylim(-0.6, len(order) - 0.4)
    return figure


def row_shares(matrix: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Each row of a confusion matrix (K, K) divided by its sum; rows without pixels stay 0."""
    counts = np.asarray(matrix, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"confusion matrix of shape {counts.shape}: expected (K, K)")
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(counts / np.where(totals > 0, totals, 1.0))


def confusion_figure(
    matrix: npt.ArrayLike, classes: Sequence[str], *, title: str = "Confusion"
) -> Figure:
    """Confusion matrix with each row divided by its sum (row: label, column: prediction).

    Up to 20 classes the cells hold percentages; with more classes letters and cells
    shrink and the figure grows, so that 150 classes stay readable at full size.

    Args:
        matrix: pixel counts (K, K).
        classes: names (K).
        title: over the matrix.

    Raises:
        ValueError: when the matrix is not square or the number of names differs.
    """
    shares = row_shares(matrix)
    count = len(classes)
    if shares.shape != (count, count):
        raise ValueError(f"confusion matrix of shape {shares.shape} for {count} classes")
    cell = 0.50 if count <= CELLS_WITH_NUMBERS else max(0.11, 0.26 - count * 0.001)
    letters = 8.5 if count <= CELLS_WITH_NUMBERS else max(4.5, 8.0 - count * 0.025)
    longest = max((len(name) for name in classes), default=1) * letters * 0.0085
    side = cell * count + longest + 0.6
    figure = _figure(max(4.2, side + 0.5), max(3.8, side))
    axes = figure.add_subplot(1, 1, 1)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_xticks(range(count), classes, rotation=90, fontsize=letters, color=INK)
    axes.set_yticks(range(count), classes, fontsize=letters, color=INK)
    axes.tick_params(length=0)
    axes.set_xlabel("prediction", fontsize=9, color=FAINT)
    axes.set_ylabel("label", fontsize=9, color=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if count <= CELLS_WITH_NUMBERS:
        for i in range(count):
            for j in range(count):
                if shares[i, j] >= 0.005:
                    colour = "white" if shares[i, j] > 0.55 else INK
                    text = f"{100 * shares[i, j]:.0f}"
                    axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)
    bar = figure.colorbar(drawn, ax=axes, shrink=min(1.0, 3.2 / max(side, 3.2)), pad=0.02)
    bar.set_label("share of the label's pixels", fontsize=8.5, color=FAINT)
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def class_histogram(
    classes: Sequence[str], pixels: npt.ArrayLike, *, title: str = "Pixels per class"
) -> Figure:
    """Share of the labelled pixels that each class has, on a logarithmic scale, largest first.

    Args:
        classes: names (K).
        pixels: counts (K), 0 or more.
        title: over the chart.

    Raises:
        ValueError: when the counts differ or are negative.
    """
    counts = np.asarray(pixels, np.float64)
    if counts.shape != (len(classes),) or (counts < 0).any():
        raise ValueError(f"{counts.shape} counts for {len(classes)} classes, each 0 or more")
    shares = 100.0 * counts / max(counts.sum(), 1.0)
    order = np.argsort(-shares, kind="stable")
    figure = _figure(max(4.5, 1.2 + 0.26 * len(classes)), 3.8)
    axes = figure.add_subplot(1, 1, 1)
    _dress(axes, title, y_label="% of labelled pixels")
    axes.bar(np.arange(len(order)), shares[order], color=ACCENT, width=0.72)
    names = [classes[k] if counts[k] else f"{classes[k]} (none)" for k in order]
    axes.set_xticks(np.arange(len(order)), names, rotation=90, fontsize=8, color=INK)
    if (shares > 0).any():
        axes.set_yscale("log")
        axes.set_ylim(10 ** math.floor(math.log10(shares[shares > 0].min())), 100)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    axes.set_xlim(-0.6, len(order) - 0.4)
    return figure
