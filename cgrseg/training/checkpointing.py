"""Checkpoints of a run: what they hold, and how they are written and found again.

A checkpoint holds plain types and tensors only, so `torch.load(weights_only=True)`
reads it.  It is written beside its target, synced and renamed into place: whatever
happens at whatever moment, `latest.pth` is a whole checkpoint, and the one before
it stays as `previous.pth`.  Lightning's own way is not used, because it goes through
the temporary folder, which may be another disk, and keeps no previous file.

Layout of a file:

    state_dict           published parameter names; the averaged weights when a run averages
    meta                 format, variant, context blocks, classes, palette, config, iteration,
                         version (what every reader of weights needs)
    training             only in checkpoints to resume from: optimizer, scaler, iteration,
                         world_size, and the unaveraged weights when a run averages
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cgrseg.errors import DataError, WeightsError
from cgrseg.files import PARTIAL, atomic_write, explained
from cgrseg.input_files import refuse_special
from cgrseg.models.plain_pickle import are_dense, load_plain
from cgrseg.surroundings import first_line, raise_machine_problem

FORMAT = 1
LATEST = "latest.pth"
PREVIOUS = "previous.pth"
BEST = "best.pth"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def write_checkpoint(
    path: Path | str, checkpoint: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: target; the file that is there now stays valid until the new one is complete.
        checkpoint: plain types and tensors (moved to the CPU here).
        keep_previous: let the present `latest.pth` live on as `previous.pth` beside it.

    Raises:
        EnvironmentProblem: full disk, read-only folder; the old files are untouched.
    """
    target = Path(path)
    # Serialised in memory first: a full disk is then one plain failing write, and never an
    # error from the middle of the archive writer.
    buffer = io.BytesIO()
    torch.save(to_plain(checkpoint), buffer)
    with atomic_write(target) as stream:
        stream.write(buffer.getbuffer())
        with explained(target):
            stream.flush()
            # Before anything is renamed: some file systems say only here that they are full.
            os.fsync(stream.fileno())
            if keep_previous and target.exists():
                _keep(target, target.with_name(PREVIOUS))


def _keep(current: Path, previous: Path) -> None:
    """Give the present file a second name, so that replacing the first one loses nothing."""
    second = previous.with_name(f".{previous.name}.{os.getpid()}{PARTIAL}")
    with contextlib.suppress(FileNotFoundError):
        second.unlink()
    try:
        os.link(current, second)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        # No hard links here (some network and exchange file systems): for the moment between
        # two renames only the previous name exists, and `find_latest` looks for it too.
        os.replace(current, previous)
        return
    os.replace(second, previous)


def to_plain(value: Any) -> Any:
    """Copy nested containers with tensors on the CPU and nothing but plain types.

    Raises:
        TypeError: for a value that `weights_only` loading would refuse (a bug of ours).
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
        path: a `latest.pth` or `previous.pth` of one of our runs.

    Returns:
        The dictionary described at the top of this module, tensors on the CPU.

    Raises:
        DataError: when there is no such file.
        WeightsError: when it is damaged, or holds weights without training state.
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
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
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
            found="weights without the state of a training (optimiser, iteration)",
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
    """What is wrong with the form of a checkpoint's tables; none: nothing."""
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
    """Whether a value is the state of PyTorch's gradient scaler; empty where it is off."""
    numbers = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    return isinstance(scaler, dict) and (
        not scaler
        or all(
            type(scaler.get(name)) in (int, float) and 0 <= scaler[name] < float("inf")
            for name in numbers
        )
    )


def find_latest(run_dir: Path | str) -> Path | None:
    """The checkpoint to resume a run folder from, or none when there is none."""
    for name in (LATEST, PREVIOUS):
        candidate = Path(run_dir) / name
        if candidate.is_file():
            return candidate
    return None
