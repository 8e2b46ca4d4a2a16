"""Semantic and spatial adaptive head (SSA): class prototypes that follow the image.

Paper: SSA-Seg, Ma et al., NeurIPS 2024, arXiv 2405.06525; published file
`models/decode_heads/cgr_head_ssa.py` of github.com/xwmaxwma/SSA-Seg, whose arithmetic and
parameter names are kept.  The initial prediction says where each class is.  The mean features
there move the classifier's weights (semantic prototypes), the mean position features move a
learned position of the class (spatial prototypes).  A logit is 15 times the cosine between a
pixel and the sum of both prototypes.

In training a second set of projections (`gt_...`) makes prototypes from the ground truth, and
with them a guided prediction.  The losses draw the first set towards it
(:mod:`cgrseg.training.ssa_loss`); inference leaves it out.

Legend: N images, M head width, K classes, H x W cells at stride 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.models.pyramid import ReconstructionHead
from cgrseg.variants import Variant

LOGIT_SCALE = 15.0
EPSILON = 1e-12


class SSAOutput(NamedTuple):
    """Outputs that the training losses compare; `guided_...`: from the ground truth.

    Attributes:
        logits: (N, K, H, W), the final prediction.
        initial: (N, K, H, W), the initial prediction.
        guided_logits: (N, K, H, W).
        semantic: (N, K, M), semantic prototypes.
        guided_semantic: (1, K, M), from the means over the batch.
        spatial: (N, K, M), spatial prototypes.
        guided_spatial: (N, K, M).
    """

    logits: Tensor
    initial: Tensor
    guided_logits: Tensor
    semantic: Tensor
    guided_semantic: Tensor
    spatial: Tensor
    guided_spatial: Tensor


def labels_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, H, W) at the nearest pixels of a smaller size: int64 (N, *size)."""
    small = F.interpolate(label.unsqueeze(1).float(), size=tuple(size), mode="nearest")
    return small.squeeze(1).long()


class SSAHead(ReconstructionHead):
    """Semantic and spatial adaptive head.

    Arguments: those of :class:`~cgrseg.models.pyramid.ReconstructionHead`.
    """

    def __init__(
        self, variant: Variant, in_channels: Sequence[int], num_classes: int, dropout: float
    ) -> None:
        super().__init__(variant, in_channels, num_classes, dropout)
        width = variant.channels
        self.get_feat_pos = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.center_pos = nn.Embedding(num_classes, width)
        self.center_content_proj = _projection(width)
        self.gt_center_content_proj = _projection(width)
        self.center_pos_proj = _projection(width)
        self.gt_center_pos_proj = _projection(width)
        self.center_proj = nn.Linear(width, width, bias=False)
        self.gt_center_proj = nn.Linear(width, width, bias=False)
        self.init_classifier()

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Final and initial logits.

        Args:
            features: (N, C_i, H / s, W / s) for strides s of 8, 16, 32.

        Returns:
            Two tensors (N, K, H / 8, W / 8).
        """
        logits, initial, *_ = self._predict(features)
        return logits, initial

    def forward_with_truth(
        self, features: Sequence[Tensor], label: Tensor, ignore_index: int
    ) -> SSAOutput:
        """Outputs for the training losses.

        Args:
            features: as for :meth:`forward`.
            label: (N, H, W) integers at any size; taken at the nearest pixels.
            ignore_index: label value of pixels without a class.
        """
        logits, initial, semantic, spatial, x, position = self._predict(features)
        fixed, learned = self.conv_seg.weight.flatten(1), self.center_pos.weight
        label = labels_at(label, x.shape[2:]).unsqueeze(1)  # (N, 1, H, W)
        classes = torch.arange(len(fixed), device=label.device)[:, None, None]
        inside = ((label == classes) & (label != ignore_index)).flatten(2)
        inside = inside.to(torch.promote_types(x.dtype, torch.float32))
        count = inside.sum(dim=2, keepdim=True)  # (N, K, 1)
        in_batch = count.sum(dim=0, keepdim=True)
        share = (inside / count.clamp(min=1)).to(x.dtype)
        content = (count / in_batch.clamp(min=1) * (share @ _tokens(x))).sum(dim=0, keepdim=True)
        content = torch.where(in_batch > 0, content, fixed.detach())
        guided_semantic = self.gt_center_content_proj(_beside(content, fixed))
        where = torch.where(count > 0, share @ _tokens(position), learned.detach())
        guided_spatial = self.gt_center_pos_proj(_beside(where, learned))
        guided_logits = cosine_logits(
            x + position, self.gt_center_proj(guided_semantic + guided_spatial)
        )
        return SSAOutput(
            logits, initial, guided_logits, semantic, guided_semantic, spatial, guided_spatial
        )

    def _predict(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Both logits, both prototypes, features and position features (N, M, H, W)."""
        x = self.linear_fuse(self.reconstruct(features))
        initial = self.classify(x)
        position = self.get_feat_pos(x)
        probability = initial.softmax(dim=1).flatten(2)  # (N, K, H * W), over classes
        # Divided before the product, whose sums over cells exceed the range of float16.
        means = (probability / (probability.sum(dim=2, keepdim=True) + EPSILON)) @ _tokens(x)
        semantic = self.center_content_proj(_beside(means, self.conv_seg.weight.flatten(1)))
        share = initial.flatten(2).softmax(dim=2)  # over cells
        where = share @ _tokens(position)  # (N, K, M)
        learned = self.center_pos.weight.expand_as(where)
        spatial = self.center_pos_proj(torch.cat([learned, where], dim=2))
        logits = cosine_logits(x + position, self.center_proj(semantic + spatial))
        return logits, initial, semantic, spatial, x, position


def cosine_logits(features: Tensor, prototypes: Tensor) -> Tensor:
    """Scaled cosines of features (N, M, H, W) with prototypes (N, K, M): (N, K, H, W)."""
    unit = F.normalize(features, dim=1, eps=EPSILON)
    prototypes = F.normalize(prototypes, dim=2, eps=EPSILON)
    return LOGIT_SCALE * (prototypes @ unit.flatten(2)).unflatten(2, features.shape[2:])


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * width, width // 2, bias=False),
        nn.ReLU(inplace=True),
        nn.Linear(width // 2, width),
    )


def _tokens(features: Tensor) -> Tensor:
    """(N, M, H, W) to (N, H * W, M)."""
    return features.flatten(2).transpose(1, 2)


def _beside(adapted: Tensor, fixed: Tensor) -> Tensor:
    """Adapted (N, K, M) and fixed (K, M) prototypes: (N, K, 2 * M)."""
    return torch.cat([adapted, fixed.expand_as(adapted)], dim=2)
