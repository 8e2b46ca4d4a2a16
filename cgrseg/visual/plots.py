"""Charts drawn with matplotlib, without a window or global state, safe in threads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 150) -> Path:
    """Write a figure in the format of the suffix (.png, .svg, .pdf), whole or not at all."""
    target = Path(path)
    with atomic_write(target) as stream:
        figure.savefig(stream, format=target.suffix.lstrip(".") or "png", dpi=dpi)
    return target


def new_chart(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty chart with horizontal grid lines; sizes in inches."""
    import cgrseg.matplotlib_import  # noqa: F401

    # isort: split
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.tick_params(labelsize=8.5, colors=FAINT, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return figure, axes


def series_of(
    rows: Sequence[Mapping[str, Any]], name: str, x: str = "iteration"
) -> tuple[list[float], list[float]]:
    """Finite points of one column; values may be text, as read from a CSV file."""
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
    """Columns of a run by panel: losses, scores, learning rate, speed.

    Other columns (memory, the iteration itself) and empty panels are left out.
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


def class_histogram(
    classes: Sequence[str], pixels: npt.ArrayLike, *, title: str = "Pixels per class"
) -> Figure:
    """Chart of each class's share of the labeled pixels, logarithmic, largest first.

    Args:
        classes: names (K).
        pixels: counts (K), 0 or more.
        title: title of the chart.

    Raises:
        ValueError: counts of another number than K, or negative.
    """
    counts = np.asarray(pixels, np.float64)
    if counts.shape != (len(classes),) or (counts < 0).any():
        raise ValueError(f"{counts.shape} counts for {len(classes)} classes, each 0 or more")
    shares = 100.0 * counts / max(counts.sum(), 1.0)
    order = np.argsort(-shares, kind="stable")
    figure, axes = new_chart(max(4.5, 1.2 + 0.26 * len(classes)), 3.8, title)
    axes.set_ylabel("% of labeled pixels", fontsize=9, color=FAINT)
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
