"""Logging to Weights & Biases, for those who have it (extra `wandb`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgrseg.config.schema import Config
from cgrseg.extras import require
from cgrseg.files import atomic_write_text
from cgrseg.input_files import read_input_text


def wandb_logger(config: Config, run_dir: Path) -> Any:
    """A Lightning logger for Weights & Biases; a resumed run goes on in the same chart.

    Raises:
        EnvironmentProblem: when the package is not installed.
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
