"""Messages for failures during training.

Out of memory: which settings to reduce first.  A non-finite loss or gradient: its batch, whose
files are listed in the run folder, and the usual causes.  Full disks, full shared memory, ended
processes.  The last checkpoint stays unchanged.
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
from cgrseg.surroundings import first_line, is_out_of_memory, missing_memory, raise_machine_problem
from cgrseg.training.checkpointing import LATEST, PREVIOUS
from cgrseg.variants import NETWORK_STRIDE, VARIANTS

BAD_BATCH = "bad_batch.json"
# Least memory: bytes per pixel of a batch (float32 image, int64 label); bytes per pixel of the
# features for the backward pass (first stage of the backbone only); bytes per worker process.
_BATCH_BYTES = 20
_FEATURE_BYTES = 250
_WORKER_BYTES = 40 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ONE_VALUE = "Expected more than 1 value per channel"
# PyTorch's messages for worker processes without room in /dev/shm, or killed from outside ...
_LOADERS = ("shared memory", "unable to write to file </torch_", "dataloader worker (pid")
# ... and for a process that waits for one that has ended.
_LOST_PROCESS = (
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
    """A training that cannot continue, for a reason that all processes have agreed on."""

    in_all_processes = True


class LostProcess(CGRSegError):
    """Another process has ended; its own message says why."""

    in_all_processes = True


@dataclass(frozen=True)
class BadNumbers:
    """Report of one process about non-finite numbers.

    Attributes:
        process: rank of the process.
        iteration: its first iteration (from 0) with a non-finite loss, if any.
        batch: image and label files of that iteration, or of the last one.
        before: those of the iteration before, whose gradient may be the cause.
    """

    process: int
    iteration: int | None = None
    batch: list[dict[str, Any]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)


def out_of_memory(config: Config, device: str, error: BaseException) -> EnvironmentProblem:
    """The error for a training that does not fit into memory.

    Args:
        config: config of the run; the message names the settings that can be reduced.
        device: device in words.
        error: error of PyTorch.
    """
    train, images = config.train, config.train.images_per_batch
    height, width = config.augment.crop_size
    ideas = []
    if images > 1:
        # The smallest number of equal parts, so that a step has the same images.
        parts = next(n for n in range(2, images + 1) if images % n == 0)
        ideas.append(
            f"train.batch_size={images // parts} with "
            f"train.accumulate={train.accumulate * parts} (the same images per optimizer step)"
        )
    if train.precision in ("fp32", "fp64"):
        ideas.append("train.precision=bf16 (about half the memory for features)")
    if min(height, width) > 256:
        smaller = [max(256, side // 64 * 32) for side in (height, width)]
        ideas.append(f"augment.crop_size=[{smaller[0]},{smaller[1]}]")
    smallest = next(iter(VARIANTS))
    if config.model.name != smallest:
        ideas.append(f"model.name={smallest}, the smallest variant")
    if device == "cpu" or config.data.loader_processes > 4:
        ideas.append("data.workers=0, and closing other programs")
    ideas.append("nothing else running on this device")
    return EnvironmentProblem(
        f"memory of {device}",
        found=f"out of memory while training {config.model.name} on batches of "
        f"{images} images of {height}x{width} in {train.precision}" + f" ({first_line(error)})",
        expected="room for one batch with its gradients",
        remedy="the first of these that you can accept: " + "; ".join(ideas),
    )


def loader_memory(config: Config, images: int) -> int:
    """Least bytes that batches of this many images and the worker processes need."""
    height, width = config.augment.crop_size
    workers = config.data.loader_processes
    return images * height * width * _BATCH_BYTES * (workers + 1) + workers * _WORKER_BYTES


def refuse_too_large(config: Config, placement_kind: str, device: str) -> None:
    """Refuse batches and worker processes that certainly do not fit into memory.

    Args:
        config: config of the run.
        placement_kind: "cpu", "cuda" or "mps".
        device: device in words.

    Raises:
        EnvironmentProblem: they do not fit; or /dev/shm cannot be used.
    """
    height, width = config.augment.crop_size
    images, workers = config.train.images_per_batch, config.data.loader_processes
    needed = loader_memory(config, images)
    if placement_kind == "cpu":
        needed += images * height * width * _FEATURE_BYTES
    error = missing_memory(needed)
    if error is not None:
        raise out_of_memory(config, device, error)
    if workers:
        try:
            multiprocessing.get_context().Lock()  # in /dev/shm, as the data loader does
        except OSError as refused:
            raise lost_loader(config, refused) from refused


def refuse_single_value(config: Config) -> None:
    """Refuse batches with one value per channel at the coarsest scale, a 64th of the crop.

    Raises:
        ConfigError: the smallest crops of the run are such.
    """
    smallest = min(max(stage.crop_size) for stage in config.augment.stages)
    if config.train.images_per_batch == 1 and smallest <= 2 * NETWORK_STRIDE:
        raise single_value(config)


def single_value(config: Config) -> ConfigError:
    """The error for a batch norm with one value per channel, which has no variance."""
    height, width = min((stage.crop_size for stage in config.augment.stages), key=max)
    part = "" if len(config.augment.progressive) == 1 else ", the smallest of augment.progressive,"
    return ConfigError(
        "train.batch_size, augment.crop_size",
        found=f"{config.train.images_per_batch} image of {height}x{width}{part} per process: at "
        "the coarsest scale that is one value per channel, and batch norm needs two",
        expected="at least two images per process, or crops larger than 64x64",
        remedy="set train.batch_size=2, or a larger augment.crop_size",
    )


def lost_process(error: BaseException) -> LostProcess:
    """The error of a process that waits for one that has ended."""
    return LostProcess(
        "another process of this training",
        found=f"it has ended ({first_line(error).partition('. This is')[0]})",
        expected="all processes until the end",
        remedy="its own message tells why (look above, or in the log of its machine); then "
        f"resume with {option('--resume')}",
    )


def lost_loader(config: Config, error: BaseException) -> EnvironmentProblem:
    """The error for loader processes without room in memory, or killed from outside."""
    return EnvironmentProblem(
        "loader processes",
        found=(str(error).strip().splitlines() or [type(error).__name__])[-1][:300],
        expected=f"room for the batches of data.workers={config.data.loader_processes} processes "
        "in shared memory (/dev/shm), and in the memory of the machine",
        remedy="data.workers=0 needs no shared memory; in a container give more of it "
        "(docker run --shm-size=8g); fewer data.workers need less of both",
    )


@contextlib.contextmanager
def readable_failures(config: Config, device: str, run_dir: Path) -> Iterator[None]:
    """Replace errors that settings or machines cause by messages; others pass unchanged."""
    try:
        with quiet_threads():
            yield
    except ValueError as error:
        if _ONE_VALUE in str(error):
            raise single_value(config) from error
        raise
    except OSError as error:
        earlier = _earlier_problem(error)
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
        if any(part in text for part in _LOST_PROCESS):
            raise lost_process(error) from error
        raise_machine_problem(error, "training")
        raise


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Let threads print no stack trace when a file cannot be written.

    TensorBoard writes in its own thread; the training reports the same error at its next line.
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


def _earlier_problem(error: BaseException) -> CGRSegError | None:
    """The error of ours during whose handling this error was raised, if any."""
    behind = error.__context__
    while behind is not None and not isinstance(behind, CGRSegError):
        behind = behind.__context__
    return behind


def bad_numbers(
    config: Config,
    run_dir: Path,
    *,
    steps: int,
    rate: float,
    reports: Sequence[BadNumbers],
    write: bool,
) -> TrainingProblem:
    """The error for a non-finite loss or weights; writes the files of the batch to a file.

    Args:
        config: config of the run.
        run_dir: run folder, for `bad_batch.json`.
        steps: number of optimizer steps done.
        rate: learning rate of the base group.
        reports: reports of all processes.
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
        "finite loss, but its gradient made the weights non-finite"
        if first is None
        else "non-finite"
    )
    return TrainingProblem(
        f"{'weights after' if first is None else 'loss at'} iteration {iteration}",
        found=f"{what}, at learning rate {rate:.3g}, for the batch{of} {shown}{more}",
        expected="finite numbers; nothing was saved since, so the checkpoints are usable",
        remedy="; ".join(ideas) + _ways_on(run_dir),
    )


def _ways_on(run_dir: Path) -> str:
    if not (run_dir / LATEST).is_file():
        return "; then start again: there is no checkpoint yet"
    text = f"; then resume from {run_dir / LATEST} with {option('--resume')}"
    if (run_dir / PREVIOUS).is_file() and has_option("--resume-from"):
        text += f", or from the one before with {option('--resume-from', run_dir / PREVIOUS)}"
    return text
