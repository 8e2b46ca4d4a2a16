"""Weights and inputs drawn from names, as `tests/golden/README.md` describes them."""

from __future__ import annotations

import zlib
from math import prod

import numpy as np
import torch
from torch import Tensor, nn


def generator(name: str) -> np.random.Generator:
    """The generator that belongs to a name."""
    return np.random.Generator(np.random.PCG64([2405, zlib.crc32(name.encode())]))


def golden_input(name: str, shape: tuple[int, ...]) -> Tensor:
    """A standard normal input, float32."""
    return torch.from_numpy(generator(name).standard_normal(shape).astype(np.float32))


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    draws = generator(name)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_mean":
        return 0.1 * draws.standard_normal(shape)
    if leaf == "running_var":
        return draws.uniform(0.5, 1.5, shape)
    if leaf == "gamma" or leaf.startswith("layer_scale_"):
        return draws.uniform(0.05, 0.2, shape)
    if leaf == "attention_biases_seg":
        return draws.standard_normal(shape)
    if leaf == "bias":
        return 0.1 * draws.standard_normal(shape)
    if leaf == "weight" and prod(shape) == max(shape):
        return draws.uniform(0.5, 1.5, shape)
    if leaf == "weight":
        return 0.7 * draws.standard_normal(shape) / np.sqrt(prod(shape[1:]))
    return None


def set_golden_weights(model: nn.Module) -> None:
    """Overwrite every floating entry of the state dict by its draw."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                draw = _draw(name, tuple(value.shape))
                if draw is not None:
                    value.copy_(torch.from_numpy(draw.astype(np.float32)))
