"""Which parameter learns how fast, and which one decays.

Origin: the published recipe, resolved by name.  A parameter whose name contains
`head` learns at ten times the rate; that is the decode head, and also the
`talking_head` layers of the backbone's attention, because the rule only looks at
names.  Any other parameter whose name contains `norm` is not decayed.  Norms inside
the head keep their decay, because the first rule that matches wins.

Layer-wise rates (`optimizer.layer_decay`) are ours and off by default.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from cgrseg.config.schema import OptimizerConfig

_BACKBONE_BLOCK = re.compile(r"^backbone\.network\.(\d+)(?:\.(\d+)(?=\.))?")


def multipliers(name: str, config: OptimizerConfig) -> tuple[float, float]:
    """Factors of the rate and of the weight decay for a parameter's full name."""
    if "head" in name:
        return config.head_multiplier, 1.0
    if "norm" in name:
        return 1.0, 0.0
    return 1.0, 1.0


def layer_multipliers(names: list[str], layer_decay: float) -> dict[str, float]:
    """Factor of the rate by depth: `layer_decay` to the power of the layers above.

    Layers are the stem, each block (or downsampling step) of the backbone in its
    order, and everything behind the backbone as one, which gets factor 1.

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
    """Split the trainable parameters of a model for AdamW.

    Parameters that share both factors share a group, so there are three groups in
    the published recipe.  Each holds, besides what AdamW reads, the keys
    `lr_multiplier`, `decay_multiplier`, `base_lr` (full rate of the group) and `names`
    (in the order of `params`).

    Args:
        model: the network, with the published parameter names.
        config: rate, decay and factors.

    Returns:
        Groups in the order in which their first parameter occurs.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    by_depth = (
        layer_multipliers([name for name, _ in named], config.layer_decay)
        if config.layer_decay < 1.0
        else {}
    )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        rate, decay = multipliers(name, config)
        rate *= by_depth.get(name, 1.0)
        group = groups.setdefault(
            (rate, decay),
            {
                "params": [],
                "names": [],
                "lr": config.lr * rate,
                "base_lr": config.lr * rate,
                "weight_decay": config.weight_decay * decay,
                "lr_multiplier": rate,
                "decay_multiplier": decay,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
