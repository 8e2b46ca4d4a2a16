"""Turning what goes wrong during training into messages that help.

Out of memory: which settings need how much, and which to turn down first.  A loss
that is no number, or a gradient: which batch it was, its files saved beside the run, and the
usual causes.  A full disk, shared memory without room, a process that has ended: said in
words.  The checkpoint from before stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgrseg.config.schema import Config
from cgrseg.errors import (
    CGRSegError,
    ConfigError,
    EnvironmentProblem,
    has_option,
    option,
)
from cgrseg.files import write_json, writing_problem
from cgrseg.surroundings import is_out_of_memory, missing_memory, raise_machine_problem
from cgrseg.training.checkpointing import LATEST, PREVIOUS
from cgrseg.variants import VARIANTS

BAD_BATCH = "bad_batch.json"
# Least bytes per pixel of a batch: float32 image and int64 label; features that the backward
# pass needs (those of the backbone's first stage alone). Per worker process: its own objects.
_BATCH_BYTES = 20
_FEATURE_BYTES = 250
_WORKER_BYTES = 40 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ONE_VALUE = "Expected more than 1 value per channel"
# What PyTorch says of loader processes without room in /dev/shm, or killed from outside ...
_LOADERS = ("shared memory", "unable to write to file </torch_", "dataloader worker (pid")
# ... and of a process that waits for one that has ended.
_FELLOWS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "remote process exited",
    "timed out waiting",
    "timed out after",
    "wait timeout",
    "timeout caused pair closure",
)


class TrainingProblem(CGRSegError):
    """A training that cannot go on, with its reason, on which all processes agreed."""

    in_all_processes = True


class LostProcess(CGRSegError):
    """Another process has ended, which says why itself."""

    in_all_processes = True


@dataclass(frozen=True)
class BadNumbers:
    """What one process knows of numbers that went wrong.

    Attributes:
        process: its rank.
        iteration: its first one (from 0) whose loss was no number, if any.
        batch: image and label of that iteration, or of the last one.
        before: those of the iteration before, whose gradient may be the cause.
    """

    process: int
    iteration: int | None = None
    batch: list[dict[str, Any]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)


def out_of_memory(config: Config, device: str, error: BaseException) -> EnvironmentProblem:
    """The message for a training that did not fit into memory.

    Args:
        config: the run; what is named is what its settings leave to turn down.
        device: where it ran, in words.
        error: what PyTorch said.
    """
    train = config.train
    height, width = config.augment.crop_size
    ideas = []
    if train.batch_size > 1:
        # The smallest number of parts of equal size, so that a step sees the same images.
        parts = next(n for n in range(2, train.batch_size + 1) if train.batch_size % n == 0)
        ideas.append(
            f"train.batch_size={train.batch_size // parts} with "
            f"train.accumulate={train.accumulate * parts} (the same images per optimiser step)"
        )
    if train.precision in ("fp32", "fp64"):
        ideas.append("train.precision=bf16 (about half the memory for features)")
    if min(height, width) > 256:
        smaller = [max(256, side // 64 * 32) for side in (height, width)]
        ideas.append(f"augment.crop_size=[{smaller[0]},{smaller[1]}]")
    smallest = next(iter(VARIANTS))
    if config.model.name != smallest:
        ideas.append(f"model.name={smallest}, the smallest variant")
    if device == "cpu" or config.data.workers > 4:
        ideas.append("data.workers=0, and closing other programs")
    ideas.append("nothing else running on this device")
    return EnvironmentProblem(
        f"memory of {device}",
        found=f"out of memory while training {config.model.name} on batches of "
        f"{train.batch_size} images of {height}x{width} in {train.precision}"
        + f" ({_first_line(error)})",
        expected="room for one batch with its gradients",
        remedy="the first of these that you can accept: " + "; ".join(ideas),
    )


def refuse_too_large(config: Config, placement_kind: str, device: str) -> None:
    """Refuse batches and worker processes that certainly do not fit into memory.

    Args:
        config: the run.
        placement_kind: "cpu", "cuda" or "mps".
        device: where it runs, in words.

    Raises:
        EnvironmentProblem: with the settings to turn down; also where /dev/shm is read-only.
    """
    height, width = config.augment.crop_size
    pixels = config.train.batch_size * height * width
    workers = config.data.workers
    needed = pixels * _BATCH_BYTES * (workers + 1) + workers * _WORKER_BYTES
    if placement_kind == "cpu":
        needed += pixels * _FEATURE_BYTES
    error = missing_memory(needed)
    if error is not None:
        raise out_of_memory(config, device, error)
    if workers:
        try:
            multiprocessing.get_context().Lock()  # as the loader makes some, in /dev/shm
        except OSError as refused:
            raise lost_loader(config, refused) from refused


def single_value(config: Config) -> ConfigError:
    """The message for a batch norm that sees one value only, which has no variance."""
    height, width = config.augment.crop_size
    return ConfigError(
        "train.batch_size, augment.crop_size",
        found=f"{config.train.batch_size} image of {height}x{width} per process: at the "
        "coarsest scale that is one value per channel, and batch norm needs two",
        expected="at least two images per process, or crops larger than 64x64",
        remedy="set train.batch_size=2, or a larger augment.crop_size",
    )


def without_worker_trace(error: CGRSegError) -> CGRSegError:
    """The message alone of a problem that a loader process met.

    PyTorch hands such an error on with the stack of that process in its text.
    """
    text = str(error)
    if not text.startswith("Caught "):
        return error
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return type(error)(text.rpartition(name)[2].rstrip())


def lost_process(error: BaseException) -> LostProcess:
    """The message for a process whose fellow has ended."""
    return LostProcess(
        "another process of this training",
        found=f"it has ended ({_first_line(error).partition('. This is')[0]})",
        expected="all processes until the end",
        remedy="its own message tells why (look above, or in the log of its machine); then "
        f"go on with {option('--resume')}",
    )


def lost_loader(config: Config, error: BaseException) -> EnvironmentProblem:
    """The message for loader processes that found no room, or were ended from outside."""
    return EnvironmentProblem(
        "loader processes",
        found=_last_line(error),
        expected=f"room for the batches of data.workers={config.data.workers} processes in "
        "shared memory (/dev/shm), and in the memory of the machine",
        remedy="data.workers=0 needs no shared memory; in a container give more of it "
        "(docker run --shm-size=8g); fewer data.workers need less of both",
    )


@contextlib.contextmanager
def readable_failures(config: Config, device: str, run_dir: Path) -> Iterator[None]:
    """Translate what settings and machines can cause; everything else passes unchanged."""
    try:
        with quiet_threads():
            yield
    except CGRSegError as error:
        raise without_worker_trace(error) from None
    except ValueError as error:
        if _ONE_VALUE in str(error):
            raise single_value(config) from error
        raise
    except OSError as error:
        earlier = _told_before(error)
        if earlier is not None:
            raise earlier from None
        if error.errno in _NO_ROOM:
            raise writing_problem(error.filename or run_dir, error) from error
        raise_machine_problem(error, "training")
        raise
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if any(part in text for part in _LOADERS):
            raise lost_loader(config, error) from error
        if is_out_of_memory(error):
            raise out_of_memory(config, device, error) from error
        if any(part in text for part in _FELLOWS):
            raise lost_process(error) from error
        raise_machine_problem(error, "training")
        raise


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Keep threads from printing a stack when a file cannot be written.

    TensorBoard writes in a thread of its own; the training meets the same error at its next
    line, and says it in words.
    """
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _told_before(error: BaseException) -> CGRSegError | None:
    """The problem of ours while whose handling this error came up, if there is one."""
    behind = error.__context__
    while behind is not None and not isinstance(behind, CGRSegError):
        behind = behind.__context__
    return behind


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__


