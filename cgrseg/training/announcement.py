"""The first lines of a run: what is trained, on what, where to, and with which settings."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cgrseg.config.schema import Config
from cgrseg.devices import Placement
from cgrseg.errors import ConfigError
from cgrseg.training.resuming import Checkpoint, changed_settings
from cgrseg.training.schedule import rate_factor
from cgrseg.training.sources import Source
from cgrseg.variants import imagenet_weights

_LOG = logging.getLogger("cgrseg.training")


def headline(config: Config) -> str:
    """The first line: network, data and run folder, from the settings alone."""
    return (
        f"training {config.model.name} on {config.data.dataset} ({config.data.root}), into "
        f"{config.run_dir}"
    )


def weights_line(config: Config) -> str:
    """Where the weights of a run come from that loads none for the whole network."""
    return (
        "weights: random, from scratch; published results start from ImageNet's backbone: "
        f"model.pretrained={imagenet_weights(config.model.name)}"
    )


def refuse_random_backbone(config: Config) -> None:
    """Refuse to freeze a backbone that has learned nothing.

    Raises:
        ConfigError: neither `model.pretrained` nor `train.load_from` gives its weights.
    """
    if config.model.pretrained is None and config.train.load_from is None:
        raise ConfigError(
            "model.freeze_backbone",
            found="true, for a backbone with random weights",
            expected="trained weights in the part that is kept as it is",
            remedy=f"set model.pretrained={imagenet_weights(config.model.name)} or "
            "train.load_from=CHECKPOINT",
        )


def announce_settings(
    config: Config,
    placement: Placement,
    say: Callable[[str], None],
    checkpoint: Checkpoint | None,
    source: Source,
) -> None:
    """Say data and schedule in short, where a resumed run goes on, and that a run is too short.

    Args:
        config: the run.
        placement: device and processes.
        say: takes a line.
        checkpoint: what the run resumes from, if anything.
        source: the data.
    """
    schedule, train = config.schedule, config.train
    height, width = config.augment.crop_size
    warmup = f" after {schedule.warmup_iters} of warm-up" if schedule.warmup_iters else ""
    evaluation = f"evaluation every {train.eval_interval}" if train.evaluate else "no evaluation"
    counts = " and ".join(f"{len(stems)} {use}" for use, stems in source.image_lists().items())
    if config.model.freeze_backbone:
        say("frozen: the backbone keeps its weights and statistics; the head alone trains")
    say(f"data: {counts} images of {source.spec.title}")
    say(
        f"settings: {schedule.max_iters} iterations, {source.images_per_iteration} images per "
        f"iteration, crops of {height}x{width}, learning rate {config.optimizer.lr:g}{warmup}, "
        f"{evaluation}; all settings: {config.run_dir}/config.json"
    )
    if checkpoint is not None:
        for line in _resume_lines(config, placement, checkpoint):
            say(line)
    warning = short_run(config)
    if warning and placement.rank == 0:
        _LOG.warning(warning)


def short_run(config: Config) -> str:
    """A warning for a run that ends before its warm-up does; empty for others."""
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
    """Where a resumed run goes on, and what changed since its checkpoint was written."""
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
