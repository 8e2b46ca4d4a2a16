"""Published optimization: parameter groups by name, learning rate by iteration.

Origin: the published recipe.  A parameter whose name contains `head` gets ten times the learning
rate: the decode head, and the `talking_head` layers of the backbone's attention.  Any other
parameter whose name contains `norm` gets no weight decay.  The first matching rule wins, so the
norms of the head keep their decay.  The learning rate decays polynomially (power 1) to 0 over
160,000 iterations; linear warm-up over the first 1,500 iterations, from 1e-6 of the rate,
multiplies the decayed rate.

The rate depends on the iteration alone, so a resumed run continues exactly.  Layer-wise rates
(`optimizer.layer_decay`) and :class:`Muon` (`optimizer.name`) are ours and off by default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cgrseg.config.schema import OptimizerConfig, ScheduleConfig

_RISE, _START = 0.3, 1 / 25  # of one cycle, as PyTorch's OneCycleLR has them
_PER_CLASS = (".conv_seg.", ".center_pos.")  # classifier, and places of classes in the SSA head
_MOMENTUM, _RMS = 0.95, 0.2  # of Muon, as PyTorch has them
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_BACKBONE_BLOCK = re.compile(r"^backbone\.network\.(\d+)(?:\.(\d+)(?=\.))?")


def rate_factor(iteration: int, schedule: ScheduleConfig) -> float:
    """Learning rate at an iteration, as a fraction of the full rate.

    Args:
        iteration: number of optimizer steps already done.
        schedule: length, warm-up, curve and power.

    Returns:
        A factor in [0, 1]; 0 from `schedule.max_iters` on.
    """
    remaining = max(0.0, 1.0 - iteration / schedule.max_iters)
    if schedule.curve == "poly":
        factor = remaining**schedule.power
    elif schedule.curve == "cosine":
        factor = _falling(1.0 - remaining)
    elif 1.0 - remaining < _RISE:
        factor = _START + (1.0 - _START) * (1.0 - _falling((1.0 - remaining) / _RISE))
    else:
        factor = _falling((1.0 - remaining - _RISE) / (1.0 - _RISE))
    if iteration < schedule.warmup_iters:
        missing = (1.0 - iteration / schedule.warmup_iters) * (1.0 - schedule.warmup_ratio)
        factor *= 1.0 - missing
    return float(factor)


def _falling(share: float) -> float:
    """Half a cosine from 1 at 0 to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def multipliers(name: str, config: OptimizerConfig) -> tuple[float, float]:
    """Factors of the learning rate and of the weight decay for a parameter's full name."""
    if "head" in name:
        return config.head_multiplier, 1.0
    if "norm" in name:
        return 1.0, 0.0
    return 1.0, 1.0


def layer_multipliers(names: list[str], layer_decay: float) -> dict[str, float]:
    """Rate factor by depth: `layer_decay` to the power of the number of layers above.

    Layers are the stem, each block (or downsampling step) of the backbone in order, and
    everything behind the backbone as one layer with factor 1.

    Args:
        names: full parameter names in the model's order.
        layer_decay: factor per layer, in (0, 1].
    """
    layer_of: dict[str, tuple[str, ...]] = {}
    for name in names:
        block = _BACKBONE_BLOCK.match(name)
        if block:
            layer_of[name] = tuple(part for part in block.groups() if part is not None)
        else:
            layer_of[name] = ("stem",) if name.startswith("backbone.patch_embed") else ("behind",)
    blocks = [layer for layer in dict.fromkeys(layer_of.values()) if layer[0].isdigit()]
    blocks.sort(key=lambda layer: tuple(int(part) for part in layer))
    order = [("stem",), *blocks, ("behind",)]
    depth = {layer: len(order) - 1 - position for position, layer in enumerate(order)}
    return {name: layer_decay ** depth[layer] for name, layer in layer_of.items()}


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters of a model by rate, decay and optimizer.

    The published recipe makes three groups, in the order of their first parameters.  Beside the
    keys of AdamW, each has `lr_multiplier`, `decay_multiplier`, `base_lr` (full rate of the
    group), `muon` (whether :class:`Muon` steps it) and `names` (in the order of `params`).

    Args:
        model: the network, with the published parameter names.
        config: optimizer, rate, decay and factors.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    by_depth = (
        layer_multipliers([name for name, _ in named], config.layer_decay)
        if config.layer_decay < 1.0
        else {}
    )
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        rate, decay = multipliers(name, config)
        rate *= by_depth.get(name, 1.0)
        muon = config.name == "muon" and is_matrix(name, parameter)
        group = groups.setdefault(
            (rate, decay, muon),
            {
                "params": [],
                "names": [],
                "lr": config.lr * rate,
                "base_lr": config.lr * rate,
                "weight_decay": config.weight_decay * decay,
                "lr_multiplier": rate,
                "decay_multiplier": decay,
                "muon": muon,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon steps a parameter: a linear map of several channels to several channels.

    AdamW keeps depthwise convolutions, norms, biases, scales, attention tables, and weights with
    one row per class.
    """
    return (
        parameter.ndim in (2, 4)
        and min(parameter.shape[:2]) > 1
        and name.endswith("weight")
        and not any(part in name for part in _PER_CLASS)
    )


class Muon(torch.optim.Optimizer):
    """Muon for the groups whose `muon` is true, AdamW for the others.

    Muon (Jordan et al. 2024) replaces the gradient's momentum by the nearest orthogonal matrix, in
    five Newton-Schulz steps.  A convolution's weight counts as a matrix (out, in * height * width).
    The update has a root mean square of about 0.2 (Liu et al. 2025), as AdamW's have: one learning
    rate serves both.

    The arithmetic is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, in the dtype of
    the parameters.  PyTorch's own class multiplies in bfloat16, 21 times as slow on a CPU that
    emulates it, takes 2-D parameters only, and is missing before PyTorch 2.9.

    Args:
        groups: parameter groups as :func:`parameter_groups` makes them.
        adamw: keyword arguments of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any) -> None:
        super().__init__(groups, {})
        others = [group for group in self.param_groups if not group["muon"]]
        self._adamw = torch.optim.AdamW(others, **adamw)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy and a pickle keep: that of the base class, and AdamW."""
        return {**super().__getstate__(), "_adamw": self._adamw}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step all parameters that have gradients; return the value of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # The state of both is one; loading a checkpoint makes new groups and a new state.
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._step_matrix(parameter, group["lr"], group["weight_decay"])
        return loss

    def _step_matrix(self, parameter: Tensor, rate: float, decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        update = gradient.lerp(state["momentum_buffer"], _MOMENTUM).flatten(1)
        scale = _RMS * math.sqrt(max(update.shape))
        parameter.mul_(1 - rate * decay)
        parameter.add_(orthogonal(update).reshape(parameter.shape), alpha=-rate * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Five Newton-Schulz steps: singular vectors of a matrix (m, n), singular values near 1."""
    a, b, c = _NEWTON_SCHULZ
    found = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if matrix.shape[0] > matrix.shape[1] else found
