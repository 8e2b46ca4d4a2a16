"""Dynamic prototype guided head: features gated by the classes predicted in the same image.

Paper: CGRSeg, section 3.4 and figure 5; published files
`mmseg/models/decode_heads/dpg_head.py` and `cgr_head.py`.

Legend: N images, M head width, K classes, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cgrseg.models.pyramid import ReconstructionHead
from cgrseg.variants import Variant


def class_centers(features: Tensor, logits: Tensor) -> Tensor:
    """Mean feature of each class, weighted by where its initial logits are high.

    Args:
        features: (N, M, H, W).
        logits: (N, K, H, W), the initial prediction.

    Returns:
        (N, M, K, 1).
    """
    share = logits.flatten(2).softmax(dim=2)  # (N, K, H * W), over positions
    centers = share @ features.flatten(2).transpose(1, 2)  # (N, K, M)
    return centers.transpose(1, 2).unsqueeze(3)


class DynamicPrototypeGuide(nn.Module):
    """Computes one gate per channel from the class centers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.channel_mul_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.LayerNorm([channels, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )
        nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.conv_mask.bias)  # type: ignore[arg-type]
        last = self.channel_mul_conv[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, centers: Tensor) -> Tensor:
        """Gate `features` (N, M, H, W) by `centers` (N, M, K, 1); same shape as features."""
        weights = self.conv_mask(centers).flatten(2).softmax(dim=2)  # (N, 1, K)
        prototype = (centers.squeeze(3) * weights).sum(dim=2)[:, :, None, None]  # (N, M, 1, 1)
        return features * torch.sigmoid(self.channel_mul_conv(prototype))


class DPGHead(ReconstructionHead):
    """Dynamic prototype guided head.

    Arguments: those of :class:`~cgrseg.models.pyramid.ReconstructionHead`.
    """

    def __init__(
        self, variant: Variant, in_channels: Sequence[int], num_classes: int, dropout: float
    ) -> None:
        super().__init__(variant, in_channels, num_classes, dropout)
        self.lgc = DynamicPrototypeGuide(variant.channels)
        self.init_classifier()

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Final and initial logits.

        Args:
            features: (N, C_i, H / s, W / s) for strides s of 8, 16, 32.

        Returns:
            Two tensors (N, K, H / 8, W / 8): the final logits, and the initial logits that give the
            class centers.
        """
        fused = self.reconstruct(features)
        initial = self.classify(self.linear_fuse(fused))
        centers = class_centers(fused, initial)  # (N, M, K, 1)
        return self.classify(self.lgc(fused, centers) + fused), initial
