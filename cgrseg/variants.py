"""The networks by name: sizes of backbone and head, and the published cost of each variant.

One table for the networks, the settings, the presets and the reports: adding a variant changes
this file only.  Sources: CGRSeg, table 1 and section 4.1 (arXiv 2405.06228); EfficientFormerV2,
tables 1 and 6 (arXiv 2212.08059); the SSA head: the table and the config files of its published
repository, github.com/xwmaxwma/SSA-Seg (arXiv 2405.06525).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

NETWORK_STRIDE = 32
"""Pixels per cell of the coarsest features: input sides are multiples of it."""


@dataclass(frozen=True)
class BackboneVariant:
    """Sizes of one EfficientFormerV2."""

    channels: tuple[int, int, int, int]
    """Number of channels, per stage."""
    expansions: tuple[tuple[int, ...], ...]
    """Ratio of hidden to outer channels in the MLP of each block, per stage."""
    attention_blocks: int
    """Number of blocks with attention at the end of stages 3 and 4."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks, per stage."""
        return tuple(len(stage) for stage in self.expansions)


BACKBONES: dict[str, BackboneVariant] = {
    "efficientformerv2_s0": BackboneVariant(
        channels=(32, 48, 96, 176),
        expansions=((4,) * 2, (4,) * 2, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
        attention_blocks=2,
    ),
    "efficientformerv2_s1": BackboneVariant(
        channels=(32, 48, 120, 224),
        expansions=((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
        attention_blocks=2,
    ),
    "efficientformerv2_s2": BackboneVariant(
        channels=(32, 64, 144, 288),
        expansions=(
            (4,) * 4,
            (4,) * 4,
            (4, 4, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4),
            (4, 4, 3, 3, 3, 3, 4, 4),
        ),
        attention_blocks=4,
    ),
    "efficientformerv2_l": BackboneVariant(
        channels=(40, 80, 192, 384),
        expansions=(
            (4,) * 5,
            (4,) * 5,
            (4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4),
            (4, 4, 4, 3, 3, 3, 3, 4, 4, 4),
        ),
        attention_blocks=6,
    ),
}


@dataclass(frozen=True)
class Variant:
    """Sizes of one CGRSeg, and its published cost."""

    backbone: str
    """Name of the backbone in `BACKBONES`."""
    channels: int
    """Number of channels of the head."""
    strip_kernel: int
    """Length of the strip convolutions, in head and context blocks."""
    drop_path: float
    """Stochastic depth rate of the last backbone block."""
    imagenet_megabytes: int
    """Size of the file of :func:`~cgrseg.variants.imagenet_weights`."""
    context_blocks: int = 5
    """Number of RCMs on the pyramid. The published config file of B says 6 (19.1 M parameters);
    the published table's 18.1 M is 5."""
    square_kernel: int = 3
    """Side of the local convolution in every RCA."""
    mlp_ratio: int = 2
    """Ratio of hidden to outer channels in every RCM."""
    published_cost: tuple[float, float] | None = None
    """Published parameters in millions and operations in billions (512x512, 150 classes)."""
    ssa_context_blocks: int = 5
    """Number of RCMs on the pyramid with the SSA head, as its published config files have it."""
    ssa_published_cost: tuple[float, float] | None = None
    """Published cost with the SSA head."""

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's features at strides 8, 16 and 32."""
        return BACKBONES[self.backbone].channels[1:]


VARIANTS: dict[str, Variant] = {
    "cgrseg_t": Variant(
        "efficientformerv2_s1",
        128,
        strip_kernel=11,
        drop_path=0.0,
        imagenet_megabytes=25,
        published_cost=(9.4, 4.0),
    ),
    "cgrseg_b": Variant(
        "efficientformerv2_s2",
        256,
        strip_kernel=11,
        drop_path=0.02,
        imagenet_megabytes=51,
        published_cost=(18.1, 7.6),
        ssa_context_blocks=6,
        ssa_published_cost=(19.3, 7.6),
    ),
    "cgrseg_l": Variant(
        "efficientformerv2_l",
        256,
        strip_kernel=9,
        drop_path=0.1,
        imagenet_megabytes=106,
        published_cost=(35.7, 14.9),
        ssa_published_cost=(35.8, 14.8),
    ),
}
"""The variants by name, smallest first."""

if TYPE_CHECKING:
    VariantName = str
else:
    VariantName = Literal[tuple(VARIANTS)]
"""Type of a setting that holds the name of a variant."""

HeadName = Literal["dpg", "ssa"]
"""Type of a setting that holds the name of a head: :mod:`cgrseg.models.dpg_head`, published with
CGRSeg, or :mod:`cgrseg.models.ssa_head`."""


def variant_sizes(name: str, head: HeadName = "dpg") -> Variant:
    """Sizes and published cost of a variant with a head.

    Raises:
        KeyError: there is no such variant.
    """
    table = VARIANTS[name]
    if head == "dpg":
        return table
    return replace(
        table, context_blocks=table.ssa_context_blocks, published_cost=table.ssa_published_cost
    )


IMAGENET = "imagenet"
"""Value of `model.pretrained` for the weights of :func:`imagenet_weights`."""


def imagenet_weights(name: str) -> str:
    """Hub id of the ImageNet weights that training a variant starts from in the paper.

    Raises:
        KeyError: there is no such variant.
    """
    return f"timm/{VARIANTS[name].backbone}.snap_dist_in1k"
