"""`train(config)`: from settings to a trained network in a run's folder.

Everything that can be wrong is looked at before the first iteration: devices, data,
the run's folder, the checkpoint to resume from.  Lightning's Trainer runs the loop
(devices, processes, precision, accumulation, clipping); checkpoints, random numbers
and bookkeeping are ours, because a resumed run must end with the same weights as one
that was left alone.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cgrseg.config.loading import as_config
from cgrseg.config.schema import Config
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import Placement, find_placement
from cgrseg.errors import CGRSegError, option
from cgrseg.evaluation.metrics import SegmentationScores
from cgrseg.files import make_folder, write_json
from cgrseg.locks import output_lock
from cgrseg.models import CGRSeg, create_model, load_weights
from cgrseg.processes import is_first_process
from cgrseg.training.announcement import (
    announce_settings,
    headline,
    refuse_random_backbone,
    weights_line,
)
from cgrseg.training.callback import RunCallback, score_columns
from cgrseg.training.checkpointing import BEST, LATEST
from cgrseg.training.failures import readable_failures, refuse_too_large
from cgrseg.training.journal import Journal
from cgrseg.training.keeper import Keeper, refuse_other_optimizer, restore_weights
from cgrseg.training.module import TrainingModule
from cgrseg.training.resuming import (
    Checkpoint,
    data_record,
    find_checkpoint,
    refuse_occupied,
    refuse_other_data,
    stored_precision,
)
from cgrseg.training.sources import DatasetSource, Source
from cgrseg.training.stopping import GiveUp
from cgrseg.training.tables import SCORES, damaged_table, read_table
from cgrseg.training.trainer import settle_precision, trainer_options
from cgrseg.training.transcript import LOG, Transcript

CONFIG = "config.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Attributes:
        work_dir: the run's folder.
        best: checkpoint of the best evaluation, when there was one.
        scores: of the last evaluation that this part of the run made.
        metrics: means of the last evaluation of the run by name (0..1), empty without one.
        iterations: optimiser steps done in all.
        latest: checkpoint to resume from.
        stopped_by: the signal that ended the training early, if any.
    """

    work_dir: Path
    best: Path | None
    scores: SegmentationScores | None
    metrics: dict[str, float]
    iterations: int
    latest: Path
    stopped_by: signal.Signals | None = None


def train(
    config: Config | str | Path,
    *,
    device: str = "auto",
    resume_from: Path | str | None = None,
    auto_resume: bool = False,
) -> TrainResult:
    """Train a network as the settings say.

    Args:
        config: the run, or a preset's name, a file or a run's folder that gives one
            (:func:`cgrseg.load_config`, which also takes changes); its folder is
            `config.run_dir`.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:<number>" or "mps".
        resume_from: checkpoint of an earlier part of this run to go on from.
        auto_resume: go on from `latest.pth` in the run's folder when it is there.

    Returns:
        Where everything is, and the last scores.

    Raises:
        CGRSegError: anything that the settings, the data or the machine lack; the
            message says what to do.  Nothing of an earlier run is overwritten.
    """
    config = as_config(config)
    transcript = Transcript(is_first_process())
    with contextlib.ExitStack() as stack:
        stack.enter_context(transcript.recording())
        transcript.say(headline(config))
        placement = find_placement(device)
        run_dir = Path(config.run_dir)
        if placement.rank == 0:  # the other processes of a job write nothing
            stack.enter_context(output_lock(run_dir))
        checkpoint = find_checkpoint(run_dir, resume_from, auto_resume)
        refuse_occupied(run_dir, checkpoint)
        if auto_resume and checkpoint is None:
            transcript.say(
                f"{run_dir} holds nothing to go on from: this run starts at its beginning"
            )
        source = DatasetSource(config, placement)
        return train_on(source, config, placement, checkpoint, transcript=transcript)


