"""Turning what goes wrong during training into messages that help.

Out of memory: which settings need how much, and which to turn down first.  A loss
that is no number: which batch it was, its files saved beside the run, and the usual
causes.  The checkpoint from before stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cgrseg.config.schema import Config
from cgrseg.errors import CGRSegError, ConfigError, EnvironmentProblem, explain
from cgrseg.files import write_json

BAD_BATCH = "bad_batch.json"
_ONE_VALUE = "Expected more than 1 value per channel"
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class TrainingProblem(CGRSegError):
    """A training that cannot go on, with its reason."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the device or of the machine ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)


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
        half = train.batch_size // 2
        ideas.append(
            f"train.batch_size={half} with train.accumulate={train.accumulate * 2} (the same "
            "images per optimiser step)"
        )
    if train.precision in ("fp32", "fp64"):
        ideas.append("train.precision=bf16 (about half the memory for features)")
    if min(height, width) > 256:
        smaller = [max(256, side // 64 * 32) for side in (height, width)]
        ideas.append(f"augment.crop_size=[{smaller[0]},{smaller[1]}]")
    if config.model.name != "cgrseg_t":
        ideas.append("model.name=cgrseg_t, the smallest variant")
    if device == "cpu":
        ideas.append("data.workers=0, and closing other programs")
    ideas.append("nothing else running on this device")
    first = str(error).strip().splitlines()
    return EnvironmentProblem(
        explain(
            f"memory of {device}",
            found=f"out of memory while training {config.model.name} on batches of "
            f"{train.batch_size} images of {height}x{width} in {train.precision}"
            + (f" ({first[0][:300]})" if first else ""),
            expected="room for one batch with its gradients",
            remedy="the first of these that you can accept: " + "; ".join(ideas),
        )
    )


def single_value(config: Config) -> ConfigError:
    """The message for a batch norm that sees one value only, which has no variance."""
    height, width = config.augment.crop_size
    return ConfigError(
        explain(
            "train.batch_size, augment.crop_size",
            found=f"{config.train.batch_size} image of {height}x{width} per process: at the "
            "coarsest scale that is one value per channel, and batch norm needs two",
            expected="at least two images per process, or crops larger than 64x64",
            remedy="set train.batch_size=2, or a larger augment.crop_size",
        )
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


@contextlib.contextmanager
def readable_failures(config: Config, device: str) -> Iterator[None]:
    """Translate what settings can cause; everything else passes unchanged."""
    try:
        yield
    except CGRSegError as error:
        raise without_worker_trace(error) from None
    except ValueError as error:
        if _ONE_VALUE in str(error):
            raise single_value(config) from error
        raise
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, device, error) from error
        raise


def bad_loss(
    config: Config,
    run_dir: Path,
    *,
    iteration: int,
    files: Sequence[dict[str, Any]],
    rate: float,
    rank: int,
) -> TrainingProblem:
    """The message for a loss that is no number; saves which files the batch held.

    Args:
        config: the run.
        run_dir: its folder; `bad_batch.json` is written there.
        iteration: the one whose loss it was, from 1.
        files: per image of the batch, its image and label path and its stream position.
        rate: learning rate of the base group there.
        rank: process.
    """
    name = BAD_BATCH if rank == 0 else f"bad_batch_process{rank}.json"
    target = run_dir / name
    write_json(
        target, {"iteration": iteration, "process": rank, "rate": rate, "batch": list(files)}
    )
    ideas = [f"look at the images and labels listed in {target}"]
    if config.train.precision == "fp16":
        ideas.append("train.precision=bf16 or fp32 (fp16 overflows above 65504)")
    ideas.append(f"optimizer.lr={config.optimizer.lr / 2:g}")
    if config.optimizer.clip_norm is None:
        ideas.append("optimizer.clip_norm=1")
    shown = ", ".join(str(entry["image"]) for entry in files[:4])
    more = f" and {len(files) - 4} more" if len(files) > 4 else ""
    return TrainingProblem(
        explain(
            f"loss at iteration {iteration}",
            found=f"not a number, at rate {rate:.3g}, for the batch {shown}{more}",
            expected="a finite loss; the weights since then are unusable and were not saved",
            remedy="; ".join(ideas) + "; then continue with --auto-resume from the last checkpoint",
        )
    )
