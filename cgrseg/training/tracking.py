"""Logging to Weights & Biases, for those who have it (extra `wandb`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from cgrseg.config.schema import Config
from cgrseg.errors import EnvironmentProblem
from cgrseg.files import atomic_write_text
from cgrseg.input_files import read_input_text


def wandb_logger(config: Config, run_dir: Path) -> Any:
    """A Lightning logger for Weights & Biases; a resumed run goes on in the same chart.

    Raises:
        EnvironmentProblem: when the package is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise EnvironmentProblem(
            "train.wandb",
            found="the package wandb is not installed",
            expected="it, to log to Weights & Biases",
            remedy='install the extra (pip install "cgrseg[wandb]"), or set train.wandb=false',
        )
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
