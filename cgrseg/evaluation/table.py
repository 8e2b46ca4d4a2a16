"""Scores as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cgrseg.evaluation.result import EvaluationResult
from cgrseg.surroundings import LEAST_WIDTH

if TYPE_CHECKING:
    from rich.table import Table

#: Columns per class and entries of the summary that each metric of `--eval` stands for,
#: as the published evaluation prints them.
_COLUMNS = {
    "mIoU": ("IoU", "Acc"),
    "mDice": ("Dice", "Acc"),
    "mFscore": ("Fscore", "Precision", "Recall"),
    "mBoundaryIoU": ("BoundaryIoU",),
    "ECE": (),
}


def class_table(result: EvaluationResult, metrics: Sequence[str] | None = None) -> Table:
    """One row per class, in percent; a dash where a score is undefined.

    Args:
        result: what to show.
        metrics: as in `--eval`; None: all that were measured.
    """
    from rich import box
    from rich.table import Table

    scores = result.per_class()
    columns = list(scores)
    if metrics is not None:
        columns = list(dict.fromkeys(name for metric in metrics for name in _COLUMNS[metric]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for number, title in enumerate(result.classes):
        table.add_row(title, *(percent(float(scores[name][number])) for name in columns))
    return table


def summary_line(result: EvaluationResult, metrics: Sequence[str] | None = None) -> str:
    """Number of images and the means, in percent, with the interval of mIoU.

    Args:
        result: what to show.
        metrics: as in `--eval`; None: all that were measured.
    """
    wanted = list(result.metrics)
    if metrics is not None:
        wanted = ["aAcc"]
        for metric in metrics:
            means = [metric] if metric == "ECE" else [f"m{name}" for name in _COLUMNS[metric]]
            wanted += [name for name in means if name not in wanted]
    parts = [f"{name} {percent(result.metrics[name])}" for name in wanted]
    if result.interval is not None and "mIoU" in wanted:
        low, high = percent(result.interval.low), percent(result.interval.high)
        parts.append(f"(mIoU {low} to {high} with {100 * result.interval.confidence:.0f} %)")
    line = f"{len(result.stems)} images, in percent: {'  '.join(parts)}"
    caution = result.scores.caution
    return f"{line}\nwarning: {caution}" if caution else line


def print_scores(result: EvaluationResult, metrics: Sequence[str] | None = None) -> None:
    """Print the table per class and the summary, at any width of the terminal.

    Args:
        result: what to show.
        metrics: as in `--eval`; None: all that were measured.
    """
    from rich.console import Console

    console = Console(highlight=False)
    # Programs without a terminal set COLUMNS=0, at which rich prints nothing.
    console.width = max(console.width, LEAST_WIDTH)
    console.print(class_table(result, metrics))
    print(summary_line(result, metrics))


def percent(share: float) -> str:
    """A share as percent with two digits, or a dash."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
