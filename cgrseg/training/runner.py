"""`train(config)`: from settings to a trained network in a run folder.

Devices, data, run folder and checkpoint are checked before the first iteration.  Lightning's
Trainer runs the loop (devices, processes, precision, accumulation, clipping); checkpoints, random
numbers and bookkeeping are ours, because a resumed run must end with the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cgrseg.config.loading import as_config
from cgrseg.config.schema import Config
from cgrseg.devices import Placement, find_placement, keeping_all_freed_memory, use_threads
from cgrseg.errors import CGRSegError, hidden_secrets, option
from cgrseg.evaluation.metrics import SegmentationScores
from cgrseg.files import make_folder, write_json
from cgrseg.locks import output_lock
from cgrseg.models import CGRSeg
from cgrseg.processes import is_first_process
from cgrseg.training.auto import settle_batch_size
from cgrseg.training.callback import RunCallback, score_columns
from cgrseg.training.checkpointing import BEST, LATEST, ORIGIN, CheckpointKeeper, model_meta
from cgrseg.training.data_source import DatasetSource, DataSource
from cgrseg.training.distillation import Teacher
from cgrseg.training.failures import readable_failures, refuse_single_value, refuse_too_large
from cgrseg.training.initial_weights import load_initial_weights, locate_initial_weights
from cgrseg.training.journal import Journal, make_loggers
from cgrseg.training.losses import loss_columns
from cgrseg.training.module import TrainingModule, build_model
from cgrseg.training.optimizer import rate_factor
from cgrseg.training.resuming import (
    Checkpoint,
    changed_settings,
    data_record,
    find_checkpoint,
    refuse_occupied,
    refuse_other_data,
    refuse_other_optimizer,
    refuse_other_teacher,
    restore_weights,
    stored_precision,
    with_measurements_of,
)
from cgrseg.training.run_log import LOG, Transcript, last_metrics
from cgrseg.training.stopping import Abort
from cgrseg.training.trainer import quiet_lightning, settle_precision, trainer_options

_LOG = logging.getLogger("cgrseg.training")

CONFIG = "config.json"


@dataclass(frozen=True)
class TrainResult:
    """Result of a training.

    Attributes:
        work_dir: run folder.
        best: checkpoint of the best evaluation, if there was an evaluation.
        scores: scores of the last evaluation of this part of the run.
        metrics: means of the run's last evaluation by name (0..1); empty without an evaluation.
        iterations: number of optimizer steps done in all parts of the run.
        latest: checkpoint to resume from.
        stopped_by: signal that ended the training early, if any.
    """

    work_dir: Path
    best: Path | None
    scores: SegmentationScores | None
    metrics: dict[str, float]
    iterations: int
    latest: Path
    stopped_by: signal.Signals | None = None

    @property
    def exit_status(self) -> int:
        """Exit status of a command, 0 or 128 plus the number of the signal."""
        return 0 if self.stopped_by is None else 128 + int(self.stopped_by)


def _headline(config: Config) -> str:
    root = hidden_secrets(config.data.root)
    head = "" if config.model.head == "dpg" else f" with the {config.model.head} head"
    network = f"{config.model.name}{head}"
    return f"training {network} on {config.data.dataset} ({root}), into {config.run_dir}"


def train(
    config: Config | str | Path,
    *,
    device: str = "auto",
    resume_from: Path | str | None = None,
    auto_resume: bool = False,
) -> TrainResult:
    """Train a network; write checkpoints, tables and a log into `config.run_dir`.

    Args:
        config: a config, a preset's name, a config file or a run folder
            (:func:`cgrseg.load_config` also applies changes).
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:<number>" or "mps".
        resume_from: checkpoint of an earlier part of this run to resume from.
        auto_resume: resume from `latest.pth` in the run folder, if it is there.

    Raises:
        CGRSegError: a problem of settings, data or machine; the message says what to do.
            Nothing of an earlier run is overwritten.
    """
    config = as_config(config)
    transcript = Transcript(is_first_process())
    with contextlib.ExitStack() as stack:
        stack.enter_context(transcript.recording())
        transcript.say(_headline(config))
        use_threads(None)
        placement = find_placement(device)
        run_dir = Path(config.run_dir)
        if placement.rank == 0:  # the other processes write nothing
            stack.enter_context(output_lock(run_dir))
        checkpoint = find_checkpoint(run_dir, resume_from, auto_resume)
        refuse_occupied(run_dir, checkpoint)
        if auto_resume and checkpoint is None:
            transcript.say(
                f"{run_dir} has no checkpoint to resume from: this run starts from the beginning"
            )
        if checkpoint is None:
            locate_initial_weights(config, transcript.say)  # before the work on the data
        source = DatasetSource(with_measurements_of(checkpoint, config), placement)
        source.config = settle_batch_size(source.config, source.spec, placement, transcript.say)
        return train_on(source, source.config, placement, checkpoint, transcript=transcript)


def train_on(
    source: DataSource,
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
        config: config of the run.
        placement: device and processes.
        checkpoint: checkpoint to resume from, if any.
        model: the network to train; None: the one that the settings describe.
        transcript: lines printed so far; None: a new one.
    """
    if transcript is None:
        transcript = Transcript(placement.rank == 0)
        transcript.say(_headline(config))
    try:
        with transcript.recording():
            return _train_on(source, config, placement, checkpoint, model, transcript)
    except CGRSegError as error:
        with contextlib.suppress(CGRSegError):  # the log cannot be written; the error says more
            transcript.keep(f"error: {error}")
        raise


