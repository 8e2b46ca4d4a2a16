"""What a person sees of a running training, and what stays of it in the run's folder.

On a terminal: a progress bar with loss, rate, images per second and time left.
Otherwise (a file, a batch queue): one line per logged iteration.  In the folder:
`train.log`, `metrics.csv`, `scores.csv`, and TensorBoard event files.  Only the first
process writes or prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.progress import format_seconds, progress_bar
from cgrseg.training.tables import METRICS, SCORES, RunTable
from cgrseg.training.transcript import Transcript, print_line

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
        eval_interval: iterations between evaluations; none: no evaluation.
        loggers: Lightning loggers (TensorBoard and the like).
        transcript: takes the lines; not active in every process but the first: then nothing is
            written or shown.
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
        eval_interval: int | None = None,
        loggers: Sequence[Any] = (),
        transcript: Transcript | None = None,
    ) -> None:
        self.end = end
        self.images = images_per_iteration
        self.loggers = list(loggers)
        self.transcript = Transcript() if transcript is None else transcript
        self.active = self.transcript.active
        self._pace = Pace(start, end, eval_interval)
        self._told_duration = False
        self._progress: Any = None
        self._task: Any = None
        self._shown = 0.0
        if self.active:
            columns = [*loss_columns, "acc_seg", "rate", "images_per_second", "memory_gib"]
            self._metrics = RunTable(run_dir / METRICS, columns, keep_until=start)
            self._scores = RunTable(run_dir / SCORES, score_columns, keep_until=start)

    def open(self) -> None:
        """Show the progress bar and start the clock."""
        self._pace.restart()
        if not self.active:
            return
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            return
        self._progress = progress_bar(console)
        self._task = self._progress.add_task("training", total=self.end, text="")
        self._progress.start()
        self.transcript.show = lambda text: console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the progress bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self.transcript.show = print_line

    def say(self, text: str) -> None:
        """Print a line and add it to the log."""
        self.transcript.say(text)

    def tick(self, iteration: int, loss: Any, rate: float) -> None:
        """Note that an iteration is done; the bar follows about once a second.

        Args:
            iteration: optimiser steps done.
            loss: of the last batch, a scalar tensor (read only when it is shown).
            rate: of the base group.
        """
        self._pace.step()
        if not self._told_duration and self._pace.is_measured:
            self._told_duration = True
            self._tell_duration(iteration)
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

    def _tell_duration(self, iteration: int) -> None:
        """Say how long the rest takes on this machine, once a few iterations were measured."""
        rest = self.end - iteration
        if rest <= 0:
            return
        evaluations = self._pace.evaluations_left(iteration)
        plural = "s" if evaluations > 1 else ""
        unknown = f", and {evaluations} evaluation{plural} on top" if evaluations else ""
        if self._pace.knows_evaluations:
            unknown = ", evaluations included"
        self.say(
            f"duration: about {format_seconds(self._pace.seconds_left(iteration))} for the "
            f"remaining {rest} iterations on this machine ("
            f"{self._pace.per_second * self.images:.1f} images/s){unknown}"
        )

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
    """How fast iterations go, evaluations left out, and how long the rest will take.

    The first iteration does not count: it fills caches, and may compile.

    Args:
        start: iteration that this part of the run starts from.
        end: iteration that the run ends at.
        eval_interval: iterations between evaluations; none: no evaluation.
        clock: gives seconds.
    """

    _LEAST_STEPS, _ENOUGH_STEPS, _ENOUGH_SECONDS = 3, 20, 2.0

    def __init__(
        self,
        start: int,
        end: int,
        eval_interval: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._end = end
        self._eval_interval = eval_interval
        self._clock = clock
        self._interval_start = start
        self._steps = 0
        self._evaluations: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Start the clock again."""
        self._begun = self._interval_begun = self._clock()
        self._excluded = self._interval_excluded = 0.0

    def step(self) -> None:
        """Count one iteration."""
        self._steps += 1
        if self._steps == 1:
            self._first = self._clock() - self._begun - self._excluded
            self._begun, self._excluded = self._clock(), 0.0

    def exclude(self, seconds: float) -> None:
        """Count seconds of an evaluation."""
        self._evaluations.append(seconds)
        self._excluded += seconds
        self._interval_excluded += seconds

    @property
    def per_second(self) -> float:
        """Iterations per second of training; 0 before the first one."""
        if not self._steps:
            return 0.0
        spent = self._clock() - self._begun - self._excluded
        if self._steps == 1:
            return 1 / self._first if self._first > 0 else 0.0
        return (self._steps - 1) / spent if spent > 0 else 0.0

    @property
    def is_measured(self) -> bool:
        """Whether enough iterations were timed for an estimate."""
        timed, spent = self._steps - 1, self._clock() - self._begun - self._excluded
        enough = timed >= self._ENOUGH_STEPS or spent >= self._ENOUGH_SECONDS
        return timed >= self._LEAST_STEPS and enough

    @property
    def knows_evaluations(self) -> bool:
        """Whether an evaluation was timed."""
        return bool(self._evaluations)

    def interval_speed(self, iteration: int) -> float:
        """Iterations per second since the last call."""
        now = self._clock()
        spent = now - self._interval_begun - self._interval_excluded
        steps = iteration - self._interval_start
        self._interval_begun, self._interval_start = now, iteration
        self._interval_excluded = 0.0
        return steps / spent if spent > 0 else 0.0

    def evaluations_left(self, iteration: int) -> int:
        """Evaluations from an iteration to the end of the run, without that iteration's own."""
        if self._eval_interval is None or iteration >= self._end:
            return 0
        last = 1 if self._end % self._eval_interval else 0
        return self._end // self._eval_interval - iteration // self._eval_interval + last

    def seconds_left(self, iteration: int) -> float:
        """Estimate for the rest, with evaluations as long as they took so far.

        NaN before the first iteration; evaluations count once one was timed.
        """
        if not self.per_second:
            return float("nan")
        seconds = (self._end - iteration) / self.per_second
        if self._evaluations:
            mean = sum(self._evaluations) / len(self._evaluations)
            seconds += self.evaluations_left(iteration) * mean
        return seconds
