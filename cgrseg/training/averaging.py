"""Averaged weights: what evaluations and published checkpoints use when a run keeps them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """Exponential moving average of a network's parameters.

    PyTorch's `AveragedModel` counts its updates on the device and reads the count at every one
    of them, twice: the processor then waits for the GPU within each iteration.  Here the count
    is a plain number, and nothing waits.

    Args:
        model: the network under training; the average starts as a copy of it.
        decay: share of the old average that each update keeps, in 0..1.

    Attributes:
        module: the averaged network.  Its buffers (running statistics are averages already)
            are those of the network under training.
        updates: how often it was updated.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.updates = 0
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more iteration; the first ones are taken as they are."""
        averaged: list[Tensor] = list(self.module.parameters())
        present: list[Tensor] = list(model.parameters())
        with torch.no_grad():
            if self.updates:
                self._blend(averaged, present, self.updates)
            else:
                torch._foreach_copy_(averaged, present)
            torch._foreach_copy_(list(self.module.buffers()), list(model.buffers()))
        self.updates += 1
