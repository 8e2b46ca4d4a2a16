"""Progress, log, tables and loggers of a running training.

On a terminal: a progress bar with loss, rate, images per second and time left.  Otherwise (a file,
a batch queue): one line per logged iteration.  In the run folder: `train.log`, `metrics.csv`,
`scores.csv` and TensorBoard event files.  Only the first process writes or prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.config.schema import Config
from cgrseg.data.channels import as_picture
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.extras import EXTRAS, require
from cgrseg.files import atomic_write_text
from cgrseg.inference.decode import Segmentation
from cgrseg.input_files import read_input_text
from cgrseg.progress import format_seconds, progress_bar
from cgrseg.training.run_log import METRICS, SCORES, RunTable, Transcript, print_line
from cgrseg.visual.overlay import overlay

_BAR_SECONDS = 1.0
_PANEL_HEIGHT = 256  # pixels: readable, and small enough to log often
_OPACITY = 0.6


class Journal:
    """Progress, log, tables and loggers of one run.

    Args:
        run_dir: run folder, which exists.
        start: first iteration of this part of the run.
        end: last iteration of the run.
        loss_columns: names of the logged loss terms.
        score_columns: names of the logged scores.
        images_per_iteration: number of images of all processes together.
        eval_interval: number of iterations between evaluations; None: no evaluation.
        loggers: Lightning loggers, such as TensorBoard.
        transcript: receives the lines; where it is not active, nothing is written or shown.
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
        self._printed_duration = False
        self._progress: Any = None
        self._task: Any = None
        self._shown = 0.0
        if self.active:
            columns = [*loss_columns, "acc_seg", "rate", "images_per_second", "memory_gib"]
            self._metrics = RunTable(run_dir / METRICS, columns, keep_until=start)
            self._scores = RunTable(run_dir / SCORES, score_columns, keep_until=start)

    def open(self) -> None:
        """Show the progress bar (on a terminal) and start the clock."""
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
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self.transcript.show = print_line

    def say(self, text: str) -> None:
        """Print a line and add it to the log."""
        self.transcript.say(text)

    def tick(self, iteration: int, loss: Any, rate: float) -> None:
        """Count an iteration; the bar is updated about once a second.

        Args:
            iteration: number of optimizer steps done.
            loss: loss of the last batch, a scalar tensor (read only when it is shown).
            rate: learning rate of the base group.
        """
        self._pace.step()
        if not self._printed_duration and self._pace.is_measured:
            self._printed_duration = True
            self._print_duration(iteration)
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

    def _print_duration(self, iteration: int) -> None:
        """Print the estimated duration, once a few iterations were measured."""
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
            iteration: number of optimizer steps done.
            values: loss terms, `acc_seg` (percent) and `rate`.
            memory_gib: peak memory of the device so far, in GiB; 0 on the CPU.
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
        """Log the scores (0..1) of an evaluation that took `seconds`."""
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

    def log_images(self, iteration: int, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Log images, RGB uint8 (H, W, 3) by name."""
        for logger in self.loggers:
            show = getattr(logger, "log_image", None)
            run_id = getattr(logger, "run_id", None)
            for name, image in images.items():
                if show is not None:  # Weights & Biases
                    show(key=f"eval/{name}", images=[image], step=iteration)
                elif run_id is not None:  # MLflow
                    logger.experiment.log_image(run_id, image, key=f"eval/{name}", step=iteration)
                else:
                    logger.experiment.add_image(f"eval/{name}", image, iteration, dataformats="HWC")


class Pace:
    """Speed of the iterations without evaluations, and estimate of the time left.

    The first iteration does not count: it fills caches, and may compile.

    Args:
        start: first iteration of this part of the run.
        end: last iteration of the run.
        eval_interval: number of iterations between evaluations; None: no evaluation.
        clock: returns seconds.
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
        """Restart the clock."""
        self._begun = self._interval_begun = self._clock()
        self._excluded = self._interval_excluded = 0.0

    def step(self) -> None:
        """Count one iteration."""
        self._steps += 1
        if self._steps == 1:
            self._first = self._clock() - self._begun - self._excluded
            self._begun, self._excluded = self._clock(), 0.0

    def exclude(self, seconds: float) -> None:
        """Exclude the seconds of an evaluation."""
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
        """Number of evaluations after an iteration, until the end of the run."""
        if self._eval_interval is None or iteration >= self._end:
            return 0
        last = 1 if self._end % self._eval_interval else 0
        return self._end // self._eval_interval - iteration // self._eval_interval + last

    def seconds_left(self, iteration: int) -> float:
        """Estimated time left; NaN before the first iteration.

        Evaluations count with their mean duration, once one was timed.
        """
        if not self.per_second:
            return float("nan")
        seconds = (self._end - iteration) / self.per_second
        if self._evaluations:
            mean = sum(self._evaluations) / len(self._evaluations)
            seconds += self.evaluations_left(iteration) * mean
        return seconds


class ImageCollector:
    """Collects logged images: the first images of an evaluation with label and prediction.

    Args:
        count: number of images.
        spec: dataset, for the palette.

    Attributes:
        panels: RGB uint8 (256, W, 3) by file stem.
    """

    def __init__(self, count: int, spec: DatasetSpec) -> None:
        self.count = count
        self.spec = spec
        self.panels: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Add an item of the split with its prediction, up to the number of images."""
        if len(self.panels) < self.count:
            image = as_picture(item["image"], item["channels"])
            self.panels[str(item["stem"])] = side_by_side(
                image, item["label"], found.labels, self.spec
            )


def side_by_side(
    image: NDArray[np.uint8],
    label: NDArray[np.integer],
    predicted: NDArray[np.integer],
    spec: DatasetSpec,
) -> NDArray[np.uint8]:
    """Image, label overlay and prediction overlay, from left to right: RGB uint8 (256, W', 3).

    Args:
        image: RGB uint8 (H, W, 3).
        label: class ids (H, W); ignored pixels show the image.
        predicted: class ids (H, W).
        spec: dataset, for the palette.
    """
    height, width = image.shape[:2]
    size = (max(1, round(width * _PANEL_HEIGHT / height)), _PANEL_HEIGHT)
    method = cv2.INTER_AREA if height > _PANEL_HEIGHT else cv2.INTER_LINEAR
    small = np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
    panels = [small]
    for ids in (label, predicted):
        resized = cv2.resize(ids.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)
        panels.append(overlay(small, np.asarray(resized), spec.palette, _OPACITY))
    return np.concatenate(panels, axis=1)


def make_loggers(config: Config, run_dir: Path, start: int) -> list[Any]:
    """TensorBoard in the run folder; Weights & Biases and MLflow where the settings ask."""
    from lightning.pytorch.loggers import TensorBoardLogger

    loggers: list[Any] = [
        # Events beyond the checkpoint are purged: a resumed run repeats them.
        TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=start + 1)
    ]
    if config.train.wandb:
        loggers.append(wandb_logger(config, run_dir))
    if config.train.mlflow:
        loggers.append(mlflow_logger(config, run_dir))
    return loggers


def wandb_logger(config: Config, run_dir: Path) -> Any:
    """Lightning's logger for Weights & Biases; a resumed run continues the same chart.

    Raises:
        EnvironmentProblem: the package is not installed.
    """
    require("wandb", "train.wandb", otherwise="or set train.wandb=false")
    from lightning.pytorch.loggers import WandbLogger

    marker = run_dir / "wandb_id.txt"
    known = read_input_text(marker).strip() if marker.is_file() else None
    logger = WandbLogger(
        name=config.name,
        project="cgrseg",
        save_dir=run_dir,
        id=known,
        resume="allow",
        config=config.model_dump(mode="json"),
    )
    if known is None:
        atomic_write_text(marker, str(logger.experiment.id))
    return logger


def mlflow_logger(config: Config, run_dir: Path) -> Any:
    """Lightning's logger for MLflow; a resumed run continues the same MLflow run.

    The store is that of the variable `MLFLOW_TRACKING_URI`, else `mlflow.db` in the run folder.

    Raises:
        EnvironmentProblem: the package is not installed.
    """
    for package in EXTRAS["mlflow"]:
        require(package, "train.mlflow", otherwise="or set train.mlflow=false")
    from lightning.pytorch.loggers import MLFlowLogger

    marker = run_dir / "mlflow_id.txt"
    known = read_input_text(marker).strip() if marker.is_file() else None
    server, folder = os.environ.get("MLFLOW_TRACKING_URI"), run_dir.resolve()
    logger = MLFlowLogger(
        experiment_name="cgrseg",
        run_name=config.name,
        tracking_uri=server or f"sqlite:///{folder / 'mlflow.db'}",
        artifact_location=None if server else (folder / "mlflow_artifacts").as_uri(),
        run_id=known,
    )
    if known is None:
        logger.log_hyperparams(config.model_dump(mode="json"))
        atomic_write_text(marker, str(logger.run_id))
    return logger