def _train_on(
    source: DataSource,
    config: Config,
    placement: Placement,
    checkpoint: Checkpoint | None,
    model: CGRSeg | None,
    transcript: Transcript,
) -> TrainResult:
    config, precision = settle_precision(config, placement, stored_precision(checkpoint))
    options = trainer_options(config, placement)
    refuse_too_large(config, placement.kind, placement.description)
    refuse_single_value(config)
    transcript.say(f"device: {placement.description}; precision: {precision}")
    run_dir = Path(config.run_dir)
    data = data_record(source.spec, source.image_lists())
    if checkpoint is not None:
        checkpoint = refuse_other_data(checkpoint, source.spec, data, config.train.accept_data)
    teacher = None if config.train.teacher is None else Teacher(config, source.spec)
    taught = {} if teacher is None else {"teacher": teacher.digest}
    if checkpoint is not None:
        refuse_other_teacher(checkpoint, taught)
    start = 0 if checkpoint is None else int(checkpoint.state["training"]["iteration"])
    origin = "" if checkpoint is None else str(checkpoint.state["meta"].get(ORIGIN, ""))
    if model is None:
        torch.manual_seed(config.train.seed)
        model = build_model(config, source.spec)
        if checkpoint is None:
            origin = load_initial_weights(model, config, transcript.say)
    if config.train.precision == "fp64":
        # Lightning would convert only after the checkpoint's weights were rounded.
        model = model.double()
    module = TrainingModule(model, config, source.spec.num_classes, start, teacher)
    if checkpoint is not None:
        restore_weights(module, checkpoint.state)
        refuse_other_optimizer(module, checkpoint.state)
    # Nothing before this point writes: a refused run leaves its folder unchanged.
    if placement.rank == 0:
        make_folder(run_dir)
        write_json(run_dir / CONFIG, config.model_dump(mode="json"))
        transcript.write_to(run_dir / LOG)
    on_cpu = placement.kind == "cpu"
    memory = keeping_all_freed_memory() if on_cpu else contextlib.nullcontext()
    try:
        with memory, quiet_lightning(), readable_failures(config, placement.description, run_dir):
            meta = {**model_meta(module.model), "data": data, ORIGIN: origin, **taught}
            return _run(
                config, placement, options, run_dir, source, module, checkpoint, transcript, meta
            )
    except Abort:
        raise KeyboardInterrupt from None


def _run(
    config: Config,
    placement: Placement,
    options: dict[str, Any],
    run_dir: Path,
    source: DataSource,
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
        loss_columns=loss_columns(
            config.loss, config.model.head, teacher=config.train.teacher is not None
        ),
        score_columns=score_columns(source.spec.classes),
        images_per_iteration=source.images_per_iteration,
        eval_interval=config.train.eval_interval if config.train.evaluate else None,
        loggers=loggers,
        transcript=transcript,
    )
    keeper = CheckpointKeeper(run_dir, config, meta, start=start, active=first)
    callback = RunCallback(
        config,
        run_dir,
        journal,
        keeper,
        source,
        checkpoint=None if checkpoint is None else checkpoint.state,
    )
    # Several processes handle signals from their first step on: before it, a process that waits
    # for others must not delay a launcher that ends it.
    with callback.stop.listening(at_once=placement.world_size == 1):
        _print_settings(config, placement, journal.say, checkpoint, source)
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
                # Lightning's handler caught the signal, before the first step.
                callback.stopped_by = callback.stopped_by or signal.SIGTERM
        else:
            callback.finish(module, placement.torch_device)
    stopped = callback.stopped_by
    latest, best = run_dir / LATEST, run_dir / BEST
    if stopped is not None:
        kept = ""
        if latest.is_file():
            kept = f"; {latest} has everything, resume with {option('--resume')}"
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


