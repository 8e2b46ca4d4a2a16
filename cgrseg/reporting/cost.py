"""What a network costs: parameters and operations, part by part.

Two conventions for operations, both as multiply-accumulates ("FLOPs" in the papers
of this field): the published one counts convolutions alone, as mmsegmentation's tool
did; ours adds the matrix products of attention and of the head, which that tool did not
see.

The figures follow from the tables of :mod:`cgrseg.variants` by arithmetic, without PyTorch, so
that `cgrseg info` answers at once.  A test counts the network itself, and gets the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from cgrseg.variants import (
    BACKBONES,
    NETWORK_STRIDE,
    BackboneVariant,
    HeadName,
    Variant,
    variant_sizes,
)

# Attention of stages 3 and 4, and between them: heads, key channels and value channels per head.
_ATTENTION = (8, 32, 128)
_ATTENTION_DOWNSAMPLE = (8, 16, 64)
# Cells per side of the bias tables at strides 32 and 16, by form.
_TABLE_CELLS = {"published": (16, 32), "geometric": (7, 14)}
_TRAINING_ONLY = "guided prototypes (training only)"


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
    head: HeadName
    parts: tuple[PartCost, ...]

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(part.parameters for part in self.parts)

    @property
    def inference_parameters(self) -> int:
        """Numbers that a prediction needs."""
        return sum(part.parameters for part in self.parts if part.name != _TRAINING_ONLY)

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
            "inference_parameters": self.inference_parameters,
            "published_macs": self.published_macs,
            "all_macs": self.all_macs,
        }


class _Cost(NamedTuple):
    """Cost of some layers."""

    parameters: int = 0
    convolution_macs: int = 0
    product_macs: int = 0


def _total(costs: Sequence[_Cost]) -> _Cost:
    return _Cost(*map(sum, zip(*costs, strict=True)))


def network_cost(
    variant: str,
    num_classes: int = 150,
    size: tuple[int, int] = (512, 512),
    *,
    context_blocks: int | None = None,
    channels: int | None = None,
    attention_bias: str = "published",
    in_channels: int = 3,
    head: HeadName = "dpg",
) -> ModelCost:
    """Parameters and operations of every part of a network, for one image.

    Args:
        variant: name in :data:`cgrseg.variants.VARIANTS`.
        num_classes: K.
        size: height, width in pixels, multiples of 32.
        context_blocks: number of RCMs on the pyramid; None: that of the variant.
        channels: M, head width; None: that of the variant.
        attention_bias: "published" or "geometric", see :class:`cgrseg.models.CGRSeg`.
        in_channels: C, number of channels of an image.
        head: "dpg" or "ssa", see :class:`cgrseg.models.CGRSeg`.

    Raises:
        KeyError: there is no such variant or attention bias.
        ValueError: a side that is not a multiple of 32.
    """
    if any(side < NETWORK_STRIDE or side % NETWORK_STRIDE for side in size):
        raise ValueError(f"size: got {size}, expected multiples of {NETWORK_STRIDE}")
    table = variant_sizes(variant, head)
    blocks = table.context_blocks if context_blocks is None else context_blocks
    width = table.channels if channels is None else channels
    parts = {
        **_backbone(BACKBONES[table.backbone], in_channels, size, _TABLE_CELLS[attention_bias]),
        **_head(table, num_classes, size, blocks, width, head),
    }
    rows = tuple(PartCost(name, *cost) for name, cost in parts.items())
    return ModelCost(variant, size, num_classes, blocks, head, rows)


def _backbone(
    backbone: BackboneVariant,
    in_channels: int,
    size: tuple[int, int],
    table_cells: tuple[int, int],
) -> dict[str, _Cost]:
    """Costs of EfficientFormerV2, see :mod:`cgrseg.models.efficientformer_v2`."""
    cells = [_cells(size, stride) for stride in (4, 8, 16, 32)]
    widths, first = backbone.channels, backbone.channels[0]
    parts = {
        "stem": _total(
            [
                _conv(in_channels, first // 2, _cells(size, 2), 9, norm=True),
                _conv(first // 2, first, cells[0], 9, norm=True),
            ]
        )
    }
    for stage, (width, expansions) in enumerate(zip(widths, backbone.expansions, strict=True)):
        stride = 4 << stage
        if stage > 0:
            layers = [_conv(widths[stage - 1], width, cells[stage], 9, norm=True)]
            if stage == 3:
                layers.append(_attention_downsample(widths[2], width, cells, table_cells[1]))
            parts[f"downsampling to stride {stride}"] = _total(layers)
        layers = [_mlp(width, width * expansion, cells[stage]) for expansion in expansions]
        if stage >= 2:
            attention = _attention(width, cells[stage], cells[3], table_cells[0], stage == 2)
            layers += [attention] * backbone.attention_blocks
        parts[f"stage {stage + 1} (stride {stride})"] = _total(layers)
    return parts


def _head(
    table: Variant, num_classes: int, size: tuple[int, int], blocks: int, width: int, head: HeadName
) -> dict[str, _Cost]:
    """Costs of the head, see :class:`cgrseg.models.pyramid.ReconstructionHead`."""
    scales = table.feature_channels
    cells = [_cells(size, stride) for stride in (8, 16, 32)]
    pooled = -(-size[0] // 64) * -(-size[1] // 64)
    own = (_dpg if head == "dpg" else _ssa)(width, num_classes, cells[0])
    return {
        "pyramid context": _total([_rcm(table, sum(scales), pooled)] * blocks or [_Cost()]),
        "calibration per scale": _total(
            [_rcm(table, scale, count) for scale, count in zip(scales, cells, strict=True)]
        ),
        "fusion per scale": _total(
            [
                _conv(scale, width, count, bias=False, norm=True)
                for scale, own in zip(scales, cells, strict=True)
                for count in (own, pooled)
            ]
        ),
        "projections between scales": _total(
            [_conv(width, scale, count) for scale, count in zip(scales[:2], cells[:2], strict=True)]
        ),
        "fusion before the classifier": _conv(
            width, width, cells[0], groups=width, bias=False
        )._replace(parameters=3 * width),
        **own,
    }


def _dpg(width: int, num_classes: int, cells: int) -> dict[str, _Cost]:
    """Costs of classifier and guide, see :mod:`cgrseg.models.dpg_head`."""
    classifier = _conv(width, num_classes, cells)
    guide = [
        _conv(width, 1, num_classes),
        _conv(width, width, 1),
        _Cost(2 * width),  # layer normalization
        _conv(width, width, 1),
    ]
    return {
        "prototype guide": _total(guide),
        "classifier": classifier._replace(convolution_macs=2 * classifier.convolution_macs),
        "class centres": _Cost(product_macs=cells * width * num_classes),
    }


def _ssa(width: int, num_classes: int, cells: int) -> dict[str, _Cost]:
    """Costs of classifier and prototypes, see :mod:`cgrseg.models.ssa_head`."""
    weights = 2 * (2 * width + width) * (width // 2) + width * width  # two projections, then one
    return {
        "position features": _conv(width, width, cells, 9, groups=width),
        "classifier": _conv(width, num_classes, cells),
        "adapted prototypes": _Cost(
            weights + 2 * width + num_classes * width,
            product_macs=num_classes * (weights + 2 * cells * width),
        ),
        _TRAINING_ONLY: _Cost(weights + 2 * width),
        "cosines with the prototypes": _Cost(product_macs=cells * width * num_classes),
    }


def _cells(size: tuple[int, int], stride: int) -> int:
    return (size[0] // stride) * (size[1] // stride)


def _conv(
    in_channels: int,
    out_channels: int,
    cells: int,
    kernel: int = 1,
    *,
    groups: int = 1,
    bias: bool = True,
    norm: bool = False,
) -> _Cost:
    """A convolution with `kernel` weights per channel and `cells` outputs, and its batch norm."""
    weights = in_channels // groups * out_channels * kernel
    return _Cost(weights + out_channels * (bias + 2 * norm), weights * cells)


def _mlp(channels: int, hidden: int, cells: int) -> _Cost:
    """The MLP of a backbone block, and its layer scale."""
    return _total(
        [
            _conv(channels, hidden, cells, norm=True),
            _conv(hidden, hidden, cells, 9, groups=hidden, norm=True),
            _conv(hidden, channels, cells, norm=True),
            _Cost(channels),
        ]
    )


def _attention(channels: int, cells: int, keys: int, table_cells: int, strided: bool) -> _Cost:
    """Attention of a block over `keys` cells, and its layer scale."""
    heads, key_channels, value_channels = _ATTENTION
    values = heads * value_channels
    layers = [
        _conv(channels, heads * key_channels, keys, norm=True),
        _conv(channels, heads * key_channels, keys, norm=True),
        _conv(channels, values, keys, norm=True),
        _conv(values, values, keys, 9, groups=values, norm=True),
        _conv(heads, heads, keys * keys),  # talking heads
        _conv(heads, heads, keys * keys),
        _conv(values, channels, cells, norm=True),
        _Cost(heads * table_cells**2, 0, heads * keys * keys * (key_channels + value_channels)),
        _Cost(channels),
    ]
    if strided:
        layers.append(_conv(channels, channels, keys, 9, groups=channels, norm=True))
    return _total(layers)


def _attention_downsample(
    channels: int, out_channels: int, cells: Sequence[int], table_cells: int
) -> _Cost:
    """Attention between stages 3 and 4: queries at stride 32, keys at stride 16."""
    heads, key_channels, value_channels = _ATTENTION_DOWNSAMPLE
    values, keys, queries = heads * value_channels, cells[2], cells[3]
    return _total(
        [
            _conv(channels, channels, queries, 9, groups=channels),
            _conv(channels, heads * key_channels, queries, norm=True),
            _conv(channels, heads * key_channels, keys, norm=True),
            _conv(channels, values, keys, norm=True),
            _conv(values, values, queries, 9, groups=values, norm=True),
            _conv(values, out_channels, queries, norm=True),
            _Cost(
                heads * table_cells**2, 0, heads * queries * keys * (key_channels + value_channels)
            ),
        ]
    )


def _rcm(table: Variant, channels: int, cells: int) -> _Cost:
    """A rectangular self-calibration module, see :mod:`cgrseg.models.rcm`."""
    hidden = channels * table.mlp_ratio
    return _total(
        [
            _conv(channels, channels, cells, table.square_kernel**2, groups=channels),
            _conv(channels, channels, cells, table.strip_kernel, groups=channels, norm=True),
            _conv(channels, channels, cells, table.strip_kernel, groups=channels),
            _Cost(2 * channels),  # batch norm
            _conv(channels, hidden, cells),
            _conv(hidden, channels, cells),
            _Cost(channels),  # layer scale
        ]
    )
