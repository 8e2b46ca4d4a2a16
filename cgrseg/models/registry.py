"""Building a network by name."""

from __future__ import annotations

from typing import Any

from cgrseg.models.cgrseg import CGRSeg
from cgrseg.models.variants import VARIANTS


def list_models() -> list[str]:
    """Names that :func:`create_model` knows, smallest first."""
    return list(VARIANTS)


def create_model(name: str = "cgrseg_t", num_classes: int = 150, **options: Any) -> CGRSeg:
    """A network with freshly drawn weights.

    Args:
        name: "cgrseg_t", "cgrseg_b" or "cgrseg_l".
        num_classes: K, classes to tell apart.
        **options: what :class:`cgrseg.models.CGRSeg` takes: `context_blocks`, `channels`
            (head width), `dropout`, `drop_path`, `freeze_norm`,
            `freeze_backbone`, `attention_bias`, `classes`, `palette`, `preprocessing`.

    Returns:
        A module in training mode, from float (N, 3, H, W), H and W multiples of 32, to
        logits (N, num_classes, H / 8, W / 8).

    Raises:
        ValueError: for a name that does not exist (those that do are listed).
    """
    return CGRSeg(name, num_classes, **options)
