"""The training step as Lightning runs it.

What the published recipe says lives in :mod:`~cgrseg.training.groups`,
:mod:`~cgrseg.training.schedule` and :mod:`~cgrseg.training.losses`; this module puts
them together and keeps count of iterations (optimiser steps of the whole run, so a
resumed run goes on where it was).

Randomness: Lightning stores no random state, so none is relied on.  Before every batch
the generators are seeded from (seed, iteration, batch within the iteration, process),
and dropout and stochastic depth come out the same after a resume.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from cgrseg.config.schema import Config
from cgrseg.models import CGRSeg
from cgrseg.training.averaging import AveragedWeights
from cgrseg.training.groups import parameter_groups
from cgrseg.training.losses import SegmentationLoss, pixel_accuracy
from cgrseg.training.schedule import rate_factor


def step_seed(seed: int, iteration: int, micro_step: int, rank: int) -> int:
    """Seed of the random numbers of one batch: same arguments, same dropout.

    Args:
        seed: of the run.
        iteration: optimiser steps done before.
        micro_step: batch within the iteration (gradient accumulation).
        rank: process.

    Returns:
        An integer below 2**63, well mixed so that neighbours share nothing.
    """
    packed = struct.pack("<4q", seed, iteration, micro_step, rank)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def fused_optimizer(config: Config, device: str) -> bool:
    """Whether all parameters are stepped in one operation, equal up to rounding.

    Not in float64, which is for checks against PyTorch's plain loop; nor where gradients of
    mixed precision are clipped, because the fused step unscales them itself, after the
    clipping, and Lightning refuses the two together.
    """
    mixed = config.train.precision in ("fp16", "bf16")
    clipped = mixed and config.optimizer.clip_norm is not None
    return device in ("cpu", "cuda") and config.train.precision != "fp64" and not clipped


class TrainingModule(lightning.LightningModule):
    """One network under training.

    Args:
        model: the network; its parameters carry the published names.
        config: the run.
        num_classes: classes of the dataset.
        start_iteration: optimiser steps that an earlier part of the run has done.

    Attributes:
        iteration: optimiser steps done in all.
        last_loss: of the last batch, on the device.
        recent: (iteration, dataset indices) of the last batches, to name the files of one
            that went wrong.
    """

    def __init__(
        self, model: CGRSeg, config: Config, num_classes: int, start_iteration: int = 0
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.config = config
        self.iteration = start_iteration
        self.loss = SegmentationLoss(config.loss, num_classes, config.data.ignore_index)
        self.recent: deque[tuple[int, list[int]]] = deque(
            maxlen=(config.train.log_interval + 2) * config.train.accumulate
        )
        self.micro_step = 0
        self.last_loss: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        # Kept on the device, so that looking for it does not make the device wait at every
        # step; no buffer, because those are overwritten by the first process's.
        self._first_bad: Tensor | None = None
        decay = config.train.ema_decay
        self.averaged = None if decay is None else AveragedWeights(model, decay)
        forward: Callable[..., Any] = (
            model.forward_with_initial if config.loss.initial_weight > 0 else model.forward
        )
        self._network = torch.compile(forward) if config.train.compile else forward

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that evaluations and published checkpoints use."""
        return self.model if self.averaged is None else self.averaged.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the published groups, as one operation where PyTorch has it."""
        settings = self.config.optimizer
        return torch.optim.AdamW(
            parameter_groups(self.model, settings),
            lr=settings.lr,
            betas=settings.betas,
            # None, not False: that would also switch off PyTorch's choice of the next best.
            fused=fused_optimizer(self.config, self.device.type) or None,
        )

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move image and label; the bookkeeping (position, index) stays on the CPU."""
        image = batch["image"].to(device, non_blocking=True)
        if self.config.train.channels_last:
            image = image.to(memory_format=torch.channels_last)
        return {**batch, "image": image, "label": batch["label"].to(device, non_blocking=True)}

    def on_fit_start(self) -> None:
        """Put what Lightning does not know of onto the device."""
        if self.averaged is not None:
            self.averaged.module.to(self.device, next(self.model.parameters()).dtype)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Set the rate of this iteration and seed its randomness."""
        self.micro_step = batch_idx % self.config.train.accumulate
        factor = rate_factor(self.iteration, self.config.schedule)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["base_lr"] * factor
        torch.manual_seed(
            step_seed(self.config.train.seed, self.iteration, self.micro_step, self.global_rank)
        )
        self.recent.append((self.iteration, [int(index) for index in batch["index"]]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch: image (N, 3, H, W) normalised, label (N, H, W)."""
        image, label = batch["image"], batch["label"]
        output = self._network(image)
        logits, initial = output if isinstance(output, tuple) else (output, None)
        with torch.autocast(logits.device.type, enabled=False):
            terms = self.loss(logits, label, initial)
        self._note(terms)
        if self.logs_next and self.micro_step == self.config.train.accumulate - 1:
            self._sums["acc_seg"] = self._accuracy(logits.detach(), label)
        return terms["loss"]

    def _accuracy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Percent of right pixels; logits that are no numbers have none, and are told of later."""
        if not bool(torch.isfinite(logits).all()):
            return logits.new_full((), float("nan"))
        with torch.no_grad():
            return pixel_accuracy(logits, label, self.config.data.ignore_index)

    @property
    def completes_iteration(self) -> bool:
        """Whether the present batch is the last one of its optimiser step."""
        return self.micro_step == self.config.train.accumulate - 1

    @property
    def logs_next(self) -> bool:
        """Whether the iteration under way will be logged."""
        done = self.iteration + 1
        return done % self.config.train.log_interval == 0 or done == self.config.schedule.max_iters

    def finish_iteration(self) -> None:
        """Count the optimiser step that was just taken, and average the weights."""
        self.iteration += 1
        if self.averaged is not None:
            self.averaged.update(self.model)

    def _note(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        self.last_loss = terms["loss"].detach()
        bad = ~torch.isfinite(terms["loss"].detach())
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=bad.device)
        self._first_bad = torch.where(bad & (self._first_bad < 0), self.iteration, self._first_bad)

    @property
    def first_bad_iteration(self) -> int | None:
        """The first iteration (from 0) of this process whose loss was no number, if any."""
        found = -1 if self._first_bad is None else int(self._first_bad)
        return found if found >= 0 else None

    def is_finite(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether every weight, statistic and moment is a finite number.

        A finite loss can have a gradient that is none; its step spoils them all.
        """
        values = [*self.model.parameters(), *self.model.buffers()]
        values += [value for state in optimizer.state.values() for value in state.values()]
        numbers = [v.detach() for v in values if isinstance(v, Tensor) and v.is_floating_point()]
        largest = nn.utils.get_total_norm(numbers, norm_type=float("inf"))
        return bool(torch.isfinite(largest))

    def take_report(self) -> dict[str, Tensor]:
        """Mean of every loss term since the last call; `acc_seg` of the last batch (percent)."""
        report = {
            name: value if name == "acc_seg" else value / max(1, self._batches)
            for name, value in self._sums.items()
        }
        self._sums, self._batches = {}, 0
        return report
