"""The three published sizes of CGRSeg, as a table (paper, table 1 and section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Variant:
    """What sets one size apart."""

    backbone: str
    """Name in ``cgrseg.models.efficientformer_v2.BACKBONES``."""
    channels: int
    """Width of the head."""
    strip_kernel: int
    """Length of the strip convolutions, in head and context blocks."""
    drop_path: float
    """Stochastic depth of the last backbone block."""
    context_blocks: int = 5
    """RCMs on the pyramid. The published config file of B says 6 (19.1 M parameters);
    the published table's 18.1 M is 5."""
    square_kernel: int = 3
    """Side of the local convolution in every RCA."""
    mlp_ratio: int = 2
    """Hidden over outer channels in every RCM."""

    def replaced(
        self, context_blocks: int | None, channels: int | None, drop_path: float | None
    ) -> Variant:
        """The same with those values exchanged that are given."""
        given = {"context_blocks": context_blocks, "channels": channels, "drop_path": drop_path}
        return replace(self, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


VARIANTS: dict[str, Variant] = {
    "cgrseg_t": Variant("efficientformerv2_s1", channels=128, strip_kernel=11, drop_path=0.0),
    "cgrseg_b": Variant("efficientformerv2_s2", channels=256, strip_kernel=11, drop_path=0.02),
    "cgrseg_l": Variant("efficientformerv2_l", channels=256, strip_kernel=9, drop_path=0.1),
}


def imagenet_weights(name: str) -> str:
    """Hub id of the ImageNet weights that a variant's backbone was published to start from.

    Raises:
        KeyError: for a variant that does not exist.
    """
    return f"timm/{VARIANTS[name].backbone}.snap_dist_in1k"
