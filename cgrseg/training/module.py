"""The network under training: its construction, the training step, the averaged weights.

:mod:`~cgrseg.training.optimizer` and :mod:`~cgrseg.training.losses` hold the published recipe;
this module applies it and counts iterations (optimizer steps of the whole run).

Lightning stores no random state, so nothing relies on it.  The generators are seeded before every
batch from (seed, iteration, batch within the iteration, rank): dropout and stochastic depth are
the same after a resume.
"""

from __future__ import annotations

import copy
import hashlib
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from cgrseg.config.schema import Config
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.models import CGRSeg, create_model
from cgrseg.training.distillation import Teacher
from cgrseg.training.losses import SegmentationLoss, pixel_accuracy
from cgrseg.training.optimizer import Muon, parameter_groups, rate_factor
from cgrseg.training.ssa_loss import SSALoss


def build_model(config: Config, spec: DatasetSpec) -> CGRSeg:
    """Build the network of a run, with random weights.

    Args:
        config: config of the run.
        spec: classes and palette.
    """
    settings = config.model
    model = create_model(
        settings.name,
        spec.num_classes,
        context_blocks=settings.context_blocks,
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        freeze_norm=settings.freeze_norm,
        freeze_backbone=settings.freeze_backbone,
        attention_bias=settings.attention_bias,
        head=settings.head,
        classes=spec.classes,
        palette=spec.palette,
        preprocessing=config.preprocessing.model_dump(mode="json"),
        in_channels=len(config.data.channels.names or "rgb"),
    )
    weights = config.loss.ssa
    if settings.head == "ssa" and not (weights.guided_weight or weights.dice_weight):
        for name, parameter in model.decode_head.named_parameters():
            if name.startswith("gt_"):  # no loss reads it: several processes wait for gradients
                parameter.requires_grad_(False)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class AveragedWeights:
    """Average of a network's weights over the iterations.

    PyTorch's `AveragedModel` counts its updates on the device and reads the count twice per
    update, so the CPU waits for the GPU in each iteration.  This class counts on the CPU.

    Args:
        model: the network under training; the average starts as a copy of it.
        decay: fraction of the old average that an update of the exponential moving average (EMA)
            keeps, in 0..1; None: the plain mean of all updates (SWA, Izmailov et al. 2018).
        warmup: keep at most (1 + n) / (10 + n) at update n.

    Attributes:
        module: the averaged network.  The plain mean averages its running statistics as well; with
            the EMA its buffers are those of the network under training.
        updates: number of updates.
    """

    def __init__(self, model: nn.Module, decay: float | None, warmup: bool = False) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._warmup = warmup

    def update(self, model: nn.Module) -> None:
        """Add the weights after an iteration; the first update copies them."""
        averaged, copied = self._split(self.module)
        present, latest = self._split(model)
        n = self.updates
        decay = n / (1 + n) if self._decay is None else self._decay
        if self._warmup:
            decay = min(decay, (1 + n) / (10 + n))
        with torch.no_grad():
            if n:
                torch._foreach_lerp_(averaged, present, 1 - decay)
            else:
                torch._foreach_copy_(averaged, present)
            torch._foreach_copy_(copied, latest)
        self.updates += 1

    def _split(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of a network that are averaged, and those that are copied."""
        averaged: list[Tensor] = list(model.parameters())
        copied: list[Tensor] = []
        for buffer in model.buffers():
            mean = self._decay is None and buffer.is_floating_point()
            (averaged if mean else copied).append(buffer)
        return averaged, copied


def step_seed(seed: int, iteration: int, micro_step: int, rank: int) -> int:
    """Seed of the random numbers of one batch, below 2**63.

    Args:
        seed: seed of the run.
        iteration: number of optimizer steps done before.
        micro_step: batch within the iteration (gradient accumulation).
        rank: rank of the process.
    """
    packed = struct.pack("<4q", seed, iteration, micro_step, rank)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def fused_optimizer(config: Config, device: str) -> bool:
    """Whether AdamW updates all parameters in one operation, equal up to rounding.

    Not in float64, which is for checks against PyTorch's plain loop; nor where gradients of
    mixed precision are clipped: the fused step unscales them after the clipping, so Lightning
    refuses the combination.
    """
    mixed = config.train.precision in ("fp16", "bf16")
    clipped = mixed and config.optimizer.clip_norm is not None
    return device in ("cpu", "cuda") and config.train.precision != "fp64" and not clipped


class TrainingModule(lightning.LightningModule):
    """A network under training.

    Args:
        model: the network; its parameters have the published names.
        config: config of the run.
        num_classes: number of classes of the dataset.
        start_iteration: number of optimizer steps of an earlier part of the run.
        teacher: a network whose predictions are learned too.

    Attributes:
        iteration: number of optimizer steps done in all parts of the run.
        last_loss: loss of the last batch, on the device.
        recent: (iteration, dataset indices) of the last batches, to name the files of a batch
            with a non-finite loss.
    """

    def __init__(
        self,
        model: CGRSeg,
        config: Config,
        num_classes: int,
        start_iteration: int = 0,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.config = config
        self.iteration = start_iteration
        self.loss: SSALoss | SegmentationLoss = (
            SSALoss if model.head == "ssa" else SegmentationLoss
        )(config.loss, num_classes, config.data.ignore_index)
        self.recent: deque[tuple[int, list[int]]] = deque(
            maxlen=(config.train.log_interval + 2) * config.train.accumulate
        )
        self.micro_step = 0
        self.last_loss: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        # On the device, so that no step waits for the GPU; not a buffer, because the first
        # process overwrites those of the others.
        self._first_bad: Tensor | None = None
        train, end = config.train, config.schedule.max_iters
        self.averaged = None
        if train.ema_decay is not None or train.average_last > 0:
            self.averaged = AveragedWeights(model, train.ema_decay, train.ema_warmup)
        # The first iteration whose weights enter the average.
        self.first_averaged = min(end, 1 + round((1 - (train.average_last or 1)) * end))
        forward: Callable[..., Any] = model.forward
        if model.head == "ssa":
            forward = model.forward_with_truth
        elif config.loss.initial_weight > 0:
            forward = model.forward_with_initial
        self.teacher = teacher
        self._features: list[Tensor] = []
        if teacher is not None and config.loss.distill_features > 0:
            # A function, because copies of the network for an evaluation copy its hooks.
            def keep(_backbone: nn.Module, _given: Any, found: list[Tensor]) -> None:
                self._features = found[1:]  # without stride 4, which the head does not read

            model.backbone.register_forward_hook(keep)
        self._network = torch.compile(forward) if config.train.compile else forward

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that evaluations and checkpoints use: the averaged one, if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or Muon on the published parameter groups, fused where PyTorch supports it."""
        settings = self.config.optimizer
        kind = Muon if settings.name == "muon" else torch.optim.AdamW
        return kind(
            parameter_groups(self.model, settings),
            lr=settings.lr,
            betas=settings.betas,
            # None, not False: False would also disable the foreach implementation.
            fused=fused_optimizer(self.config, self.device.type) or None,
        )

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move image and label to the device; position and index stay on the CPU."""
        image = batch["image"].to(device, non_blocking=True)
        if self.config.train.channels_last:
            image = image.to(memory_format=torch.channels_last)
        return {**batch, "image": image, "label": batch["label"].to(device, non_blocking=True)}

    def on_fit_start(self) -> None:
        """Move the averaged weights, which Lightning does not know, to the device."""
        if self.averaged is not None:
            self.averaged.module.to(self.device, next(self.model.parameters()).dtype)
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Set the learning rate of this iteration and the seed of this batch."""
        self.micro_step = batch_idx % self.config.train.accumulate
        factor = rate_factor(self.iteration, self.config.schedule)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["base_lr"] * factor
        torch.manual_seed(
            step_seed(self.config.train.seed, self.iteration, self.micro_step, self.global_rank)
        )
        indices = [*batch["index"].tolist(), *batch["further"].flatten().tolist()]
        self.recent.append((self.iteration, [index for index in indices if index >= 0]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch: normalized image (N, C, H, W), label (N, H, W)."""
        image, label = batch["image"], batch["label"]
        given: tuple[Any, ...]
        if isinstance(self.loss, SSALoss):
            output = self._network(image, label, self.config.data.ignore_index)
            logits, given = output.logits, (output, label)
        else:
            output = self._network(image)
            logits, initial = output if isinstance(output, tuple) else (output, None)
            given = logits, label, initial
        with torch.autocast(logits.device.type, enabled=False):
            terms = self.loss(*given)
            if self.teacher is not None:
                terms = self.teacher.add_terms(terms, image, logits, self._features)
                self._features = []  # they would keep the whole graph
        self._note(terms)
        if self.logs_next and self.micro_step == self.config.train.accumulate - 1:
            self._sums["acc_seg"] = self._accuracy(logits.detach(), label)
        return terms["loss"]

    def _accuracy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Pixel accuracy in percent; NaN for non-finite logits, which the loss reports later."""
        if not bool(torch.isfinite(logits).all()):
            return logits.new_full((), float("nan"))
        with torch.no_grad():
            return pixel_accuracy(logits, label, self.config.data.ignore_index)

    @property
    def completes_iteration(self) -> bool:
        """Whether this batch is the last one of its optimizer step."""
        return self.micro_step == self.config.train.accumulate - 1

    @property
    def logs_next(self) -> bool:
        """Whether the current iteration will be logged."""
        done = self.iteration + 1
        return done % self.config.train.log_interval == 0 or done == self.config.schedule.max_iters

    def finish_iteration(self) -> None:
        """Count the finished optimizer step, and update the averaged weights."""
        self.iteration += 1
        if self.averaged is not None:
            if self.iteration <= self.first_averaged:
                self.averaged.updates = 0
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
        """The first iteration (from 0) of this process with a non-finite loss, if any."""
        found = -1 if self._first_bad is None else int(self._first_bad)
        return found if found >= 0 else None

    def is_finite(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether all weights, batch norm statistics and optimizer moments are finite.

        A finite loss can have a non-finite gradient, whose step makes the weights non-finite.
        """
        values = [*self.model.parameters(), *self.model.buffers()]
        values += [value for state in optimizer.state.values() for value in state.values()]
        numbers = [v.detach() for v in values if isinstance(v, Tensor) and v.is_floating_point()]
        largest = nn.utils.get_total_norm(numbers, norm_type=float("inf"))
        return bool(torch.isfinite(largest))

    def take_report(self) -> dict[str, Tensor]:
        """Mean of each loss term since the last call; `acc_seg` of the last batch, in percent."""
        report = {
            name: value if name == "acc_seg" else value / max(1, self._batches)
            for name, value in self._sums.items()
        }
        self._sums, self._batches = {}, 0
        return report
