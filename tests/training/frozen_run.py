"""A training in float64 without random numbers, with every norm at its statistics."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cgrseg.devices import find_placement
from cgrseg.models import create_model
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.runner import train_on
from tests.training.small_run import small_config


class FrozenNorm(nn.BatchNorm2d):
    """A batch norm that stays at its statistics whatever the mode of the network."""

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(False)
        return self


def freeze_all_norms(model: nn.Module) -> None:
    """Turn every batch norm of a network into a :class:`FrozenNorm`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = FrozenNorm
            module.train()


def train_frozen(data: Path, work_dir: Path, batch_size: int, iterations: int) -> int:
    """Train at the full rate from the first iteration on, alone or as one of several."""
    config = small_config(
        data,
        work_dir,
        model__context_blocks=5,
        schedule__max_iters=iterations,
        schedule__warmup_iters=0,
        train__batch_size=batch_size,
        train__precision="fp64",
    )
    torch.manual_seed(0)
    model = create_model("cgrseg_t", 3, dropout=0.0, drop_path=0.0)
    freeze_all_norms(model)
    placement = find_placement("cpu")
    train_on(DatasetSource(config, placement), config, placement, model=model)
    return 0