def _print_settings(
    config: Config,
    placement: Placement,
    say: Callable[[str], None],
    checkpoint: Checkpoint | None,
    source: DataSource,
) -> None:
    """Print data, schedule and resumed iteration; warn of a run shorter than its warm-up."""
    schedule, train = config.schedule, config.train
    sizes = ", then ".join("{}x{}".format(*part.crop_size) for part in config.augment.stages)
    warmup = f" after {schedule.warmup_iters} of warm-up" if schedule.warmup_iters else ""
    evaluation = f"evaluation every {train.eval_interval}" if train.evaluate else "no evaluation"
    counts = " and ".join(f"{len(stems)} {use}" for use, stems in source.image_lists().items())
    if config.model.freeze_backbone:
        say("frozen: the backbone keeps its weights and statistics; the head alone trains")
    say(f"data: {counts} images of {source.spec.title}")
    if config.data.extra:
        listed = ", ".join(f"{folder} {weight:g}" for folder, weight in config.data.extra.items())
        say(f"further training sets, each with its samples per sample of data.root: {listed}")
    if config.train.teacher is not None:
        say(f"teacher: {config.train.teacher}")
    for line in _without_effect(config):
        say(f"without effect: {line}")
    say(
        f"settings: {schedule.max_iters} iterations, {source.images_per_iteration} images per "
        f"iteration, crops of {sizes}, learning rate {config.optimizer.lr:g}{warmup}, "
        f"{evaluation}; all settings: {config.run_dir}/config.json"
    )
    if checkpoint is not None:
        for line in _resume_lines(config, placement, checkpoint):
            say(line)
    warning = short_run(config)
    if warning and placement.rank == 0:
        _LOG.warning(warning)


def _without_effect(config: Config) -> list[str]:
    """Settings that differ from their defaults and do nothing in this run, with the reason."""
    train, loss, head = config.train, config.loss, config.model.head
    idle = {"ssa": "the head is dpg"} if head != "ssa" else {}
    if head != "dpg":
        idle["initial_weight"] = f"the {head} head has loss.{head}.initial_weight"
    if train.teacher is None:
        names = ("distill_weight", "distill_temperature", "distill_features")
        idle |= dict.fromkeys(names, "there is no train.teacher")
    plain = type(loss)()
    lines = [
        f"loss.{name}{'.*' if name == 'ssa' else f'={getattr(loss, name):g}'}: {reason}"
        for name, reason in idle.items()
        if getattr(loss, name) != getattr(plain, name)
    ]
    if train.average_last and round(train.average_last * config.schedule.max_iters) < 2:
        lines.append(
            f"train.average_last={train.average_last:g}: less than two of "
            f"{config.schedule.max_iters} iterations"
        )
    return lines


def short_run(config: Config) -> str:
    """A warning for a run that ends before its warm-up; empty for other runs."""
    schedule = config.schedule
    if not schedule.warmup_iters or schedule.max_iters > schedule.warmup_iters:
        return ""
    peak = max(rate_factor(k, schedule) for k in range(schedule.max_iters))
    return (
        f"schedule.max_iters={schedule.max_iters} is not longer than "
        f"schedule.warmup_iters={schedule.warmup_iters}: the learning rate never exceeds "
        f"{100 * peak:.2g} % of optimizer.lr; set schedule.warmup_iters="
        f"{schedule.max_iters // 10}, or more iterations"
    )


def _resume_lines(config: Config, placement: Placement, checkpoint: Checkpoint) -> list[str]:
    """Iteration of a resumed run, and changes since its checkpoint."""
    iteration = checkpoint.state["training"]["iteration"]
    if iteration >= config.schedule.max_iters:
        lines = [
            f"{checkpoint.path} is at iteration {iteration} of {config.schedule.max_iters}: this "
            "run is finished; raise schedule.max_iters to train on"
        ]
    else:
        lines = [f"resuming from {checkpoint.path} at iteration {iteration}"]
    lines += [f"  changed since then, and accepted: {line}" for line in checkpoint.changed_data]
    lines += [
        f"  changed since then: {line}"
        for line in changed_settings(checkpoint.state["meta"].get("config"), config)
    ]
    world = checkpoint.state["training"].get("world_size")
    if world != placement.world_size:
        lines.append(f"  changed since then: processes {world} -> {placement.world_size}")
    return lines
