"""What happens after every optimiser step, in one place and in one order.

Count it, log it, refuse to go on with a loss that is no number, write the checkpoint,
evaluate, end early.  The checkpoint comes before the evaluation: a run that dies
while it evaluates has lost nothing, and evaluates again when it resumes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import nn

from cgrseg.config.schema import Config
from cgrseg.evaluation.metrics import SegmentationScores
from cgrseg.training.failures import bad_loss
from cgrseg.training.journal import Journal
from cgrseg.training.keeper import Keeper, device_memory_gib, restore_optimizer
from cgrseg.training.module import TrainingModule
from cgrseg.training.stopping import StopNow, StopRequest

#: Scores a network on the evaluation split: network, device, rank, world size.
Evaluate = Callable[[nn.Module, torch.device, int, int], SegmentationScores]


class RunCallback(lightning.Callback):
    """Runs the bookkeeping of one training.

    Args:
        config: the run.
        run_dir: its folder.
        journal: where numbers go.
        keeper: where checkpoints go.
        evaluate: scores the module's weights on the evaluation split, over all processes.
        describe: image and label paths of dataset indices, for messages.
        class_names: classes in id order, for the columns of scores.
        checkpoint: what to resume from, if anything.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        journal: Journal,
        keeper: Keeper,
        evaluate: Evaluate,
        describe: Callable[[list[int]], list[dict[str, Any]]],
        class_names: tuple[str, ...],
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.journal = journal
        self.keeper = keeper
        self.evaluate = evaluate
        self.describe = describe
        self.class_names = class_names
        self.checkpoint = checkpoint
        self.stop = StopRequest()
        self.stopped_by: signal.Signals | None = None
        self.scores: SegmentationScores | None = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Restore the optimiser, then take over signals and show the progress."""
        self.stop.install()
        if self.checkpoint is not None:
            restore_optimizer(trainer, self.checkpoint)
            self.checkpoint = None
        self.journal.open()
        evaluated = {iteration for iteration, _ in self.keeper.history}
        if module.iteration and self._evaluates_at(module.iteration, evaluated):
            trainer.should_stop = not self._evaluate(
                module, module.device, trainer.global_rank, trainer.world_size
            )

    def finish(self, module: TrainingModule, device: torch.device) -> None:
        """Make up for the last evaluation of a run whose training is over.

        Args:
            module: the module as it was after the last iteration.
            device: where to evaluate; one process does it alone.
        """
        evaluated = {iteration for iteration, _ in self.keeper.history}
        if self.keeper.active and self._evaluates_at(module.iteration, evaluated):
            module.to(device)
            module.evaluated_model.to(device)
            self._evaluate(module, device, 0, 1)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do what is due after this iteration."""
        if not module.completes_iteration:
            return
        logged = module.logs_next
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        rate /= trainer.optimizers[0].param_groups[0]["lr_multiplier"]
        module.finish_iteration()
        iteration = module.iteration
        last = iteration >= self.config.schedule.max_iters
        interval = self.config.train.checkpoint_interval or self.config.train.eval_interval
        stopping = self.stop.agreed() and not last
        evaluates = self._evaluates_at(iteration, set())
        saves = last or stopping or evaluates or iteration % interval == 0
        if logged or saves:
            self._refuse_bad_loss(module, rate)
        self.journal.tick(iteration, module.last_loss, rate)
        if logged:
            self._log(trainer, module, rate)
        if saves:
            self.keeper.save_latest(module, trainer)
        if evaluates and not stopping:
            stopping = not self._evaluate(
                module, module.device, trainer.global_rank, trainer.world_size
            )
        if stopping:
            trainer.should_stop = True
            self.stopped_by = self.stop.received

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Give back terminal and signals."""
        self.close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Give back terminal and signals when training fails."""
        self.close()

    def close(self) -> None:
        """Give back terminal and signals; harmless when repeated."""
        self.journal.close()
        self.stop.restore()

    def _evaluates_at(self, iteration: int, evaluated: set[int]) -> bool:
        due = (
            iteration % self.config.train.eval_interval == 0
            or iteration >= self.config.schedule.max_iters
        )
        return self.config.train.evaluate and due and iteration not in evaluated

    def _evaluate(
        self, module: TrainingModule, device: torch.device, rank: int, world_size: int
    ) -> bool:
        """Evaluate, log and rank; false when training should end."""
        begun = time.monotonic()
        try:
            with self.stop.interruptible():
                self.scores = self.evaluate(module.evaluated_model, device, rank, world_size)
        except StopNow:
            self.journal.say(f"evaluation at {module.iteration} given up: asked to stop")
            return False
        # The row in scores.csv comes last: it says that this evaluation is over and done with.
        is_best = self.keeper.note_scores(module, self.scores.mean_iou)
        values = flat_scores(self.scores, self.class_names)
        self.journal.log_scores(module.iteration, values, time.monotonic() - begun)
        if is_best:
            self.journal.say(f"best so far, kept as {self.run_dir / 'best.pth'}")
        if self.keeper.out_of_patience:
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
        self.journal.log_step(
            module.iteration, {**values, "rate": rate}, device_memory_gib(module.device)
        )

    def _refuse_bad_loss(self, module: TrainingModule, rate: float) -> None:
        bad = module.first_bad_iteration
        if bad is None:
            return
        indices = [
            index for iteration, batch in module.recent if iteration == bad for index in batch
        ]
        raise bad_loss(
            self.config,
            self.run_dir,
            iteration=bad + 1,
            files=self.describe(indices),
            rate=rate,
            rank=module.global_rank,
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