def train_on(
    source: Source,
    config: Config,
    placement: Placement,
    checkpoint: Checkpoint | None = None,
    model: CGRSeg | None = None,
    *,
    transcript: Transcript | None = None,
) -> TrainResult:
    """Train on any source of batches.

    Args:
        source: batches, evaluation and class names.
        config: the run.
        placement: device and processes.
        checkpoint: what to resume from, if anything.
        model: the network to train; none: the one that the settings describe.
        transcript: what was said so far; none: nothing.

    Returns:
        As :func:`train`.
    """
    if transcript is None:
        transcript = Transcript(placement.rank == 0)
        transcript.say(headline(config))
    try:
        with transcript.recording():
            return _train_on(source, config, placement, checkpoint, model, transcript)
    except CGRSegError as error:
        with contextlib.suppress(CGRSegError):  # the log cannot be written, which says less
            transcript.keep(f"error: {error}")
        raise


def _train_on(
    source: Source,
    config: Config,
    placement: Placement,
    checkpoint: Checkpoint | None,
    model: CGRSeg | None,
    transcript: Transcript,
) -> TrainResult:
    config, precision = settle_precision(config, placement, stored_precision(checkpoint))
    options = trainer_options(config, placement)
    refuse_too_large(config, placement.kind, placement.description)
    transcript.say(f"device: {placement.description}; precision: {precision}")
    run_dir = Path(config.run_dir)
    data = data_record(source.spec, source.image_lists())
    if checkpoint is not None:
        checkpoint = refuse_other_data(checkpoint, source.spec, data, config.train.accept_data)
    start = 0 if checkpoint is None else int(checkpoint.state["training"]["iteration"])
    if model is None:
        torch.manual_seed(config.train.seed)
        fresh = checkpoint is None
        model = build_model(config, source.spec, fresh=fresh, say=transcript.say)
    if config.train.precision == "fp64":
        # Lightning would do it too, but only after the checkpoint's weights were cut to fit.
        model = model.double()
    module = TrainingModule(model, config, source.spec.num_classes, start)
    if checkpoint is not None:
        restore_weights(module, checkpoint.state)
        refuse_other_optimizer(module, checkpoint.state)
    # Only now, when the run can go on: a refused one leaves its folder as it was.
    if placement.rank == 0:
        make_folder(run_dir)
        write_json(run_dir / CONFIG, config.model_dump(mode="json"))
        transcript.write_to(run_dir / LOG)
    try:
        with _quiet_lightning(), readable_failures(config, placement.description, run_dir):
            meta = {**model_meta(module.model), "data": data}
            return _run(
                config, placement, options, run_dir, source, module, checkpoint, transcript, meta
            )
    except GiveUp:
        raise KeyboardInterrupt from None


