"""Pyramid context: a small feature map from all scales, and its fusion into each scale.

Paper: CGRSeg, section 3.3 and figure 2 (pyramid context extraction and spatial
feature reconstruction); published file `mmseg/models/decode_heads/cgr_head.py`.

Legend: N images, C_i channels of scale i, H_i x W_i its cells, C = sum of C_i,
M head width, K classes.
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
from cgrseg.variants import Variant


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


class ReconstructionHead(nn.Module):
    """Part that all segmentation heads share: features at stride 8, and the classifier.

    A head adds its own modules and then calls :meth:`init_classifier`: random weights are drawn
    in this order.

    Args:
        variant: widths and kernel lengths.
        in_channels: C_i at strides 8, 16, 32.
        num_classes: K.
        dropout: probability of channel dropout before each use of the classifier.
    """

    def __init__(
        self, variant: Variant, in_channels: Sequence[int], num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        width = variant.channels
        self.in_channels = list(in_channels)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_fuse = ConvNormAct(width, width, groups=width, relu=True)
        self.trans = PyramidContext(
            sum(in_channels),
            variant.context_blocks,
            variant.strip_kernel,
            variant.square_kernel,
            variant.mlp_ratio,
        )
        self.SIM = nn.ModuleList(ContextFusion(channels, width) for channels in in_channels)
        self.meta = nn.ModuleList(
            RectangularSelfCalibrationModule(
                channels, variant.strip_kernel, variant.square_kernel, variant.mlp_ratio
            )
            for channels in in_channels
        )
        self.conv = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in in_channels[:-1])

    def init_classifier(self) -> None:
        """Draw the classifier's weights."""
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def classify(self, features: Tensor) -> Tensor:
        """(N, M, H/8, W/8) to logits (N, K, H/8, W/8)."""
        return self.conv_seg(self.dropout(features))

    def reconstruct(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C_i, H / s, W / s) for strides s of 8, 16, 32 to (N, M, H / 8, W / 8)."""
        context = self.trans(pool_pyramid(features)).split(self.in_channels, dim=1)
        fused: Tensor | None = None
        for scale in reversed(range(len(features))):  # from stride 32 up to stride 8
            local = features[scale]
            if fused is not None:
                coarser = F.interpolate(
                    fused, size=local.shape[-2:], mode="bilinear", align_corners=False
                )
                local = local + self.conv[scale](coarser)
            fused = self.SIM[scale](self.meta[scale](local), context[scale])  # (N, M, H/s, W/s)
        assert fused is not None  # three scales
        return fused
