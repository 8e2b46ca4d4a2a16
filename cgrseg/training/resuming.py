"""Where a run goes on from, and what must not be overwritten."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrseg.config.schema import Config
from cgrseg.errors import ConfigError, WeightsError, explain
from cgrseg.training.checkpointing import PREVIOUS, find_latest, read_training_checkpoint
from cgrseg.training.tables import SCORES, read_table

# Settings that say where and how to look, not what is trained.
_HARMLESS = {
    "name",
    "work_dir",
    "data.root",
    "data.workers",
    "data.check",
    "train.log_interval",
    "train.log_images",
    "train.wandb",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read to resume from."""

    path: Path
    state: dict[str, Any]


def find_checkpoint(
    run_dir: Path, resume_from: Path | str | None, auto_resume: bool
) -> Checkpoint | None:
    """Read what to resume from.

    Args:
        run_dir: the run's folder.
        resume_from: a checkpoint given by name; it must be there.
        auto_resume: take the newest readable one of the folder, or none when there is none.

    Raises:
        DataError: `resume_from` is not there.
        WeightsError: it is damaged, or holds weights only.
    """
    if resume_from is not None:
        return Checkpoint(Path(resume_from), read_training_checkpoint(resume_from))
    if not auto_resume:
        return None
    newest = find_latest(run_dir)
    if newest is None:
        return None
    try:
        return Checkpoint(newest, read_training_checkpoint(newest))
    except WeightsError as error:
        previous = run_dir / PREVIOUS
        if newest == previous or not previous.is_file():
            raise
        state = read_training_checkpoint(previous)
        # Aside, or the next save would put the damaged file in the place of the good one.
        aside = newest.with_name(f"{newest.name}.damaged")
        with contextlib.suppress(OSError):
            os.replace(newest, aside)
        warnings.warn(f"{error}\n  going on from {previous} instead", stacklevel=2)
        return Checkpoint(previous, state)


def refuse_occupied(run_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Refuse to start over in a folder that holds the checkpoint of another run.

    Raises:
        ConfigError: naming the ways to go on.
    """
    present = _remains(run_dir)
    if present is None:
        return
    if checkpoint is not None and checkpoint.path.resolve().parent == run_dir.resolve():
        return
    raise ConfigError(
        explain(
            run_dir,
            found=f"the folder of an earlier run ({present.name}); it is not overwritten",
            expected="a folder without a run, or leave to go on with this one",
            remedy=("go on with --auto-resume, " if find_latest(run_dir) is not None else "")
            + "choose another --work-dir, or move the old folder away",
        )
    )


def _remains(run_dir: Path) -> Path | None:
    """A checkpoint or the scores of an earlier run, which a new one would replace."""
    newest = find_latest(run_dir)
    if newest is not None:
        return newest
    scores = run_dir / SCORES
    kept = [*sorted(run_dir.glob("best*.pth")), *([scores] if read_table(scores) else [])]
    return kept[0] if kept else None


def stored_precision(checkpoint: Checkpoint | None) -> str | None:
    """`train.precision` of the run that a checkpoint belongs to; None without one."""
    if checkpoint is None:
        return None
    settings = checkpoint.state["meta"].get("config") or {}
    found: str | None = settings.get("train", {}).get("precision")
    return found


def changed_settings(saved: Mapping[str, Any] | None, config: Config) -> list[str]:
    """Settings that differ from those of a checkpoint, as `key: old -> new`.

    Those that cannot change what is learnt (paths, workers) are left out.
    """
    if saved is None:
        return []
    before, now = _flat(saved), _flat(config.model_dump(mode="json"))
    missing = "not there"
    return [
        f"{key}: {before.get(key, missing)} -> {now.get(key, missing)}"
        for key in sorted(before.keys() | now.keys())
        if key not in _HARMLESS and before.get(key, missing) != now.get(key, missing)
    ]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
