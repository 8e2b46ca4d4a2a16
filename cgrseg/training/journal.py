"""What a person sees of a running training, and what stays of it in the run's folder.

On a terminal: a progress bar with loss, rate, images per second and time left.
Otherwise (a file, a batch queue): one line per logged iteration.  In the folder:
`train.log`, `metrics.csv`, `scores.csv`, and TensorBoard event files.  Only the first
process writes or prints.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.files import explained
from cgrseg.training.tables import METRICS, SCORES, RunTable

LOG = "train.log"
_BAR_SECONDS = 1.0


class Journal:
    """Progress, log, tables and loggers of one run.

    Args:
        run_dir: the run's folder, which exists.
        start: iteration that this part of the run starts from.
        end: iteration that the run ends at.
        loss_columns: names of the loss terms that will be logged.
        score_columns: names of the scores that will be logged.
        images_per_iteration: of all processes together.
        loggers: Lightning loggers (TensorBoard and the like).
        active: false in every process but the first: then nothing is written or shown.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start: int,
        end: int,
        loss_columns: Sequence[str],
        score_columns: Sequence[str],
        images_per_iteration: int,
        loggers: Sequence[Any] = (),
        active: bool = True,
    ) -> None:
        self.end = end
        self.images = images_per_iteration
        self.loggers = list(loggers)
        self.active = active
        self._pace = Pace(start, end)
        self._progress: Any = None
        self._task: Any = None
        self._shown = 0.0
        if active:
            self._log = run_dir / LOG
            columns = [*loss_columns, "acc_seg", "rate", "images_per_second", "memory_gib"]
            self._metrics = RunTable(run_dir / METRICS, columns, keep_until=start)
            self._scores = RunTable(run_dir / SCORES, score_columns, keep_until=start)

    def open(self) -> None:
        """Show the progress bar and start the clock."""
        self._pace.restart()
        if not self.active:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console()
        if not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task = self._progress.add_task("training", total=self.end, text="")
        self._progress.start()

    def close(self) -> None:
        """Take the progress bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def say(self, text: str) -> None:
        """Print a line and add it to the log."""
        if not self.active:
            return
        stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        with explained(self._log), self._log.open("a", encoding="utf-8") as stream:
            stream.write(f"{stamp} {text}\n")
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def tick(self, iteration: int, loss: Any, rate: float) -> None:
        """Note that an iteration is done; the bar follows about once a second.

        Args:
            iteration: optimiser steps done.
            loss: of the last batch, a scalar tensor (read only when it is shown).
            rate: of the base group.
        """
        self._pace.step()
        if self._progress is None:
            return
        now = time.monotonic()
        if now - self._shown < _BAR_SECONDS and iteration < self.end:
            return
        self._shown = now
        text = (
            f"loss {float(loss):.4f}  rate {rate:.3g}  "
            f"{self._pace.per_second * self.images:.1f} images/s  "
            f"left {format_seconds(self._pace.seconds_left(iteration))}"
        )
        self._progress.update(self._task, completed=iteration, text=text)

    def log_step(self, iteration: int, values: Mapping[str, float], memory_gib: float) -> None:
        """Log the losses of an interval.

        Args:
            iteration: optimiser steps done.
            values: loss terms, `acc_seg` (percent) and `rate`.
            memory_gib: largest memory of the device so far, in GiB; 0 on the CPU.
        """
        speed = self._pace.interval_speed(iteration) * self.images
        row = {**values, "images_per_second": speed, "memory_gib": memory_gib}
        if not self.active:
            return
        self._metrics.append(iteration, row)
        for logger in self.loggers:
            logger.log_metrics({f"train/{name}": value for name, value in row.items()}, iteration)
        terms = "  ".join(
            f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss")
        )
        memory = f"  {memory_gib:.1f} GiB" if memory_gib else ""
        self.say(
            f"iteration {iteration}/{self.end}  {terms}  acc_seg {values['acc_seg']:.2f} %  "
            f"rate {values['rate']:.4g}  {speed:.1f} images/s{memory}  "
            f"left {format_seconds(self._pace.seconds_left(iteration))}"
        )

    def log_scores(self, iteration: int, values: Mapping[str, float], seconds: float) -> None:
        """Log the scores of an evaluation (0..1) that took `seconds`."""
        self._pace.exclude(seconds)
        if not self.active:
            return
        self._scores.append(iteration, values)
        for logger in self.loggers:
            logger.log_metrics(
                {f"eval/{name}": value for name, value in values.items() if value == value},
                iteration,
            )
        self.say(
            f"evaluation at {iteration}: mIoU {100 * values['mIoU']:.2f} %  "
            f"mAcc {100 * values['mAcc']:.2f} %  aAcc {100 * values['aAcc']:.2f} %  "
            f"({format_seconds(seconds)})"
        )

    def log_pictures(self, iteration: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Show pictures, RGB uint8 (H, W, 3) by name, in TensorBoard and the like."""
        for logger in self.loggers:
            show = getattr(logger, "log_image", None)
            for name, picture in pictures.items():
                if show is not None:  # Weights & Biases
                    show(key=f"eval/{name}", images=[picture], step=iteration)
                else:
                    logger.experiment.add_image(
                        f"eval/{name}", picture, iteration, dataformats="HWC"
                    )


class Pace:
    """How fast iterations go, evaluations left out, and how long the rest will take."""

    def __init__(self, start: int, end: int) -> None:
        self._end = end
        self._interval_start = start
        self._steps = 0
        self._excluded = 0.0
        self.restart()

    def restart(self) -> None:
        """Start the clock again."""
        self._begun = self._interval_begun = time.monotonic()
        self._interval_excluded = 0.0

    def step(self) -> None:
        """Count one iteration."""
        self._steps += 1

    def exclude(self, seconds: float) -> None:
        """Count seconds of an evaluation."""
        self._excluded += seconds
        self._interval_excluded += seconds

    @property
    def per_second(self) -> float:
        """Iterations per second of training since the start."""
        spent = time.monotonic() - self._begun - self._excluded
        return self._steps / spent if spent > 0 else 0.0

    def interval_speed(self, iteration: int) -> float:
        """Iterations per second since the last call."""
        now = time.monotonic()
        spent = now - self._interval_begun - self._interval_excluded
        steps = iteration - self._interval_start
        self._interval_begun, self._interval_start = now, iteration
        self._interval_excluded = 0.0
        return steps / spent if spent > 0 else 0.0

    def seconds_left(self, iteration: int) -> float:
        """Estimate for the rest, evaluations included at the share they had so far."""
        if not self._steps:
            return float("nan")
        spent = time.monotonic() - self._begun
        return spent / self._steps * (self._end - iteration)


def format_seconds(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`; `?` when unknown."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
