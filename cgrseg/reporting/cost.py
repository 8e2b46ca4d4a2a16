"""What a network costs: parameters and operations, part by part.

Two conventions for operations, both as multiply-accumulates ("FLOPs" in the papers
of this field): the published one counts convolutions alone, as mmsegmentation's tool
did; ours adds the matrix products of attention and of the class centres, which that
tool did not see.  Counting runs on PyTorch's `meta` device: no memory, no arithmetic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cgrseg.models import CGRSeg

_PARTS = (
    ("stem", "backbone.patch_embed"),
    ("stage 1 (stride 4)", "backbone.network.0"),
    ("downsampling to stride 8", "backbone.network.1"),
    ("stage 2 (stride 8)", "backbone.network.2"),
    ("downsampling to stride 16", "backbone.network.3"),
    ("stage 3 (stride 16)", "backbone.network.4"),
    ("downsampling to stride 32", "backbone.network.5"),
    ("stage 4 (stride 32)", "backbone.network.6"),
    ("pyramid context", "decode_head.trans"),
    ("calibration per scale", "decode_head.meta"),
    ("fusion per scale", "decode_head.SIM"),
    ("projections between scales", "decode_head.conv"),
    ("prototype guide", "decode_head.lgc"),
    ("fusion before the classifier", "decode_head.linear_fuse"),
    ("classifier", "decode_head.conv_seg"),
)


@dataclass(frozen=True)
class PartCost:
    """One row of the table."""

    name: str
    parameters: int
    convolution_macs: int
    """Multiply-accumulates of convolutions."""
    product_macs: int
    """Multiply-accumulates of matrix products."""


@dataclass(frozen=True)
class ModelCost:
    """The whole network at one input size, one image."""

    variant: str
    size: tuple[int, int]
    """Height, width in pixels."""
    num_classes: int
    context_blocks: int
    parts: tuple[PartCost, ...]

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(part.parameters for part in self.parts)

    @property
    def published_macs(self) -> int:
        """Operations in the published convention: convolutions alone."""
        return sum(part.convolution_macs for part in self.parts)

    @property
    def all_macs(self) -> int:
        """Operations with matrix products counted."""
        return self.published_macs + sum(part.product_macs for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "parameters": self.parameters,
            "published_macs": self.published_macs,
            "all_macs": self.all_macs,
        }


def model_cost(model: CGRSeg, size: tuple[int, int] = (512, 512)) -> ModelCost:
    """Count parameters and operations of every part.

    Args:
        model: on any device; a copy of its structure is counted, its weights are not read.
        size: height, width in pixels, multiples of 32.

    Raises:
        ValueError: a side that is not a multiple of 32.
    """
    with torch.device("meta"):
        twin = CGRSeg(**model.options()).eval()
        image = torch.empty(1, 3, *size)
    # The counter reports per module; its names begin with the class of the outermost one.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(image)
    counts = {
        name.removeprefix("CGRSeg.").removeprefix("CGRSeg"): {
            "convolution": sum(v for op, v in operations.items() if "convolution" in str(op)) // 2,
            "all": sum(operations.values()) // 2,
        }
        for name, operations in counter.get_flop_counts().items()
    }
    parts = []
    for title, prefix in _PARTS:
        found = [v for name, v in counts.items() if _is_topmost(name, prefix, counts)]
        convolution = sum(v["convolution"] for v in found)
        parts.append(
            PartCost(
                title,
                sum(p.numel() for n, p in twin.named_parameters() if n.startswith(prefix + ".")),
                convolution,
                sum(v["all"] for v in found) - convolution,
            )
        )
    counted = sum(p.convolution_macs + p.product_macs for p in parts)
    rest = counts["Global"]["all"] - counted  # class centres: a function, not a module
    if rest:
        parts.append(PartCost("class centres", 0, 0, rest))
    return ModelCost(model.variant, size, model.num_classes, model.context_blocks, tuple(parts))


def _is_topmost(name: str, prefix: str, counts: dict[str, Any]) -> bool:
    """Whether `name` is the part itself, or one of its members where it has no forward."""
    if name == prefix:
        return True
    # A list of modules is never called itself: its direct members stand for it.
    return (
        prefix not in counts
        and name.startswith(prefix + ".")
        and "." not in name[len(prefix) + 1 :]
    )
