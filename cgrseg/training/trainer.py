"""Settings of Lightning's Trainer: devices, processes, precision, warnings."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from cgrseg.config.schema import Config
from cgrseg.config.settings import build, merge
from cgrseg.devices import Placement
from cgrseg.distributed import set_torchrun_variables
from cgrseg.errors import ConfigError
from cgrseg.precision import choose_precision, slow_precision
from cgrseg.processes import this_process

_LOG = logging.getLogger("cgrseg.training")

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "fp64": "64-true"}


def settle_precision(
    config: Config, placement: Placement, stored: str | None = None
) -> tuple[Config, str]:
    """Replace `train.precision=auto` by the precision of this device.

    Args:
        config: config of the run.
        placement: device and processes.
        stored: precision in the checkpoint that the run resumes from; it replaces "auto", so a
            run keeps its arithmetic on another machine.

    Returns:
        The config; the precision in words for the log, with the reason if there was a choice.
    """
    device, words = placement.torch_device, str(config.train.precision)
    if config.train.precision == "auto":
        choice = choose_precision(device)
        precision, words = str(choice.precision), str(choice)
        if stored is not None:
            precision, words = stored, f"{stored} (as this run began)"
        config = build(merge(config.model_dump(), {"train.precision": precision}))
    warning = slow_precision(device, config.train.precision)
    if warning and placement.rank == 0:
        _LOG.warning("train.precision: %s", warning)
    return config, words


def trainer_options(config: Config, placement: Placement) -> dict[str, Any]:
    """Arguments of Lightning's Trainer for devices, processes and precision.

    Raises:
        ConfigError: a precision that this device does not support.
    """
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    precision = config.train.precision
    if (placement.kind == "cpu" and precision == "fp16") or (
        placement.kind == "mps" and precision == "fp64"
    ):
        raise ConfigError(
            "train.precision",
            found=f"{precision} on {placement.kind}, which PyTorch does not offer",
            expected="fp32 or bf16",
            remedy="set train.precision=auto or fp32",
        )
    several = placement.world_size > 1
    devices: Any = placement.local_world_size
    if placement.kind == "cuda" and not several:
        devices = [placement.index or 0]
    if this_process().launcher == "slurm":
        set_torchrun_variables()
    backend = "gloo" if placement.kind == "cpu" else None
    return {
        "accelerator": {"cuda": "gpu"}.get(placement.kind, placement.kind),
        "devices": devices,
        "num_nodes": placement.world_size // placement.local_world_size,
        # Not Lightning's SLURMEnvironment: it requeues jobs on SIGUSR1, which we answer.
        "plugins": [TorchElasticEnvironment()] if several else None,
        "strategy": DDPStrategy(process_group_backend=backend) if several else "auto",
        "sync_batchnorm": several and placement.kind == "cuda" and config.model.sync_norm,
        "precision": _PRECISION[precision],
        # Most operations have deterministic kernels; a warning names the others.
        "deterministic": "warn" if config.train.deterministic else None,
        "benchmark": placement.kind == "cuda" and not config.train.deterministic,
    }


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's messages and hints that do not apply here."""
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
