"""Work after each optimizer step: count, log, check for non-finite numbers, save, evaluate, stop.

The checkpoint is written before the evaluation: a run that dies during an evaluation has lost
nothing, and evaluates again when it resumes.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from cgrseg.config.schema import Config
from cgrseg.distributed import Exchange
from cgrseg.evaluation.metrics import SegmentationScores
from cgrseg.training.checkpointing import BEST, LATEST, CheckpointKeeper
from cgrseg.training.data_source import DataSource
from cgrseg.training.failures import BadNumbers, TrainingProblem, bad_numbers
from cgrseg.training.journal import ImageCollector, Journal
from cgrseg.training.module import TrainingModule
from cgrseg.training.resuming import restore_optimizer
from cgrseg.training.stopping import StopNow, StopRequest


class RunCallback(lightning.Callback):
    """Lightning callback with the bookkeeping of a training.

    Args:
        config: config of the run.
        run_dir: run folder.
        journal: receives losses and scores.
        keeper: writes checkpoints.
        source: evaluates, and knows the files of a batch.
        checkpoint: state to resume from, if any.

    Attributes:
        stopped_by: signal that ended the training early, if any.
        scores: scores of the last evaluation.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        journal: Journal,
        keeper: CheckpointKeeper,
        source: DataSource,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.journal = journal
        self.keeper = keeper
        self.source = source
        self.checkpoint = checkpoint
        self.exchange = Exchange()
        self.stop = StopRequest(self.exchange)
        self.stopped_by: signal.Signals | None = None
        self.scores: SegmentationScores | None = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Compare the start of all processes, restore the optimizer, show the progress."""
        if self.exchange.several:
            self.stop.end_on_sigterm()
        self._agree_on_the_start(module.iteration)
        self.stop.take_signals()
        if self.checkpoint is not None:
            restore_optimizer(trainer, self.checkpoint)
            self.checkpoint = None
        self.journal.open()
        evaluated = {iteration for iteration, _ in self.keeper.history}
        due = module.iteration and self._evaluates_at(module.iteration, evaluated)
        # Only the first process has the history, a file in its run folder.
        if self.exchange.gather(due)[0]:
            trainer.should_stop = not self._evaluate(
                module, module.device, trainer.global_rank, trainer.world_size
            )

    def finish(self, module: TrainingModule, device: torch.device) -> None:
        """Run the missing last evaluation of a finished training, in the first process only."""
        evaluated = {iteration for iteration, _ in self.keeper.history}
        if self.keeper.active and self._evaluates_at(module.iteration, evaluated):
            module.to(device)
            module.evaluated_model.to(device)
            self._evaluate(module, device, 0, 1)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; after an optimizer step, do the work that is due."""
        if not module.completes_iteration:
            return
        logged = module.logs_next
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        rate /= trainer.optimizers[0].param_groups[0]["lr_multiplier"]
        module.finish_iteration()
        iteration = module.iteration
        last = iteration >= self.config.schedule.max_iters
        interval = self.config.train.checkpoint_interval or self.config.train.eval_interval
        asked = self.stop.agreed()
        stopping = asked is not None and not last
        evaluates = self._evaluates_at(iteration, set())
        saves = last or stopping or evaluates or iteration % interval == 0
        if logged or saves:
            self._refuse_bad_numbers(module, trainer.optimizers[0], rate, weights=saves)
        self.journal.tick(iteration, module.last_loss, rate)
        if logged:
            self._log(trainer, module, rate)
        if saves:
            self.keeper.save_latest(module, trainer)
        if stopping:
            # No process ends before the first one has written: many launchers end all
            # processes soon after one has ended.
            self.exchange.largest(0)
            trainer.should_stop = True
            self.stopped_by = asked
        elif evaluates and not self._evaluate(
            module, module.device, trainer.global_rank, trainer.world_size
        ):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Remove the progress bar."""
        self.journal.close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Remove the progress bar when training fails."""
        self.journal.close()

    def _agree_on_the_start(self, iteration: int) -> None:
        """Refuse to train when processes start at different iterations or in other precisions."""
        precisions = self.exchange.gather(self.config.train.precision)
        if len(set(precisions)) > 1:
            chosen = [f"{name} in process {rank}" for rank, name in enumerate(precisions)]
            raise TrainingProblem(
                "train.precision",
                found=f"different machines, different precisions ({', '.join(chosen)})",
                expected="one precision in all processes",
                remedy="set train.precision=fp32, or bf16 if all machines compute it fast",
            )
        starts = self.exchange.gather(iteration)
        if len(set(starts)) == 1:
            return
        others = [f"{start} in process {rank}" for rank, start in enumerate(starts)]
        raise TrainingProblem(
            self.run_dir,
            found=f"the processes start at different iterations ({', '.join(others)})",
            expected="the same checkpoint everywhere",
            remedy="put the run folder on a file system that all machines share, or copy "
            f"that of the first machine ({LATEST} and its tables) to every one",
        )

    def _evaluates_at(self, iteration: int, evaluated: set[int]) -> bool:
        due = (
            iteration % self.config.train.eval_interval == 0
            or iteration >= self.config.schedule.max_iters
        )
        return self.config.train.evaluate and due and iteration not in evaluated

    def _evaluate(
        self, module: TrainingModule, device: torch.device, rank: int, world_size: int
    ) -> bool:
        """Evaluate, log, select the best; false when training should end."""
        begun = time.monotonic()
        collector = ImageCollector(
            self.config.train.log_images if rank == 0 else 0, self.source.spec
        )
        self.exchange.share_buffers(module.evaluated_model)
        try:
            with self.stop.interruptible():
                self.scores = self.source.evaluate(
                    module.evaluated_model,
                    device,
                    rank,
                    world_size,
                    sinks=[collector],
                    ready=self.stop.settle,
                )
        except StopNow:
            self.journal.say(f"evaluation at {module.iteration} aborted by a signal")
            self.stopped_by = self.stop.last_agreed
            return False
        # The row in scores.csv comes last: it marks this evaluation as finished.
        is_best = self.keeper.note_scores(module, self.scores.mean_iou)
        values = flat_scores(self.scores, self.source.spec.classes)
        self.journal.log_images(module.iteration, collector.panels)
        self.journal.log_scores(module.iteration, values, time.monotonic() - begun)
        if is_best:
            caution = self.scores.caution
            self.journal.say(
                f"kept as {self.run_dir / BEST}; warning: {caution}"
                if caution
                else f"best so far, kept as {self.run_dir / BEST}"
            )
        if self.exchange.gather(self.keeper.out_of_patience)[0]:
            self.journal.say(
                f"stopped early: {self.config.train.patience} evaluations without a better mIoU"
            )
            return False
        return True

    def _log(self, trainer: Any, module: TrainingModule, rate: float) -> None:
        report = module.take_report()
        values = {
            name: float(trainer.strategy.reduce(value.float(), reduce_op="mean"))
            for name, value in report.items()
        }
        on_gpu = module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(module.device) / 2**30 if on_gpu else 0.0
        self.journal.log_step(module.iteration, {**values, "rate": rate}, peak)

    def _refuse_bad_numbers(
        self, module: TrainingModule, optimizer: Any, rate: float, *, weights: bool
    ) -> None:
        """Stop all processes when one of them has a non-finite loss or non-finite weights."""
        bad = module.first_bad_iteration
        wrong = bad is not None or (weights and not module.is_finite(optimizer))
        if not self.exchange.largest(int(wrong)):
            return
        seen = module.iteration - 1 if bad is None else bad
        mine = BadNumbers(
            module.global_rank, bad, self._files(module, seen), self._files(module, seen - 1)
        )
        raise bad_numbers(
            self.config,
            self.run_dir,
            steps=module.iteration,
            rate=rate,
            reports=self.exchange.gather(mine),
            write=module.global_rank == 0,
        )

    def _files(self, module: TrainingModule, iteration: int) -> list[dict[str, Any]]:
        """Image and label files of an iteration in this process."""
        return self.source.describe(
            [index for seen, batch in module.recent if seen == iteration for index in batch]
        )


def score_columns(class_names: tuple[str, ...]) -> list[str]:
    """Columns of `scores.csv`: the means, then the IoU of every class."""
    means = ["mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall", "fwIoU"]
    return means + [f"IoU.{name}" for name in class_names]


def flat_scores(scores: SegmentationScores, class_names: tuple[str, ...]) -> dict[str, float]:
    """Scores in 0..1 by the names that :func:`score_columns` gives."""
    per_class = {
        f"IoU.{name}": float(value) for name, value in zip(class_names, scores.iou, strict=True)
    }
    return {**scores.summary(), **per_class}