def build_model(
    config: Config,
    spec: DatasetSpec,
    *,
    fresh: bool,
    say: Callable[[str], None] = lambda text: None,
) -> CGRSeg:
    """The network of a run, with the weights that it starts from.

    Args:
        config: the run.
        spec: gives classes and palette.
        fresh: load `model.pretrained` and `train.load_from`; false when a checkpoint
            replaces all weights anyway.
        say: is told where the weights come from.
    """
    settings = config.model
    model = create_model(
        settings.name,
        spec.num_classes,
        context_blocks=settings.context_blocks,
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        freeze_norm=settings.freeze_norm,
        freeze_backbone=settings.freeze_backbone,
        attention_bias=settings.attention_bias,
        classes=spec.classes,
        palette=spec.palette,
        preprocessing=config.test.model_dump(mode="json"),
    )
    if settings.freeze_backbone and fresh:
        refuse_random_backbone(config)
    if fresh and settings.pretrained is not None:
        say(str(load_weights(model, settings.pretrained, part="backbone", verbose=False)))
    if fresh and config.train.load_from is not None:
        say(str(load_weights(model, config.train.load_from, verbose=False)))
    elif fresh and settings.pretrained is None:
        say(weights_line(config))
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _run(
    config: Config,
    placement: Placement,
    options: dict[str, Any],
    run_dir: Path,
    source: Source,
    module: TrainingModule,
    checkpoint: Checkpoint | None,
    transcript: Transcript,
    meta: dict[str, Any],
) -> TrainResult:
    start, end = module.iteration, config.schedule.max_iters
    first = placement.rank == 0
    loggers = make_loggers(config, run_dir, start) if first else []
    journal = Journal(
        run_dir,
        start=start,
        end=end,
        loss_columns=_loss_columns(config),
        score_columns=score_columns(source.spec.classes),
        images_per_iteration=source.images_per_iteration,
        eval_interval=config.train.eval_interval if config.train.evaluate else None,
        loggers=loggers,
        transcript=transcript,
    )
    keeper = Keeper(run_dir, config, meta, start=start, active=first)
    callback = RunCallback(
        config,
        run_dir,
        journal,
        keeper,
        source,
        checkpoint=None if checkpoint is None else checkpoint.state,
    )
    # Several processes listen from their first step on: before it, one that waits for others
    # must not hold up the launcher that wants to end it.
    with callback.stop.listening(at_once=placement.world_size == 1):
        announce_settings(config, placement, journal.say, checkpoint, source)
        if start < end and keeper.out_of_patience:
            journal.say(
                f"this run was stopped early: {keeper.evaluations_without_progress} evaluations "
                "without a better mIoU; a larger train.patience, or null, trains on"
            )
        elif start < end:
            trainer = lightning.Trainer(
                **options,
                max_steps=end - start,
                max_epochs=-1,
                accumulate_grad_batches=config.train.accumulate,
                gradient_clip_val=config.optimizer.clip_norm,
                callbacks=[callback],
                logger=loggers,
                default_root_dir=run_dir,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            try:
                trainer.fit(module, train_dataloaders=source.batches(start))
            except SIGTERMException:
                # The signal came while Lightning's handler was in place, before the first step.
                callback.stopped_by = callback.stopped_by or signal.SIGTERM
        else:
            callback.finish(module, placement.torch_device)
    stopped = callback.stopped_by
    latest, best = run_dir / LATEST, run_dir / BEST
    if stopped is not None:
        kept = ""
        if latest.is_file():
            kept = f"; {latest} has everything, go on with {option('--resume')}"
        journal.say(f"stopped by {stopped.name} after iteration {module.iteration}{kept}")
    return TrainResult(
        work_dir=run_dir,
        best=best if best.is_file() else None,
        scores=callback.scores,
        metrics=last_metrics(run_dir),
        iterations=module.iteration,
        latest=latest,
        stopped_by=stopped,
    )


def model_meta(model: Any) -> dict[str, Any]:
    """What a checkpoint says about its network, so that it can be built from the file alone."""
    return {
        "variant": model.variant,
        "context_blocks": model.context_blocks,
        "classes": None if model.classes is None else list(model.classes),
        "palette": None if model.palette is None else [list(colour) for colour in model.palette],
    }


def last_metrics(run_dir: Path) -> dict[str, float]:
    """Means of the last evaluation in a run's `scores.csv` (0..1), empty without one."""
    rows = read_table(run_dir / SCORES)
    if not rows:
        return {}
    try:
        return {
            name: float(value)
            for name, value in rows[-1].items()
            if name != "iteration" and not name.startswith("IoU.") and value
        }
    except ValueError as error:
        raise damaged_table(run_dir / SCORES, str(error)) from error


def make_loggers(config: Config, run_dir: Path, start: int) -> list[Any]:
    """TensorBoard in the run's folder, and Weights & Biases when the settings say so."""
    from lightning.pytorch.loggers import TensorBoardLogger

    loggers: list[Any] = [
        # Events from beyond the checkpoint, which a resumed run repeats, are purged.
        TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=start + 1)
    ]
    if config.train.wandb:
        from cgrseg.training.tracking import wandb_logger

        loggers.append(wandb_logger(config, run_dir))
    return loggers


def _loss_columns(config: Config) -> list[str]:
    columns = ["loss", "loss_ce"]
    if config.loss.dice_weight > 0:
        columns.append("loss_dice")
    if config.loss.initial_weight > 0:
        columns.append("loss_initial")
    return columns


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep advice out of the log that does not apply here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in (
                ".*does not have many workers.*",
                ".*This DataLoader will create.*",
                ".*no `val_dataloader`.*",
                ".*GPU available but not used.*",
                ".*Checkpoint directory.*",
                ".*module\\(s\\) in eval mode.*",
                ".*`isinstance\\(treespec, LeafSpec\\)`.*",
            ):
                warnings.filterwarnings("ignore", message=advice)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
