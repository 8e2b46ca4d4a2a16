"""Checkpoints of a run: content, writing, reading, selection of the best.

A checkpoint holds plain types and tensors only, so `torch.load(weights_only=True)` reads it.  It
is written beside its target, synced and renamed into place: at every moment `latest.pth` is a
whole checkpoint, and the one before it stays as `previous.pth`.  Lightning's writer is not used:
it goes through the temporary folder, which may be another disk, and keeps no previous file.

Layout of a file:

    state_dict           published parameter names; the averaged weights when a run averages
    meta                 format, variant, context blocks, classes, palette, config, iteration,
                         version (what every reader of weights needs), initial weights
    training             only in checkpoints to resume from: optimizer, scaler, iteration,
                         world_size, and the unaveraged weights when a run averages
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import cgrseg
from cgrseg.config.schema import Config
from cgrseg.errors import DataError, WeightsError
from cgrseg.files import PARTIAL, atomic_write, explained
from cgrseg.input_files import refuse_special
from cgrseg.models.plain_pickle import are_dense, load_plain
from cgrseg.surroundings import first_line, raise_machine_problem
from cgrseg.training.module import TrainingModule
from cgrseg.training.run_log import SCORES, damaged_table, read_table

FORMAT = 1
LATEST = "latest.pth"
PREVIOUS = "previous.pth"
BEST = "best.pth"
ORIGIN = "initial_weights"
"""Key in `meta` of the description of the weights that the run started from."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def write_checkpoint(
    path: Path | str, checkpoint: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: target; its present file stays valid until the new one is complete.
        checkpoint: plain types and tensors (moved to the CPU here).
        keep_previous: keep the present file as `previous.pth`.

    Raises:
        EnvironmentProblem: full disk, read-only folder; the old files are untouched.
    """
    target = Path(path)
    # Serialized in memory first: a full disk then fails in one plain write, and not inside the
    # archive writer.
    buffer = io.BytesIO()
    torch.save(to_plain(checkpoint), buffer)
    with atomic_write(target) as stream:
        stream.write(buffer.getbuffer())
        with explained(target):
            stream.flush()
            # Before any rename: some file systems report a full disk here only.
            os.fsync(stream.fileno())
            if keep_previous and target.exists():
                _keep(target, target.with_name(PREVIOUS))


def _keep(current: Path, previous: Path) -> None:
    """Add the name `previous` to the present file, which is replaced next."""
    second = previous.with_name(f".{previous.name}.{os.getpid()}{PARTIAL}")
    with contextlib.suppress(FileNotFoundError):
        second.unlink()
    try:
        os.link(current, second)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        # A file system without hard links (some network file systems): between two renames
        # only the previous name exists, which `find_latest` finds as well.
        os.replace(current, previous)
        return
    os.replace(second, previous)


def to_plain(value: Any) -> Any:
    """Copy nested containers to plain types and tensors on the CPU.

    Raises:
        TypeError: a value that `weights_only` loading would refuse (a bug).
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint holds plain types only, not {type(value).__name__}: {value!r}")


def read_training_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint to resume from.

    Args:
        path: a `latest.pth` or `previous.pth` of a run.

    Returns:
        The layout at the top of this module, tensors on the CPU.

    Raises:
        DataError: there is no such file.
        WeightsError: the file is damaged, or holds weights without training state.
    """
    source = Path(path)
    try:
        refuse_special(source)
    except OSError as error:
        raise DataError(
            source,
            found=f"the file cannot be read ({error.strerror or error})",
            expected="a checkpoint to resume from",
            remedy="check the path and the permissions; a run writes latest.pth into its folder",
        ) from error
    try:
        checkpoint = load_plain(source)
    except Exception as error:  # a damaged pickle fails in many ways
        raise_machine_problem(error, source)
        raise WeightsError(
            source,
            found=f"a file that cannot be read as a checkpoint ({first_line(error)})",
            expected="a whole checkpoint of plain types, as our runs write them",
            remedy=f"resume from {PREVIOUS} in the same folder, which is the one before",
        ) from error
    needed = {"state_dict", "meta", "training"}
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise WeightsError(
            source,
            found="weights without the state of a training (optimizer, iteration)",
            expected=f"a {LATEST} or {PREVIOUS} that a training wrote",
            remedy="to start a new training from these weights use load-from instead of "
            "resume-from",
        )
    problem = _malformed(checkpoint)
    if problem is not None:
        raise WeightsError(
            source,
            found=f"a training state that no run writes ({problem})",
            expected="a whole checkpoint, as our runs write them",
            remedy=f"resume from {PREVIOUS} in the same folder, which is the one before",
        )
    return checkpoint


def _malformed(checkpoint: Mapping[str, Any]) -> str | None:
    """What is wrong with the form of a checkpoint; None if nothing is."""
    training, meta = checkpoint["training"], checkpoint["meta"]
    if not isinstance(meta, dict) or not isinstance(training, dict):
        return "'meta' or 'training' is not a table"
    for name in ("iteration", "averaged_steps", "world_size"):
        value = training.get(name, None if name == "iteration" else 0)
        if type(value) is not int or not 0 <= value < 2**53:
            return f"{name} is {value!r}"
    optimizer = training.get("optimizer")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        return "no optimizer state"
    groups = optimizer.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return "no optimizer parameter groups"
    lists = [group.get("params") for group in groups]
    if not all(isinstance(keys, list) and {type(key) for key in keys} <= {int} for keys in lists):
        return "optimizer parameter groups without parameters"
    for where in (checkpoint, training):
        weights = where.get("state_dict", {})
        if not isinstance(weights, dict) or not are_dense(weights):
            return "weights that are not dense tensors"
    scaler = training.get("scaler")
    if scaler is not None and not _is_loss_scale(scaler):
        return "a loss scale that cannot be used"
    return None


def _is_loss_scale(scaler: Any) -> bool:
    """Whether a value is the state of PyTorch's gradient scaler (empty: disabled)."""
    numbers = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    return isinstance(scaler, dict) and (
        not scaler
        or all(
            type(scaler.get(name)) in (int, float) and 0 <= scaler[name] < float("inf")
            for name in numbers
        )
    )