def bad_numbers(
    config: Config,
    run_dir: Path,
    *,
    steps: int,
    rate: float,
    reports: Sequence[BadNumbers],
    write: bool,
) -> TrainingProblem:
    """The message for a loss, or for weights, that are no numbers; saves what the batch held.

    Args:
        config: the run.
        run_dir: its folder; `bad_batch.json` is written there.
        steps: optimiser steps done.
        rate: learning rate of the base group.
        reports: of all processes.
        write: whether this process writes the file.
    """
    first = min((r.iteration for r in reports if r.iteration is not None), default=None)
    guilty = [r for r in reports if r.iteration == first]
    iteration = steps if first is None else first + 1
    batch = [{**entry, "process": r.process} for r in guilty for entry in r.batch]
    target = run_dir / BAD_BATCH
    if write:
        content = {
            "iteration": iteration,
            "found": "weights" if first is None else "loss",
            "rate": rate,
            "batch": batch,
            "batch_before": [{**e, "process": r.process} for r in guilty for e in r.before],
        }
        write_json(target, content)
    ideas = [f"look at the images and labels listed in {target}"]
    if config.train.precision == "fp16":
        ideas.append("train.precision=bf16 or fp32 (fp16 overflows above 65504)")
    ideas.append(f"optimizer.lr={config.optimizer.lr / 2:g}")
    if config.optimizer.clip_norm is None:
        ideas.append("optimizer.clip_norm=1")
    shown = ", ".join(str(entry["image"]) for entry in batch[:4])
    more = f" and {len(batch) - 4} more" if len(batch) > 4 else ""
    processes = sorted({r.process for r in guilty})
    of = f" of process {', '.join(map(str, processes))}" if len(reports) > 1 else ""
    what = (
        "the loss is finite, but its gradient left weights that are not"
        if first is None
        else "not a number"
    )
    return TrainingProblem(
        f"{'weights after' if first is None else 'loss at'} iteration {iteration}",
        found=f"{what}, at rate {rate:.3g}, for the batch{of} {shown}{more}",
        expected="finite numbers; nothing was saved since, so the checkpoints are usable",
        remedy="; ".join(ideas) + _ways_on(run_dir),
    )


def _ways_on(run_dir: Path) -> str:
    if not (run_dir / LATEST).is_file():
        return "; then start again: there is no checkpoint yet"
    text = f"; then go on from {run_dir / LATEST} with {option('--resume')}"
    if (run_dir / PREVIOUS).is_file() and has_option("--resume-from"):
        text += f", or from the one before with {option('--resume-from', run_dir / PREVIOUS)}"
    return text
