"""Pyramid context: a small feature map from all scales, and its fusion into each scale.

Paper: CGRSeg, section 3.3 and figure 2 (pyramid context extraction and spatial
feature reconstruction); published file `mmseg/models/decode_heads/cgr_head.py`.

Legend: N images, C_i channels of scale i, H_i x W_i its cells, C = sum of C_i,
M head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cgrseg.models.layers import ConvNormAct, recomputes
from cgrseg.models.rcm import RectangularSelfCalibrationModule


def pool_pyramid(features: Sequence[Tensor]) -> Tensor:
    """Average-pool every scale to half the size of the smallest, and concatenate the channels.

    Args:
        features: (N, C_i, H_i, W_i), largest map first.

    Returns:
        (N, C, ceil(H / 2), ceil(W / 2)), where H x W is the size of the last map.
    """
    height, width = features[-1].shape[-2:]
    size = ((height + 1) // 2, (width + 1) // 2)
    return torch.cat([F.adaptive_avg_pool2d(feature, size) for feature in features], dim=1)


class PyramidContext(nn.Module):
    """Sequence of RCMs on the pooled pyramid."""

    def __init__(
        self, channels: int, blocks: int, strip_kernel: int, square_kernel: int, mlp_ratio: int
    ) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(
            RectangularSelfCalibrationModule(channels, strip_kernel, square_kernel, mlp_ratio)
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        for block in self.transformer_blocks:
            x = block(x)
        return x


class ContextFusion(nn.Module):
    """Local features gated by the context of their scale."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fuse1 = ConvNormAct(in_channels, out_channels)
        self.fuse2 = ConvNormAct(in_channels, out_channels)

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        """Gate `local` (N, C_i, H, W) by `context` (N, C_i, h, w): (N, M, H, W)."""
        gate = F.hardsigmoid(self.fuse2(context))  # relu6(x + 3) / 6
        local = self.fuse1(local)

        def gated(local: Tensor, gate: Tensor) -> Tensor:
            size = local.shape[-2:]
            return local * F.interpolate(gate, size=size, mode="bilinear", align_corners=False)

        if recomputes(local):  # the enlarged gate is not kept
            return cast(
                Tensor,
                checkpoint(gated, local, gate, use_reentrant=False, preserve_rng_state=False),
            )
        return gated(local, gate)