def find_latest(run_dir: Path | str) -> Path | None:
    """The checkpoint to resume a run folder from; None without one."""
    for name in (LATEST, PREVIOUS):
        candidate = Path(run_dir) / name
        if candidate.is_file():
            return candidate
    return None


def model_meta(model: Any) -> dict[str, Any]:
    """Entries of `meta` from which the network can be built without the config."""
    return {
        "variant": model.variant,
        "head": model.head,
        "context_blocks": model.context_blocks,
        "classes": None if model.classes is None else list(model.classes),
        "palette": None if model.palette is None else [list(colour) for colour in model.palette],
    }


class CheckpointKeeper:
    """Writes the checkpoints of a run and selects the best ones.

    `latest.pth` can be resumed from; `best.pth` (and `best_<iteration>.pth` for `train.keep_best`)
    holds the weights of the best evaluation.  Selection and early stopping read the history in
    `scores.csv`, so both continue correctly after a resume.

    Args:
        run_dir: run folder.
        config: config of the run.
        meta: constant entries of `meta`: variant, head, context blocks, classes, palette.
        start: first iteration of this part of the run; later scores of an earlier part do not
            count.
        active: false in every process but the first, which alone writes.
    """

    def __init__(
        self, run_dir: Path, config: Config, meta: dict[str, Any], *, start: int, active: bool
    ) -> None:
        self.run_dir = run_dir
        self.config = config
        self.active = active
        self.history = [
            (iteration, score) for iteration, score in read_history(run_dir) if iteration <= start
        ]
        self._meta = {
            "format": FORMAT,
            **meta,
            "config": config.model_dump(mode="json"),
            "version": cgrseg.__version__,
        }

    def save_latest(self, module: TrainingModule, trainer: Any) -> None:
        """Write `latest.pth`, from which a resumed training continues exactly."""
        if not self.active:
            return
        training: dict[str, Any] = {
            "iteration": module.iteration,
            "world_size": trainer.world_size,
            "optimizer": trainer.optimizers[0].state_dict(),
            "scaler": None,
        }
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            training["scaler"] = scaler.state_dict()
        if module.averaged is not None:
            training["state_dict"] = module.model.state_dict()
            training["averaged_steps"] = module.averaged.updates
        write_checkpoint(
            self.run_dir / LATEST,
            {**self._weights(module), "training": training},
            keep_previous=True,
        )

    def note_scores(self, module: TrainingModule, score: float) -> bool:
        """Add the mIoU of an evaluation (0..1 or NaN); write `best.pth` if it is the best so far.

        Returns:
            Whether it is the best; NaN never is.
        """
        score = -math.inf if math.isnan(score) else score
        is_best = score > max((value for _, value in self.history), default=-math.inf)
        self.history.append((module.iteration, score))
        if not self.active:
            return is_best
        if is_best:
            write_checkpoint(self.run_dir / BEST, self._weights(module, score))
        if self.config.train.keep_best:
            self._keep_best(module, score)
        return is_best

    def _keep_best(self, module: TrainingModule, score: float) -> None:
        ranked = sorted(self.history, key=lambda entry: (-entry[1], entry[0]))
        kept = {iteration for iteration, _ in ranked[: self.config.train.keep_best]}
        if module.iteration in kept:
            write_checkpoint(
                self.run_dir / f"best_{module.iteration}.pth", self._weights(module, score)
            )
        for iteration, _ in self.history:
            if iteration not in kept:
                with contextlib.suppress(FileNotFoundError):
                    (self.run_dir / f"best_{iteration}.pth").unlink()

    @property
    def evaluations_without_progress(self) -> int:
        """Number of evaluations since the best one."""
        if not self.history:
            return 0
        scores = [score for _, score in self.history]
        return len(scores) - 1 - scores.index(max(scores))

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping applies."""
        patience = self.config.train.patience
        return patience is not None and self.evaluations_without_progress >= patience

    def _weights(self, module: TrainingModule, score: float | None = None) -> dict[str, Any]:
        meta = {**self._meta, "iteration": module.iteration}
        if score is not None:
            meta["mIoU"] = score
        return {"state_dict": module.evaluated_model.state_dict(), "meta": meta}


def read_history(run_dir: Path) -> list[tuple[int, float]]:
    """(iteration, mIoU) of each evaluation in a run folder; minus infinity instead of NaN.

    Raises:
        DataError: the table is damaged.
    """
    history = []
    for row in read_table(run_dir / SCORES):
        try:
            score = float(row.get("mIoU") or "nan")
        except ValueError as error:
            raise damaged_table(run_dir / SCORES, str(error)) from error
        history.append((int(row["iteration"]), -math.inf if math.isnan(score) else score))
    return history
